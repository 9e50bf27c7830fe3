import copy
import csv
import inspect
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import against, bounded, carlini_wagner, fgsm, ifgsm, pgd, random_noise, soft_mask, transfer
from robustviz.data import digits as digits_data
from robustviz.defenses.tvm import TVM
from robustviz.evaluation import RobustnessTable, evaluate, sweep, wilson
from robustviz.evaluation.suites import standard_ensemble
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)
ROOT = Path(__file__).parents[2]


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
    assert THREE.accuracies() == {"clean": 0.75, "a": 0.375, "b": 1.0}
    assert THREE.accuracy("a") == 0.375
    assert THREE.worst_case() == 0.25
    assert THREE.correct[1].tolist() == [[True, True, False, False], [True, False, False, False]]
    assert THREE.spread("clean") == 0
    assert THREE.spread("a") == pytest.approx(torch.tensor([0.5, 0.25]).std().item())
    assert decisions([[[0, 1, 2, 1]]]).spread("clean") == 0  # and not NaN


def test_within_counts_long_perturbations_as_failures_of_the_attacker():
    lengths = [[0.0] * 4, [0.1, 0.2, 0.3, 0.4]]
    once = decisions([[[0, 1, 2, 1]], [[1, 1, 0, 1]]], distances=lengths)
    assert once.accuracy("a", within=1.0) == 0.25
    assert once.accuracy("a", within=0.3) == once.accuracy("a", within=0.35) == 0.5
    assert once.accuracy("a", within=0.25) == 0.75
    assert once.accuracy("a", within=0.0) == 1
    assert once.accuracies(within=0.25) == {"clean": 0.75, "a": 0.75}
    for table in (THREE, replace(once, settings={"survivors_only": True})):
        with pytest.raises(ValueError, match=r"within=0\.3 needs the length of every attack"):
            table.accuracy("a", within=0.3)


def test_a_targeted_attack_is_not_handed_the_true_labels(digits, digits_net):
    few = (digits[0][:4], digits[1][:4])
    targeted = partial(pgd, threat=THREAT, targeted=True)
    for attack in (targeted, partial(against, view=soft_mask(1.0), attack=targeted)):
        with pytest.raises(ValueError, match="attack 'at' is targeted at the labels it gets"):
            evaluate(digits_net, *few, {"at": attack})


