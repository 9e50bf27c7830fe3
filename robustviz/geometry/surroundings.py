"""Features among the clean training features: how far they are from them, and of which classes their neighbors are."""

import torch
from torch import Tensor

from robustviz.features import FeatureSnapshot
from robustviz.neighbors import Neighbors, nearest
from robustviz.types import PerImage


def distance_ratio(reference: FeatureSnapshot, snapshot: FeatureSnapshot, *, neighbors: int = 15) -> PerImage:
    """How far each image is from the data: 1 is usual for training images, 10 is ten times as far.

    The distance of its features to their k-th nearest clean training feature, divided by the median of the same
    distance among the training features, where none is its own neighbor.

    Args:
        reference: Clean training features.
        snapshot: Features of the query images.
        neighbors: k, below the number of training features.

    Raises:
        ValueError: If k is out of range, the layers differ, or more than half of the training features have k
            duplicates, so that the median is 0.

    Source: Ramaswamy, Rastogi & Shim, "Efficient algorithms for mining outliers from large data sets", 2000; for
    features of networks Sun et al., "Out-of-distribution detection with deep nearest neighbors", arXiv 2204.06507.
    """
    return _distance_ratio(reference, _search(reference, snapshot, neighbors))


def neighbor_agreement(reference: FeatureSnapshot, snapshot: FeatureSnapshot, *, neighbors: int = 15) -> PerImage:
    """Share of the k nearest clean training features that are of the image's true class, 0 to 1.

    Arguments and errors are those of `distance_ratio`.

    Source: Cover & Hart, "Nearest neighbor pattern classification", 1967; as a reading of networks Papernot &
    McDaniel, "Deep k-nearest neighbors", arXiv 1803.04765.
    """
    return _agreement(reference, snapshot, _search(reference, snapshot, neighbors))


def ratio_and_agreement(
    reference: FeatureSnapshot, snapshot: FeatureSnapshot, *, neighbors: int = 15
) -> tuple[PerImage, PerImage]:
    """Compute `distance_ratio` and `neighbor_agreement` from one search; arguments and errors are theirs."""
    found = _search(reference, snapshot, neighbors)
    return _distance_ratio(reference, found), _agreement(reference, snapshot, found)


def _check(reference: FeatureSnapshot, snapshot: FeatureSnapshot, neighbors: int) -> None:
    if not 1 <= neighbors < len(reference.values):
        raise ValueError(f"neighbors must be from 1 to {len(reference.values) - 1}, got {neighbors}")
    if reference.layer != snapshot.layer or reference.values.shape[1] != snapshot.values.shape[1]:
        raise ValueError(
            f"snapshot must be of layer {reference.layer} with {reference.values.shape[1]} channels, as the reference, "
            f"got {snapshot.layer} with {snapshot.values.shape[1]}"
        )
    for part in (reference, snapshot):
        check_finite(part)


def _search(reference: FeatureSnapshot, snapshot: FeatureSnapshot, neighbors: int) -> Neighbors:
    """Find the nearest clean training features of every image."""
    _check(reference, snapshot, neighbors)
    return nearest(_wide(snapshot.values), _wide(reference.values), neighbors)


def _distance_ratio(reference: FeatureSnapshot, found: Neighbors) -> PerImage:
    neighbors, values = found.squared.shape[1], _wide(reference.values)
    usual = nearest(values, values, neighbors, itself=True).squared[:, -1].sqrt().median()
    if not usual:
        raise ValueError(
            f"reference must vary, but most of its features have {neighbors} duplicates; take more neighbors"
        )
    return found.squared[:, -1].sqrt() / usual


def _agreement(reference: FeatureSnapshot, snapshot: FeatureSnapshot, found: Neighbors) -> PerImage:
    return (reference.labels[found.indices] == snapshot.labels[:, None]).double().mean(1)


def _wide(values: Tensor) -> Tensor:
    """At least float32, which the search measures exactly."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_finite(snapshot: FeatureSnapshot) -> None:
    """Refuse features that are not finite."""
    if wrong := int((~snapshot.values.isfinite()).sum()):
        raise ValueError(f"features of {snapshot.condition} must be finite, but {wrong} of them are not")
