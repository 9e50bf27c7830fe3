"""The networks and images that an explorer shows unless it is given others."""

from collections.abc import Mapping

from torch import nn

from robustviz import checkpoints
from robustviz.data import ImageSet, load
from robustviz.models import Classifier

SETS = ("signs", "digits")
"""Data sets that need no download, the one that is shown first if networks for it are shipped."""


def usual_set() -> str:
    """Name the data set that explorers show unless they are given another."""
    known = checkpoints.shipped()
    return next(name for name in SETS if {f"{name}-standard", f"{name}-pgd"} <= known.keys())


def usual_names(data: str) -> dict[str, str]:
    """Return the names of the shipped standard and adversarially trained networks of a data set, by their words."""
    return {"standard": f"{data}-standard", "adversarially trained": f"{data}-pgd"}


def usual_networks(data: str) -> dict[str, Classifier]:
    """Return these networks.

    Raises:
        FileNotFoundError: If none are shipped for the data set.
    """
    return {word: checkpoints.load(name)[0] for word, name in usual_names(data).items()}


def usual_images(size: int | None = None, data: str | None = None) -> ImageSet:
    """Return test images of a data set, with every class in proportion.

    Args:
        size: How many, at most; None takes `usual_count`.
        data: Name of the set; None takes what explorers usually show.
    """
    images = load(usual_set() if data is None else data, "test")
    return images.subset(min(usual_count(images) if size is None else size, len(images)))


def usual_count(images: ImageSet) -> int:
    """Return how many images an explorer attacks in less than a minute: 100 of digits, 40 of larger pictures."""
    return 100 if images.images[0].numel() < 1000 else 40


def compared(networks: Mapping[str, nn.Module] | None, data: str | None = None) -> Mapping[str, nn.Module]:
    """Return the networks that are set side by side: those given, or the usual ones.

    Args:
        networks: By the names on the screen; None takes the usual ones.
        data: Data set of the usual ones; None takes `usual_set`.

    Raises:
        TypeError: If they are not networks by their names.
        ValueError: If none is given.
    """
    if networks is None:
        return usual_networks(data or usual_set())
    if not isinstance(networks, Mapping):
        raise TypeError(f"networks must be a dict of networks by their names, got {type(networks).__name__}")
    for name, network in networks.items():
        if not isinstance(network, nn.Module):
            raise TypeError(f"networks must hold a network by each name, got {type(network).__name__} for {name!r}")
    if not networks:
        raise ValueError("networks must hold at least one network by its name, got none; leave it out for shipped ones")
    return networks


def single(network: Classifier | None, data: str | None = None) -> Classifier:
    """Return the network of an explorer that shows one: the one given, or the usual standard one.

    Args:
        network: None takes the usual one.
        data: Data set of the usual one; None takes `usual_set`.

    Raises:
        TypeError: If it is something else, such as several networks.
    """
    if network is None:
        return usual_networks(data or usual_set())["standard"]
    if not isinstance(network, Classifier):
        raise TypeError(f"network must be one robustviz.models.Classifier, got {type(network).__name__}")
    return network