def test_unknown_condition():
    with pytest.raises(ValueError, match=r"clean, a, b, got 'c'"):
        THREE.accuracy("c")
    with pytest.raises(ValueError, match=r"clean, a, b, got 'c'"):
        THREE.spread("c")


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
    file = table.save(tmp_path / "table.json")
    again = RobustnessTable.load(file)
    for name in ("labels", "predictions", "distances"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert (again.conditions, again.settings) == (table.conditions, json.loads(json.dumps(table.settings)))
    assert (again.draws, again.assembled) == (1, None)
    assert again.to_json() == file.read_text() == table.to_json()


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"conditions": []}', '{"conditions": 1, "labels": "a"}'])
def test_a_foreign_file(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a robustness table"):
        RobustnessTable.load(tmp_path / "other.json")


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
    assert table.accuracies() == {"clean": 0.0, "never": 0.0}


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


def test_a_stochastic_model_draws_again_in_every_repeat_draw_batch_and_condition(digits):
    images, labels = (part[:20] for part in digits)
    model = Stochastic()
    table = evaluate(model, images, labels, {"noise": recorded_noise([])}, batch_size=10, repeats=2, draws=3)
    answers = table.predictions.flatten(0, 1).tolist()
    assert len({tuple(part) for answer in answers for part in (answer[:10], answer[10:])}) == 2 * 2 * 3 * 2
    alone = evaluate(model, images, labels, {}, batch_size=10, repeats=2, draws=3)
    assert torch.equal(alone.predictions[0], table.predictions[0])
    assert evaluate(model, images, labels, {}).predictions.shape == (1, 16, 20)
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
        (digits_net, images, labels, {}, {"batch_size": 0}, "batch_size must be >= 1, got 0"),
        (digits_net, images, labels, {}, {"repeats": 0}, "repeats must be >= 1, got 0"),
        (digits_net, images, labels, {"clean": fgsm}, {}, "must not be called 'clean'"),
        (digits_net, images, labels, {"PGD": partial(pgd, steps=0)}, {}, "steps must be finite and >= 1, got 0"),
        (dependent, images, labels, {"FGSM": fgsm}, {"survivors_only": True}, "survivors_only must.* the whole batch"),
        (dependent, images, labels, {"FGSM": fgsm}, {"fast": True}, "fast must be False .* the whole batch"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(model, bad_images, bad_labels, attacks, **bad_settings)


def leaving(model, images, labels, /, *, by, threat=None, generator=None):
    """An attack that adds a constant and does not look where it ends."""
    return images + by


@pytest.mark.parametrize(
    ("attack", "error", "words"),
    [
        (partial(leaving, by=0.5), ValueError, r"attack 'own': attacked images must lie in \[0, 1\], but reach"),
        (partial(leaving, by=-1e-2), ValueError, r"attack 'own': attacked images must lie in \[0, 1\], but reach"),
        (partial(leaving, by=torch.nan), ValueError, r"attack 'own': attacked images must lie in \[0, 1\]"),
        (lambda *_, generator=None: None, TypeError, "attack 'own': attacked images must be a floating-point tensor"),
        (lambda m, x, y, generator=None: x[:3], ValueError, r"attack 'own': attacked images must have the shape"),
        (lambda m, x, y, generator=None: x.mean(1), ValueError, r"attack 'own': attacked images must have the shape"),
    ],
)
def test_own_attacks_keep_to_the_rules(digits, digits_net, attack, error, words):
    images, labels = (part[:6] for part in digits)
    for settings in ({}, {"fast": True}, {"draws": 2}):
        with pytest.raises(error, match=words):
            evaluate(digits_net, images, labels, {"own": attack}, **settings)


def test_own_attacks_keep_to_their_threat(digits, digits_net):
    images, labels = digits[0][:6] / 2, digits[1][:6]
    attacks = {"own": partial(leaving, by=0.2, threat=Threat("linf", 0.1))}
    with pytest.raises(
        ValueError, match=r"'own': attacked images must lie within linf distance 0\.1 .* one is at 0\.2"
    ):
        evaluate(digits_net, images, labels, attacks)
    around = {"own": partial(against, view=lambda model: model, attack=attacks["own"])}
    with pytest.raises(ValueError, match=r"'own': attacked images must lie within linf distance 0\.1"):
        evaluate(digits_net, images, labels, around)
    for threat in (Threat("linf", 0.2), Threat("l2", 1.7), None):
        evaluate(digits_net, images, labels, {"own": partial(leaving, by=0.2, threat=threat)})


class Says(nn.Module):
    """Returns whatever a function makes of the images."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: {"logits": x.flatten(1)}, "got dict; wrap it"),
        (lambda x: (x.flatten(1),), "got tuple; wrap it"),
        (lambda x: None, "got NoneType; wrap it"),
        (lambda x: x.flatten(1)[:, :1], "with one logit z decides between"),
        (lambda x: x, r"shape \(6, classes\), got \(6, 1, 8, 8\)"),
        (lambda x: x.flatten(1).long(), "floating-point logits, got torch.int64"),
        (lambda x: x.flatten(1)[:, :4], "below the number of classes 4"),
        (lambda x: x.flatten(1) / 0, "its logits contain NaN"),
    ],
)
def test_a_model_must_return_logits(unchecked, digits, answer, words):
    images, labels = (part[:6] for part in digits)
    with pytest.raises(ValueError, match=words):
        evaluate(Says(answer), images, labels, {})


def test_a_model_must_be_a_module(unchecked, digits, digits_net):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        evaluate(lambda images: digits_net(images), digits[0][:6], digits[1][:6], {})


def test_a_model_that_writes_into_its_images_is_given_copies(digits):
    images, labels = (part[:6].clone() for part in digits)
    before = images.clone()
    table = evaluate(
        Says(lambda x: x.sub_(0.5).flatten(1)), images, labels, {"twice": lambda m, x, y, generator=None: x}
    )
    assert torch.equal(images, before)
    assert torch.equal(table.predictions[0], table.predictions[1])


def test_a_model_that_depends_on_the_batch_without_saying_so_is_found(digits):
    images, labels = (part[:6] for part in digits)
    crowd = Says(lambda x: x.flatten(1) - x.flatten(1).mean(0))
    for setting in ("survivors_only", "fast"):
        with pytest.raises(ValueError, match=f"{setting} must be False for a model whose answers depend on the whole"):
            evaluate(crowd, images, labels, {"FGSM": fgsm}, **{setting: True})


# Out again.


def test_rows_are_what_the_methods_give():
    rows = THREE.rows()
    assert [row.condition for row in rows] == ["clean", "a", "b", "worst case per image"]
    assert [row.accuracy for row in rows] == [0.75, 0.375, 1.0, 0.25]
    assert [(row.low, row.high) for row in rows] == [wilson(share, 4) for share in (0.75, 0.375, 1.0, 0.25)]
    assert [row.distance for row in rows] == pytest.approx([0.0, 0.2, 0.0, None])


AWKWARD = ('a, "b"', "50% & more", "x_1\\^2 ~ {$#}")


def awkward():
    labels = torch.tensor([0, 1, 2, 0])
    predictions = torch.stack([labels, labels.roll(1), labels * 0, labels])[:, None]
    return RobustnessTable(("clean", *AWKWARD), labels, predictions, torch.full((4, 4), 1 / 3), {})


def test_to_csv_is_read_back_by_another_reader():
    table = awkward()
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [line["condition"] for line in lines] == ["clean", *AWKWARD, "worst case per image"]
    for line, row in zip(lines, table.rows(), strict=True):
        assert [float(line[key]) for key in ("accuracy", "low", "high")] == [row.accuracy, row.low, row.high]
        assert line["distance"] == ("" if row.distance is None else str(row.distance))
    assert "\r" not in table.to_csv()


def test_to_latex_has_the_structure_of_a_tabular():
    table = awkward()
    lines = table.to_latex().splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[3] == r"\midrule"
    body = [line for line in lines if line.endswith(r" \\")]
    assert len(body) == len(lines) - 5 == 6
    for line in body:
        content = line.removesuffix(r" \\")
        plain = re.sub(r"\\text(backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]", "", content)
        assert len(plain.split(" & ")) == 4
        assert not set(plain.replace(" & ", "")) & set("\\&%$#_{}~^")
    assert body[1].startswith(r"clean & 100.0\% & ")
    assert body[4].startswith(r"x\_1\textbackslash{}\textasciicircum{}2 \textasciitilde{} \{\$\#\} & ")


def test_every_form_has_the_same_figures():
    table = awkward()
    for row, line in zip(table.rows(), table.to_markdown().split("\n")[2:], strict=True):
        assert f" {row.accuracy:.1%} |" in line
        assert f" {row.low:.1%} - {row.high:.1%} |" in line
        assert f"{row.accuracy:.1%}".replace("%", r"\%") in table.to_latex()


# An evaluation that goes on after a stop.

ENSEMBLE = {
    "PGD": partial(pgd, threat=Threat("linf", 0.06), steps=3),
    "CW": partial(bounded, threat=Threat("l2", 0.4), attack=partial(carlini_wagner, steps=5, search_steps=2)),
    "noise": partial(random_noise, threat=Threat("linf", 0.3), steps=3),
}


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    pass


def stopping(after):
    """A callback that stops the evaluation after so many batches."""
    calls = []

    def on_batch(condition, done, total):
        calls.append(condition)
        if len(calls) == after:
            raise Stopped

    return on_batch


def same(table, other):
    return (
        torch.equal(table.predictions, other.predictions)
        and torch.equal(table.distances, other.distances)
        and (table.conditions, table.settings) == (other.conditions, other.settings)
    )


@pytest.mark.parametrize(("survivors_only", "fast"), [(False, False), (True, False), (True, True)])
def test_resumed_after_any_batch_gives_the_same_table(digits, digits_net, tmp_path, survivors_only, fast):
    images, labels = (part[:60] for part in digits)
    settings = {"batch_size": 25, "repeats": 2, "survivors_only": survivors_only, "fast": fast}
    whole = evaluate(digits_net, images, labels, ENSEMBLE, **settings)
    file = tmp_path / "state.json"
    for done in (5, 10, 15, 20):  # of 24 batches: 4 conditions, 2 repeats, 3 batches
        with pytest.raises(Stopped):
            evaluate(digits_net, images, labels, ENSEMBLE, resume=file, on_batch=stopping(5), **settings)
        assert json.loads(file.read_text())["done"] == done
    seen = []
    last = {"resume": file, "on_batch": lambda *call: seen.append(call)}
    assert same(evaluate(digits_net, images, labels, ENSEMBLE, **last, **settings), whole)
    assert seen == [("noise", done, 480) for done in (420, 445, 470, 480)]


def test_a_finished_evaluation_is_read_and_not_made_again(digits, digits_net, tmp_path):
    images, labels = (part[:20] for part in digits)
    calls = []

    def once(model, images, labels, /, *, generator=None):
        calls.append(len(images))
        return images.clone()

    tables = [evaluate(digits_net, images, labels, {"once": once}, resume=tmp_path / "state.json") for _ in range(2)]
    assert same(*tables)
    assert calls == [20]


def standard_worst_case(resume=None, on_batch=None):
    """A table of a shipped network under the standard ensemble, in a small form: 15 batches."""
    model, test_set = checkpoints.load("digits-pgd")[0], digits_data("test").subset(40)
    ensemble = standard_ensemble(Threat("linf", 0.15), 10, steps=5, queries=20)
    settings = {"batch_size": 16, "survivors_only": True, "resume": resume, "on_batch": on_batch}
    return evaluate(model, test_set.images, test_set.labels, ensemble, **settings)


KILLED = """
import os, signal, sys
from robustviz import checkpoints
from robustviz.data import digits as digits_data
from robustviz.evaluation import evaluate
from robustviz.evaluation.suites import standard_ensemble
from robustviz.types import Threat

calls = []

def kill_at_the_eighth(condition, done, total):
    calls.append(condition)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_the_ensemble_and_resumed(tmp_path):
    file = tmp_path / "state.json"
    code = f"{KILLED}\n{inspect.getsource(standard_worst_case)}\nstandard_worst_case(sys.argv[1], kill_at_the_eighth)"
    killed = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads(file.read_text())["done"] == 8
    seen = []
    resumed = standard_worst_case(file, lambda *call: seen.append(call))
    assert len(seen) == 7
    assert same(resumed, standard_worst_case())
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_file_of_another_evaluation_is_refused(digits, digits_net, tmp_path):
    images, labels = (part[:20] for part in digits)
    file = tmp_path / "state.json"
    attacks = {"FGSM": fgsm, "transfer": partial(transfer, source=digits_net, attack=fgsm)}
    settings = {"batch_size": 10}
    evaluate(digits_net, images, labels, attacks, resume=file, **settings)
    other = copy.deepcopy(digits_net)
    other[1].running_mean[0] += 1e-6
    dropout = copy.deepcopy(digits_net)
    dropout[4].p = 0.2
    elsewhere = images.clone()
    elsewhere[3, 0, 0, 0] = 0.5
    for change, words in (
        ({"model": other}, "another model;"),
        ({"model": dropout}, "another model;"),
        ({"images": elsewhere}, "another images;"),
        ({"labels": labels.roll(1)}, "another labels;"),
        ({"attacks": {"FGSM": fgsm, "transfer": partial(transfer, source=other, attack=fgsm)}}, "another model;"),
        ({"attacks": dict(reversed(attacks.items()))}, "another (model and )?order of attacks;"),
        ({"attacks": attacks | {"FGSM": partial(fgsm, threat=THREAT)}}, "another attacks;"),
        ({"batch_size": 5}, "another batch_size;"),
        ({"generator": seeded(1), "survivors_only": True}, "another seed and survivors_only;"),
        ({"fast": True}, "another fast;"),
    ):
        given_ = {"model": digits_net, "images": images, "labels": labels, "attacks": attacks} | settings | change
        model, pictures, classes, made = (given_.pop(name) for name in ("model", "images", "labels", "attacks"))
        with pytest.raises(ValueError, match=f"{file} belongs to an evaluation with {words}.*remove it to start again"):
            evaluate(model, pictures, classes, made, resume=file, **given_)


class Blur(nn.Module):
    """A module whose setting is a dataclass; what else it holds is none, and no two copies hold the same."""

    def __init__(self, threat):
        super().__init__()
        self.threat, self.found = threat, {"last": object()}

    def forward(self, images):
        return images


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (TVM(keep=0.5, steps=5), TVM(keep=1.0, weight=1.0, steps=5)),
        (TVM(keep=0.5, steps=5), nn.Identity()),
        (Blur(THREAT), Blur(Threat("linf", 0.1))),
    ],
)
def test_an_evaluation_of_another_purifier_is_refused(digits, digits_net, tmp_path, first, other):
    images, labels = (part[:20] for part in digits)
    settings = {"batch_size": 10, "resume": tmp_path / "state.json"}
    with pytest.raises(Stopped):
        evaluate(nn.Sequential(first, digits_net), images, labels, {}, on_batch=stopping(1), **settings)
    with pytest.raises(ValueError, match=r"another (draws and )?model;"):
        evaluate(nn.Sequential(other, digits_net), images, labels, {}, **settings)
    evaluate(nn.Sequential(copy.deepcopy(first), digits_net), images, labels, {}, **settings)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"settings": {}}', '{"settings": 3, "done": 1, "differing": []}'])
