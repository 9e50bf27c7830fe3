"""The attack explorer: its frames are what the library gives, and rows, words and pictures are what the frames hold."""

import random
import time
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from robustviz.attacks import fgsm, pgd, random_noise
from robustviz.data import digits as digits_set
from robustviz.evaluation import wilson
from robustviz.explorers import attack_explorer
from robustviz.explorers.attack import ATTACKS, attack_frames, strengths_around
from robustviz.explorers.attack_view import show_attack
from robustviz.explorers.control import in_levels
from robustviz.explorers.frames import Frames
from robustviz.tensors import seeded
from robustviz.types import Threat


def test_twenty_random_frames_are_those_of_the_library(frames, networks, some, attacks):
    """Changed pixels, decisions, probabilities and losses, computed again from the attack alone."""
    draw = random.Random(0)
    for _ in range(20):
        number, n = draw.randrange(len(frames)), draw.randrange(2)
        state, network = frames.state(number), list(networks.values())[n]
        attack = partial(attacks[state["attack"]], threat=Threat("linf", state["strength"]))
        attacked = attack(network, some.images, some.labels, generator=seeded(0, 0))
        with torch.no_grad():
            logits = network(attacked)
        place = [list(frames.grid[name]).index(state[name]) for name in ("attack", "strength")]
        image, found = state["image"], {name: frames.arrays[name] for name in ("changes", "probabilities", "losses")}
        levels = (255 * attacked[image].double() + 0.5).floor() - (255 * some.images[image].double() + 0.5).floor()
        assert (found["changes"][n, *place, image] == levels).all()
        torch.testing.assert_close(found["probabilities"][n, *place, image], logits.softmax(1)[image])
        losses = found["losses"][n, *place, image]
        torch.testing.assert_close(
            losses[~losses.isnan()][-1], cross_entropy(logits, some.labels, reduction="none")[image]
        )
        assert (~losses.isnan()).sum() == (5 if state["attack"] == "PGD" else 2)
        right = (logits.argmax(1) == some.labels).double().mean()
        assert frames.arrays["accuracies"][n, *place] == right


def test_rows_hold_what_the_frames_hold(explorer, frames):
    rows = explorer.tables["rows"]
    assert len(rows) == 2 * len(frames)
    for row in random.Random(1).sample(rows, 30):
        n, state = frames.about["networks"].index(row["n"]), frames.state(row["k"])
        place = [list(frames.grid[name]).index(value) for name, value in state.items()]
        probabilities = frames.arrays["probabilities"][n, *place]
        assert row["d"] == frames.about["classes"]
        torch.testing.assert_close(torch.tensor(row["p"]), probabilities, atol=1e-6, rtol=6e-3)
        label, decision = int(frames.arrays["labels"][state["image"]]), int(probabilities.argmax())
        sign = "✓" if label == decision else "✗"
        assert row["attacked"] == f"{sign} {decision} ({float(probabilities.max()):.0%})"
        words = explorer.describe(state)
        assert f"class {label}, {state['attack']}, strength {state['strength']:g}" in words
        assert f"{row['n']} {row['clean']}, attacked {row['attacked']}" in words


def test_curves_have_wilsons_interval(explorer, frames):
    for row in explorer.tables["curves"]:
        n, a = frames.about["networks"].index(row["n"]), list(frames.grid["attack"]).index(row["a"])
        share = frames.arrays["accuracies"][n, a, list(frames.grid["strength"]).index(row["x"])].item()
        low, high = wilson(share, 20)
        assert [row["low"], row["y"], row["high"]] == pytest.approx([100 * low, 100 * share, 100 * high], rel=6e-3)


def test_strips_lead_to_the_changes(explorer, frames):
    album = explorer.album
    for row in explorer.tables["strips"]:
        n, (a, image) = frames.about["networks"].index(row["n"]), divmod(row["g"], 6)
        clean = frames.arrays["pictures"][image]
        levels = torch.from_numpy(album.levels(row["z"]).astype(int))
        changes = frames.arrays["changes"][n, a, :, image]
        if row["what"] == "clean":
            assert (levels == clean).all()
        elif row["what"] == "attacked":
            assert (levels == clean + changes).all()
        else:
            assert ((levels > 128) <= (changes > 0)).all()


def test_no_strength_changes_nothing(frames):
    assert (frames.arrays["changes"][:, :, 0] == 0).all()
    assert frames.arrays["changes"].abs().max() <= round(255 * 0.2)
    assert frames.arrays["changes"].dtype == torch.int16


def test_networks_are_left_as_they_were(networks, some):
    before = {name: (network.training, torch.get_rng_state()) for name, network in networks.items()}
    attack_frames(networks, some, attacks={"noise": partial(random_noise, steps=2)}, strengths=(0.0, 0.1), shown=2)
    for name, network in networks.items():
        assert network.training == before[name][0]
        assert (torch.get_rng_state() == before[name][1]).all()
        assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": (0.0, 0.1, 0.1)}, "strengths must be >= 0 and grow, got 0, 0.1, 0.1"),
        ({"strengths": (-0.1, 0.1)}, "strengths must be >= 0 and grow"),
        ({"strengths": ()}, "got no strengths"),
        ({"attacks": {}}, "got no attacks"),
        ({"shown": 0}, "got no images"),
        ({"budget": 50}, "at most 50, got 20 images x 3 attacks x 21 strengths x 2 networks = 2,520"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(networks, some, settings, message):
    with pytest.raises(ValueError, match=message):
        attack_frames(networks, some, **settings)


@pytest.mark.parametrize("bad", [[], {"a": 1}, torch.nn.Linear(1, 1)])
def test_other_things_than_networks_are_refused(bad, some, unchecked):
    with pytest.raises(TypeError, match="networks must"):
        attack_explorer(bad, some)
    with pytest.raises(ValueError, match="at least one network"):
        attack_explorer({}, some)


def test_strengths_are_gray_levels_where_they_are_few():
    eight = strengths_around(Threat("linf", 8 / 255))
    assert in_levels(eight, "linf") == (tuple(range(17)), " of 255")
    digits = strengths_around(Threat("linf", 0.15))
    assert (digits[10], digits[-1], len(digits)) == (0.15, 0.3, 21)
    assert in_levels(digits, "linf")[1] == ""
    assert in_levels(strengths_around(Threat("l2", 0.5)), "l2") == (tuple(round(0.05 * i, 6) for i in range(21)), "")


def test_many_classes_show_the_likeliest(frames):
    classes = [f"class {i}" for i in range(40)]
    wide = {
        name: torch.cat([array, torch.zeros(*array.shape[:-1], 30)], -1).flip(-1) if "probabilities" in name else array
        for name, array in frames.arrays.items()
    }
    rows = show_attack(Frames("attack", frames.grid, wide, {**frames.about, "classes": classes})).tables["rows"]
    assert all(len(row["d"]) == 10 for row in rows)
    assert all(row["attacked"].split(" (")[0][2:] in row["d"] for row in rows)


def test_it_is_quick():
    """A hundred images at 21 strengths in at most 20 CPU seconds: by the usual attacks, on one network."""
    start = time.process_time()
    from robustviz.explorers.networks import usual_networks

    networks = {"standard": usual_networks("digits")["standard"]}
    frames = attack_frames(networks, digits_set("test").subset(100), attacks={"PGD": pgd, "FGSM": fgsm}, shown=100)
    assert len(frames) == 2 * 21 * 100
    assert time.process_time() - start < 20


def test_usual_attacks_take_a_threat():
    assert list(ATTACKS) == ["PGD", "FGSM", "random noise"]
