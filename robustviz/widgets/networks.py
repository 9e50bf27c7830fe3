"""The networks and images that a panel shows unless it is given others."""

from robustviz import checkpoints
from robustviz.data import ImageSet, digits
from robustviz.models import Classifier


def usual_networks() -> dict[str, Classifier]:
    """Return a standard and an adversarially trained network of digits, by the names that pictures give them."""
    names = {"standard": "digits-standard", "adversarially trained": "digits-pgd"}
    return {word: checkpoints.load(name)[0] for word, name in names.items()}


def usual_images() -> ImageSet:
    """Return the test images of digits."""
    return digits("test")