def test_a_damaged_file_is_refused(digits, digits_net, tmp_path, text):
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"is damaged or not an unfinished evaluation.*remove it to start again"):
        evaluate(digits_net, digits[0][:5], digits[1][:5], {}, resume=file)


def test_decisions_that_do_not_fit_are_refused(digits, digits_net, tmp_path):
    file = tmp_path / "state.json"
    evaluate(digits_net, digits[0][:5], digits[1][:5], {}, resume=file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"distances": [[0.0]]}))
    with pytest.raises(ValueError, match="its decisions do not fit its settings"):
        evaluate(digits_net, digits[0][:5], digits[1][:5], {}, resume=file)


# Attacks on a fast copy.


@pytest.mark.parametrize("fast", [True, "bf16"])
def test_a_fast_copy_leaves_the_decisions_to_the_model(digits, digits_net, fast):
    images, labels = (part[:300] for part in digits)
    models = []

    def watched(model, images, labels, /, *, generator=None):
        models.append(model)
        return pgd(model, images, labels, threat=THREAT, steps=4, early_exit=True, generator=generator)

    table = evaluate(digits_net, images, labels, {"PGD": watched}, fast=fast)
    plain = evaluate(digits_net, images, labels, {"PGD": partial(pgd, threat=THREAT, steps=4, early_exit=True)})
    assert models[0] is not digits_net
    assert all(model in (models[0], digits_net) for model in models)
    assert torch.equal(table.predictions[0], plain.predictions[0])
    assert table.accuracy("PGD") == pytest.approx(plain.accuracy("PGD"), abs=0.0 if fast is True else 0.01)
    assert table.settings["fast"] == fast
    assert table.settings["differing"]["clean"] == 0
    assert table.settings["differing"]["PGD"] <= (2 if fast is True else 30)


