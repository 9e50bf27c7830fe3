"""Image sets, loaders and augmentation; the sets of torchvision are small forgeries in its own file formats."""

import hashlib
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from robustviz.data import TORCHVISION_SETS, digits, load, shift_and_mirror, torchvision_set
from robustviz.tensors import seeded


def test_digits_parts():
    whole, train, test = digits("all"), digits("train"), digits("test")
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    assert whole.images.dtype == torch.float32
    assert (whole.images.min(), whole.images.max()) == (0, 1)
    assert whole.classes == tuple("0123456789")

    def prints(part):
        return sorted(
            (int(label), tuple(image.flatten().tolist())) for image, label in zip(part.images, part.labels, strict=True)
        )

    assert sorted(prints(train) + prints(test)) == prints(whole)
    assert not set(prints(train)) & set(prints(test))
    assert torch.equal(digits("test").images, test.images)


def test_no_part_is_sorted_by_class():
    for part in (digits("train"), digits("test")):
        assert len(part.labels[:40].unique()) == 10


def moved(image, down, right, mirror):
    """Shift an image pixel by pixel, zeros coming in, then mirror it."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[:, row, column] = image[:, row + down, column + right]
    return result.flip(2) if mirror else result


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True), (0, False)])
def test_augment_shifts_and_mirrors(padding, flip):
    images = torch.rand(24, 2, 5, 7, generator=seeded(3)) + 0.01  # no zeros of their own
    result = shift_and_mirror(images / 2, padding=padding, flip=flip, generator=seeded(1)) * 2
    used = []
    for image, after in zip(images, result, strict=True):
        moves = [
            (down, right, mirror)
            for down in range(-padding, padding + 1)
            for right in range(-padding, padding + 1)
            for mirror in (False, True)
            if torch.allclose(moved(image, down, right, mirror), after)
        ]
        assert len(moves) == 1
        used += moves
    every = set(range(-padding, padding + 1))
    assert {down for down, _, _ in used} == every
    assert {right for _, right, _ in used} == every
    assert {mirror for _, _, mirror in used} == ({False, True} if flip else {False})
    assert len(set(used)) > (10 if padding else flip)  # every image has its own move


def test_augment_follows_the_generator_alone():
    images = torch.rand(16, 3, 8, 8, generator=seeded(0))
    state = torch.get_rng_state()
    assert torch.equal(shift_and_mirror(images), shift_and_mirror(images, generator=seeded(0)))
    assert not torch.equal(shift_and_mirror(images), shift_and_mirror(images, generator=seeded(1)))
    assert torch.equal(torch.get_rng_state(), state)


# Small sets in the file formats of torchvision.


def forged(monkeypatch, name, root):
    """Write 6 training and 4 test images; return them as {part: (bytes n c h w, labels)}."""
    from torchvision import datasets

    source = np.random.default_rng(0)
    shape = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    sets = {
        part: (source.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3)
        for part, n in (("train", 6), ("test", 4))
    }
    if name == "svhn":
        for part, (pixels, labels) in sets.items():
            tens = np.where(labels == 0, 10, labels)[:, None]  # SVHN calls the digit 0 ten
            savemat(root / f"{part}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": tens})
        entries = {p: ["", f"{p}_32x32.mat", md5(root / f"{p}_32x32.mat")] for p in ("train", "test")}
        monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    elif name.startswith("cifar"):
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        folder = root / kind.base_folder
        folder.mkdir()
        contents = {
            part: {
                "data": pixels.reshape(len(pixels), -1),
                "labels" if name == "cifar10" else "fine_labels": labels.tolist(),
            }
            for part, (pixels, labels) in sets.items()
        }
        key = "label_names" if name == "cifar10" else "fine_label_names"
        contents["meta"] = {key: ["airplane", "car", "bird"]}
        for part, content in contents.items():
            (folder / part).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(kind, "train_list", [["train", md5(folder / "train")]])
        monkeypatch.setattr(kind, "test_list", [["test", md5(folder / "test")]])
        monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": key, "md5": md5(folder / "meta")})
    else:
        folder = root / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw"
        folder.mkdir(parents=True)
        for part, prefix in (("train", "train"), ("test", "t10k")):
            pixels, labels = sets[part]
            head = struct.pack(">4i", 0x803, len(pixels), 28, 28)
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
            head = struct.pack(">2i", 0x801, len(labels))
            (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
    return sets


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_torchvision_sets(name, tmp_path, monkeypatch):
    sets = forged(monkeypatch, name, tmp_path)
    for part in ("train", "test", "all"):
        pixels, labels = (
            sets[part] if part != "all" else map(np.concatenate, zip(sets["train"], sets["test"], strict=True))
        )
        read = load(name, part, root=tmp_path)
        found = sorted(
            (int(label), (image * 255).round().byte().numpy().tobytes())
            for image, label in zip(read.images, read.labels, strict=True)
        )
        assert found == sorted((int(label), image.tobytes()) for image, label in zip(pixels, labels, strict=True))
        assert torch.equal(torchvision_set(name, tmp_path, part=part).images, read.images)
        assert (read.name, read.images.dtype, read.labels.dtype) == (name, torch.float32, torch.int64)
    first = {"svhn": ("0", "1"), "mnist": ("0 - zero", "1 - one"), "fashionmnist": ("T-shirt/top", "Trouser")}
    assert read.classes[:2] == first.get(name, ("airplane", "car"))
    assert read.pixels.dtype == torch.uint8


@pytest.mark.parametrize("part", ["train", "all"])
def test_a_folder_of_the_same_pictures_has_the_same_order(part, tmp_path, monkeypatch):
    sets = forged(monkeypatch, "cifar10", tmp_path)
    for name, (pixels, labels) in sets.items():
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            file = tmp_path / "pictures" / name / str(label) / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    fetched, folder = load("cifar10", part, root=tmp_path), load(str(tmp_path / "pictures"), part)
    assert torch.equal(fetched.images, folder.images)
    assert torch.equal(fetched.labels, folder.labels)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_missing_files_name_the_command(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"robustviz fetch {name} --root {tmp_path}"):
        torchvision_set(name, tmp_path)


def test_torchvision_that_does_not_fit(monkeypatch):
    """An import that fails as it does when torchvision was built for another PyTorch."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"nms does not exist.*pip install --upgrade torch torchvision"):
        torchvision_set("cifar10")


