"""CIFAR-10, CIFAR-100, SVHN, MNIST and FashionMNIST, as torchvision fetches and keeps them."""

import shlex
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from robustviz.data.image_set import ImageSet, joined, shuffled
from robustviz.data.parts import Part, check_part

FetchedName = Literal["cifar10", "cifar100", "svhn", "mnist", "fashionmnist"]
TORCHVISION_SETS: tuple[FetchedName, ...] = get_args(FetchedName)
DOWNLOADS = Path("data/downloads")
"""Where `robustviz fetch` puts data sets unless told otherwise, from the folder it is started in."""


def torchvision_set(
    name: FetchedName, root: Path | str = DOWNLOADS, *, part: Part = "train", download: bool = False
) -> ImageSet:
    """Load a set of torchvision in a fixed shuffled order.

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
    root = Path(root).expanduser()
    if part == "all":
        return joined([torchvision_set(name, root, part=p, download=download) for p in ("train", "test")])
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"torchvision does not fit the installed torch {torch.__version__} ({error}); "
            "install both in one step so that they match: pip install --upgrade torch torchvision"
        ) from error
    kinds = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashionmnist": "FashionMNIST"}
    try:
        if name == "svhn":
            source: Any = datasets.SVHN(root, split=part, download=download)
            pixels, labels, classes = torch.from_numpy(source.data), source.labels, tuple("0123456789")
        else:
            source = getattr(datasets, kinds[name])(root, train=part == "train", download=download)
            pixels, labels, classes = torch.as_tensor(source.data), source.targets, tuple(source.classes)
            pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    except RuntimeError as error:
        if download:
            raise
        command = shlex.join(["robustviz", "fetch", name, "--root", str(root)])
        raise FileNotFoundError(f"{name} is not in {root}: fetch it with `{command}`") from error
    labels = torch.as_tensor(labels).long()
    by_class = labels.argsort(stable=True)  # as in a folder of the same pictures
    return shuffled(ImageSet(pixels[by_class].contiguous(), labels[by_class], classes, name))
