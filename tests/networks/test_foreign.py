"""Networks that somebody else wrote: words, files of weights, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustviz.networks import open_network
from robustviz.networks.foreign import Words, read_weights, read_words
from tests.networks.conftest import IMAGES, opened, plain


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


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm:resnet18 needs the extra `networks`"):
        open_network("timm:resnet18")
