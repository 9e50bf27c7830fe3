"""Networks opened by words: what runs, what is refused, and what opens a network again."""

import json
import sys
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from robustviz import checkpoints
from robustviz.models import Classifier, small_cnn
from robustviz.networks import Source, open_network
from robustviz.networks.foreign import Words, read_weights, read_words
from robustviz.records import describe
from robustviz.tensors import seeded

CODE = """
    import torch
    from torch import nn
    from helpers import WIDTH

    def build(width=WIDTH, classes=3, factor=1):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, classes))

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(192, 4))

    ready = build(width=5)
    number = 3
    def needy(width, depth): return build(width)
    def wrong(): return "a network"
    def raising(): return 1 / 0
    def leaving(): raise SystemExit(2)
    def undecided(): net = build(); net[3].weight.data[0, 0] = torch.nan; return net
"""
IMAGES = torch.rand(2, 3, 8, 8, generator=seeded(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(dedent(CODE))
    (tmp_path / "helpers.py").write_text("WIDTH = 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    return tmp_path


def opened(spec, weights=None, **settings):
    return open_network(spec, weights, trust=True, **settings)


def plain(width=16, classes=3, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, classes)).eval()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("digits-pgd", None),
        ("runs/mine/model.safetensors", None),
        ("C:/runs/mine", None),
        ("my_networks.py", None),
        ("my_networks.py:", None),
        (":build", None),
        ("a/b c/my.py:build", Words("a/b c/my.py", "build", {})),
        ("C:/nets/my.py:build?n=2", Words("C:/nets/my.py", "build", {"n": 2})),
        ("package.module:build", Words("package.module", "build", {})),
        ("torchvision:resnet18?num_classes=6", Words("torchvision", "resnet18", {"num_classes": 6})),
        ("timm:vit.tag?a=true&b=None&c=x&d=(1, 2)&e=1e-3&f=", None),
    ],
)
def test_words(spec, expected):
    if spec.startswith("timm"):
        expected = Words("timm", "vit.tag", {"a": True, "b": None, "c": "x", "d": (1, 2), "e": 1e-3, "f": ""})
    assert read_words(spec) == expected


def test_a_file_with_a_function(folder):
    before, paths = torch.get_rng_state(), list(sys.path)
    torch.rand(3)
    network = opened("my_networks.py:build")
    assert torch.equal(network(IMAGES), plain()(IMAGES))
    assert network.features(IMAGES).shape == (2, 16)
    assert not network.training
    assert not any(module.training for module in network.modules())
    assert sys.path == paths
    torch.set_rng_state(before)
    assert opened("my_networks.py:build?width=7&classes=5")(IMAGES).shape == (2, 5)
    assert opened(f"{folder}/my_networks.py:Net", classes=list("abcd")).classes == tuple("abcd")
    assert opened("my_networks.py:ready").features(IMAGES).shape == (2, 5)


def test_a_function_in_a_package():
    network = opened("robustviz.models:resnet20?classes=4")
    assert isinstance(network, Classifier)
    assert network.head.out_features == 4
    assert list(network.source.sha256) == ["robustviz.models"]
    assert network.source.changed() == []
    assert torch.equal(network.source.open(trust=True)(IMAGES), network(IMAGES))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_network_of_torchvision(name):
    network = open_network(f"torchvision:{name}?num_classes=6")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = torchvision.models.get_model(name, weights=None, num_classes=6).eval()
    images = torch.rand(2, 3, 64, 64, generator=seeded(0))
    assert torch.equal(network(images), module(images))
    assert network.source.versions == {"torchvision": metadata.version("torchvision")}


def test_a_network_of_timm():
    network = open_network("timm:vit_tiny_patch16_224?num_classes=6")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=6).eval()
    images = torch.rand(1, 3, 224, 224, generator=seeded(0))
    assert torch.equal(network(images), module(images))
    assert network.features(images).shape == (1, 192)


def test_checkpoints_of_ours(tmp_path):
    network = open_network("digits-pgd")
    images = torch.rand(2, 1, 8, 8, generator=seeded(0))
    assert torch.equal(network(images), checkpoints.load("digits-pgd")[0](images))
    assert network.source.changed() == []
    for name in ("model.safetensors", "model.json"):
        suffix = Path(name).suffix
        (tmp_path / name).write_bytes(checkpoints.find("digits-pgd").with_suffix(suffix).read_bytes())
    for spec in (tmp_path, str(tmp_path / "model.safetensors")):
        assert torch.equal(open_network(spec)(images), network(images))


