"""Names in a map, placed so that none covers another."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from torch import Tensor

from robustviz.geometry import Embedding
from robustviz.plots.style import class_color

HALO = [withStroke(linewidth=2.5, foreground="white")]

NAMED = 12
"""Crosses on a map that get a name each; the names of more would hide the map."""

Boxes = list[tuple[np.ndarray, np.ndarray]]
"""Middle and size of rectangles, in shares of the Axes."""


def name_classes(ax: Axes, embedding: Embedding, classes: Sequence[str]) -> Boxes:
    """Write each class at the median of its training features; names that would overlap are moved apart.

    Returns:
        The boxes of the names.
    """
    labels = embedding.reference.labels
    present = torch.unique(labels).tolist()
    middle = np.array([embedding.coordinates[labels == label].median(0).values.numpy() for label in present])
    size = np.array([0.02 + 0.022 * max(len(classes[label]) for label in present), 0.065])
    places = apart(_shares(ax, middle), size)
    for label, place in zip(present, places, strict=True):
        _write(ax, place, classes[label], label, point=place, fontsize=11, fontweight="bold")
    return [(place, size) for place in places]


def name_ends(
    ax: Axes, ends: Float[Tensor, "n 2"], labels: Int[Tensor, " n"], classes: Sequence[str], taken: Boxes
) -> None:
    """Write the class of each point beside it in small letters, where no other name and no other point is.

    Args:
        ax: With its final limits.
        ends: Points, in data units; nothing is written for more than `NAMED`.
        labels: Their classes.
        classes: Names of the classes.
        taken: Boxes of the names that are there already.
    """
    if len(ends) > NAMED:
        return
    places = _shares(ax, ends.numpy())
    points = np.array([ax.bbox.width, ax.bbox.height]) * 72 / ax.figure.dpi
    taken = [*taken, *((place, 9 / points) for place in places)]
    for place, label in zip(places, labels.tolist(), strict=True):
        if not classes[label].strip():
            continue
        written = TextPath((0, 0), classes[label], size=9).get_extents()
        size = np.array([written.width + 3, 12]) / points
        steps = [np.array(step) for step in product((1, 0, -1), repeat=2) if step != (0, 0)]
        sides = [place + far * step * (size + 8 / points) / 2 for far in (1.1, 1.8, 2.6) for step in steps]
        inside = [side.clip(size / 2, 1 - size / 2) for side in sides]
        best = min(inside, key=lambda side: sum(_overlap(side, size, *other) for other in taken))
        taken.append((best, size))
        link = {"arrowstyle": "-", "color": class_color(label, dark=True), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        _write(ax, best, classes[label], label, point=place, arrowprops=link, fontsize=9)


def apart(places: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Move boxes of one size, given by their middles in [0, 1], until none overlaps another."""
    places = places.copy()
    for _ in range(200):
        gap = places[:, None] - places[None]
        overlap = np.clip(size - np.abs(gap), 0, None)
        overlap[np.arange(len(places)), np.arange(len(places))] = 0
        meeting = (overlap > 0).all(2)
        if not meeting.any():
            break
        axis = overlap.argmin(2)  # the shorter way out
        order = np.sign(np.arange(len(places))[:, None] - np.arange(len(places))[None])
        for i in (0, 1):
            push = np.where(
                meeting & (axis == i), overlap[..., i] * np.where(gap[..., i], np.sign(gap[..., i]), order), 0
            )
            places[:, i] += 0.51 * push.sum(1)
        places = places.clip(size / 2, 1 - size / 2)
    return places


def _overlap(place: np.ndarray, size: np.ndarray, other: np.ndarray, other_size: np.ndarray) -> float:
    """Area that two boxes share."""
    return float(np.clip((size + other_size) / 2 - np.abs(place - other), 0, None).prod())


def _shares(ax: Axes, points: np.ndarray) -> np.ndarray:
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    return (points - low) / (high - low)


def _write(ax: Axes, place: np.ndarray, name: str, label: int, *, point: np.ndarray, **look: Any) -> None:
    """Write at a place that is given in shares of the Axes, about a point that is given alike."""
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    xy, text = (tuple(low + share * (high - low)) for share in (point, place))
    look |= {"color": class_color(label, dark=True), "zorder": 7, "path_effects": HALO, "annotation_clip": False}
    ax.annotate(name, xy, text, ha="center", va="center", **look)
