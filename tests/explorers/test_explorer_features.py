"""The feature explorer: places, margins, distances and neighbors are those of the library; rows say the same."""

import random
from functools import partial

import pytest
import torch

from robustviz.attacks import pgd
from robustviz.data import digits as digits_set
from robustviz.explorers.features import feature_frames
from robustviz.explorers.features_view import features_explorer, show_features
from robustviz.explorers.frames import Frames
from robustviz.features import snapshot
from robustviz.geometry import distance_ratio, embed, margins
from robustviz.tensors import seeded
from robustviz.types import Threat

STRENGTHS = (0.0, 0.1, 0.2)


@pytest.fixture(scope="module")
def training():
    return digits_set("train").subset(120)


@pytest.fixture(scope="module")
def frames(networks, training, some):
    return feature_frames(networks["standard"], training, some, maps=("PCA",), strengths=STRENGTHS)


@pytest.fixture(scope="module")
def explorer(frames):
    return show_features(frames)


def test_frames_are_those_of_the_library(frames, networks, training, some):
    network = networks["standard"]
    reference = snapshot(network, training.images, training.labels, layer="body", condition="training")
    attack = partial(pgd, steps=10, threat=Threat("linf", 0.1))
    attacked = attack(network, some.images, some.labels, generator=seeded(0, 0))
    there = snapshot(network, attacked, some.labels, layer="body", condition="attacked")
    levels = (255 * attacked.double() + 0.5).floor() - (255 * some.images.double() + 0.5).floor()
    assert (frames.arrays["changes"][1] == levels).all()
    assert (frames.arrays["decisions"][1] == there.predictions).all()
    torch.testing.assert_close(frames.arrays["margins"][1], margins(network, attacked, some.labels))
    torch.testing.assert_close(frames.arrays["distances"][1], distance_ratio(reference, there))
    torch.testing.assert_close(frames.arrays["places"][0, 1], embed(reference, [], method="pca").place(there.values))
    order = torch.cdist(there.values.double(), reference.values.double()).argsort(1)[:, :5]
    near = frames.arrays["neighbors"][1]
    bytes_of = (255 * training.images.double() + 0.5).floor()
    assert (frames.arrays["training_pictures"][near] == bytes_of[order]).all()
    assert (frames.arrays["training_labels"][near] == training.labels[order]).all()


def test_regions_are_what_the_head_decides(explorer, frames):
    """Rectangles cover the map once, and hold the decision of the point in their middle."""
    left, low, right, high = frames.arrays["extent"][0].tolist()
    decided = frames.arrays["regions"][0]
    wide, tall = (right - left) / (decided.shape[1] - 1), (high - low) / (decided.shape[0] - 1)
    regions = explorer.tables["regions"]
    area = sum((row["x2"] - row["x"]) * (row["y2"] - row["y"]) for row in regions)
    assert area == pytest.approx(decided.numel() * wide * tall, rel=1e-2)
    for row in random.Random(0).sample(regions, 20):
        column = round((row["x"] - left) / wide + 0.5)
        line = round(((row["y"] + row["y2"]) / 2 - low) / tall)
        assert row["c"] == str(int(decided[line, column]))


def test_rows_hold_what_the_frames_hold(explorer, frames):
    labels = frames.arrays["labels"]
    for row in explorer.tables["points"]:
        place = frames.arrays["places"][0, row["s"], row["i"]].tolist()
        assert [row["x"], row["y"]] == pytest.approx(place, rel=1e-3, abs=1e-4)
        decision = frames.arrays["decisions"][row["s"], row["i"]]
        assert (row["r"] == "right") == bool(decision == labels[row["i"]])
    for number in range(len(frames)):
        state, words = frames.state(number), explorer.captions[number]
        stage, image = STRENGTHS.index(state["strength"]), state["image"]
        wrong = int((frames.arrays["decisions"][stage] != labels).sum())
        assert words.startswith(f"Image {image}, class {int(labels[image])}, PGD-10, strength {state['strength']}")
        assert f"{wrong} of 20 images are decided wrongly" in words
        assert f"margin {float(frames.arrays['margins'][stage, image]):.2f}"[:9] in words


def test_pictures_of_the_chosen_image_and_its_neighbors(explorer, frames):
    album = explorer.album
    row = explorer.tables["rows"][2 * 20 + 7]
    assert (row["i"], row["x"]) == (7, 0.2)
    near = frames.arrays["neighbors"][2, 7]
    for z, n in zip(row["z"], near.tolist(), strict=True):
        assert (album.levels(z)[0] == frames.arrays["training_pictures"][n].numpy()).all()
    numbers, only = explorer.shown(explorer.frames.number({"map": "PCA", "strength": 0.2, "image": 7}))
    assert set(row["z"]) <= set(numbers)
    assert only == 2
    attacked = album.levels(album.attacked(7))[2]
    assert (attacked == frames.arrays["pictures"][7].numpy() + frames.arrays["changes"][2, 7].numpy()).all()


def test_a_file_holds_everything(frames, explorer, tmp_path):
    again = show_features(Frames.load(frames.save(tmp_path / "features.safetensors"), "features"))
    assert again.captions == explorer.captions
    assert again.tables == explorer.tables


def test_bad_settings(networks, training, some, unchecked):
    with pytest.raises(ValueError, match="maps must be of PCA, UMAP, got 'tsne'"):
        feature_frames(networks["standard"], training, some, maps=("tsne",))
    with pytest.raises(ValueError, match="at most 100, got 1 maps x 21 strengths x 20 images = 420"):
        feature_frames(networks["standard"], training, some, maps=("PCA",), budget=100)
    with pytest.raises(ValueError, match="training and images must be given"):
        features_explorer(networks["standard"])
    with pytest.raises(TypeError, match="network must be one"):
        features_explorer(networks, training, some)


@pytest.mark.parametrize("width", [1200, 760, 360])
def test_layouts_are_vega_lite(explorer, width):
    explorer.draw(width).to_dict(validate=True)
    held = explorer.specification(explorer.start, width, bound=False)["params"]
    assert {"name": "image", "value": 0} in held