def nothing(tensors):
    return tensors


FORMS = {
    "plain": nothing,
    "inside a dictionary": lambda tensors: {"epoch": 3, "state_dict": tensors},
    "of a wrapped network": lambda tensors: {f"module.{name}": t for name, t in tensors.items()},
    "of a compiled network": lambda tensors: {"model": {f"_orig_mod.{name}": t for name, t in tensors.items()}},
    "of both": lambda tensors: {f"module._orig_mod.{name}": t for name, t in tensors.items()},
}


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
def test_weights(folder, form):
    trained = plain(seed=7)
    if form == "safetensors":
        save_file(trained.state_dict(), "w.safetensors")
    else:
        torch.save(FORMS[form](trained.state_dict()), "w.pt")
    weights = "w.safetensors" if form == "safetensors" else "w.pt"
    network = opened("my_networks.py:build", weights)
    assert torch.equal(network(IMAGES), trained(IMAGES))
    assert set(network.source.sha256) == {"my_networks.py", weights}


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def changed(**tensors):
    """Weights that lack some, or have some more; None takes one out."""
    kept = plain().state_dict() | {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in kept.items() if tensor is not None}


more = {f"extra{i}.weight": torch.zeros(1) for i in range(5)}
BAD_WEIGHTS = {
    "code": ({"state_dict": plain().state_dict(), "hook": Harmful()}, "holds pickled code, which is not run"),
    "whole network": (plain(), "holds pickled code, which is not run"),
    "missing": (changed(**{"1_weight": None, "3_bias": None}), r"keys are 2 missing \(1\.weight, 3\.bias\)$"),
    "unexpected": (changed() | more, r"5 unexpected \(extra0\.weight, extra1\.weight, extra2\.weight, \.\.\.\)"),
    "both": (
        {"other": torch.zeros(1)},
        r"4 missing \(1\.weight, 1\.bias, 3\.weight, \.\.\.\) and 1 unexpected \(other\)",
    ),
    "other classes": (plain(classes=9).state_dict(), r"3\.weight \(9, 16\) instead of \(3, 16\), .* number of classes"),
    "no tensors": ({"epoch": 3, "lr": 0.1}, "must hold a dictionary of tensors"),
    "a tensor": (torch.zeros(3), "must hold a dictionary of tensors"),
    "NaN": ({name: t * torch.nan for name, t in plain().state_dict().items()}, "logits must be finite, but 3 of 3"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_do_not_fit(folder, kind):
    content, message = BAD_WEIGHTS[kind]
    torch.save(content, "w.pt")
    with pytest.raises(ValueError, match=message):
        opened("my_networks.py:build", "w.pt")
    assert not Path("harm").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 30, b"no weights at all", b"PK\x03\x04 a broken archive"])
def test_files_that_are_no_weights(folder, name, content):
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} (cannot be read as weights|holds pickled code.* or is not a file)"):
        read_weights(name)


