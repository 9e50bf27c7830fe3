"""Decisions seen from nearby: a plane through three images, the template that votes, and numbers against strength."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustviz.geometry import Ballot, Curves, DecisionPlane
from robustviz.plots.maps import paint_decisions
from robustviz.plots.names import HALO
from robustviz.plots.style import COLORS, caption, class_color, judge, new_axes, show_picture, styled


@styled
def plot_plane(plane: DecisionPlane, classes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Draw what a model decides in the plane through three images.

    The color is the decision, paler where it is less sure; its name is written inside each larger region.

    Args:
        plane: As `image_plane` gives it.
        classes: Names of the classes.
        ax: Where to draw; None makes a figure.
    """
    ax = new_axes(5.6, 5.4) if ax is None else ax
    paint_decisions(ax, plane)
    decisions = plane.decisions.cpu()
    labels = torch.unique(decisions).tolist()
    for label in labels:
        region = decisions == label
        if len(labels) > 1:
            ax.contour(plane.horizontal, plane.vertical, region.double(), levels=[0.5], colors="0.35", linewidths=0.6)
        row, column, room = _inside(region, plane)
        if room > 0.05 * len(decisions):
            look: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": "bold", "fontsize": 12}
            place = (float(plane.horizontal[column]), float(plane.vertical[row]))
            ax.text(*place, classes[label], color=class_color(label, dark=True), path_effects=HALO, **look)
    for point, name, marker in zip(plane.points.tolist(), plane.names, "oxP", strict=False):
        edge: dict[str, Any] = {} if marker == "x" else {"markeredgecolor": "white"}
        width = 2.2 if marker == "x" else 1.0
        ax.plot(*point, marker, color="black", markersize=9, markeredgewidth=width, label=name, **edge)
    ax.set(xlabel="Euclidean distance along the plane (pixels in [0, 1])", ylabel="distance across (same unit)")
    ax.set_aspect("equal")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handletextpad=0.3, columnspacing=1.2)
    return ax


@styled
def plot_votes(ballots: Sequence[Ballot], classes: Sequence[str]) -> Figure:
    """Draw one row for each ballot: the image with its decision, then the template images that vote, heaviest first.

    Below each voter are its class and its weight; a vote for a wrong class is marked with a cross and in orange.

    Args:
        ballots: Such as one image clean and attacked.
        classes: Names of the classes.
    """
    most = max(len(ballot.weights) for ballot in ballots)
    figure = Figure(figsize=(1.28 * (most + 1) + 0.9, 1.72 * len(ballots) + 0.35))
    axes = figure.subplots(len(ballots), most + 1, squeeze=False, width_ratios=[1.35, *[1] * most])
    for row, ballot in zip(axes, ballots, strict=True):
        show_picture(row[0], ballot.image)
        row[0].set_title(ballot.condition)
        decided = caption(classes[ballot.decision], float(ballot.shares[ballot.decision]))
        judge(row[0], f"decides {decided}", ballot.decision == ballot.label)
        for ax in row[1 + len(ballot.weights) :]:
            ax.remove()
        voters = zip(row[1:], ballot.voters, ballot.labels.tolist(), ballot.weights.tolist(), strict=False)
        for ax, image, label, weight in voters:
            show_picture(ax, image)
            judge(ax, caption(classes[label], weight), label == ballot.label)
    return figure


@styled
def plot_curves(curves: Sequence[Curves], *, figure: Figure | None = None) -> Figure:
    """Draw the numbers beside the map against the strength (or the steps) of attacks, up to four of them.

    From left to right: the share of right decisions with the share of same-class neighbors, the distance to the data,
    and the margin. Bands hold the middle half of the images.

    Args:
        curves: Curves in the same unit.
        figure: Where to draw; None makes one.
    """
    figure = Figure(figsize=(10.6, 3.8)) if figure is None else figure
    decided, distance, margin = figure.subplots(1, 3)
    lines: tuple[Any, ...] = ("-", "--", ":", "-.")
    for one, color, line in zip(curves, COLORS, lines, strict=False):
        decided.plot(one.stages, 100 * one.accuracy, color=color, linestyle=line)
        decided.plot(one.stages, 100 * one.agreement, color=color, linestyle=line, marker="s", markersize=3.5)
        for ax, quartiles in ((distance, one.distance), (margin, one.margin)):
            low, middle, high = quartiles.T.numpy()
            ax.fill_between(one.stages, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(one.stages, middle, color=color, linestyle=line)
    decided.set(ylabel="images and neighbors (%)", ylim=(-3, 103))
    distance.axhline(1, color="0.35", linewidth=1, linestyle=":")
    distance.set(ylabel="distance to the data\n(1 = median of training images)")
    distance.set_ylim(bottom=0)
    margin.axhline(0, color="0.35", linewidth=1, linestyle=":")
    margin.set(ylabel="margin (probability of the true\nclass - best other)", ylim=(-1.05, 1.05))
    unit = "attack strength epsilon" if curves[0].unit == "epsilon" else "step of the attack"
    for ax in (decided, distance, margin):
        ax.set_xlabel(unit)
    entries = [
        Line2D([], [], color=color, linestyle=line, label=one.condition)
        for one, color, line in zip(curves, COLORS, lines, strict=False)
    ]
    entries.append(Line2D([], [], color="0.35", marker="s", markersize=3.5, label="left: same-class neighbors"))
    figure.legend(handles=entries, loc="outside upper left", ncols=3, handlelength=2.4)
    return figure


def _inside(mask: torch.Tensor, plane: DecisionPlane) -> tuple[int, int, float]:
    """Point of a region that is farthest from its border and from what is drawn already, and how far, in grid steps."""
    from scipy.ndimage import distance_transform_edt

    room = distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1]
    step = float(plane.horizontal[1] - plane.horizontal[0])
    down, right = torch.meshgrid(plane.vertical, plane.horizontal, indexing="ij")
    for point in plane.points:
        away = ((right - point[0]).square() + (down - point[1]).square()).sqrt() / step
        room = np.minimum(room, away.numpy())
    row, column = np.unravel_index(room.argmax(), room.shape)
    return int(row), int(column), float(room[row, column])
