"""The networks and images that a panel shows unless it is given others."""

from collections.abc import Mapping

from torch import nn

from robustviz import checkpoints
from robustviz.data import ImageSet, digits
from robustviz.models import Classifier


def usual_networks() -> dict[str, Classifier]:
    """Return a standard and an adversarially trained network of digits, by the names that pictures give them."""
    names = {"standard": "digits-standard", "adversarially trained": "digits-pgd"}
    return {word: checkpoints.load(name)[0] for word, name in names.items()}


def compared(networks: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    """Return the networks that a panel sets side by side: those given, or the usual ones.

    Raises:
        TypeError: If they are not networks by their names.
        ValueError: If none is given.
    """
    if networks is None:
        return usual_networks()
    if not isinstance(networks, Mapping):
        raise TypeError(f"networks must be a dict of networks by their names, got {type(networks).__name__}")
    for name, network in networks.items():
        if not isinstance(network, nn.Module):
            raise TypeError(f"networks must hold a network by each name, got {type(network).__name__} for {name!r}")
    if not networks:
        raise ValueError("networks must hold at least one network by its name, got none; leave it out to take digits")
    return networks


def single(network: Classifier | None) -> Classifier:
    """Return the network of a panel that shows one: the one given, or the usual standard one.

    Raises:
        TypeError: If it is something else, such as several networks.
    """
    if network is None:
        return usual_networks()["standard"]
    if not isinstance(network, Classifier):
        raise TypeError(f"network must be one robustviz.models.Classifier, got {type(network).__name__}")
    return network


def usual_images() -> ImageSet:
    """Return the test images of digits."""
    return digits("test")