BAD_SPECS = {
    "my_networks.py": (ValueError, "my_networks.py must name a function .*: my_networks.py:FUNCTION"),
    "nowhere.py:build": (FileNotFoundError, "there is no file nowhere.py"),
    "my_networks.py:built": (ValueError, "has no function built; it has Net, build, leaving, needy, raising"),
    "my_networks.py:number": (ValueError, "has no function number"),
    "my_networks.py:needy?width=3": (ValueError, r"arguments \{'width': 3\}: missing a required argument: 'depth'"),
    "my_networks.py:build?depth=3": (ValueError, "got an unexpected keyword argument 'depth'"),
    "my_networks.py:build?width=x": (ValueError, r"my_networks.py:build raises TypeError"),
    "my_networks.py:raising": (ValueError, r"raises ZeroDivisionError: .* \(line 17 of my_networks.py\)"),
    "my_networks.py:leaving": (ValueError, "raises SystemExit: 2"),
    "my_networks.py:wrong": (TypeError, "must return a torch.nn.Module, got str"),
    "my_networks.py:undecided": (ValueError, "logits must be finite"),
    "broken.py:build": (ValueError, r"broken.py cannot be imported: it raises NameError: .*undefined.* \(line 1 of"),
    "syntax.py:build": (ValueError, "syntax.py cannot be imported: it raises SyntaxError"),
    "robustviz.nowhere:build": (ValueError, "cannot be imported: it raises ModuleNotFoundError"),
    "torchvision:resnet81": (ValueError, "has no network for classification called 'resnet81'; it has: .*resnet18"),
    "torchvision:fasterrcnn_resnet50_fpn": (ValueError, "no network for classification"),
    "torchvision:resnet18?weights=DEFAULT": (ValueError, "must not have weights: nothing is downloaded"),
    "torchvision:resnet18?classes=6": (ValueError, "unexpected keyword argument 'classes'"),
    "timm:vit_tiny_patch16_224?pretrained=true": (ValueError, "nothing is downloaded"),
    "timm:hf-hub:someone/model": (ValueError, "has no network"),
    "digits-pgdd": (FileNotFoundError, "digits-pgd"),
    "w.pt": (ValueError, "holds weights alone; say what builds the network"),
}


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_open_network_refuses(unchecked, folder, spec):
    (folder / "broken.py").write_text("undefined\n")
    (folder / "syntax.py").write_text("def build(:\n")
    error, message = BAD_SPECS[spec]
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        opened(spec)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_cannot_be_used(folder):
    with pytest.raises(ValueError, match="is a checkpoint, which holds all that it needs; leave out weights, layer"):
        open_network("digits-pgd", "w.pt", layer="head")
    with pytest.raises(ValueError, match=r"gives a Classifier, .* leave out normalize"):
        opened("robustviz.models:small_cnn", normalize="imagenet")
    with pytest.raises(FileNotFoundError, match=r"no file of weights w\.pt"):
        opened("my_networks.py:build", "w.pt")


def test_code_runs_only_when_it_is_trusted(folder):
    (folder / "evil.py").write_text("from pathlib import Path\nPath('harm').touch()\ndef build(): ...\n")
    for spec in ("evil.py:build", "evil:build"):
        with pytest.raises(ValueError, match=r"can do whatever you can; read it, then pass trust=True \(--trust"):
            open_network(spec)
    assert not (folder / "harm").exists()
    assert isinstance(open_network("torchvision:resnet18"), Classifier)


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm:resnet18 needs the extra `networks`"):
        open_network("timm:resnet18")


def test_what_opens_it_again(folder):
    torch.save(plain(width=7, seed=3).state_dict(), "w.pt")
    settings = {"normalize": (0.5, 0.25), "classes": ["a", "b"], "class_map": {"a": 2, "b": 0}, "layer": "3"}
    network = opened("my_networks.py:build?width=7", "w.pt", **settings)
    record = json.loads(json.dumps(describe(network.source)))
    again = Source.read(record).open(trust=True)
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert again.classes == ("a", "b")
    assert describe(again.source) == describe(network.source)
    with pytest.raises(ValueError, match="trust=True"):
        Source.read(record).open()
    Path("w.pt").write_bytes(Path("w.pt").read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"is not what it was: w\.pt was .* and is .*restore it"):
        Source.read(record).open(trust=True)
    Path("w.pt").unlink()
    assert Source.read(record).changed() == ["w.pt is gone"]
    with pytest.raises(ValueError, match=r"w\.pt is gone"):
        Source.read(record).open(trust=True)
    with pytest.raises(ValueError, match="record must have spec, weights"):
        Source.read({"spec": "x", "unknown": 1})


def test_a_package_of_another_version_is_named_when_a_network_no_longer_opens():
    source = Source("torchvision:resnet81", versions={"torchvision": "0.0.1"})
    with pytest.raises(ValueError, match=r"has no network .*; since then, torchvision was 0\.0\.1 and is"):
        source.open()
    fine = Source("torchvision:resnet18?num_classes=3", versions={"torchvision": "0.0.1"})
    assert isinstance(fine.open(), Classifier)


def test_a_network_that_was_not_opened_has_no_source():
    assert small_cnn().source is None
    assert open_network("digits-standard").replace().source is None
