"""Maps of features: clean points as dots, attacked ones as crosses, the ways between them, and decisions below."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from robustviz.features import FeatureSnapshot
from robustviz.geometry import DecisionPlane, Embedding, Trajectory
from robustviz.plots.style import class_color, new_axes, styled

HALO = [withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True)
class MapView:
    """What one map shows.

    Attributes:
        title: Above it.
        embedding: Holds the positions of everything shown.
        snapshots: Clean images, drawn as dots, and, if there are two, the same images attacked, drawn as crosses.
        regions: Decisions over the map; None for none.
        ground: Drawn small below, in place of the training features, such as the template of a WNLL head.
    """

    title: str
    embedding: Embedding
    snapshots: Sequence[FeatureSnapshot] = ()
    regions: DecisionPlane | None = None
    ground: FeatureSnapshot | None = None


@styled
def plot_map(view: MapView, classes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Draw a map of features.

    The color is the true class, whose name stands at the middle of its training features. Arrows lead from each clean
    image to where the attack carries it. A pale background is the class decided there.

    Args:
        view: What to show.
        classes: Names of the classes.
        ax: Where to draw; None makes a figure with a legend.
    """
    figure_wanted, ax = ax is None, new_axes(6.4, 5.6) if ax is None else ax
    embedding, ground = view.embedding, view.ground
    if view.regions is not None:
        paint_decisions(ax, view.regions)
    _frame(ax, view)
    points, labels = embedding.coordinates, embedding.reference.labels
    if ground is not None:
        points, labels = embedding.positions[ground.condition], ground.labels
    _scatter(ax, points, labels, marker="o", s=5, alpha=0.45, linewidths=0)
    places = [embedding.positions[snapshot.condition] for snapshot in view.snapshots]
    if len(places) == 2:
        way = (places[1] - places[0]).numpy()
        look: dict[str, Any] = {"color": "0.25", "alpha": 0.55, "width": 0.0022, "headwidth": 4.5, "headlength": 5}
        ax.quiver(*places[0].T.numpy(), *way.T, angles="xy", scale_units="xy", scale=1, zorder=2, **look)
    for place, snapshot, number in zip(places, view.snapshots, range(2), strict=False):
        if number == 0:
            _scatter(ax, place, snapshot.labels, marker="o", s=26, linewidths=0.6, edgecolors="0.1", zorder=3)
        else:
            for stroke, width in (("white", 3.0), (None, 1.5)):
                _scatter(ax, place, snapshot.labels, stroke, marker="x", s=28, linewidths=width, zorder=4)
    _name_classes(ax, embedding, classes)
    ax.set_title(view.title)
    if figure_wanted:
        _legend(ax.figure, [view])
    return ax


@styled
def plot_maps(rows: Sequence[Sequence[MapView]], classes: Sequence[str]) -> Figure:
    """Draw maps in rows, such as a row for each network and a column for each condition, with one legend.

    Args:
        rows: Views; those of one row share their axes.
        classes: Names of the classes.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(4.0 * columns + 0.3, 3.7 * len(rows) + 0.5))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for i, (ax, view) in enumerate(zip(line, row, strict=False)):
            plot_map(view, classes, ax=ax)
            if i:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
        for ax in line[len(row) :]:
            ax.remove()
    _legend(figure, [view for row in rows for view in row])
    return figure


@styled
def plot_trajectories(
    embedding: Embedding, trajectory: Trajectory, classes: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw the way of each image over the map: from a dot at the first stage to a cross at the last.

    The line is solid while the decision is right and dashed while it is wrong; the color is the true class.

    Args:
        embedding: The map; a trajectory that it does not hold is placed.
        trajectory: Of few images, a dozen or two (see `Trajectory.select`).
        classes: Names of the classes.
        ax: Where to draw; None makes a figure with a legend.
    """
    figure_wanted, ax = ax is None, new_axes(6.4, 5.6) if ax is None else ax
    _frame(ax, MapView("", embedding))
    _scatter(ax, embedding.coordinates, embedding.reference.labels, marker="o", s=5, alpha=0.3, linewidths=0)
    held = embedding.positions.get(trajectory.condition)
    places = embedding.place(trajectory.values) if held is None else held
    wrong = trajectory.predictions != trajectory.labels
    for i, label in enumerate(trajectory.labels.tolist()):
        for start in range(len(places) - 1):
            style = (0, (1.2, 1.0)) if bool(wrong[start, i]) else "-"
            steps = places[start : start + 2, i].T.numpy()
            ax.plot(*steps, color=class_color(label, dark=True), linestyle=style, linewidth=1.5, path_effects=HALO)
    _scatter(ax, places[0], trajectory.labels, marker="o", s=34, linewidths=0.7, edgecolors="0.1", zorder=5)
    for stroke, width in (("white", 3.2), (None, 1.7)):
        _scatter(ax, places[-1], trajectory.labels, stroke, marker="x", s=34, linewidths=width, zorder=6)
    _name_classes(ax, embedding, classes)
    if figure_wanted:
        last = f"{trajectory.unit} {trajectory.stages[-1]:.3g}"
        entries = [_entry("o", f"{trajectory.unit} {trajectory.stages[0]:.3g}"), _entry("x", last)]
        entries.append(Line2D([], [], color="0.3", label="decided right"))
        entries.append(Line2D([], [], color="0.3", linestyle=(0, (1.2, 1.0)), label="decided wrong"))
        entries.append(_entry("o", embedding.reference.condition, 2.5))
        ax.figure.legend(handles=entries, loc="outside upper left", ncols=5, handlelength=1.8)
    return ax


