"""What a set of labelled images is: images, labels and classes, and how it is cut without losing a class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Generator, Tensor

from robustviz.checks import check_images, check_labels
from robustviz.tensors import seeded
from robustviz.types import Images, Labels

Bytes = UInt8[Tensor, "n c h w"]
"""Pixels 0..255."""


class _Kept:
    """The field `images` of a set: kept as it was given, bytes or floats, and read as floats."""

    def __get__(self, image_set: Any, owner: type) -> Any:
        return self if image_set is None else as_floats(image_set.pixels)

    def __set__(self, image_set: Any, images: Tensor) -> None:
        image_set.__dict__["pixels"] = images


def as_floats(pixels: Tensor) -> Images:
    """Turn bytes 0..255 into images in [0, 1]; floats are returned as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def check_pixels(pixels: Any, labels: Labels, *, classes: int | None = None) -> None:
    """Refuse what `robustviz.checks.check_images` refuses, of images that are bytes or floats."""
    if isinstance(pixels, Tensor) and pixels.dtype == torch.uint8:
        check_images(as_floats(pixels[:1]))
        check_labels(labels, len(pixels), classes)
    else:
        check_images(pixels, labels, classes=classes)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    They may be given as bytes 0..255 or as floats in [0, 1] and are kept as they were given, in `pixels`: photographs
    of 224x224 take 150 kB each as bytes and four times that as floats. `images` are always floats; of bytes they are
    made each time, so select first (`image_set[:64].images`) or go through `batches`.

    Attributes:
        images: Pixels in [0, 1], float32.
        labels: Class indices, int64.
        classes: Names of the classes, in the order of their indices.
        name: What the set is called in reports.

    Raises:
        TypeError: If images or labels are no tensors, or numbers of another kind.
        ValueError: If pixels leave [0, 1], or labels do not fit images and classes.
    """

    images: Images | Bytes
    labels: Labels
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        check_pixels(self.pixels, self.labels, classes=len(self.classes))

    @classmethod
    def of(
        cls,
        dataset: Any,
        *,
        limit: int | None = None,
        classes: Sequence[str] | None = None,
        name: str = "",
        resize: int | None = None,
        crop: int | None = None,
    ) -> "ImageSet":
        """Read a map-style Dataset, such as one of torchvision; see `robustviz.data.adapters.from_dataset`."""
        from robustviz.data.adapters import from_dataset

        return from_dataset(dataset, limit=limit, classes=classes, name=name, resize=resize, crop=crop)

    @property
    def pixels(self) -> Tensor:
        """The images as they are kept: bytes 0..255, or floats in [0, 1]."""
        return self.__dict__["pixels"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Any) -> "ImageSet":
        """Select images by a slice, a mask, indices, or one number; a set of one image is a set too.

        Raises:
            IndexError: If a number is out of range.
            ValueError: If nothing is selected.
        """
        if isinstance(indices, Tensor) and indices.dim():
            indices = indices.to(self.pixels.device)
        elif hasattr(indices, "__index__"):
            number = index(indices)
            if not -len(self) <= number < len(self):
                raise IndexError(f"index must be from {-len(self)} to {len(self) - 1} in {self.name}, got {number}")
            indices = slice(number % len(self), number % len(self) + 1)
        pixels = self.pixels[indices]
        if not len(pixels):
            raise ValueError(f"indices must select at least one of the {len(self)} images of {self.name}, got none")
        return replace(self, images=pixels, labels=self.labels[indices])

    def to(self, device: torch.device | str) -> "ImageSet":
        """Move images and labels to a device."""
        return replace(self, images=self.pixels.to(device), labels=self.labels.to(device))

    def subset(self, size: int, generator: Generator | None = None) -> "ImageSet":
        """Draw `size` images in which every class has its share, to within one image; the order is kept.

        Args:
            size: How many, from 1 to the size of the set.
            generator: Source of the draw; None is a fresh one seeded 0.

        Raises:
            ValueError: If size is out of range.
        """
        if not 1 <= size <= len(self):
            raise ValueError(f"size must be from 1 to {len(self)}, the size of {self.name}, got {size}")
        return self[stratified(self.labels, size, generator)]

    def split(self, generator: Generator | None = None, *, share: float = 0.1) -> tuple["ImageSet", "ImageSet"]:
        """Cut the set into two disjoint parts, each with every class in proportion.

        Args:
            generator: Source of the draw; None is a fresh one seeded 0, so that the split is always the same.
            share: Part of the images that is held out, between 0 and 1.

        Returns:
            The larger part and the held-out part.

        Raises:
            ValueError: If a part would be empty.
        """
        size = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < size < len(self):
            raise ValueError(f"share must leave images on both sides of {len(self)}, got {share}")
        held = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        held[stratified(self.labels, size, generator)] = True
        return self[~held], self[held]

    def batches(self, batch_size: int, generator: Generator | None = None) -> Iterator[tuple[Images, Labels]]:
        """Go through the set once, in order or, with a generator, shuffled; the last batch may be smaller.

        Raises:
            ValueError: If batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        order = torch.arange(len(self), device=self.labels.device)
        if generator is not None:
            order = torch.randperm(len(self), generator=generator, device=generator.device).to(order.device)
        for rows in torch.split(order, batch_size):
            yield as_floats(self.pixels[rows]), self.labels[rows]


# Set when the dataclass is made, so that the field has no default.
ImageSet.images = _Kept()  # type: ignore[assignment]


def stratified(labels: Labels, size: int, generator: Generator | None = None) -> Tensor:
    """Draw indices with every class in proportion; what rounding down leaves goes to the largest remainders."""
    generator = seeded(0) if generator is None else generator
    order = torch.randperm(len(labels), generator=generator, device=generator.device).cpu()
    labels = labels.cpu()
    counts = torch.bincount(labels).double() * size / len(labels)
    quota = counts.floor().long()
    quota[(counts - quota).argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    chosen = [order[labels[order] == label][: int(quota[label])] for label in range(len(quota))]
    return torch.cat(chosen).sort().values


def shuffled(image_set: ImageSet) -> ImageSet:
    """Put a set into a fixed random order, so that none is sorted by class."""
    return image_set[torch.randperm(len(image_set), generator=seeded(0), device="cpu")]


def joined(parts: Sequence[ImageSet]) -> ImageSet:
    """Put sets of the same classes into one, in a fixed random order."""
    images, labels = torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
    return shuffled(replace(parts[0], images=images, labels=labels))