# Folders; how pictures are read is tested in test_folder.py.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes of 10 gray pictures, 4x4."""
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    return write_folder(tmp_path / "pictures", 10)


def write_folder(root, count, classes=("ant", "bee", "cat")):
    source = np.random.default_rng(count)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(source.integers(0, 256, (4, 4), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def test_a_folder_is_split(folder):
    whole, train, test = (load(str(folder), part) for part in ("all", "train", "test"))
    assert (len(whole), len(train) + len(test)) == (30, 30)
    assert test.labels.bincount().min() >= 1
    assert train.labels.bincount().min() >= 1
    every = sorted(image.flatten().tolist() for part in (train, test) for image in part.images)
    assert every == sorted(image.flatten().tolist() for image in whole.images)
    assert whole.classes == ("ant", "bee", "cat")
    assert whole.name == "pictures"


def test_about_a_fifth_of_a_folder_is_for_testing(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "pictures", 200, classes=("ant", "bee"))
    shares = load(str(tmp_path / "pictures"), "test").labels.bincount() / 200
    assert ((shares > 0.12) & (shares < 0.28)).all()  # 2.8 standard deviations of a fair draw


def test_a_picture_added_to_a_folder_moves_no_other(folder):
    before = {tuple(image.flatten().tolist()) for image in load(str(folder), "test").images}
    Image.fromarray(np.full((4, 4), 7, dtype=np.uint8)).save(folder / "ant" / "0-new.png")
    new = (7 / torch.full((16,), 255.0)).tolist()
    after = {tuple(image.flatten().tolist()) for image in load(str(folder), "test").images}
    assert after - {tuple(new)} == before


def test_a_class_with_one_picture_cannot_be_split(folder):
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save((folder / "dog").mkdir() or folder / "dog" / "0.png")
    assert len(load(str(folder))) == 31
    with pytest.raises(ValueError, match=r"dog must hold at least two pictures"):
        load(str(folder), "train")


def test_a_picture_folder_among_the_downloads_stands_for_its_set(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 3), ("test", 2)):
        write_folder(tmp_path / "svhn" / part, count)
    assert [len(load("svhn", part, root=tmp_path)) for part in ("train", "test", "all")] == [9, 6, 15]


def test_a_folder_with_parts_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "set" / "train", 5)
    write_folder(tmp_path / "set" / "test", 2)
    whole, train, test = (load(str(tmp_path / "set"), part) for part in ("all", "train", "test"))
    assert (len(whole), len(train), len(test)) == (21, 15, 6)
    assert {part.name for part in (whole, train, test)} == {"set"}
    every = sorted(image.flatten().tolist() for part in (train, test) for image in part.images)
    assert every == sorted(image.flatten().tolist() for image in whole.images)
    (tmp_path / "set" / "test" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"same classes.*dog"):
        load(str(tmp_path / "set"), "train")
