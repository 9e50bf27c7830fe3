"""Pictures with their classes: embedded, fetched, or from a folder of the user's own."""

from robustviz.data.image_set import ImageSet, stratified
from robustviz.data.parts import Part
from robustviz.data.sets import (
    DOWNLOADS,
    EMBEDDED,
    TORCHVISION_SETS,
    augment,
    digits,
    image_folder,
    load,
    torchvision_set,
)
from robustviz.data.sign_faces import SIGNS
from robustviz.data.signs import signs

__all__ = [
    "DOWNLOADS",
    "EMBEDDED",
    "SIGNS",
    "TORCHVISION_SETS",
    "ImageSet",
    "Part",
    "augment",
    "digits",
    "image_folder",
    "load",
    "signs",
    "stratified",
    "torchvision_set",
]
