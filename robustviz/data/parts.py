"""Training and test parts: their names, and how a set without parts of its own is cut."""

from typing import Literal, get_args

from robustviz.data.image_set import ImageSet
from robustviz.tensors import seeded

Part = Literal["all", "train", "test"]


def check_part(part: Part) -> None:
    """Refuse what is no part.

    Raises:
        ValueError: If the part is unknown.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")


def cut(everything: ImageSet, part: Part) -> ImageSet:
    """Take a part of a set that has none of its own: a fixed fifth of every class is for testing."""
    check_part(part)
    if part == "all":
        return everything
    train, test = everything.split(seeded(0), share=0.2)
    return train if part == "train" else test
