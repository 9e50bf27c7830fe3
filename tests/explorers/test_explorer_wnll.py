"""The WNLL explorer: every frame holds the ballot that the library takes about the same image."""

import random

import pytest
import torch

from robustviz.data import digits as digits_set
from robustviz.evaluation import wilson
from robustviz.explorers import show_wnll, wnll_explorer, wnll_frames
from robustviz.explorers.networks import usual_networks
from robustviz.explorers.pictures import in_bytes
from robustviz.explorers.wnll import usual_contests
from robustviz.geometry import ballot
from robustviz.tensors import seeded
from robustviz.types import Threat
from tests.explorers.conftest import GRAPHS


@pytest.fixture(scope="session")
def explorer(ballots):
    return show_wnll(ballots)


def attacked(voting, some, state):
    """The network with the graph of a setting, and what the attack makes of all images."""
    network, _ = voting
    k = state["neighbors"]
    settings = {"joint": False, "gradient": "exact", "neighbors": k, "scale_neighbor": min(8, k)}
    network = network.replace(head=network.head.with_settings(**settings)).eval()
    attack = usual_contests()[state["attack"]].at(Threat("linf", state["strength"])).attack
    return network, attack(network, some.images, some.labels, generator=seeded(0))


def test_frames_are_those_of_the_library(ballots, voting, some):
    """Shares, voters, weights, changed pixels and accuracy; at strength 0 the attack changes nothing."""
    for number in random.Random(0).sample(range(len(ballots)), 14):
        state = ballots.state(number)
        network, images = attacked(voting, some, state)
        image = state["image"]
        told = ballot(network, voting[1], images[image], int(some.labels[image]), condition="attacked", count=8)
        place = tuple(ballots.grid[name].index(value) for name, value in state.items())
        found = {name: ballots.arrays[name][place] for name in ("shares", "voters", "weights", "changes")}
        torch.testing.assert_close(found["shares"], told.shares.float(), atol=1e-5, rtol=1e-4)
        count = len(told.weights)
        torch.testing.assert_close(found["weights"][:count], told.weights.float(), atol=1e-5, rtol=1e-4)
        assert (found["weights"][count:] == 0).all()
        voters = found["voters"][:count]
        assert (ballots.arrays["voter_pictures"][voters] == in_bytes(told.voters)).all()
        assert (ballots.arrays["voter_labels"][voters] == told.labels).all()
        assert (found["changes"] == in_bytes(images)[image].short() - in_bytes(some.images)[image].short()).all()
        with torch.no_grad():
            right = (network(images).argmax(1) == some.labels).double().mean()
        assert ballots.arrays["accuracy"][place[:3]] == right
    assert (ballots.arrays["changes"][:, :, 0] == 0).all()


def test_an_attack_around_the_head_wins_where_its_exact_gradient_does_not(ballots):
    strongest = {name: ballots.arrays["accuracy"][a, 1, -1].item() for a, name in enumerate(ballots.grid["attack"])}
    assert strongest["transfer, margin"] < strongest["exact, margin"]


def test_the_network_is_left_as_it_was(voting, some):
    network, source = voting
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mode, state, head = network.training, torch.get_rng_state(), network.head
    wnll_frames(network, source, some, neighbors=(5,), strengths=(0.1,), shown=1)
    assert (network.training, network.head, head.joint, head.neighbors) == (mode, head, True, 15)
    assert (torch.get_rng_state() == state).all()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


def test_rows_and_words_hold_what_the_frames_hold(explorer, ballots):
    known, size = ballots.arrays["voter_labels"], len(ballots.grid["image"])
    for row in random.Random(1).sample(explorer.tables["rows"], 30):
        state = ballots.state(row["k"])
        place = tuple(ballots.grid[name].index(value) for name, value in state.items())
        label = int(ballots.arrays["labels"][state["image"]])
        shares, weights = ballots.arrays["shares"][place], ballots.arrays["weights"][place]
        decision = int(shares.argmax())
        sign = "✓" if decision == label else "✗"
        assert row["said"] == f"{sign} {decision} ({float(shares.max()):.0%})"
        torch.testing.assert_close(torch.tensor(row["p"]), shares, atol=1e-6, rtol=6e-3)
        count = int((weights > 0).sum())
        assert len(row["z"]) == len(row["c"]) == len(row["w"]) == count
        for n, z, said, weight in zip(ballots.arrays["voters"][place], row["z"], row["c"], row["w"], strict=False):
            assert z == size + int(n)
            assert said == f"{'✓' if known[n] == label else '✗'} {int(known[n])}"
            assert weight.endswith("%")
        against = float(sum(w for n, w in zip(ballots.arrays["voters"][place], weights, strict=True)
                            if known[n] != label))  # fmt: skip
        words = explorer.describe(state)
        assert f"K = {state['neighbors']}, attack by {state['attack']}, strength {state['strength']}" in words
        assert f"attacked {row['said']}; the {count} heaviest voters give {against:.0%} to other classes" in words


def test_curves_have_wilsons_interval(explorer, ballots):
    for row in explorer.tables["curves"]:
        share = ballots.arrays["accuracy"][ballots.grid["attack"].index(row["a"]), row["g"], row["s"]].item()
        low, high = wilson(share, 20)
        assert [row["low"], row["y"], row["high"]] == pytest.approx([100 * low, 100 * share, 100 * high], rel=6e-3)


def test_strips_lead_to_the_changes(explorer, ballots):
    size = len(ballots.grid["image"])
    for row in explorer.tables["strips"]:
        rest, image = divmod(row["g"], size)
        a, g = divmod(rest, len(GRAPHS))
        levels = torch.from_numpy(explorer.album.levels(row["z"]).astype(int))
        assert (levels == ballots.arrays["pictures"][image] + ballots.arrays["changes"][a, g, :, image]).all()


def test_a_still_twin_shows_the_pictures_of_its_setting(explorer, tmp_path):
    state = {"strength": 0.2, "image": 2, "attack": "transfer, margin"}
    drawn = explorer.still(tmp_path / "wnll.svg", state).decode()
    row = explorer.tables["rows"][explorer.frames.number(explorer.setting(state))]
    clean = explorer.tables["rows"][explorer.frames.number(explorer.setting(state | {"strength": 0.0}))]
    assert drawn.count("<image") == 2 + len(row["z"]) + len(clean["z"])
    assert row["said"] in drawn
    assert clean["said"] in drawn
    assert len(explorer.still(None, state)) <= 40_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbors": (0,)}, "neighbors must be from 1 to 999, got 0"),
        ({"neighbors": (1000,)}, "neighbors must be from 1 to 999, got 1000"),
        ({"neighbors": ()}, "got no neighbors"),
        ({"shown": 0}, "got no images"),
        ({"budget": 100}, "at most 100, got 4 attacks x 4 neighbors x 9 strengths x 20 images = 2,880"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(voting, some, settings, message):
    with pytest.raises(ValueError, match=message):
        wnll_frames(*voting, some, **settings)


def test_other_networks_and_sources_are_refused(voting, some):
    with pytest.raises(ValueError, match="network must have a WNLLHead, got Linear"):
        wnll_frames(usual_networks("digits")["standard"], voting[1], some)
    with pytest.raises(ValueError, match="source must be what the template was drawn from"):
        wnll_frames(voting[0], digits_set("test"), some)
    with pytest.raises(ValueError, match="source and images must be given with a network"):
        wnll_explorer(voting[0])


@pytest.mark.parametrize("width", [1200, 760, 360])
def test_layouts_are_vega_lite(explorer, width):
    explorer.draw(width).to_dict(validate=True)
