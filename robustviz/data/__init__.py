"""Pictures with their classes: embedded, fetched, or from a folder of the user's own."""

from robustviz.data.image_set import ImageSet, stratified
from robustviz.data.sets import DOWNLOADS, TORCHVISION_SETS, Part, augment, digits, image_folder, load, torchvision_set

__all__ = [
    "DOWNLOADS",
    "TORCHVISION_SETS",
    "ImageSet",
    "Part",
    "augment",
    "digits",
    "image_folder",
    "load",
    "stratified",
    "torchvision_set",
]
