import json
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch import nn

from robustviz import checkpoints
from robustviz.data import EMBEDDED, load
from robustviz.evaluation import evaluate
from robustviz.models import initialized, resnet20, small_cnn
from robustviz.presets import evaluation_attacks
from robustviz.records import RunRecord
from robustviz.tensors import seeded
from robustviz.types import Threat

NETWORK = partial(small_cnn, classes=3, channels=2)
RECORD = RunRecord("train", {"data": "digits"}, {"accuracy": {"clean": 0.5}}, "robustviz train")


@pytest.fixture
def stored(tmp_path):
    """A network and the file that it is kept in."""
    model = initialized(NETWORK, 5).eval()
    return model, checkpoints.save(tmp_path / "net.safetensors", model, NETWORK, RECORD)


def rewritten(path, change):
    """Change the JSON neighbor of a checkpoint."""
    neighbor = path.with_suffix(".json")
    content = json.loads(neighbor.read_text())
    change(content)
    neighbor.write_text(json.dumps(content))


def test_round_trip(stored):
    model, path = stored
    state = torch.get_rng_state()
    again, record = checkpoints.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    images = torch.rand(2, 2, 8, 8, generator=seeded(0))
    assert torch.equal(again(images), model(images))
    assert record.settings["architecture"] == {"function": "small_cnn", "classes": 3, "channels": 2}
    assert (record.kind, record.command, record.settings["data"]) == ("train", "robustviz train", "digits")
    assert record.results["accuracy"] == {"clean": 0.5}


def test_the_file_is_readable_without_us(stored):
    model, path = stored
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert torch.equal(file.get_tensor("head.weight"), model.head.weight)
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".json")}


def test_shared_and_transposed_weights_are_kept(tmp_path):
    """Safetensors refuses both; a checkpoint holds plain copies."""
    model = initialized(NETWORK, 0).to(memory_format=torch.channels_last)
    model.normalize.std = model.normalize.mean
    path = checkpoints.save(tmp_path / "net.safetensors", model, NETWORK, RECORD)
    again, _ = checkpoints.load(path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_run_folder_is_a_checkpoint(tmp_path):
    model = initialized(NETWORK, 0)
    checkpoints.save(tmp_path / "run" / "model.safetensors", model, NETWORK, RECORD)
    again, _ = checkpoints.load(tmp_path / "run")
    assert torch.equal(again.head.weight, model.head.weight)
    checkpoints.load(str(tmp_path / "run"))


def test_nothing_is_overwritten_without_force(stored):
    _, path = stored
    before = path.read_bytes()
    other = initialized(NETWORK, 6)
    with pytest.raises(FileExistsError, match=r"net.safetensors exists; choose another name or pass force"):
        checkpoints.save(path, other, NETWORK, RECORD)
    path.rename(path.with_name("other.safetensors"))
    with pytest.raises(FileExistsError, match=r"net.json exists"):
        checkpoints.save(path, other, NETWORK, RECORD)
    assert path.with_name("other.safetensors").read_bytes() == before
    assert not path.exists()
    checkpoints.save(path, other, NETWORK, RECORD, force=True)
    assert torch.equal(checkpoints.load(path)[0].head.weight, other.head.weight)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = initialized(NETWORK, 0)
    with pytest.raises(ValueError, match=r"must end in .safetensors, got .*net.pt"):
        checkpoints.save(tmp_path / "net.pt", model, NETWORK, RECORD)
    with pytest.raises(ValueError, match=r"build must be one of small_cnn, resnet20.*got other"):
        checkpoints.save(tmp_path / "net.safetensors", model, other, RECORD)
    assert not list(tmp_path.iterdir())


def other(classes=3):
    return nn.Linear(1, classes)


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_file_cut_short(stored, keep):
    _, path = stored
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=r"net.safetensors is damaged or no safetensors file: ."):
        checkpoints.load(path)


def test_a_pickle_is_not_opened(stored, tmp_path):
    _, path = stored

    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    torch.save(Bomb(), path)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        checkpoints.load(path)
    assert not (tmp_path / "exploded").exists()


def test_other_weights_under_the_same_name(stored, tmp_path):
    _, path = stored
    another = checkpoints.save(tmp_path / "another.safetensors", initialized(NETWORK, 6), NETWORK, RECORD)
    path.write_bytes(another.read_bytes())
    with pytest.raises(ValueError, match=r"not the file that net.json describes: their sha256 differ"):
        checkpoints.load(path)


