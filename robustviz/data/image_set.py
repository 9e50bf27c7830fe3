"""What a set of labelled images is: images, labels and classes, and how it is cut without losing a class."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from robustviz.tensors import check_images, seeded
from robustviz.types import Images, Labels


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: Pixels in [0, 1], float32.
        labels: Class indices, int64.
        classes: Names of the classes, in the order of their indices.
        name: What the set is called in reports.

    Raises:
        ValueError: If pixels leave [0, 1], or labels do not fit images and classes.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        check_images(self.images, self.labels, classes=len(self.classes))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> "ImageSet":
        """Select images by a slice, a mask or indices."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def to(self, device: torch.device | str) -> "ImageSet":
        """Move images and labels to a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

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
        held = torch.zeros(len(self), dtype=torch.bool)
        held[stratified(self.labels, size, generator)] = True
        return self[~held], self[held]

    def batches(self, batch_size: int, generator: Generator | None = None) -> Iterator[tuple[Images, Labels]]:
        """Go through the set once, in order or, with a generator, shuffled; the last batch may be smaller.

        Raises:
            ValueError: If batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if generator is None:
            yield from zip(torch.split(self.images, batch_size), torch.split(self.labels, batch_size), strict=True)
            return
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.labels.device)
        for rows in torch.split(order, batch_size):
            yield self.images[rows], self.labels[rows]


def stratified(labels: Labels, size: int, generator: Generator | None = None) -> Tensor:
    """Draw indices with every class in proportion; what rounding down leaves goes to the largest remainders."""
    generator = seeded(0) if generator is None else generator
    order = torch.randperm(len(labels), generator=generator)
    labels = labels.cpu()
    counts = torch.bincount(labels).double() * size / len(labels)
    quota = counts.floor().long()
    quota[(counts - quota).argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    chosen = [order[labels[order] == label][: int(quota[label])] for label in range(len(quota))]
    return torch.cat(chosen).sort().values
