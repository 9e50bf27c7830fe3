"""The command `fetch`."""

from pathlib import Path

from robustviz.cli.app import say
from robustviz.data import DOWNLOADS, FetchedName, torchvision_set


def fetch(name: FetchedName, /, *, root: Path = DOWNLOADS) -> None:
    """Download a data set with torchvision, which shows the progress and verifies the checksums.

    Args:
        name: cifar10 (170 MB), cifar100 (169 MB), svhn (250 MB), mnist (12 MB) or fashionmnist (31 MB).
        root: Where to put it; default data/downloads.
    """
    image_set = torchvision_set(name, root, part="all", download=True)
    say(f"{name}: {len(image_set)} images of {len(image_set.classes)} classes in {root}")
