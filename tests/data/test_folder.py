"""Folders of pictures: what Pillow reads, in a fixed order, from the cache where nothing has changed."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import as_read, by_pillow, claimed, write
from PIL import Image
from safetensors.torch import load_file, save_file

from robustviz.data import cache as caches
from robustviz.data import image_folder, load

pytestmark = pytest.mark.usefixtures("cache")

ARCHIVE = next(Path(__file__).parents[3].glob("*/cifar10/cifar10-jpeg.tar.xz"), None)
"""CIFAR-10 as a folder of pictures, packed, if it lies beside the repository."""


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
    with pytest.warns(UserWarning, match=r"set: 1 of 15 files are no pictures, left out: 1 \.txt"):
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


def test_a_changed_picture_is_read_again(tmp_path, reads):
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
def test_a_damaged_cache_is_written_again(tmp_path, reads, cache, damage):
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
    with pytest.raises(
        ValueError,
        match=r"one size, got 5x4 in .*(ant|bee)/0..png and 6x9 in .*bee/broken.png; resize them, for example to 224",
    ):
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


def test_folders_inside_classes(tmp_path):
    root = write(tmp_path / "set")
    inside = root / "ant" / "young" / "red"
    inside.mkdir(parents=True)
    Image.fromarray(np.full((4, 5, 3), 9, np.uint8)).save(inside / "deep.png")
    (root / "ant" / "young" / "loop").symlink_to(root / "ant")
    (root / "ant" / ".hidden").mkdir()
    (root / "ant" / ".hidden" / "not.png").write_bytes(b"")
    read = image_folder(root)
    assert read.labels.bincount().tolist() == [5, 4]
    assert ("ant", bytes([9]) * 60) in as_read(read)


def test_other_files_are_counted(tmp_path):
    root = write(tmp_path / "set")
    for name in ("ant/a.svg", "bee/b.svg", "bee/notes.txt", "bee/Thumbs", "bee/.DS_Store"):
        (root / name).write_text("other")
    with pytest.warns(UserWarning, match=r"set: 4 of 12 files are no pictures, left out: 2 \.svg, 1 \.txt, 1 Thumbs$"):
        assert len(image_folder(root)) == 8


def test_a_broken_link_is_named(tmp_path):
    root = write(tmp_path / "set")
    (root / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"ant/gone.png cannot be read as a picture \(.*remove it"):
        image_folder(root)


def test_huge_pictures_are_refused(tmp_path):
    root = broken(write(tmp_path / "set"), claimed(10_000, 9_500))
    with pytest.raises(ValueError, match=r"bee/broken.png has more than the 64 million pixels"):
        image_folder(root, resize=8)


def test_home(tmp_path, monkeypatch):
    write(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROBUSTVIZ_CACHE", "~/kept")
    assert len(image_folder("~/set")) == len(load("~/set")) == 8
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", "/proc/1/nope")
    root = write(tmp_path / "set", ["L"])
    with pytest.warns(UserWarning, match=r"/proc/1/nope cannot be written \(.*\), so set-.* is made again every time"):
        assert as_read(image_folder(root)) == by_pillow(root, "L")


@pytest.mark.parametrize(
    "other",
    [
        {"pixels": torch.zeros(7, 3, 4, 5, dtype=torch.uint8)},
        {"pixels": torch.zeros(8, 3, 4, 5)},
        {"else": torch.zeros(8, 3, 4, 5, dtype=torch.uint8)},
    ],
)
def test_a_cache_of_something_else_is_replaced(tmp_path, cache, other):
    root = write(tmp_path / "set")
    whole = image_folder(root)
    (kept,) = cache.iterdir()
    save_file(other, kept)
    assert torch.equal(image_folder(root).pixels, whole.pixels)
    assert torch.equal(load_file(kept)["pixels"], whole.pixels)


def test_pixels_are_bytes(tmp_path):
    read = image_folder(write(tmp_path / "set"))
    assert read.pixels.dtype == torch.uint8
    assert read.images.dtype == torch.float32
    assert torch.equal(read.images, read.pixels.float() / 255)


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