def test_a_missing_neighbor(stored):
    _, path = stored
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"no neighbor net.json"):
        checkpoints.load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "other"}'])
def test_a_damaged_neighbor(stored, content):
    _, path = stored
    path.with_suffix(".json").write_text(content)
    with pytest.raises(ValueError, match=r"net.json is not a record of robustviz"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "architecture", [None, "small_cnn", {}, {"function": "transformer"}, {"function": ["small_cnn"]}]
)
def test_a_neighbor_that_names_no_network(stored, architecture):
    _, path = stored
    rewritten(path, lambda content: content["settings"].update(architecture=architecture))
    with pytest.raises(ValueError, match=r"net.json does not describe a network of robustviz"):
        checkpoints.load(path)


@pytest.mark.parametrize("part", ["settings", "results"])
def test_a_neighbor_without_a_part(unchecked, stored, part):
    _, path = stored
    rewritten(path, lambda content: content.update({part: []}))
    with pytest.raises(ValueError, match=r"net.json does not describe a network"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"function": "small_cnn", "classes": 4, "channels": 2},
        {"function": "resnet20", "classes": 3, "channels": 2},
        {"function": "small_cnn", "classes": 3, "channels": 2, "depth": 5},
        {"function": "small_cnn", "classes": "many", "channels": 2},
        {"function": "small_cnn", "classes": -1, "channels": 2},
    ],
)
def test_weights_of_another_network(unchecked, stored, architecture):
    _, path = stored
    rewritten(path, lambda content: content["settings"].update(architecture=architecture))
    with pytest.raises(ValueError, match=rf"net.safetensors does not fit {architecture['function']}|classes must be"):
        checkpoints.load(path)


def test_unknown_names_list_the_known(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        checkpoints.save(tmp_path / folder / f"net-{folder}.safetensors", initialized(NETWORK, 0), NETWORK, RECORD)
    monkeypatch.setattr(checkpoints, "SHIPPED", [tmp_path / "two", tmp_path / "one", tmp_path / "absent"])
    assert list(checkpoints.shipped()) == ["net-one", "net-two"]
    assert checkpoints.find("net-two") == tmp_path / "two" / "net-two.safetensors"
    assert checkpoints.load("net-one")[1].settings["data"] == "digits"
    for name in ("net-three", tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"no checkpoint {name}.*net-one, net-two"):
            checkpoints.load(name)


def test_a_resnet_comes_back(tmp_path):
    build = partial(resnet20, classes=2)
    model = initialized(build, 1).eval()
    again, _ = checkpoints.load(checkpoints.save(tmp_path / "net.safetensors", model, build, RECORD))
    images = torch.rand(2, 3, 32, 32, generator=seeded(0))
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_the_record_of_a_shipped_network_says_which_images_it_reads(name):
    settings = checkpoints.load(name)[1].settings
    assert settings["image_shape"] == ([1, 8, 8] if name.startswith("digits") else [3, 32, 32])


def test_some_networks_come_with_the_library():
    assert {"digits-standard", "digits-pgd"} <= set(checkpoints.shipped())


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_shipped_networks_reach_what_their_records_say(name):
    model, record = checkpoints.load(name)
    assert record.command.startswith("robustviz train")
    data = record.settings["data"]
    if data not in EMBEDDED:
        pytest.skip(f"{name} was measured on {data}, which does not come with the library")
    test_set = load(data, "test", limit=record.settings["test_images"])
    threat = Threat(record.settings["threat"]["norm"], record.settings["threat"]["epsilon"])
    recorded = record.results["accuracy"]
    # Past a purifier the gradient is slow to repeat, and so are 1,000 signs; the comparisons are their tests.
    attacks = evaluation_attacks(["pgd"], threat, 20) if data == "digits" and "PGD-20" in recorded else {}
    draws = 1 if data == "digits" else None  # the records of digits are older than draws
    table = evaluate(model, test_set.images, test_set.labels, attacks, draws=draws, generator=seeded(0))
    assert table.accuracy("clean") == pytest.approx(recorded["clean"], abs=1e-9)
    for name in attacks:
        assert table.accuracy(name) == pytest.approx(recorded[name], abs=0.01)
