import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from robustviz.attacks import fgsm, ifgsm, pgd, random_noise
from robustviz.evaluation import RobustnessTable, evaluate, sweep, wilson
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


def decisions(predictions, labels=(0, 1, 2, 0), distances=None):
    """A table of given decisions [c][r][n]."""
    predictions = torch.tensor(predictions)
    distances = torch.zeros(len(predictions), len(labels)) if distances is None else torch.tensor(distances)
    conditions = ("clean", "a", "b")[: len(predictions)]
    return RobustnessTable(conditions, torch.tensor(labels), predictions, distances, {})


THREE = decisions(
    [
        [[0, 1, 2, 1], [0, 1, 2, 1]],
        [[0, 1, 0, 1], [0, 0, 0, 1]],
        [[0, 1, 2, 0], [0, 1, 2, 0]],
    ],
    distances=[[0.0] * 4, [0.1, 0.2, 0.3, 0.4], [0.0] * 4],
)


def test_accuracy_by_hand():
    assert THREE.accuracy() == {"clean": 0.75, "a": 0.375, "b": 1.0}
    assert THREE.accuracy("a") == 0.375
    assert THREE.worst_case() == 0.25
    assert THREE.correct[1].tolist() == [[True, True, False, False], [True, False, False, False]]
    assert THREE.spread("clean") == 0
    assert THREE.spread("a") == pytest.approx(torch.tensor([0.5, 0.25]).std().item())
    assert decisions([[[0, 1, 2, 1]]]).spread("clean") == 0  # and not NaN


def test_within_counts_long_perturbations_as_failures_of_the_attacker():
    assert THREE.accuracy("a", within=1.0) == 0.375
    assert THREE.accuracy("a", within=0.3) == THREE.accuracy("a", within=0.35) == 0.625
    assert THREE.accuracy("a", within=0.25) == 0.875
    assert THREE.accuracy("a", within=0.0) == 1
    assert THREE.accuracy(within=0.25) == {"clean": 0.75, "a": 0.875, "b": 1.0}


def test_unknown_condition():
    with pytest.raises(ValueError, match=r"clean, a, b, got 'c'"):
        THREE.accuracy("c")
    with pytest.raises(ValueError, match=r"clean, a, b, got 'c'"):
        THREE.spread("c")


