"""Every set by what a person types: embedded, fetched, or files of their own; and how training images are augmented."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator

from robustviz.data.adapters import load_npz
from robustviz.data.fetched import DOWNLOADS, TORCHVISION_SETS, torchvision_set
from robustviz.data.folder import class_folders, list_folder, list_table
from robustviz.data.image_set import ImageSet
from robustviz.data.parts import Part, check_part, cut
from robustviz.data.pictures import Fit
from robustviz.data.signs import signs
from robustviz.tensors import seeded
from robustviz.types import Images


def digits(part: Part = "all") -> ImageSet:
    """Handwritten digits of scikit-learn: 1,797 gray pictures of 8x8 pixels, embedded in the package, no download.

    Args:
        part: `"train"` (1,438) and `"test"` (359) are a fixed stratified split of `"all"`.

    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    everything = ImageSet(images, torch.from_numpy(labels).long(), tuple("0123456789"), "digits")
    return cut(everything, part)


EMBEDDED = {"digits": digits, "signs": signs}
"""Sets that need no download, by the names that a person types."""


def image_folder(
    root: Path | str,
    *,
    resize: int | None = None,
    crop: int | None = None,
    limit: int | None = None,
    workers: int | None = None,
    cache: bool = True,
) -> ImageSet:
    """Read a folder that holds one subfolder of pictures for each class, with folders inside it or not.

    Pictures are read in parallel, as a viewer shows them: upright (EXIF), white where they are transparent. They are
    gray if all of them are gray and in color otherwise, and come in a fixed shuffled order. The pixels are kept in
    `$ROBUSTVIZ_CACHE` or the user's cache folder, and read again when a file changes.

    Args:
        root: The folder; `~` is the home folder.
        resize: Length of the short side in pixels; without `crop`, a square of that side is cut out of the middle.
        crop: Side of the square that is cut out of the middle, at most `resize`.
        limit: Decode only this many, drawn evenly from the classes; all if there are fewer.
        workers: Threads that read; None is one for each CPU.
        cache: Keep and use the cache.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no classes or no pictures, a picture cannot be read or has another size, or a setting
            is out of range.
    """
    _check_limit(limit)
    listing = list_folder(Path(root).expanduser())
    return listing.shuffled().read(fit=Fit(resize, crop), limit=limit, workers=workers, cache=cache)


def load(
    data: str,
    part: Part = "all",
    *,
    root: Path | str = DOWNLOADS,
    resize: int | None = None,
    crop: int | None = None,
    limit: int | None = None,
    pictures: Path | str | None = None,
) -> ImageSet:
    """Load a set by what a person types.

    That is `digits`, `signs`, a name of `TORCHVISION_SETS`, a folder of pictures, `set.npz` or `labels.csv`. A folder
    with subfolders `train` and `test` keeps these parts. Any other folder and a table are split by the names of their
    files, about a fifth for testing, so that a picture added later moves no other. If `root` holds a picture folder
    of a set's name, such as `data/downloads/cifar10`, that folder is the set.

    Args:
        data: Name of the set or path of the folder or file; `~` is the home folder.
        part: Which images.
        root: Folder of the downloaded sets.
        resize: Length of the short side in pixels; without `crop`, a square of that side is cut out of the middle.
        crop: Side of the square that is cut out of the middle, at most `resize`.
        limit: Only this many images, as `load(...).subset(limit)` draws them, or all if there are fewer; of picture
            files no others are decoded.
        pictures: Folder of the pictures that a table names; None is the folder of the table.

    Raises:
        ValueError: If the part is unknown, a folder's parts have different classes, a file holds no set, or a setting
            is out of range.
        FileNotFoundError: If there is no such set, folder or file.
    """
    check_part(part)
    _check_limit(limit)
    fit = Fit(resize, crop)
    path = Path(data).expanduser()
    if pictures is not None and path.suffix.lower() != ".csv":
        raise ValueError(f"pictures must come with a table such as labels.csv, but data is {data}")
    if data in TORCHVISION_SETS and (Path(root).expanduser() / data / "train").is_dir():
        path = Path(root).expanduser() / data
    elif data in EMBEDDED:
        return _drawn(EMBEDDED[data](part), fit, limit)
    elif data in TORCHVISION_SETS:
        return _drawn(torchvision_set(data, root, part=part), fit, limit)
    if path.is_dir():
        return _load_folder(path, part, fit, limit)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _drawn(load_npz(path, part), fit, limit)
    if path.is_file() and path.suffix.lower() == ".csv":
        listing = list_table(path, None if pictures is None else Path(pictures).expanduser())
        return listing.part(part).shuffled().read(fit=fit, limit=limit)
    if path.is_file():
        raise ValueError(f"{path} must be a folder of pictures, a .npz or a .csv file")
    known = ", ".join((*EMBEDDED, *TORCHVISION_SETS))
    raise FileNotFoundError(f"there is no data set or folder {data}; known are {known}")


def _load_folder(folder: Path, part: Part, fit: Fit, limit: int | None) -> ImageSet:
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        return list_folder(folder).part(part).shuffled().read(fit=fit, limit=limit)
    names = [class_folders(folder / p) for p in ("train", "test")]
    if names[0] != names[1]:
        raise ValueError(f"{folder}/train and {folder}/test must have the same classes, got {names[0]} and {names[1]}")
    train, test = (replace(list_folder(folder / p), name=folder.resolve().name).shuffled() for p in ("train", "test"))
    listing = (train + test).shuffled() if part == "all" else train if part == "train" else test
    return listing.read(fit=fit, limit=limit)


def _drawn(image_set: ImageSet, fit: Fit, limit: int | None) -> ImageSet:
    """Draw images of a set that is in memory, and fit them to a size."""
    if limit is not None and limit < len(image_set):
        image_set = image_set.subset(limit)
    if fit.resize is None:
        return image_set
    return replace(image_set, images=torch.cat([fit(pixels) for pixels in torch.split(image_set.pixels, 256)]))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 image, got {limit}")


def shift_and_mirror(
    images: Images, *, padding: int = 4, flip: bool = True, generator: Generator | None = None
) -> Images:
    """Move every image by up to `padding` pixels in each direction (zeros come in) and mirror half of them.

    All images are done at once, on their device; the numbers are drawn on the generator's.

    Args:
        images: Any number of images.
        padding: Largest shift in pixels; 0 for none.
        flip: Mirror left and right with probability 1/2.
        generator: Source of shifts and flips; None is a fresh one seeded 0.
    """
    generator = seeded(0) if generator is None else generator
    count, _, height, width = images.shape
    draw: dict[str, Any] = {"generator": generator, "device": generator.device}
    if padding:
        top, left = torch.randint(2 * padding + 1, (2, count, 1), **draw).to(images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)
        every = torch.arange(count, device=images.device)[:, None, None]
        images = padded[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = (torch.rand(count, **draw) < 0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images
