"""Image sets: handwritten digits and road signs (embedded), CIFAR-10, SVHN and MNIST by torchvision, folders of images.

Every set is held in memory as one float tensor in [0, 1]; nothing is ever sorted by class.
"""

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator

from robustviz.data.folder import read_folder
from robustviz.data.image_set import ImageSet
from robustviz.data.parts import Part, check_part, cut
from robustviz.data.signs import signs
from robustviz.tensors import seeded
from robustviz.types import Images

TORCHVISION_SETS = ("cifar10", "svhn", "mnist")
DOWNLOADS = Path("data/downloads")
"""Where `robustviz fetch` puts data sets unless told otherwise, from the folder it is started in."""


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


def torchvision_set(
    name: Literal["cifar10", "svhn", "mnist"],
    root: Path | str = DOWNLOADS,
    *,
    part: Part = "train",
    download: bool = False,
) -> ImageSet:
    """Load CIFAR-10, SVHN or MNIST as torchvision keeps it, in a fixed shuffled order.

    The order is that of a folder with the same pictures, named by their order within each class (`0000.jpg` ...), so
    that the number of an image means the same in both.

    Args:
        name: Which set.
        root: Folder of the downloaded files.
        part: The set's own training or test part, or `"all"`, both.
        download: Fetch the files first if they are missing (torchvision shows the progress and checks the sums).

    Raises:
        ValueError: If the name or the part is unknown.
        FileNotFoundError: If the files are not there and `download` is False.
        ImportError: If torchvision does not fit the installed PyTorch.
    """
    if name not in TORCHVISION_SETS:
        raise ValueError(f"name must be one of {', '.join(TORCHVISION_SETS)}, got {name!r}")
    check_part(part)
    if part == "all":
        both = [torchvision_set(name, root, part=p, download=download) for p in ("train", "test")]
        images, labels = torch.cat([b.images for b in both]), torch.cat([b.labels for b in both])
        return _shuffled(ImageSet(images, labels, both[0].classes, name))
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"torchvision does not fit the installed torch {torch.__version__} ({error}); "
            "install both in one step so that they match: pip install --upgrade torch torchvision"
        ) from error
    try:
        if name == "svhn":
            source: Any = datasets.SVHN(root, split=part, download=download)
            pixels, labels, classes = torch.from_numpy(source.data), source.labels, tuple("0123456789")
        else:
            kind = datasets.CIFAR10 if name == "cifar10" else datasets.MNIST
            source = kind(root, train=part == "train", download=download)
            pixels, labels = torch.as_tensor(source.data), source.targets
            pixels = pixels[:, None] if name == "mnist" else pixels.permute(0, 3, 1, 2)
            classes = tuple(source.classes)
    except RuntimeError as error:
        if download:
            raise
        command = shlex.join(["robustviz", "fetch", name, "--root", str(root)])
        raise FileNotFoundError(f"{name} is not in {root}: fetch it with `{command}`") from error
    labels = torch.as_tensor(labels).long()
    by_class = labels.argsort(stable=True)  # as in a folder of the same pictures
    return _shuffled(ImageSet(pixels[by_class].contiguous().float() / 255, labels[by_class], classes, name))


def _shuffled(image_set: ImageSet) -> ImageSet:
    return image_set[torch.randperm(len(image_set), generator=seeded(0))]


def image_folder(root: Path | str, *, workers: int | None = None, cache: bool = True) -> ImageSet:
    """Read a folder that holds one subfolder of pictures for each class, all of one size.

    Pictures are read in parallel, turned into gray if all of them are gray and into RGB otherwise, put in a fixed
    shuffled order, and kept in the user's cache folder (`ROBUSTVIZ_CACHE` overrides it), so that the next call is
    fast. The cache belongs to the folder, its files, their sizes and times: a changed folder is read anew.

    Args:
        root: The folder; subfolder names are the class names, in alphabetical order.
        workers: Threads that read; None is one for each processor.
        cache: Keep and use the cache.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no classes or no pictures, or a picture cannot be read or has another size.
    """
    return _shuffled(_folder(Path(root), workers=workers, cache=cache)[0])


def _folder(root: Path, *, workers: int | None = None, cache: bool = True) -> tuple[ImageSet, list[str]]:
    """Read a folder of pictures in the order of their names, and the names."""
    pixels, labels, classes, names = read_folder(root, workers=workers, cache=cache)
    return ImageSet(pixels.float() / 255, labels, classes, root.resolve().name), names


def _folder_part(root: Path, part: Part) -> ImageSet:
    """Cut a folder without parts by a checksum of each picture's name, so that a picture added later moves no other.

    About a fifth is for testing, at least one picture of each class and never all.

    Raises:
        ValueError: If a class has a single picture.
    """
    everything, names = _folder(root)
    draws = torch.tensor([int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32 for name in names])
    test = draws < 0.2
    for label, name in enumerate(everything.classes):
        rows = (everything.labels == label).nonzero().squeeze(1)
        if len(rows) == 1:
            raise ValueError(f"{root / name} must hold at least two pictures, one to train and one to test on, got 1")
        test[rows[draws[rows].argmin()]], test[rows[draws[rows].argmax()]] = True, False
    return _shuffled(everything[(test if part == "test" else ~test).nonzero().squeeze(1)])


def load(data: str, part: Part = "all", *, root: Path | str = DOWNLOADS) -> ImageSet:
    """Load a set by what a person types: `digits`, `signs`, `cifar10`, `svhn`, `mnist`, or the path of an image folder.

    A folder with subfolders `train` and `test` keeps these parts. Any other folder is split by the names of its files,
    about a fifth for testing, so that a picture added later moves no other. If `root` holds a picture folder of a
    set's name, such as `data/downloads/cifar10`, that folder stands for the set.

    Raises:
        ValueError: If the part is unknown or a folder's parts have different classes.
        FileNotFoundError: If there is no such set or folder.
    """
    check_part(part)
    if data in EMBEDDED:
        return EMBEDDED[data](part)
    if data in TORCHVISION_SETS and not (Path(root) / data / "train").is_dir():
        return torchvision_set(data, root, part=part)  # type: ignore[arg-type]
    folder = Path(root) / data if data in TORCHVISION_SETS else Path(data)
    if not folder.is_dir():
        known = ", ".join((*EMBEDDED, *TORCHVISION_SETS))
        raise FileNotFoundError(f"there is no data set or folder {data}; known are {known}")
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        return image_folder(folder) if part == "all" else _folder_part(folder, part)
    names = [
        tuple(sorted(e.name for e in (folder / p).iterdir() if e.is_dir() and e.name[0] != "."))
        for p in ("train", "test")
    ]
    if names[0] != names[1]:
        raise ValueError(f"{folder}/train and {folder}/test must have the same classes, got {names[0]} and {names[1]}")
    if part == "all":
        both = [load(str(folder), "train"), load(str(folder), "test")]
        images, labels = torch.cat([b.images for b in both]), torch.cat([b.labels for b in both])
        return _shuffled(ImageSet(images, labels, both[0].classes, folder.name))
    return replace(image_folder(folder / part), name=folder.resolve().name)


def augment(images: Images, *, padding: int = 4, flip: bool = True, generator: Generator | None = None) -> Images:
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
