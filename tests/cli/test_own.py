"""Networks and pictures of one's own: the same words on every measuring command, the same numbers as a plain loop."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from robustviz import cli
from robustviz.cli.target import called
from robustviz.data import load
from robustviz.records import RunRecord

NETS = """
import torch
from torch import nn

def build(width=4, classes=3, colors=3):
    layers = [nn.Conv2d(colors, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(9 * width, 16), nn.ReLU(), nn.Linear(16, classes))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()
    def forward(self, images):
        if images.shape[-1] != 16:
            raise RuntimeError("wants 16 pixels")
        return {"logits": self.inner(images), "other": 1}
"""
OWN = ("nets.py:build", "--data", "pictures", "--trust")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    Path("nets.py").write_text(NETS)
    source = np.random.default_rng(0)
    for name in ("ants", "bees", "cats"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            side = (16, 16 + number % 3)  # of different sizes
            noise = source.integers(0, 256, (*side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def network(elsewhere):
    """The network of the file, and its weights on disk."""
    found: dict = {}
    exec(NETS, found)
    torch.manual_seed(5)
    network = found["build"]().eval()
    save_file(network.state_dict(), "weights.safetensors")
    torch.save(network.state_dict(), "weights.pt")
    return network


def run(*words):
    with pytest.raises(SystemExit) as end:
        cli.run([str(word) for word in words])
    assert not end.value.code


@pytest.mark.parametrize("weights", ["weights.safetensors", "weights.pt"])
def test_the_numbers_are_those_of_a_plain_loop(network, weights, capsys):
    few = ("--resize", 16, "--epsilon", "8/255", "--attacks", "fgsm", "--out", "t.json", "--out", "t.csv")
    run("evaluate", *OWN, "--weights", weights, *few)
    text = capsys.readouterr().out
    test_set = load("pictures", "test", resize=16)
    images, labels = test_set.images.clone().requires_grad_(), test_set.labels
    loss = F.cross_entropy(network(images), labels, reduction="sum")
    attacked = (images + 8 / 255 * torch.autograd.grad(loss, images)[0].sign()).clamp(0, 1)
    clean, under = ((network(x).argmax(1) == labels).double().mean() for x in (images, attacked))
    assert f"nets.py:build on {len(labels)} test images of pictures, linf, epsilon 0.03137" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.split("\n") if "|" in line}
    assert (rows["clean"], rows["FGSM"]) == (f"{clean:.1%}", f"{under:.1%}")
    source = RunRecord.load("t.json").settings["source"]
    assert source["spec"] == "nets.py:build"
    assert set(source["sha256"]) == {"nets.py", weights}


@pytest.mark.parametrize(
    ("command", "few"),
    [
        ("attack-suite", ("--steps", 2, "--queries", 2)),
        ("diagnose", ("--steps", 1, "--queries", 1, "--undefended", "nets.py:build?width=5", "--out", "out")),
        ("features", ("--steps", 1, "--strengths", 2, "--no-umap", "--training-images", 30, "--out", "out")),
    ],
)
def test_every_measuring_command_takes_them(network, command, few):
    run(command, *OWN, "--weights", "weights.pt", "--resize", 16, "--images", 8, *few)
    written = "runs/nets.py-build-attack-suite.json" if command == "attack-suite" else "out/index.html"
    assert Path(written).exists()
    if command == "features":
        assert json.loads(Path("out/record.json").read_text())["settings"]["checkpoint"] == "nets.py:build"


def test_a_network_of_a_library_needs_no_trust(capsys):
    few = ("--images", 6, "--attacks", "fgsm", "--resize", 32)
    run("evaluate", "torchvision:resnet18?num_classes=3", "--data", "pictures", *few)
    assert "torchvision:resnet18?num_classes=3 on 6 test images of pictures" in capsys.readouterr().out


def test_outputs_can_mean_other_classes(network, capsys):
    run("evaluate", *OWN, "--resize", 16, "--attacks", "fgsm", "--images", 9)
    one = capsys.readouterr().out
    order = ("--class-map", "ants=0", "--class-map", "bees=1", "--class-map", "cats=2")
    run("evaluate", *OWN, "--resize", 16, "--attacks", "fgsm", "--images", 9, *order)
    assert capsys.readouterr().out == one
    wide = ("nets.py:build?classes=9", *OWN[1:], "--resize", 16, "--attacks", "fgsm", "--images", 9)
    run("evaluate", *wide, "--class-map", "ants=8", "--class-map", "bees=1", "--class-map", "cats=2")
    whole = ("nets.py:Whole", *OWN[1:], "--resize", 16, "--attacks", "fgsm", "--images", 9)
    run("evaluate", *whole, "--output", "logits", "--normalize", "0.5/0.25", "--head", "inner.6")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("nets.py:build", "--data", "pictures"),
            r"nets.py:build runs the code of that file; read it",
        ),
        (("nets.py:build", "--trust"), r"--data must be given for nets.py:build"),
        (("nets.py", "--data", "pictures"), r"nets.py must name a function .*nets.py:FUNCTION"),
        (("weights.pt", "--data", "pictures"), r"weights.pt holds weights alone; say what builds the network"),
        ((*OWN, "--resize", 16, "--retrain"), r"--retrain: nets.py:build is not from `robustviz train`"),
        ((*OWN,), r"pictures must all have one size"),
        ((*OWN, "--resize", 16, "--crop", 20), r"crop"),
        ((*OWN, "--resize", 16, "--weights", "nope.pt"), r"nope.pt"),
        ((*OWN, "--resize", 16, "--head", "nope"), r"layer must be one of .*got 'nope'"),
        ((*OWN, "--resize", 16, "--normalize", "half"), r"--normalize must be imagenet or MEAN/STD, .*got 'half'"),
        ((*OWN, "--resize", 16, "--class-map", "ants"), r"--class-map must be NAME=OUTPUT, .*got 'ants'"),
        ((*OWN, "--resize", 16, "--class-map", "ants=1"), r"class_map must name an output for every class"),
        (
            ("nets.py:build?classes=4", *OWN[1:], "--resize", 16),
            r"has 3 classes, but .* with 4 logits; .*--class",
        ),
        (
            ("nets.py:build?colors=1", *OWN[1:], "--resize", 16),
            r"cannot answer .* \[3, 16, 16\]: .*--resize",
        ),
        (
            ("nets.py:Whole", *OWN[1:], "--resize", 20),
            r"cannot answer .* \[3, 20, 20\]: wants 16 pixels; ",
        ),
        (("nets.py:Whole", *OWN[1:], "--resize", 16), r"give output, one of 'logits', 'other'"),
        (("nets.py:nope", *OWN[1:], "--resize", 16), r"nope"),
        (
            ("digits-pgd", "--weights", "weights.pt"),
            r"digits-pgd is a checkpoint, which needs no --weights",
        ),
        (("digits-pgd", "--resize", "16"), r"images of shape \[1, 16, 16\], but the network was made for \[1, 8, 8\]"),
        (("digits-pgd", "--undefended", *OWN), r"--undefended nets.py:build does not suit digits-pgd"),
    ],
    ids=lambda given: " ".join(map(str, given)) if isinstance(given, tuple) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(network, words, message, monkeypatch, capsys, elsewhere):
    before = sorted(elsewhere.iterdir())
    command = "diagnose" if "--undefended" in words else "evaluate"
    words = [word for word in words if command == "evaluate" or word not in ("--data", "pictures")]
    monkeypatch.setattr(sys, "argv", ["robustviz", command, *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert str(end.value.code).startswith("robustviz: ")
    assert "\n" not in end.value.code
    assert re.search(message, end.value.code)
    assert set(elsewhere.iterdir()) - set(before) <= {elsewhere / "cache", elsewhere / "__pycache__"}


def test_a_yes_at_a_terminal_is_trust(network, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    run("evaluate", "nets.py:build", "--data", "pictures", "--resize", 16, "--images", 3, "--attacks", "fgsm")
    assert asked == ["nets.py:build runs the code of that file. Do you trust it? [y/N] "]


def test_names_for_files():
    assert called("timm:vit_tiny_patch16_224?num_classes=6") == "timm-vit_tiny_patch16_224"
    assert called("a/b/nets.py:build?width=2") == "nets.py-build"
    assert called("digits-pgd") == "digits-pgd"
