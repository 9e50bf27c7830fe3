"""Attacked images behind a table: the same images again, and what 8 bits leave of them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from robustviz import checkpoints
from robustviz.attacks import deepfool, fgsm, pgd
from robustviz.data import digits
from robustviz.evaluation import evaluate
from robustviz.evaluation.attacked import AttackedImages, attacked_images
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)
ATTACKS = {
    "FGSM": partial(fgsm, threat=THREAT),
    "PGD-3": partial(pgd, threat=THREAT, steps=3),
    "tiny": partial(pgd, threat=Threat("linf", 0.4 / 255), steps=2),
}


@pytest.fixture(scope="module")
def network():
    return checkpoints.load("digits-standard")[0]


@pytest.fixture(scope="module")
def test_set():
    chosen = digits("test").subset(30)
    return replace(chosen, images=(chosen.images * 255).round() / 255)  # as a file holds them


def measured(network, test_set, attacks, **settings):
    return evaluate(network, test_set.images, test_set.labels, attacks, batch_size=12, generator=seeded(4), **settings)


@pytest.mark.parametrize("survivors_only", [False, True])
def test_the_images_are_those_of_the_table(network, test_set, survivors_only):
    table = measured(network, test_set, ATTACKS, survivors_only=survivors_only)
    made = attacked_images(network, test_set.images, test_set.labels, ATTACKS, table, threat=THREAT)
    assert [*made.attacked] == ["FGSM", "PGD-3", "tiny"]
    for condition, found in enumerate(made.attacked.values(), 1):
        wrong = ~table.correct[condition, 0]
        assert torch.equal(found.before, wrong)  # random starts and all
        answers = network(found.levels.float() / 255).argmax(1)
        assert torch.equal(found.after, answers != test_set.labels)
        assert (found.levels.int() - made.clean.int()).abs().max() <= 0.1 * 255 + 1
    if not survivors_only:  # half a gray level is nothing in a file
        assert torch.equal(made.attacked["tiny"].levels, made.clean)


def test_a_file_holds_what_it_says_and_is_read_again(network, test_set, tmp_path):
    table = measured(network, test_set, ATTACKS)
    made = attacked_images(network, test_set.images, test_set.labels, ATTACKS, table, threat=THREAT)
    path = made.save(tmp_path / "new" / "adv.npz")
    with np.load(path) as file:
        assert file["attacked"].shape == (3, 30, 1, 8, 8)
        assert file["attacked"].dtype == np.uint8
        assert [*file["names"]] == [*ATTACKS]
        assert np.array_equal(file["labels"], test_set.labels)
    again = AttackedImages.load(path)
    assert again.summary() == made.summary()
    for name, found in made.attacked.items():
        assert torch.equal(again.attacked[name].levels, found.levels)
        assert torch.equal(again.attacked[name].after, found.after)
    folder = made.save(tmp_path / "pictures")
    assert len([*folder.glob("PGD-3/*.png")]) == 30
    levels = np.asarray(Image.open(folder / "FGSM" / "0007.png"))
    assert np.array_equal(levels, made.attacked["FGSM"].levels[7, 0])


def test_success_needs_the_threat(network, test_set):
    attacks = {"DeepFool": partial(deepfool, norm="linf", steps=20)}
    table = measured(network, test_set, attacks)
    near = Threat("linf", 0.02)
    found = attacked_images(network, test_set.images, test_set.labels, attacks, table, threat=near)
    length = table.distances[1] <= near.epsilon + 1e-5
    assert torch.equal(found.attacked["DeepFool"].before, ~table.correct[1, 0] & length)


@pytest.mark.parametrize("content", [b"no archive", None])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "other.npz"
    if content is None:
        np.savez(path, images=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other.npz does not hold attacked images"):
        AttackedImages.load(path)


def test_other_attacks_are_refused(network, test_set):
    table = measured(network, test_set, ATTACKS)
    with pytest.raises(ValueError, match=r"those of the table, FGSM, PGD-3, tiny, got \['FGSM'\]"):
        attacked_images(network, test_set.images, test_set.labels, {"FGSM": ATTACKS["FGSM"]}, table, threat=THREAT)
