"""Pictures with their classes: embedded, fetched, or from a folder of the user's own."""

from robustviz.data.fetched import DOWNLOADS, TORCHVISION_SETS, FetchedName, torchvision_set
from robustviz.data.image_set import ImageSet, stratified
from robustviz.data.parts import Part
from robustviz.data.sets import EMBEDDED, digits, image_folder, load, shift_and_mirror
from robustviz.data.sign_faces import SIGNS
from robustviz.data.signs import signs

__all__ = [
    "DOWNLOADS",
    "EMBEDDED",
    "SIGNS",
    "TORCHVISION_SETS",
    "FetchedName",
    "ImageSet",
    "Part",
    "digits",
    "image_folder",
    "load",
    "shift_and_mirror",
    "signs",
    "stratified",
    "torchvision_set",
]
