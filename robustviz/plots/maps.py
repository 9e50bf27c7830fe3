"""Maps of features: clean points as dots, attacked ones as crosses, the paths between them, and decisions below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from torch import Tensor

from robustviz.features import FeatureSnapshot
from robustviz.geometry import DecisionPlane, Embedding, Trajectory
from robustviz.plots.names import HALO, name_classes, name_ends
from robustviz.plots.style import class_color, new_axes, styled

WRONG: Any = (0, (1.2, 1.0))
"""Line of a way while the decision is wrong."""


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

    The color is the true class, whose name is written at the middle of its training features and, for up to `NAMED`
    images, in small letters beside each cross. Arrows lead from each clean image to where the attack carries it. A pale
    background is the class decided there.

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
        for start, end in zip(*(place.tolist() for place in places), strict=True):
            look: dict[str, Any] = {"color": "0.2", "alpha": 0.7, "linewidth": 0.9, "mutation_scale": 9, "zorder": 2}
            ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", shrinkA=0, shrinkB=4.5, **look))
    for place, snapshot, number in zip(places, view.snapshots, range(2), strict=False):
        if number == 0:
            _scatter(ax, place, snapshot.labels, marker="o", s=26, linewidths=0.6, edgecolors="0.1", zorder=3)
        else:
            for stroke, width in (("white", 3.0), (None, 1.5)):
                _scatter(ax, place, snapshot.labels, stroke, marker="x", s=28, linewidths=width, zorder=8)
    taken = name_classes(ax, embedding, classes)
    if len(places) == 2:
        name_ends(ax, places[1], view.snapshots[1].labels, classes, taken)
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

    The line is solid while the decision is right and dashed while it is wrong. The color is the true class, whose name
    is written beside the cross, of up to `NAMED` images.

    Args:
        embedding: The map; a trajectory that it does not hold is placed.
        trajectory: Paths of few images, a dozen or two (see `Trajectory.select`).
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
            style = WRONG if bool(wrong[start, i]) else "-"
            steps = places[start : start + 2, i].T.numpy()
            ax.plot(*steps, color=class_color(label, dark=True), linestyle=style, linewidth=1.5, path_effects=HALO)
    _scatter(ax, places[0], trajectory.labels, marker="o", s=34, linewidths=0.7, edgecolors="0.1", zorder=5)
    for stroke, width in (("white", 3.2), (None, 1.7)):
        _scatter(ax, places[-1], trajectory.labels, stroke, marker="x", s=34, linewidths=width, zorder=8)
    name_ends(ax, places[-1], trajectory.labels, classes, name_classes(ax, embedding, classes))
    if figure_wanted:
        _legend_of_paths(ax.figure, embedding, trajectory)
    return ax


@styled
def plot_paths(maps: Mapping[str, Embedding], paths: Mapping[str, Trajectory], classes: Sequence[str]) -> Figure:
    """Draw trajectories on maps side by side, with one legend.

    Args:
        maps: By title.
        paths: The trajectory on each map, with the same stages.
        classes: Names of the classes.
    """
    figure = Figure(figsize=(4.8 * len(maps), 4.7))
    for ax, (title, embedding) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        plot_trajectories(embedding, paths[title], classes, ax=ax).set_title(title)
    _legend_of_paths(figure, embedding, paths[title])
    return figure


def _entry(marker: str, label: str, size: float = 6) -> Line2D:
    return Line2D([], [], color="0.3", linestyle="", marker=marker, markersize=size, label=label)


def _legend_of_paths(figure: Any, embedding: Embedding, way: Trajectory) -> None:
    entries = [_entry(mark, f"{way.unit} {way.stages[end]:.3g}") for mark, end in (("o", 0), ("x", -1))]
    entries.append(Line2D([], [], color="0.3", label="correct"))
    entries.append(Line2D([], [], color="0.3", linestyle=WRONG, label="wrong"))
    entries.append(_entry("o", embedding.reference.condition, 2.5))
    figure.legend(handles=entries, loc="outside upper left", ncols=5, handlelength=1.8)


def _legend(figure: Any, views: Sequence[MapView]) -> None:
    """Say above the maps what dots, crosses, small dots and the background are; the classes are named in the map."""
    second = [view.snapshots[1].condition for view in views if len(view.snapshots) > 1]
    attacked = second[0] if len(set(second)) == 1 else "attacked"
    entries: list[Line2D | Patch] = [_entry("o", "clean")] if any(view.snapshots for view in views) else []
    entries += [_entry("x", attacked)] if second else []
    grounds = {(view.embedding.reference if view.ground is None else view.ground).condition for view in views}
    entries.append(_entry("o", " or ".join(sorted(grounds)), 2.5))
    if any(view.regions is not None for view in views):
        entries.append(Patch(facecolor="0.85", edgecolor="0.5", label="background: class decided there"))
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
