"""Folders of pictures: what Pillow reads, in a fixed order, from the cache where nothing has changed."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustviz.data import cache as caches
from robustviz.data import folder as pictures
from robustviz.data import image_folder, load

ARCHIVE = next(Path(__file__).parents[3].glob("*/cifar10/cifar10-jpeg.tar.xz"), None)
"""CIFAR-10 as a folder of pictures, packed, if it lies beside the repository."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, and not taken from the cache."""
    files, read = [], pictures._read_picture
    monkeypatch.setattr(pictures, "_read_picture", lambda file: files.append(file) or read(file))
    return files


def write(root, modes=("RGB",), count=4, classes=("ant", "bee"), size=(5, 4), suffixes=(".png",)):
    """Write pictures of noise, their modes and file formats by turns."""
    source, number = np.random.default_rng(0), 0
    for name in classes:
        (root / name).mkdir(parents=True)
        for _ in range(count):
            pixels = Image.fromarray(source.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            suffix = suffixes[number % len(suffixes)]
            pixels.convert(modes[number % len(modes)]).save(root / name / f"{number:02}{suffix}")
            number += 1
    return root


def by_pillow(root, mode):
    """Class and pixels of every picture, read one by one."""
    return sorted((file.parent.name, np.asarray(Image.open(file).convert(mode)).tobytes()) for file in root.glob("*/*"))


def as_read(image_set):
    pixels = (image_set.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return sorted(
        (image_set.classes[label], image.tobytes()) for label, image in zip(image_set.labels, pixels, strict=True)
    )


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["L"], 1), (["1"], 1), (["1", "L"], 1), (["RGB"], 3), (["L", "RGB"], 3), (["RGBA"], 3), (["P", "L"], 3)],
)
def test_values_are_those_of_pillow(tmp_path, modes, channels):
    root = write(tmp_path / "set", modes)
    read = image_folder(root)
    assert read.images.shape == (8, channels, 4, 5)
    assert read.images.is_contiguous()
    assert as_read(read) == by_pillow(root, "L" if channels == 1 else "RGB")
    assert read.images.max() <= 1
    assert read.classes == ("ant", "bee")


def test_many_file_formats(tmp_path):
    root = write(tmp_path / "set", suffixes=(".png", ".jpg", ".JPEG", ".bmp", ".webp", ".tiff", ".ppm"), count=7)
    (root / "ant" / "notes.txt").write_text("not a picture")
    (root / ".hidden").mkdir()
    (root / "README.md").write_text("not a class")
    read = image_folder(root)
    (root / "ant" / "notes.txt").unlink()
    assert as_read(read) == by_pillow(root, "RGB")


def test_fixed_shuffled_order(tmp_path):
    root = write(tmp_path / "set", ["L"], count=30)
    one, other = image_folder(root, workers=1, cache=False), image_folder(root, workers=3, cache=False)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert one.labels.tolist() != sorted(one.labels.tolist())
    assert len(one.labels[:10].unique()) == 2


def test_the_cache_is_used(tmp_path, reads, cache):
    root = write(tmp_path / "set")
    first, second = image_folder(root), image_folder(root)
    assert len(reads) == 8
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    image_folder(root, cache=False)
    assert len(reads) == 16


def test_a_changed_picture_is_read_anew(tmp_path, reads):
    root = write(tmp_path / "set", ["L"])
    image_folder(root)
    changed = root / "bee" / "07.png"
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(changed)
    os.utime(changed, ns=(1, 1))
    again = image_folder(root)
    assert len(reads) == 16
    assert as_read(again) == by_pillow(root, "L")
    (root / "bee" / "06.png").unlink()
    assert len(image_folder(root)) == 7
    assert len(reads) == 23