def test_what_fools_only_the_copy_is_attacked_again_on_the_model(digits, digits_net, monkeypatch):
    """A copy that is wrong about everything cannot make the model look robust."""

    class Wrong(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return -self.model(images)

    monkeypatch.setattr(import_module("robustviz.evaluation.evaluate"), "folded", lambda model, **_: Wrong(model))
    images, labels = (part[:100] for part in digits)
    attacks = {"PGD": partial(pgd, threat=Threat("linf", 0.06), steps=4, early_exit=True, random_start=False)}
    table, plain = (evaluate(digits_net, images, labels, attacks, fast=fast) for fast in (True, False))
    assert torch.equal(table.predictions, plain.predictions)
    assert torch.equal(table.distances, plain.distances)
    assert 0 < plain.accuracy("PGD") < 1
    assert table.settings["differing"]["PGD"] == 100


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


def test_sweep_refuses_radii_that_have_one_name(digits, digits_net):
    images, labels = (part[:4] for part in digits)
    with pytest.raises(ValueError, match="epsilons must differ in their first six digits"):
        sweep(digits_net, images, labels, fgsm, [0.1, 0.10000001])


def test_sweep_refuses_a_negative_radius(digits, digits_net):
    images, labels = (part[:10] for part in digits)
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
        sweep(digits_net, images, labels, fgsm, [-0.1, 0.1])
