"""Sets that somebody else made: npz files in every usual layout, and Datasets with items of every usual kind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from robustviz.data import ImageSet, load

COLOR = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
GRAY = COLOR[:, :, :, 0]
LABELS = np.arange(40) % 4


def contents(image_set):
    """Label and pixels of every image, in no order."""
    return sorted(
        (int(label), image.tobytes()) for label, image in zip(image_set.labels, numpy(image_set), strict=True)
    )


def numpy(image_set):
    return (image_set.images * 255).round().byte().numpy()


def expected(pixels, labels=LABELS):
    return sorted((int(label), image.tobytes()) for label, image in zip(labels, pixels, strict=True))


LAYOUTS = {
    "n h w": (GRAY, GRAY[:, None]),
    "n h w 1": (GRAY[..., None], GRAY[:, None]),
    "n 1 h w": (GRAY[:, None], GRAY[:, None]),
    "n h w 3": (COLOR, COLOR.transpose(0, 3, 1, 2)),
    "n 3 h w": (COLOR.transpose(0, 3, 1, 2), COLOR.transpose(0, 3, 1, 2)),
    "floats": (GRAY.astype(np.float64) / 255, GRAY[:, None]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("column", [False, True])
def test_layouts_of_an_npz(tmp_path, layout, column):
    images, pixels = LAYOUTS[layout]
    np.savez(tmp_path / "set.npz", images=images, labels=LABELS[:, None] if column else LABELS.astype(np.uint8))
    whole, train, test = (load(str(tmp_path / "set.npz"), part) for part in ("all", "train", "test"))
    assert contents(whole) == expected(np.ascontiguousarray(pixels))
    assert sorted(contents(train) + contents(test)) == contents(whole)
    assert test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert (whole.name, whole.classes) == ("set", ("0", "1", "2", "3"))
    assert (whole.pixels.dtype == torch.uint8) is (layout != "floats")
    few = load(str(tmp_path / "set.npz"), limit=8, resize=4)
    assert (len(few), few.shape[1:]) == (8, (4, 4))
    assert torch.equal(few.labels, whole.subset(8).labels)


def test_an_npz_of_medmnist(tmp_path):
    arrays = {}
    for kind, rows in (("train", slice(0, 20)), ("val", slice(20, 28)), ("test", slice(28, 40))):
        arrays |= {f"{kind}_images": COLOR[rows], f"{kind}_labels": LABELS[rows, None].astype(np.uint8)}
    np.savez(tmp_path / "pathmnist.npz", **arrays, classes=np.array(["adipose", "debris", "mucus", "tumor"]))
    pixels = np.ascontiguousarray(COLOR.transpose(0, 3, 1, 2))
    for part, rows in (("all", slice(0, 40)), ("train", slice(0, 28)), ("test", slice(28, 40))):
        read = load(str(tmp_path / "pathmnist.npz"), part)
        assert contents(read) == expected(pixels[rows], LABELS[rows])
        assert read.classes == ("adipose", "debris", "mucus", "tumor")
    np.savez(tmp_path / "short.npz", **{name: array for name, array in arrays.items() if "val" not in name})
    assert len(load(str(tmp_path / "short.npz"), "train")) == 20


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": GRAY, "y": LABELS}, r"must hold images and labels, or train_images.*, got x, y"),
        ({}, "got nothing"),
        ({"images": GRAY}, "got images"),
        (
            {"images": GRAY, "labels": LABELS[:-1]},
            r"labels must be one class index for each of 40 images, got int64 \(39,\)",
        ),
        ({"images": GRAY, "labels": LABELS + 0.5}, r"one class index .*, got float64 \(40,\)"),
        ({"images": GRAY, "labels": np.eye(40, dtype=int)}, r"one class index .*, got int64 \(40, 40\)"),
        ({"images": COLOR[..., :2], "labels": LABELS}, r"images must be \(n, h, w\).*, got \(40, 6, 5, 2\)"),
        ({"images": GRAY[0], "labels": LABELS[:6]}, r"images must be \(n, h, w\).*, got \(6, 5\)"),
        (
            {"images": GRAY.astype(int), "labels": LABELS},
            r"must be bytes 0..255 or floats in \[0, 1\], got torch.int64",
        ),
        ({"images": GRAY / 1.0, "labels": LABELS}, r"images must lie in \[0, 1\].*divide by 255"),
        ({"images": GRAY, "labels": LABELS - 1}, "labels must be class indices from 0, got -1"),
        ({"images": GRAY, "labels": LABELS, "classes": np.array(["a"])}, "must name at least 4 classes"),
        ({"images": np.array([{}]), "labels": LABELS}, "cannot be read as a .npz file without pickle"),
    ],
)
def test_what_is_no_set(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        load(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("content", [b"", b"no file of numpy", json.dumps({}).encode()])
def test_what_is_no_npz(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a \.npz file without pickle"):
        load(str(tmp_path / "set.npz"))


class Items:
    """A Dataset that turns its pictures into items of one kind, and counts them."""

    def __init__(self, make, known=True, **attributes):
        self.make, self.asked = make, []
        if known:
            self.targets = LABELS.tolist()
        vars(self).update(attributes)

    def __len__(self):
        return 40

    def __getitem__(self, row):
        self.asked.append(row)
        return self.make(COLOR[row], int(LABELS[row]))


KINDS = {
    "PIL": lambda image, label: (Image.fromarray(image), label),
    "array": lambda image, label: (image, label),
    "bytes": lambda image, label: (torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.tensor(label)),
    "floats": lambda image, label: (torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255, label),
    "dictionary": lambda image, label: {"image": Image.fromarray(image), "label": label},
    "more": lambda image, label: [image, np.int64(label), "a note"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_a_dataset(kind):
    read = ImageSet.of(Items(KINDS[kind]), classes=("a", "b", "c", "d"))
    assert contents(read) == expected(np.ascontiguousarray(COLOR.transpose(0, 3, 1, 2)))
    assert (read.name, read.classes) == ("Items", ("a", "b", "c", "d"))
    assert (read.pixels.dtype == torch.uint8) is (kind != "floats")
    assert read.labels.tolist() != sorted(read.labels.tolist())


def test_a_limit_reads_no_more():
    dataset = Items(KINDS["PIL"], classes=["w", "x", "y", "z"])
    few = ImageSet.of(dataset, limit=8, name="mine", resize=4, crop=3)
    assert len(dataset.asked) == 8
    assert few.labels.bincount().tolist() == [2, 2, 2, 2]
    assert (few.name, few.classes, few.shape) == ("mine", ("w", "x", "y", "z"), (3, 3, 3))
    unknown = Items(KINDS["PIL"], known=False)
    assert len(ImageSet.of(unknown, limit=30)) == len(unknown.asked) == 30
    assert len(ImageSet.of(Items(KINDS["PIL"]), limit=500)) == 40


def test_a_dataset_of_pytorch():
    read = ImageSet.of(TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 2))
    assert (len(read), read.classes) == (6, ("0", "1"))


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("dataset", "settings", "error", "words"),
    [
        (Stream(), {}, TypeError, "dataset must have a length and items by number, got Stream"),
        ([], {}, ValueError, "must be >= 1 image, got 0"),
        (Items(KINDS["PIL"]), {"limit": 0}, ValueError, "must be >= 1 image, got 40 and 0"),
        ([torch.zeros(1, 2, 2)], {}, TypeError, r"dataset\[0\] must be an image and a label, got Tensor"),
        ([("words", 1)], {}, TypeError, r"dataset\[0\] must hold a picture, .* got str"),
        ([(torch.zeros(2, 2), 1)], {}, TypeError, r"must hold a picture.*, got \(2, 2\)"),
        ([({}, 1)], {}, TypeError, "must hold a picture"),
        ([{"img": 1}], {}, TypeError, "must hold a picture"),
        ([(torch.zeros(5, 2, 2), 1)], {}, ValueError, r"dataset\[0\] must be .* 1 or 3 channels, got \(1, 5, 2, 2\)"),
        ([(torch.full((1, 2, 2), 3.0), 1)], {}, ValueError, r"images must lie in \[0, 1\]"),
        (
            [(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 3), 1)],
            {},
            ValueError,
            "got .x2 in item . and",
        ),
        (Items(KINDS["PIL"]), {"classes": ("a",)}, ValueError, "Items must name at least 4 classes"),
        (Items(KINDS["PIL"]), {"crop": 3}, ValueError, "crop must come with resize"),
    ],
)
def test_what_is_no_dataset(dataset, settings, error, words):
    with pytest.raises(error, match=words):
        ImageSet.of(dataset, **settings)
