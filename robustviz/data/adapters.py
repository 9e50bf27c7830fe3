"""Sets that somebody else made: `.npz` files and the map-style Datasets of PyTorch."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustviz.data.image_set import ImageSet, shuffled, stratified
from robustviz.data.parts import Part, check_part, cut
from robustviz.data.pictures import Fit, stacked
from robustviz.tensors import seeded

_KINDS = {"train": ("train", "val"), "test": ("test",), "all": ("train", "val", "test")}


def load_npz(path: Path, part: Part) -> ImageSet:
    """Read a `.npz` file in a fixed shuffled order; nothing is unpickled.

    It holds either `images` and `labels`, of which a fixed fifth of every class is for testing, or, as MedMNIST does,
    `train_images`, `train_labels`, `test_images`, `test_labels` and perhaps `val_images`, `val_labels`, which belong to
    the training part. Images are (n, h, w), (n, h, w, c) or (n, c, h, w) with one or three channels, bytes or floats
    in [0, 1]; labels are class indices, (n,) or (n, 1). `classes` may name the classes.

    Raises:
        ValueError: If the file holds something else.
    """
    check_part(part)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name.endswith(("images", "labels", "classes"))}
            keys = file.files
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npz file without pickle ({error})") from error
    plain = {"images", "labels"} <= arrays.keys()
    if not plain and not {"train_images", "train_labels", "test_images", "test_labels"} <= arrays.keys():
        raise ValueError(
            f"{path} must hold images and labels, or train_images, train_labels, test_images and test_labels, got "
            f"{', '.join(keys) or 'nothing'}"
        )
    names = ("",) if plain else tuple(f"{kind}_" for kind in _KINDS[part] if f"{kind}_images" in arrays)
    pairs = [_pair(f"{path}: {name}", arrays[f"{name}images"], arrays.get(f"{name}labels")) for name in names]
    images, labels = torch.cat([pixels for pixels, _ in pairs]), torch.cat([numbers for _, numbers in pairs])
    every = [array for name, array in arrays.items() if name.endswith("labels")]
    classes = _class_names(arrays.get("classes"), max(int(array.max(initial=0)) for array in every) + 1, str(path))
    everything = shuffled(ImageSet(images, labels, classes, path.stem))
    return cut(everything, part) if plain else everything


def _pair(where: str, images: np.ndarray, labels: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) and labels (n,) of arrays in any of the usual layouts."""
    if labels is None or labels.reshape(-1).shape != (len(images),) or labels.dtype.kind not in "iu":
        kind = "none" if labels is None else f"{labels.dtype} {labels.shape}"
        raise ValueError(f"{where}labels must be one class index for each of {len(images)} images, got {kind}")
    return _laid_out(torch.from_numpy(images), f"{where}images"), torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _laid_out(pixels: Tensor, where: str) -> Tensor:
    """Bring images into (n, c, h, w), as bytes or float32."""
    shape = tuple(pixels.shape)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.dim() == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    elif pixels.dim() != 4 or shape[1] not in (1, 3):
        raise ValueError(f"{where} must be (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels, got {shape}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ValueError(f"{where} must be bytes 0..255 or floats in [0, 1], got {pixels.dtype}")
    return (pixels if pixels.dtype == torch.uint8 else pixels.float()).contiguous()


def _class_names(given: Any, count: int, where: str) -> tuple[str, ...]:
    names = tuple(map(str, range(count))) if given is None else tuple(str(name) for name in given)
    if len(names) < max(count, 2):
        raise ValueError(
            f"{where} must name at least {max(count, 2)} classes, its labels reach {count - 1}, got {names}"
        )
    return names


def from_dataset(
    dataset: Any,
    *,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
    name: str = "",
    resize: int | None = None,
    crop: int | None = None,
) -> ImageSet:
    """Read images and labels of a map-style Dataset: `len(dataset)`, and `dataset[i]` gives an image and its label.

    An image is a PIL picture, an array (h, w) or (h, w, c) of bytes, or a tensor (c, h, w) of bytes or floats in
    [0, 1], not normalized; an item may also be a dictionary with `image` and `label`. The order is fixed and shuffled.

    Args:
        dataset: The Dataset.
        limit: Read only this many, drawn evenly from the classes if the dataset has `targets` or `labels`, from all
            images otherwise; all if there are fewer.
        classes: Names of the classes; None takes `dataset.classes`, or else numbers.
        name: What the set is called; empty for the name of the dataset's class.
        resize: Length of the short side in pixels; without `crop`, a square of that side is cut out of the middle.
        crop: Side of the square that is cut out of the middle, at most `resize`.

    Raises:
        TypeError: If it is no such Dataset, or an item is none of these.
        ValueError: If it is empty, images have different sizes or leave [0, 1], or a setting is out of range.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset must have a length and items by number, got {type(dataset).__name__}")
    count = len(dataset)
    if count < 1 or (limit is not None and limit < 1):
        raise ValueError(f"dataset and limit must be >= 1 image, got {count} and {limit}")
    fit = Fit(resize, crop)
    rows = torch.randperm(count, generator=seeded(0), device="cpu")
    if limit is not None and limit < count:
        known = next((getattr(dataset, key) for key in ("targets", "labels") if hasattr(dataset, key)), None)
        known = None if known is None or len(known) != count else torch.as_tensor(known).long()
        rows = rows[:limit] if known is None else rows[stratified(known[rows], limit)]
    labels: list[int] = []

    def items() -> Iterator[tuple[str, Tensor]]:
        for row in rows.tolist():
            image, label = _item(dataset, row)
            labels.append(label)
            yield f"item {row}", fit(image)

    images = stacked(items(), len(rows))
    names = getattr(dataset, "classes", None) if classes is None else classes
    where = name or type(dataset).__name__
    return ImageSet(images, torch.tensor(labels, device="cpu"), _class_names(names, max(labels) + 1, where), where)


def _item(dataset: Any, row: int) -> tuple[Tensor, int]:
    item = dataset[row]
    pair = (item.get("image"), item.get("label")) if isinstance(item, Mapping) else item
    if not isinstance(pair, tuple | list) or len(pair) < 2:
        raise TypeError(f"dataset[{row}] must be an image and a label, got {type(item).__name__}")
    image, label = pair[:2]
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.atleast_3d(image).transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor) or image.dim() != 3:
        kind = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"dataset[{row}] must hold a picture, an array or a tensor (c, h, w), got {kind}")
    return _laid_out(image[None], f"dataset[{row}]")[0], int(label)
