"""The channel explorer: statistics and accuracies are those of the library, for every attack on CAS."""

from functools import partial

import pytest
import torch

from robustviz.attacks import against, soft_mask
from robustviz.defenses.cas import auxiliary, fine_pgd, joint
from robustviz.explorers.channels import CHANNEL_ATTACKS, channel_frames, show_channels, usual_pair
from robustviz.features import channel_stats, last_stage, snapshot
from robustviz.tensors import seeded
from robustviz.types import Threat

STRENGTHS = (0.0, 0.1, 0.2)


@pytest.fixture(scope="module")
def pair():
    return usual_pair()


@pytest.fixture(scope="module")
def frames(pair, some):
    return channel_frames(pair, some, strengths=STRENGTHS)


@pytest.fixture(scope="module")
def explorer(frames):
    return show_channels(frames)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("final logits", fine_pgd),
        ("joint", partial(fine_pgd, objective=joint())),
        ("auxiliary", partial(fine_pgd, objective=auxiliary())),
        ("soft mask", None),
    ],
)
def test_frames_are_those_of_the_library(frames, pair, some, name, attack):
    threat, network = Threat("linf", 0.2), pair["with CAS"]
    if attack is None:
        attack = partial(against, view=soft_mask(1.0), attack=partial(fine_pgd, threat=threat))
    else:
        attack = partial(attack, threat=threat)
    attacked = attack(network, some.images, some.labels, generator=seeded(0))
    there = snapshot(network, attacked, some.labels, layer=last_stage(network), condition="attacked")
    a = list(CHANNEL_ATTACKS).index(name)
    for place, label in enumerate(frames.grid["label"]):
        stats = channel_stats(there, label=None if place == 0 else int(label))
        torch.testing.assert_close(frames.arrays["magnitude 1"][a, 2, place], stats.magnitude.float())
        torch.testing.assert_close(frames.arrays["frequency 1"][a, 2, place], stats.frequency.float())
    right = (there.predictions == some.labels).double().mean()
    assert frames.arrays["accuracy"][1, a, 2, 0] == right


def test_a_network_without_cas_answers_every_attack_alike(frames):
    accuracy = frames.arrays["accuracy"]
    assert (accuracy[0] == accuracy[0, :1]).all()
    assert not (accuracy[1] == accuracy[1, :1]).all()


def test_the_gap_closes(frames):
    """The attacks that know of the blocks find more than the one on the final logits."""
    final, *others = frames.arrays["accuracy"][1, :, 2, 0].tolist()
    assert min(others) < final


def test_rows_and_words_hold_what_the_frames_hold(explorer, frames):
    size = len(frames.grid["label"])
    for row in explorer.tables["rows"][::7]:
        n, k = frames.about["networks"].index(row["n"]), row["k"]
        frequency = 100 * frames.arrays[f"frequency {n}"].flatten(0, 2)[k]
        order = frames.arrays[f"frequency {n}"][0, 0, k % size].argsort(descending=True, stable=True)
        torch.testing.assert_close(torch.tensor(row["f"]), frequency[order], rtol=6e-3, atol=1e-6)
        assert row["m"] == sorted(row["m"], reverse=True)
        assert sum(row["m"]) == pytest.approx(float(frames.arrays[f"magnitude {n}"].flatten(0, 2)[k].sum()), rel=1e-2)
        share = float(frames.arrays["accuracy"].flatten(1)[n, k])
        assert f"{row['n']} {share:.0%} right" in explorer.captions[k]
    assert explorer.captions[0].startswith("20 images, attack on final logits, strength 0.0: ")
    assert explorer.captions[1].startswith(f"{int(frames.arrays['count'][1])} images of class 0")


def test_bad_settings(pair, some):
    with pytest.raises(ValueError, match="at most 10, got 4 attacks x 3 strengths x 11 classes x 2 networks = 264"):
        channel_frames(pair, some, strengths=STRENGTHS, budget=10)


@pytest.mark.parametrize("width", [1200, 760, 360])
def test_layouts_are_vega_lite(explorer, width):
    explorer.draw(width).to_dict(validate=True)