def test_folders_of_one_name_do_not_share_a_cache(tmp_path):
    """Even if names, sizes and times agree, as they do in unpacked archives of uncompressed pictures."""
    for parent, value in (("one", 10), ("other", 20)):
        root = tmp_path / parent / "set"
        for name in ("ant", "bee"):
            (root / name).mkdir(parents=True)
            file = root / name / "0.bmp"
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(file)
            os.utime(file, ns=(10**9, 10**9))
    values = [image_folder(tmp_path / parent / "set").images.max() * 255 for parent in ("one", "other")]
    assert [round(float(value)) for value in values] == [10, 20]


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"\xff" * 99]
)
def test_a_damaged_cache_is_written_anew(tmp_path, reads, cache, damage):
    root = write(tmp_path / "set")
    whole = image_folder(root)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(damage(content))
    assert torch.equal(image_folder(root).images, whole.images)
    assert len(reads) == 16
    assert kept.read_bytes() == content


def test_the_cache_has_a_usual_place(tmp_path, monkeypatch):
    monkeypatch.delenv("ROBUSTVIZ_CACHE")
    monkeypatch.setattr(caches.platformdirs, "user_cache_path", lambda name: tmp_path / "usual" / name)
    image_folder(write(tmp_path / "set"))
    assert len(list((tmp_path / "usual" / "robustviz").glob("set-*.safetensors"))) == 1


def broken(root, content, name="broken.png"):
    (root / "bee" / name).write_bytes(content)
    return root


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_an_unreadable_picture_is_named(tmp_path, cache):
    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for number, content in enumerate((png(noise)[:-40], b"", b"no picture at all", png(noise)[:20])):
        root = broken(write(tmp_path / f"set{number}"), content)
        with pytest.raises(ValueError, match=rf"{root}/bee/broken.png cannot be read as a picture \(.*remove it"):
            image_folder(root)
    assert not cache.exists()


def test_a_truncated_jpeg_is_named(tmp_path):
    root = write(tmp_path / "set", suffixes=(".jpg",), size=(40, 40))
    file = root / "ant" / "02.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"ant/02.jpg cannot be read"):
        image_folder(root)


def test_more_than_8_bits_are_refused(tmp_path):
    """Pillow would clip 16-bit pixels to white without a word."""
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    with pytest.raises(ValueError, match=r"broken.png.*more than 8 bits"):
        image_folder(broken(write(tmp_path / "set"), png(deep)))


def test_mixed_sizes_are_refused(tmp_path):
    root = broken(write(tmp_path / "set"), png(np.zeros((9, 6, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"one size, got 5x4 in .*ant/00.png and 6x9 in .*bee/broken.png; resize"):
        image_folder(root)


def test_folders_that_hold_no_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty must hold one subfolder.*found 0"):
        image_folder(empty)
    with pytest.raises(ValueError, match=r"found 1"):
        image_folder(write(tmp_path / "single", classes=("ant",)))
    root = write(tmp_path / "set")
    (root / "cow").mkdir()
    with pytest.raises(ValueError, match=r"set/cow holds no picture"):
        image_folder(root)
    write(tmp_path / "parts" / "train")
    write(tmp_path / "parts" / "test")
    with pytest.raises(ValueError, match=r"holds the parts test, train and not classes; name one of them"):
        image_folder(tmp_path / "parts")


@pytest.mark.skipif(ARCHIVE is None, reason="there is no CIFAR-10 as pictures beside the repository")
def test_pictures_of_cifar10(tmp_path):
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        for number, member in enumerate(archive):
            if number < 40 or (5000 <= number < 5040):
                archive.extract(member, tmp_path, filter="data")
            if number == 5040:
                break
    root = tmp_path / "train"
    assert {folder.name for folder in root.iterdir()} == {"airplane", "automobile"}
    train = load(str(root), "train")
    assert train.images.shape[1:] == (3, 32, 32)
    assert len(train) + len(load(str(root), "test")) == 80
    assert as_read(image_folder(root)) == by_pillow(root, "RGB")
    assert 0.2 < train.images.mean() < 0.8
