"""Networks that do not always answer alike: evaluated by shares, whatever their randomness is."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import fgsm, pgd
from robustviz.data import digits as digits_data
from robustviz.evaluation import RobustnessTable, evaluate, usual_draws
from robustviz.evaluation.shares import choices
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


def nothing(model, images, labels, /, *, drawn, generator=None):
    """An attack that does nothing but use up its generator."""
    torch.rand(drawn, generator=generator)
    return images.clone()


IDLE = {f"idle {drawn}": partial(nothing, drawn=drawn) for drawn in (1, 2, 3, 5)}


@pytest.fixture(scope="module")
def tvm():
    return checkpoints.load("digits-tvm")[0]


@pytest.fixture(scope="module")
def wnll():
    return checkpoints.load("digits-wnll")[0]


# The law: attacks that do nothing leave the worst case at the clean share.


def test_idle_attacks_leave_the_clean_share_behind_a_random_purifier(tvm):
    test_set = digits_data("test").subset(50)
    table = evaluate(tvm, test_set.images, test_set.labels, IDLE)
    low, high = table.worst_case_interval()
    assert low <= table.accuracy("clean") <= high
    assert table.worst_case() == pytest.approx(table.accuracy("clean"), abs=0.05)
    lucky = evaluate(tvm, test_set.images, test_set.labels, IDLE, draws=1)
    low, high = lucky.worst_case_interval()
    assert high < table.accuracy("clean")  # what several draws of luck look like


class Crowd(nn.Module):
    """Decides by the images beside it: about a third of its answers change from batch to batch."""

    batch_dependent = True

    def forward(self, images):
        values = images.flatten(1).mean(1)
        signal = values + 0.5 * (values.roll(1) - values.roll(-1))
        return torch.stack([0.5 - signal, signal - 0.5], 1)


def crowd_images(count=60):
    images = torch.rand(count, 1, 4, 4, generator=seeded(5)) * 0.2 + torch.linspace(0.2, 0.6, count).view(-1, 1, 1, 1)
    images = images[torch.randperm(count, generator=seeded(6))]
    return images, (images.flatten(1).mean(1) > 0.5).long()


@pytest.mark.parametrize("name", ["digits-wnll", "crowd"])
def test_idle_attacks_leave_the_clean_share_of_a_joint_head(name, wnll):
    model, (images, labels) = Crowd(), crowd_images()
    if name == "digits-wnll":
        test_set = digits_data("test").subset(60)
        model, images, labels = wnll, test_set.images, test_set.labels
    table = evaluate(model, images, labels, IDLE, batch_size=15)
    assert table.draws == 16
    low, high = table.worst_case_interval()
    assert low <= table.accuracy("clean") <= high
    every = table.correct.all(1).all(0).double().mean().item()
    assert every <= table.worst_case()
    if name == "crowd":
        assert every < low  # right in every batch: what several batches of luck look like


# The oracle: coins.


class Coins(nn.Module):
    """Right on image n under attack a with probability p[a, n]; both numbers are written into the pixels."""

    stochastic = True

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities, self.generator = torch.as_tensor(probabilities), None

    def forward(self, images):
        attack, image = (images[:, 0, 0, :2] * 100).round().long().T
        right = torch.rand(len(images), generator=self.generator or seeded(0)) < self.probabilities[attack, image]
        return nn.functional.one_hot((~right).long(), 2).float()


def write(model, images, labels, /, *, number, generator=None):
    images = images.clone()
    images[:, 0, 0, 0] = number / 100
    return images


def test_coins_through_evaluate_have_the_expectation_of_the_closed_form():
    from test_shares import expected

    probabilities = np.random.default_rng(2).uniform(0, 1, (3, 12))
    images = torch.zeros(12, 1, 2, 2)
    images[:, 0, 0, 1] = torch.arange(12) / 100
    attacks = {f"attack {number}": partial(write, number=number) for number in (1, 2)}
    model, labels = Coins(probabilities), torch.zeros(12, dtype=torch.long)
    found = [
        evaluate(model, images, labels, attacks, draws=4, generator=seeded(repetition)).worst_case()
        for repetition in range(200)
    ]
    closed = expected(np.roll(probabilities, -1, 0), 2).mean()
    assert np.mean(found) == pytest.approx(closed, abs=4 * np.std(found) / np.sqrt(200))
    table = evaluate(model, images, labels, attacks, draws=1000)
    assert table.worst_case() == pytest.approx(probabilities.min(0).mean(), abs=0.02)
    for number, name in enumerate(table.conditions):
        low, high = table.interval(name)
        assert table.accuracy(name) == pytest.approx(probabilities[number].mean(), abs=0.02)
        assert low < table.accuracy(name) < high


# Joint heads.


def shift(model, images, labels, /, *, by, generator=None):
    """Moves the images of class 0 up and those of class 1 down."""
    return (images + by * (1 - 2 * labels).view(-1, 1, 1, 1)).clamp(0, 1)


SHIFTS = {"towards": partial(shift, by=0.1), "away": partial(shift, by=-0.05), "fgsm": partial(fgsm, threat=THREAT)}


def test_the_assembled_set_is_what_a_plain_loop_gives():
    """Chosen image by image on one half of the reshufflings, answered together in batches of the others."""
    model, (images, labels) = Crowd(), crowd_images()
    table = evaluate(model, images, labels, SHIFTS, batch_size=25, repeats=2, draws=6)
    assert table.predictions.shape == (4, 12, 60)
    candidates = table.correct.view(4, 2, 6, 60)[[1, 2, 3, 0]].flatten(0, 1)
    attacked = [SHIFTS[name](model, images, labels) for name in ("towards", "away")]
    batches = torch.arange(60).split(25)
    attacked.append(torch.cat([SHIFTS["fgsm"](model, images[rows], labels[rows]) for rows in batches]))
    choice = {half: chosen // 2 for half, chosen in enumerate(choices(candidates))}
    seen = []

    def watch(module, arguments, output):
        seen.append(arguments[0].clone())

    handle = model.register_forward_hook(watch)
    again = evaluate(model, images, labels, SHIFTS, batch_size=25, repeats=2, draws=6)
    handle.remove()
    assert torch.equal(again.assembled, table.assembled)
    last = [torch.cat(seen[-18:][3 * draw : 3 * draw + 3]) for draw in range(6)]
    for draw, answered in enumerate(last):
        chosen = choice[1 if draw < 3 else 0]
        assembled = torch.stack([*attacked, images])[chosen, torch.arange(60)]
        assert torch.equal(answered.flatten(1).sort(0).values, assembled.flatten(1).sort(0).values)
        assert [len(part) for part in seen[-18:][3 * draw : 3 * draw + 3]] == [25, 25, 10]
    whole = [table.accuracy(name) for name in table.conditions]
    right = (table.assembled == labels).double().mean().item()
    assert table.worst_case() == pytest.approx(min(*whole, right), abs=0.05)
    assert table.worst_case(["clean", "away"]) == pytest.approx(min(whole[0], whole[2]), abs=0.05)


def test_one_draw_of_a_joint_head_is_the_batches_that_were_attacked(wnll):
    test_set = digits_data("test").subset(40)
    images, labels = test_set.images, test_set.labels
    attacks = {"PGD": partial(pgd, threat=THREAT, steps=2)}
    table = evaluate(wnll, images, labels, attacks, batch_size=15, draws=1)
    assert table.assembled is None
    for number, rows in enumerate(torch.arange(40).split(15)):
        attacked = attacks["PGD"](wnll, images[rows], labels[rows], generator=seeded(0, 0, number))
        assert torch.equal(table.predictions[1, 0, rows], wnll(attacked).argmax(1))


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    pass


@pytest.mark.parametrize("stop", [1, 4, 11, 14, 22, 29])
def test_an_evaluation_of_a_joint_head_goes_on_to_the_same_bits(tmp_path, stop):
    model, (images, labels) = Crowd(), crowd_images()
    settings = {"batch_size": 25, "draws": 4}
    whole = evaluate(model, images, labels, SHIFTS, **settings)
    calls, made = [], []

    def on_batch(*call):
        calls.append(call)
        if len(calls) == stop:
            raise Stopped

    def counted(model, images, labels, /, *, attack, generator=None):
        made.append(len(images))
        return attack(model, images, labels, generator=generator)

    attacks = {name: partial(counted, attack=attack) for name, attack in SHIFTS.items()}
    file = tmp_path / "state.json"
    with pytest.raises(Stopped):
        evaluate(model, images, labels, attacks, resume=file, on_batch=on_batch, **settings)
    kept = [path for path in tmp_path.iterdir() if path != file]
    assert len(kept) == len(made)
    again = evaluate(model, images, labels, attacks, resume=file, on_batch=on_batch, **settings)
    assert len(made) == 9
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1] == calls[-1][2] == 60 * (3 + 4 * 4 + 4)
    assert calls[-1][0] == "worst case per image"
    for name in ("predictions", "distances", "assembled"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert list(tmp_path.iterdir()) == [file]
    assert torch.equal(evaluate(model, images, labels, attacks, resume=file, **settings).assembled, whole.assembled)


@pytest.mark.parametrize("damage", ["missing", "garbage", "shape"])
def test_attacked_images_that_are_lost_are_named(tmp_path, damage):
    model, (images, labels) = Crowd(), crowd_images(20)
    file = tmp_path / "state.json"

    def stop(condition, done, total):
        if condition == "towards":
            raise Stopped

    settings = {"draws": 2, "resume": file}
    with pytest.raises(Stopped):
        evaluate(model, images, labels, SHIFTS, on_batch=stop, **settings)
    (kept,) = tmp_path.glob("*.safetensors")
    if damage == "missing":
        kept.unlink()
    elif damage == "garbage":
        kept.write_bytes(b"garbage")
    else:
        from safetensors.torch import save_file

        save_file({"images": images[:3]}, kept)
    with pytest.raises(ValueError, match=rf"{kept.name} must hold the attacked images.*remove both to start again"):
        evaluate(model, images, labels, SHIFTS, **settings)


# What is refused, and what is usual.


def test_a_random_network_is_not_cut_down_to_survivors(digits, tvm):
    images, labels = (part[:4] for part in digits)
    with pytest.raises(ValueError, match="survivors_only must be False with draws=16: one unlucky draw would drop"):
        evaluate(tvm, images, labels, {}, survivors_only=True)
    assert evaluate(tvm, images, labels, {}, survivors_only=True, draws=1).predictions.shape == (1, 1, 4)
    with pytest.raises(ValueError, match="draws must be >= 1, got 0"):
        evaluate(tvm, images, labels, {}, draws=0)


def test_usual_draws(digits, digits_net, tvm, wnll):
    assert [usual_draws(model) for model in (digits_net, tvm, wnll, Crowd())] == [1, 16, 16, 16]
    statistics = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), digits_net).eval()
    assert usual_draws(statistics) == 16
    assert evaluate(statistics, digits[0][:6], digits[1][:6], {}).draws == 16


def test_records_without_draws_have_one(tmp_path, digits, digits_net):
    images, labels = (part[:30] for part in digits)
    table = evaluate(digits_net, images, labels, {"FGSM": partial(fgsm, threat=THREAT)})
    content = json.loads(table.to_json())
    del content["draws"], content["assembled"], content["settings"]["draws"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = RobustnessTable.load(tmp_path / "old.json")
    assert (old.draws, old.assembled) == (1, None)
    assert old.rows() == table.rows()


def test_a_table_of_a_joint_head_comes_back(tmp_path):
    model, (images, labels) = Crowd(), crowd_images(20)
    table = evaluate(model, images, labels, SHIFTS, draws=4)
    again = RobustnessTable.load(table.save(tmp_path / "table.json"))
    assert torch.equal(again.assembled, table.assembled)
    assert again.rows() == table.rows()


# Wherever it is called, and on a GPU.


@pytest.mark.parametrize("name", ["digits-standard", "digits-tvm", "digits-wnll"])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_without_gradients_around_it_is_the_same(name, around, digits):
    model, (images, labels) = checkpoints.load(name)[0], (part[:12] for part in digits)
    settings = {"draws": 1 if name == "digits-standard" else 2, "batch_size": 8}
    attacks = {"PGD": partial(pgd, threat=THREAT, steps=2)}
    expected = evaluate(model, images, labels, attacks, **settings)
    with around():
        found = evaluate(model, images, labels, attacks, **settings)
    assert torch.equal(found.predictions, expected.predictions)
    assert torch.equal(found.distances, expected.distances)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["digits-standard", "digits-pgd-cas", "digits-tvm", "digits-wnll", "crowd"])
def test_an_evaluation_on_a_gpu_finds_what_one_on_the_cpu_finds(name, digits, tmp_path):
    model, (images, labels) = (Crowd(), crowd_images()) if name == "crowd" else (checkpoints.load(name)[0], digits)
    images, labels = images[:40], labels[:40]
    settings = {"batch_size": 15, "draws": 1 if name == "digits-standard" else 4, "resume": tmp_path / "state.json"}
    found = evaluate(model.cuda(), images.cuda(), labels.cuda(), SHIFTS if name == "crowd" else IDLE, **settings)
    settings["resume"] = None
    expected = evaluate(model.cpu(), images, labels, SHIFTS if name == "crowd" else IDLE, **settings)
    for condition in expected.conditions:
        assert found.accuracy(condition) == pytest.approx(expected.accuracy(condition), abs=0.03)
    assert found.worst_case() == pytest.approx(expected.worst_case(), abs=0.03)
    assert found.predictions.device.type == "cpu"