@settings(deadline=None)
@given(st.integers(1, 3000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_that_of_scipy(numbers):
    right, count = numbers
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(right / count, count)
    assert low == pytest.approx(expected.low, rel=1e-5, abs=1e-9)
    assert high == pytest.approx(expected.high, rel=1e-5, abs=1e-9)


def test_repeats_do_not_narrow_the_interval():
    once, twice = decisions([[[0, 1, 2, 1]]]), decisions([[[0, 1, 2, 1]] * 2])
    assert once.interval("clean") == twice.interval("clean") == wilson(0.75, 4)


def test_to_markdown():
    lines = THREE.to_markdown().split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["condition (4 images)", "accuracy", "95 % interval", "median distance"]
    low, high = wilson(0.375, 4)
    assert cells[3] == ["a", "37.5%", f"{low:.1%} - {high:.1%}", "0.200"]
    assert cells[-1][:2] == ["worst case per image", "25.0%"]
    assert len({len(line) for line in lines}) == 1


def test_json_round_trip(tmp_path, digits, digits_net):
    images, labels = (part[:40] for part in digits)
    table = evaluate(digits_net, images, labels, {"PGD": partial(pgd, threat=THREAT)}, repeats=2)
    text = table.to_json(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_text() == text
    again = RobustnessTable.from_json(text)
    for name in ("labels", "predictions", "distances"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert (again.conditions, again.settings) == (table.conditions, json.loads(json.dumps(table.settings)))
    assert again.to_json() == text


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"conditions": []}', '{"conditions": 1, "labels": "a"}'])
def test_foreign_json(text):
    with pytest.raises(ValueError, match="not a robustness table"):
        RobustnessTable.from_json(text)


def test_evaluate_agrees_with_a_plain_loop(digits, digits_net):
    images, labels = (part[:100] for part in digits)
    attack = partial(ifgsm, threat=THREAT, steps=3)
    table = evaluate(digits_net, images, labels, {"IFGSM": attack}, batch_size=32)
    attacked = attack(digits_net, images, labels)
    assert table.predictions[0, 0].tolist() == digits_net(images).argmax(1).tolist()
    assert table.predictions[1, 0].tolist() == digits_net(attacked).argmax(1).tolist()
    assert table.conditions == ("clean", "IFGSM")
    torch.testing.assert_close(table.distances[1], (attacked - images).abs().amax((1, 2, 3)))
    assert table.distances[0].tolist() == [0] * 100
    assert 0.15 <= table.accuracy("IFGSM") + 0.15 < table.accuracy("clean")
    assert table.settings["attacks"]["IFGSM"]["steps"] == 3
    assert table.settings["batch_size"] == 32


def test_distances_are_measured_in_the_norm_of_the_threat(digits, digits_net):
    images, labels = (part[:20] for part in digits)

    made = []

    def half_way(model, images, labels, /, *, generator=None):
        return images + (0.5 - images) / 2

    def around(model, images, labels, /, *, attack, generator=None):
        made.append(attack(model, images, labels, generator=generator))
        return made[-1]

    l2 = partial(pgd, threat=Threat("l2", 0.7), steps=2)
    attacks = {
        "linf": partial(fgsm, threat=THREAT),
        "l2": l2,
        "inside": partial(around, attack=l2),
        "neither": half_way,
    }
    table = evaluate(digits_net, images, labels, attacks)
    assert table.distances[1].max() == pytest.approx(0.15, rel=1e-4)
    assert table.distances[2].max() <= 0.7001
    torch.testing.assert_close(table.distances[3], (made[0] - images).flatten(1).norm(dim=1))
    assert torch.equal(table.distances[3], table.distances[2])
    torch.testing.assert_close(table.distances[4], ((images - 0.5) / 2).flatten(1).norm(dim=1))


def test_an_attack_stays_within_its_own_epsilon(digits, digits_net):
    """Rounding of pixels does not turn a success into a failure."""
    images, labels = digits
    for threat in (Threat("linf", 0.05), Threat("linf", 0.1), THREAT, Threat("l2", 0.5), Threat("l2", 1.1)):
        table = evaluate(digits_net, images, labels, {"FGSM": partial(fgsm, threat=threat)})
        assert table.accuracy("FGSM", within=threat.epsilon) == table.accuracy("FGSM")


def recorded_noise(seen):
    """An attack that changes nothing and remembers what its generator draws."""

    def attack(model, images, labels, /, *, generator=None):
        seen.append((len(images), torch.rand(2, generator=generator).tolist()))
        return images.clone()

    return attack


def test_noise_depends_on_seed_repeat_and_batch_alone(digits, digits_net):
    images, labels = (part[:25] for part in digits)

    def noise(conditions, seed=0, **settings):
        seen = {name: [] for name in conditions}
        attacks = {name: recorded_noise(seen[name]) for name in conditions}
        evaluate(digits_net, images, labels, attacks, batch_size=10, generator=seeded(seed), **settings)
        return seen

    both, single = noise("ab", repeats=2), noise("b")
    assert [count for count, _ in both["a"]] == [10, 10, 5] * 2
    assert both["a"] == both["b"]
    assert both["b"][:3] == single["b"]
    draws = [tuple(draw) for _, draw in both["a"]]
    assert len(set(draws)) == 6
    assert not set(draws) & {tuple(draw) for _, draw in noise("a", seed=1)["a"]}


def test_repeats_differ_and_the_table_repeats(digits, digits_net):
    images, labels = (part[:200] for part in digits)
    attacks = {"noise": partial(random_noise, threat=Threat("linf", 0.5), steps=3)}
    table = evaluate(digits_net, images, labels, attacks, repeats=3)
    assert table.predictions.shape == (2, 3, 200)
    assert not torch.equal(table.predictions[1, 0], table.predictions[1, 1])
    assert torch.equal(table.predictions[0, 0], table.predictions[0, 2])
    again = evaluate(digits_net, images, labels, attacks, repeats=3)
    assert torch.equal(table.predictions, again.predictions)
    assert table.spread("noise") > 0


def test_survivors_only(digits, digits_net):
    images, labels = (part[:200] for part in digits)
    counts = {True: [], False: []}

    def counting(attack, only):
        def counted(model, images, labels, /, *, generator=None):
            counts[only].append(len(images))
            return attack(model, images, labels, generator=generator)

        return counted

    tables = {}
    for only in (True, False):
        attacks = {
            "FGSM": counting(partial(fgsm, threat=Threat("linf", 0.05)), only),
            "IFGSM": counting(partial(ifgsm, threat=Threat("linf", 0.1), steps=3), only),
        }
        tables[only] = evaluate(digits_net, images, labels, attacks, survivors_only=only, batch_size=64)
    assert tables[True].worst_case() == tables[False].worst_case() == tables[True].accuracy("IFGSM")
    assert sum(counts[False]) == 400
    clean, fgsm_left = (round(tables[True].accuracy(name) * 200) for name in ("clean", "FGSM"))
    assert sum(counts[True]) == clean + fgsm_left < 400


def test_nobody_survives(digits, digits_net):
    images, labels = digits[0][:10], (digits_net(digits[0][:10]).argmax(1) + 1) % 10

    def never(model, images, labels, /, *, generator=None):
        raise AssertionError("no image is left")

    table = evaluate(digits_net, images, labels, {"never": never}, survivors_only=True)
    assert table.accuracy() == {"clean": 0.0, "never": 0.0}


def test_on_batch_counts_to_the_end(digits, digits_net):
    images, labels = (part[:25] for part in digits)
    calls = []
    attacks = {"FGSM": partial(fgsm, threat=THREAT)}
    evaluate(digits_net, images, labels, attacks, batch_size=10, repeats=2, on_batch=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == [10, 20, 25, 35, 45, 50, 60, 70, 75, 85, 95, 100]
    assert {total for _, _, total in calls} == {100}
    assert [condition for condition, _, _ in calls] == ["clean"] * 6 + ["FGSM"] * 6


def test_the_model_is_left_as_it_was(digits, digits_net):
    images, labels = (part[:20] for part in digits)
    before = {name: tensor.clone() for name, tensor in digits_net.state_dict().items()}
    state = torch.get_rng_state()
    digits_net.zero_grad()  # other libraries, attacking in other tests, leave gradients behind
    digits_net[1].train()
    digits_net[0].weight.requires_grad_(False)
    try:
        evaluate(digits_net, images, labels, {"PGD": partial(pgd, threat=THREAT)})
        assert [module.training for module in digits_net] == [False, True, False, False, False, False]
        assert [parameter.requires_grad for parameter in digits_net.parameters()] == [False] + [True] * 5
    finally:
        digits_net.eval()
        digits_net[0].weight.requires_grad_(True)
    assert all(parameter.grad is None for parameter in digits_net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits_net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Stochastic(nn.Module):
    stochastic = True
    generator = None

    def forward(self, images):
        draw = self.generator or seeded(0)
        return torch.rand(len(images), 10, generator=draw)


def test_a_stochastic_model_draws_anew_in_every_repeat_and_batch(digits):
    images, labels = (part[:20] for part in digits)
    model = Stochastic()
    table = evaluate(model, images, labels, {}, batch_size=10, repeats=2)
    rows = [tuple(row) for repeat in table.predictions[0].tolist() for row in (repeat[:10], repeat[10:])]
    assert len(set(rows)) == 4
    assert model.generator is None


def test_bad_input(unchecked, digits, digits_net):
    images, labels = (part[:10] for part in digits)
    dependent = nn.Sequential(digits_net)
    dependent.batch_dependent = True
    for model, bad_images, bad_labels, attacks, bad_settings, words in (
        (digits_net, images * 255, labels, {}, {}, "divide by 255"),
        (digits_net, images / 0, labels, {}, {}, "NaN"),
        (digits_net, images, labels[:9], {}, {}, r"shape \(10,\)"),
        (digits_net, images, labels - 10, {}, {}, "class indices from 0"),
        (digits_net, images, labels + 5, {}, {}, "below the number of classes 10"),
        (digits_net, images, labels, {}, {"batch_size": 0}, "batch_size and repeats must be >= 1, got 0 and 1"),
        (digits_net, images, labels, {}, {"repeats": 0}, "batch_size and repeats must be >= 1, got 256 and 0"),
        (digits_net, images, labels, {"clean": fgsm}, {}, "must not be called 'clean'"),
        (digits_net, images, labels, {"PGD": partial(pgd, steps=0)}, {}, "steps must be finite and >= 1, got 0"),
        (dependent, images, labels, {"FGSM": fgsm}, {"survivors_only": True}, "depend on the whole batch"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(model, bad_images, bad_labels, attacks, **bad_settings)


def test_sweep(digits, digits_net):
    images, labels = (part[:100] for part in digits)
    swept = sweep(digits_net, images, labels, partial(ifgsm, steps=5), [0.1, 0.0, 0.05, 0.1], batch_size=50)
    assert swept.epsilons == (0.0, 0.05, 0.1)
    assert len(swept.conditions) == 3
    for epsilon, accuracy in zip(swept.epsilons[1:], swept.accuracies()[1:], strict=True):
        attacked = ifgsm(digits_net, images, labels, steps=5, threat=Threat("linf", epsilon))
        assert accuracy == (digits_net(attacked).argmax(1) == labels).double().mean().item()
    assert swept.accuracies() == sorted(swept.accuracies(), reverse=True)
    assert swept.intervals() == [wilson(accuracy, 100) for accuracy in swept.accuracies()]
    assert swept.table.settings["batch_size"] == 50
    l2 = sweep(digits_net, images, labels, fgsm, [0.3], norm="l2")
    assert l2.table.settings["attacks"][l2.conditions[1]]["threat"] == {"type": "Threat", "norm": "l2", "epsilon": 0.3}


def test_sweep_refuses_a_negative_radius(digits, digits_net):
    images, labels = (part[:10] for part in digits)
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
        sweep(digits_net, images, labels, fgsm, [-0.1, 0.1])