def _entry(marker: str, label: str, size: float = 6) -> Line2D:
    return Line2D([], [], color="0.3", linestyle="", marker=marker, markersize=size, label=label)


def _legend(figure: Any, views: Sequence[MapView]) -> None:
    """Say above the maps what dots, crosses and small dots are; color needs no entry, the names stand in the map."""
    second = [view.snapshots[1].condition for view in views if len(view.snapshots) > 1]
    attacked = second[0] if len(set(second)) == 1 else "attacked"
    entries = [_entry("o", "clean")] if any(view.snapshots for view in views) else []
    entries += [_entry("x", attacked)] if second else []
    grounds = {(view.embedding.reference if view.ground is None else view.ground).condition for view in views}
    entries.append(_entry("o", " or ".join(sorted(grounds)), 2.5))
    figure.legend(handles=entries, loc="outside upper left", ncols=len(entries), handlelength=1.2)


def _scatter(ax: Axes, points: Float[Tensor, "n 2"], labels: Tensor, color: str | None = None, **look: Any) -> None:
    thin = look["marker"] == "x"
    colors = [class_color(label, dark=thin) for label in labels.tolist()] if color is None else color
    horizontal, vertical = points.T.numpy()
    ax.scatter(horizontal, vertical, c=colors, **{"zorder": 1, **look})


def paint_decisions(ax: Axes, plane: DecisionPlane) -> None:
    """Color every point of the plane by its decision, paler where the confidence is low."""
    colors = torch.tensor([class_color(label) for label in range(int(plane.decisions.max()) + 1)])
    strength = 0.12 + 0.26 * plane.confidence.cpu()[..., None].float()
    picture = 1 - strength * (1 - colors[plane.decisions.cpu()])
    half = [float(axis[1] - axis[0]) / 2 for axis in (plane.horizontal, plane.vertical)]
    extent = (
        float(plane.horizontal[0]) - half[0],
        float(plane.horizontal[-1]) + half[0],
        float(plane.vertical[0]) - half[1],
        float(plane.vertical[-1]) + half[1],
    )
    ax.imshow(picture.numpy(), origin="lower", extent=extent, aspect="auto", zorder=0, interpolation="nearest")
    ax.grid(visible=False)


def _frame(ax: Axes, view: MapView) -> None:
    """Set limits that hold everything on the map, so that maps of one embedding can be compared; name the axes."""
    embedding = view.embedding
    shown = torch.cat([embedding.coordinates, *(part.reshape(-1, 2) for part in embedding.positions.values())])
    low, high = shown.amin(0), shown.amax(0)
    edge = (high - low) * 0.04
    ax.set(xlim=(float(low[0] - edge[0]), float(high[0] + edge[0])))
    ax.set(ylim=(float(low[1] - edge[1]), float(high[1] + edge[1])))
    if embedding.explained is None:
        ax.set(xlabel="first UMAP coordinate (no unit)", ylabel="second UMAP coordinate (no unit)")
    else:
        first, second = embedding.explained
        ax.set(xlabel=f"first component ({first:.0%} of the variance)")
        ax.set(ylabel=f"second component ({second:.0%} of the variance)")


def _name_classes(ax: Axes, embedding: Embedding, classes: Sequence[str]) -> None:
    """Write each class at the median of its training features; names that would meet are moved apart."""
    labels = embedding.reference.labels
    present = torch.unique(labels).tolist()
    middle = np.array([embedding.coordinates[labels == label].median(0).values.numpy() for label in present])
    low, high = (np.array([ax.get_xlim()[i], ax.get_ylim()[i]]) for i in (0, 1))
    width = 0.02 + 0.022 * max(len(classes[label]) for label in present)
    places = apart((middle - low) / (high - low), np.array([width, 0.065]))
    for label, place in zip(present, places, strict=True):
        look: dict[str, Any] = {
            "color": class_color(label, dark=True),
            "fontweight": "bold",
            "fontsize": 11,
            "zorder": 7,
        }
        horizontal, vertical = low + place * (high - low)
        ax.text(horizontal, vertical, classes[label], ha="center", va="center", path_effects=HALO, **look)


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
