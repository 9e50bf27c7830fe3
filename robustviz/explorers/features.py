"""The feature explorer's measurement: where a network puts images, and where an attack carries them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.explorers.attack import strengths_around
from robustviz.explorers.frames import BUDGET, Frames, Value, check_budget
from robustviz.explorers.pictures import in_bytes
from robustviz.features import snapshot
from robustviz.geometry import Embedding, distance_ratio, embed, map_regions, margins, trace_strengths
from robustviz.models import Classifier
from robustviz.neighbors import nearest
from robustviz.presets import usual_threat

LAYER = "body"
"""Its output is what the head sees: the penultimate features."""

MAPS = ("PCA", "UMAP")
NEIGHBORS = 5
"""Training images that are shown beside the chosen one."""

REGIONS = 41
"""Points along each axis of the decision regions."""


def feature_frames(
    network: Classifier,
    training: ImageSet,
    images: ImageSet,
    *,
    maps: Sequence[str] = MAPS,
    strengths: Sequence[float] | None = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> Frames:
    """Attack images by PGD-10 at every strength and put their features on maps of clean training features.

    Args:
        network: Left as it was.
        training: Clean images that the maps are fitted on, and no others; one to two thousand.
        images: Attacked and followed.
        maps: "PCA", "UMAP" or both.
        strengths: Radii in L-infinity; 0 is added. None takes `attack.strengths_around` the usual radius.
        seed: Seed of UMAP and of the random starts.
        budget: Most frames: maps x strengths x images.

    Returns:
        Frames over map, strength and image. `ground` (map, training image, 2) and `ground_labels` are the maps, and
        `regions` (map, row, column) what the head decides over them, between the corners `extent` (map, 4). Of the
        images there are `places` (map, strength, image, 2), `decisions`, `margins`, `distances` and `neighbors`
        (strength, image ...), `changes` in gray levels, `pictures`, `labels`; `training_pictures` are the training
        images that are somebody's neighbor.

    Raises:
        ValueError: If a map is unknown, or the grid exceeds its budget.
    """
    if unknown := [name for name in maps if name not in MAPS]:
        raise ValueError(f"maps must be of {', '.join(MAPS)}, got {unknown[0]!r}")
    radii = strengths_around(usual_threat(images.name)) if strengths is None else tuple(map(float, strengths))
    check_budget({"maps": len(maps), "strengths": len({0.0, *radii}), "images": len(images)}, budget)
    reference = snapshot(network, training.images, training.labels, layer=LAYER, condition="training")
    told: dict[str, Any] = {"layer": LAYER, "condition": "PGD-10"}
    path = trace_strengths(network, images.images, images.labels, partial(pgd, steps=10), radii, **told)
    stages = range(len(path.stages))
    found = nearest(path.values.flatten(0, 1).double(), reference.values.double(), NEIGHBORS)
    order = found.squared.argsort(dim=1)
    neighbors = found.indices.gather(1, order).reshape(len(stages), len(images), NEIGHBORS).cpu()
    fitted = [embed(reference, [path], method=_method(name), seed=seed) for name in maps]
    known, numbers = torch.unique(neighbors, return_inverse=True)
    arrays: dict[str, Tensor] = {
        "pictures": in_bytes(images.images),
        "training_pictures": in_bytes(training.images[known]),
        "training_labels": training.labels[known].cpu(),
        "labels": images.labels.cpu(),
        "changes": in_bytes(path.images.flatten(0, 1)).short().reshape(path.images.shape)
        - in_bytes(images.images).short(),
        "decisions": path.predictions.cpu(),
        "margins": torch.stack([margins(network, some, images.labels).cpu() for some in path.images]),
        "distances": torch.stack([distance_ratio(reference, path.snapshot(stage)).cpu() for stage in stages]),
        "neighbors": numbers.reshape(neighbors.shape),
        "ground_labels": training.labels.cpu(),
        **_mapped(network, fitted, path.condition),
    }
    grid: dict[str, tuple[Value, ...]] = {
        "map": tuple(maps),
        "strength": tuple(path.stages),
        "image": tuple(range(len(images))),
    }
    about = {"classes": list(images.classes), "data": images.name, "seed": seed}
    return Frames("features", grid, arrays, about)


def _method(name: str) -> Any:
    return name.lower()


def _mapped(network: Classifier, maps: Sequence[Embedding], condition: str) -> dict[str, Tensor]:
    """Stack what the maps show: training images, attacked images, and what the head decides where."""
    planes = [map_regions(network.head, one, resolution=REGIONS) for one in maps]
    ends = [[plane.horizontal[0], plane.vertical[0], plane.horizontal[-1], plane.vertical[-1]] for plane in planes]
    return {
        "ground": torch.stack([one.coordinates for one in maps]),
        "places": torch.stack([one.positions[condition] for one in maps]),
        "regions": torch.stack([plane.decisions.cpu() for plane in planes]),
        "extent": torch.tensor([[float(end) for end in four] for four in ends], dtype=torch.float64),
    }
