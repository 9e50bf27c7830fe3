"""Networks opened by words, and opened again from a record or a checkpoint."""

import json
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from robustviz import checkpoints
from robustviz.data import ImageSet
from robustviz.defenses import WNLLHead
from robustviz.defenses.assembly import architecture, defended
from robustviz.defenses.cas import with_cas
from robustviz.defenses.wnll import buffered, wnll_classifier
from robustviz.models import Classifier, initialized, small_cnn
from robustviz.networks import Source, open_network, trusting
from robustviz.records import RunRecord, describe
from robustviz.tensors import seeded
from tests.networks.conftest import IMAGES, opened, plain


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


PICTURES = ImageSet(torch.rand(12, 3, 32, 32, generator=seeded(0)), torch.arange(12) % 3, ("a", "b", "c"), "noise")
DEFENDED = {
    "plain": lambda network: network,
    "CAS": lambda network: with_cas(network, 3),
    "WNLL": lambda network: wnll_classifier(buffered(network), PICTURES, size=6, neighbors=4, scale_neighbor=2),
}


@pytest.mark.parametrize("settings", [{}, {"normalize": "imagenet", "classes": ["a", "b", "c"]}])
@pytest.mark.parametrize("kind", DEFENDED)
def test_a_trained_network_of_somebody_else_loads_with_its_defense(tmp_path, kind, settings):
    source = open_network("torchvision:resnet18?num_classes=3", **settings).source
    kept = json.loads(json.dumps(describe(source)))
    plain = initialized(partial(defended, network=kept, classes=3), 5).eval()
    trained = DEFENDED[kind](plain).eval()
    build = architecture(trained, network=kept, classes=3, channels=3)
    checkpoints.save(tmp_path / "model.safetensors", trained, build, RunRecord("train", {}, {}))
    network, _ = checkpoints.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(network(PICTURES.images), trained(PICTURES.images))
    assert isinstance(network.head, WNLLHead) == (kind == "WNLL")
    other = initialized(partial(defended, network=kept, classes=3), 6).eval()
    assert not torch.equal(other(PICTURES.images), plain(PICTURES.images)), "weights follow from the seed"


def test_a_trained_network_of_ones_own_needs_trust(folder):
    torch.save(plain(seed=3).state_dict(), "start.pt")
    network = opened("my_networks.py:build", "start.pt")
    build = partial(defended, network=describe(network.source), classes=3)
    checkpoints.save("model.safetensors", network, build, RunRecord("train", {}, {}))
    Path("start.pt").unlink()  # the trained weights are in the checkpoint
    with pytest.raises(ValueError, match="trust=True"):
        checkpoints.load("model.safetensors")
    for again in (checkpoints.load("model.safetensors", trust=True)[0], opened("model.safetensors")):
        assert torch.equal(again(IMAGES), network(IMAGES))
    with trusting():
        assert torch.equal(checkpoints.load("model.safetensors")[0](IMAGES), network(IMAGES))
    (folder / "my_networks.py").write_text("changed = True")
    with pytest.raises(ValueError, match=r"is not what it was: my_networks\.py was"):
        checkpoints.load("model.safetensors", trust=True)


def test_a_network_with_other_outputs_than_classes_is_refused():
    with pytest.raises(ValueError, match="must have 6 outputs, one for each class, but torchvision:resnet18 has 1000"):
        defended(network="torchvision:resnet18", classes=6)
    with pytest.raises(ValueError, match=r"network must be one of small_cnn, .* got 'resnet19'"):
        defended(network="resnet19")


def test_the_shape_of_unusual_images_is_remembered(folder):
    code = "def oblong(): return nn.Sequential(nn.Flatten(), nn.Linear(105, 3))"
    (folder / "oblong.py").write_text(f"from torch import nn\n{code}\n")
    images = torch.rand(2, 3, 5, 7)
    network = opened("oblong.py:oblong", images=images)
    again = Source.read(json.loads(json.dumps(describe(network.source)))).open(trust=True)
    assert torch.equal(again(images), network(images))
