"""Road signs: what is drawn, that it is the same every time, and that it is kept or drawn again."""

import ast
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import robustviz
from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import SIGNS, load
from robustviz.data.sign_faces import faces
from robustviz.data.signs import scenes
from robustviz.presets import usual_threat
from robustviz.tensors import seeded

LEFT, RIGHT = SIGNS.index("turn left"), SIGNS.index("turn right")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of these tests' own, so that they draw at least once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTVIZ_CACHE", str(folder))
        yield folder


def test_parts():
    train, test, everything = (load("signs", part) for part in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (6000, 1000, 7000)
    for part in (train, test):
        assert part.images.shape[1:] == (3, 32, 32)
        assert (part.classes, part.name) == (SIGNS, "signs")
        assert part.labels.bincount().tolist() == [len(part) // 10] * 10
        assert len(part.labels[:60].unique()) == 10  # not sorted by class
        levels = part.images * 255
        assert torch.equal(levels.round() / 255, part.images)  # 8 bits
        assert levels.min() < 10
        assert levels.max() == 255
    assert torch.equal(everything.images, torch.cat([train.images, test.images]))
    assert torch.equal(everything.labels, torch.cat([train.labels, test.labels]))
    assert len({image.numpy().tobytes() for image in everything.images}) == 7000  # no picture is there twice


def test_the_same_bits_whoever_draws(cache):
    """Drawn again in another process with another global state: the same."""
    code = (
        "import sys, torch, hashlib; torch.manual_seed(7); before = torch.get_rng_state()\n"
        "from robustviz.data import signs; drawn = signs().images\n"
        "assert torch.equal(before, torch.get_rng_state())\n"
        "heavy = {'matplotlib', 'torchvision', 'sklearn'} & set(sys.modules)\n"
        "print(hashlib.sha256(drawn.numpy().tobytes()).hexdigest(), *heavy)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ROBUSTVIZ_CACHE": str(cache / "other")},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert answer.stdout.split() == [hashlib.sha256(load("signs").images.numpy().tobytes()).hexdigest()]


def test_threads_change_nothing():
    before, labels = torch.get_num_threads(), torch.arange(60) % 10
    try:
        torch.set_num_threads(1)
        one = scenes(labels, seeded(1))
        torch.set_num_threads(2)
        assert torch.equal(scenes(labels, seeded(1)), one)
    finally:
        torch.set_num_threads(before)


def test_drawing_is_quick():
    spent = time.process_time()
    scenes(torch.arange(500) % 10, seeded(0))
    assert time.process_time() - spent < 5 * 500 / 7000 * 3  # 7,000 in 5 s, with room for a busy machine


def test_the_faces_are_as_signs_are():
    drawn = faces()
    colors, cover = drawn[:, :3], drawn[:, 3]
    assert (drawn.min(), drawn.max()) == (0, 1)
    assert bool((colors <= cover[:, None] + 1e-6).all())  # multiplied by the cover
    torch.testing.assert_close(drawn[LEFT].flip(2), drawn[RIGHT])
    assert (drawn[LEFT] - drawn[RIGHT]).abs().max() > 0.5
    for number, sign in enumerate(SIGNS):
        mirrored = torch.allclose(drawn[number], drawn[number].flip(2), atol=1e-4)
        lettered = sign in ("stop", "turn left", "turn right") or sign.startswith("limit")
        assert mirrored is not lettered, sign
        assert (cover[number].amax(0) > 0.5).sum() >= 54  # it fills its square
    warm = (colors[:, 0] - colors[:, 2]).sum((1, 2)) / cover.sum((1, 2))
    assert [SIGNS[number] for number in range(10) if warm[number] < 0] == ["turn left", "turn right"]
    assert [SIGNS[number] for number in range(10) if warm[number] < 0.35 and number not in (LEFT, RIGHT)] == [
        "limit 30",
        "limit 50",
        "limit 80",
    ]


def test_left_is_the_mirror_of_right_in_the_pictures_too():
    """On the average over many scenes; a label that went astray would blur the arrows."""
    labels = torch.tensor([LEFT, RIGHT]).repeat(500)
    pictures = scenes(labels, seeded(3))
    left, right = (pictures[labels == label].mean(0) for label in (LEFT, RIGHT))
    mirrored, same = (left.flip(2) - right).abs().mean(), (left - right).abs().mean()
    assert mirrored < 0.5 * same


def test_scenes_follow_their_generator_alone():
    labels = torch.arange(20) % 10
    assert torch.equal(scenes(labels, seeded(1)), scenes(labels, seeded(1)))
    assert not torch.equal(scenes(labels, seeded(1)), scenes(labels, seeded(2)))


def test_a_cache_that_cannot_be_used_costs_time_only(cache, monkeypatch, tmp_path):
    expected = load("signs", "test").images
    (kept,) = cache.glob("signs-*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(load("signs", "test").images, expected)
    assert kept.read_bytes() == whole
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(
        UserWarning, match=r"file/cache cannot be written \(.*made again every time; set ROBUSTVIZ_CACHE"
    ):
        drawn = load("signs", "test").images
    assert torch.equal(drawn, expected)


def test_a_change_nobody_sees_turns_the_arrow():
    """Of the network trained on clean pictures; the one trained adversarially holds."""
    test_set = load("signs", "test")
    arrows = test_set[(test_set.labels == LEFT) | (test_set.labels == RIGHT)][:40]
    standard, trained = (checkpoints.load(name)[0] for name in ("signs-standard", "signs-pgd"))
    attacked = pgd(standard, arrows.images, arrows.labels, threat=usual_threat("signs"), steps=20)
    assert (attacked - arrows.images).abs().max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        assert (standard(arrows.images).argmax(1) == arrows.labels).float().mean() > 0.95
        assert (standard(attacked).argmax(1) == LEFT + RIGHT - arrows.labels).float().mean() > 0.8
        held = pgd(trained, arrows.images, arrows.labels, threat=usual_threat("signs"), steps=20)
        assert (trained(held).argmax(1) == arrows.labels).float().mean() > 0.6


@pytest.mark.parametrize("module", ["signs", "sign_faces"])
def test_signs_are_drawn_without_a_picture_library(module):
    tree = ast.parse((Path(robustviz.__file__).parent / "data" / f"{module}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"PIL", "matplotlib", "torchvision"}
