"""Pictures of records: each function takes a record, draws it into Axes and returns them; nothing is computed here."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from robustviz.comparison import PUBLISHED, WORST, Comparison
from robustviz.evaluation import CLEAN, Sweep
from robustviz.features import ChannelStats
from robustviz.tensors import evaluating
from robustviz.types import Images, Labels

STYLE = Path(__file__).with_name("robustviz.mplstyle")
"""Style sheet of every picture; nothing is set globally."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, safe for color-blind readers; the first stands for the first model, and so on."""

MARKERS = "os^Dv*"


def styled(draw: Any) -> Any:
    """Run a drawing function under the style sheet."""

    @wraps(draw)
    def inside(*args: Any, **keywords: Any) -> Any:
        with matplotlib.style.context(STYLE):
            return draw(*args, **keywords)

    return inside


def new_axes(width: float = 6.4, height: float = 4.0) -> Axes:
    """Make a figure that belongs to no global state, and its one Axes."""
    return Figure(figsize=(width, height)).subplots()


@styled
def plot_accuracy(sweeps: Mapping[tuple[str, str], Sweep], *, ax: Axes | None = None) -> Axes:
    """Draw accuracy against attack strength, with 95 % intervals as bands.

    Args:
        sweeps: By (model, attack); color tells the model, marker and line the attack.
        ax: Where to draw; None makes a figure.
    """
    ax = new_axes() if ax is None else ax
    models, attacks = (list(dict.fromkeys(key[i] for key in sweeps)) for i in (0, 1))
    lines = ("-", "--", ":", "-.")
    for (model, attack), swept in sweeps.items():
        color, kind = COLORS[models.index(model) % len(COLORS)], attacks.index(attack)
        low, high = np.array(swept.intervals()).T * 100
        ax.fill_between(swept.epsilons, low, high, color=color, alpha=0.10, linewidth=0)
        accuracies = np.array(swept.accuracies()) * 100
        style: dict[str, Any] = {
            "color": color,
            "linestyle": lines[kind % len(lines)],
            "marker": MARKERS[kind % len(MARKERS)],
        }
        ax.plot(swept.epsilons, accuracies, **style)
    ax.set(xlabel="attack strength epsilon (largest change of a pixel, pixels in [0, 1])", ylabel="accuracy (%)")
    ax.set_ylim(-3, 103)
    entries = [Line2D([], [], color=COLORS[i % len(COLORS)], linewidth=4, label=m) for i, m in enumerate(models)]
    for i, attack in enumerate(attacks):
        style = {"linestyle": lines[i % len(lines)], "marker": MARKERS[i % len(MARKERS)]}
        entries.append(Line2D([], [], color="0.35", label=attack, **style))
    ax.figure.legend(handles=entries, loc="outside upper left", ncols=len(models) + len(attacks), handlelength=2.4)
    return ax


@styled
def plot_comparison(comparison: Comparison, networks: Mapping[str, str], *, ax: Axes | None = None) -> Axes:
    """Draw what the published attacks leave of each network, and what all attacks together leave, against strength.

    The shaded gap between the two is robustness that only the published attack sees.

    Args:
        comparison: With several strengths; of several seeds the mean is drawn.
        networks: Name in the comparison and name in the legend of each network to draw, a color each.
        ax: Where to draw; None makes a figure.
    """
    ax = new_axes() if ax is None else ax
    epsilons = [0.0, *comparison.epsilons]
    for color, name in zip(COLORS, networks, strict=False):
        clean = comparison.mean(name, epsilons[1], CLEAN)
        published, worst = (
            100 * np.array([clean, *(comparison.mean(name, e, condition) for e in epsilons[1:])])
            for condition in (PUBLISHED, WORST)
        )
        ax.fill_between(epsilons, worst, published, color=color, alpha=0.15, linewidth=0)
        ax.plot(epsilons, published, color=color, linestyle="--", marker="o", markerfacecolor="white")
        ax.plot(epsilons, worst, color=color, linestyle="-", marker="s")
    ax.set(xlabel="attack strength epsilon (largest change of a pixel, pixels in [0, 1])", ylabel="accuracy (%)")
    ax.set_ylim(-3, 103)
    entries = [Line2D([], [], color=c, linewidth=4, label=n) for c, n in zip(COLORS, networks.values(), strict=False)]
    entries.append(Line2D([], [], color="0.35", linestyle="--", marker="o", markerfacecolor="white", label=PUBLISHED))
    entries.append(Line2D([], [], color="0.35", marker="s", label=WORST))
    ax.figure.legend(handles=entries, loc="outside upper left", ncols=2, handlelength=2.4)
    return ax


@dataclass(frozen=True)
class Gallery:
    """Clean and attacked images with what one model says about them.

    Attributes:
        model: Its name.
        images: Clean.
        attacked: The same images under attack.
        labels: True classes.
        classes: Their names.
        clean_confidence: Probability of each class for the clean images, each row sums to 1.
        attacked_confidence: The same for the attacked ones.
    """

    model: str
    images: Images
    attacked: Images
    labels: Labels
    classes: tuple[str, ...]
    clean_confidence: Float[Tensor, "n k"]
    attacked_confidence: Float[Tensor, "n k"]

    @classmethod
    def of(
        cls, name: str, model: nn.Module, images: Images, attacked: Images, labels: Labels, classes: Any
    ) -> "Gallery":
        """Ask a model about both versions of the images."""
        with evaluating(model), torch.no_grad():
            clean, fooled = (model(batch).softmax(1).cpu() for batch in (images, attacked))
        return cls(name, images.cpu(), attacked.cpu(), labels.cpu(), tuple(classes), clean, fooled)


@styled
def plot_gallery(galleries: list[Gallery], *, figure: Figure | None = None) -> Figure:
    """Draw one row of pictures for each image: clean, then attacked and the change for every model.

    Under each picture stand the decision and its probability; a wrong decision is marked with a cross and in orange.
    The change is drawn around gray (no change), magnified by the same factor everywhere.
    """
    first = galleries[0]
    count, columns = len(first.labels), 1 + 2 * len(galleries)
    figure = Figure(figsize=(1.45 * columns + 0.3, 1.62 * count + 0.5)) if figure is None else figure
    axes = figure.subplots(count, columns, squeeze=False)
    largest = max(float((g.attacked - g.images).abs().max()) for g in galleries) or 1.0
    for row in range(count):
        truth = first.classes[int(first.labels[row])]
        _picture(axes[row, 0], first.images[row])
        axes[row, 0].set_xlabel(f"true class {truth}")
        for i, gallery in enumerate(galleries):
            attacked, change = axes[row, 1 + 2 * i], axes[row, 2 + 2 * i]
            _picture(attacked, gallery.attacked[row])
            _decision(attacked, gallery.attacked_confidence[row], int(gallery.labels[row]), gallery.classes)
            _picture(change, 0.5 + (gallery.attacked[row] - gallery.images[row]) / (2 * largest))
            was = gallery.clean_confidence[row]
            change.set_xlabel(f"was {gallery.classes[int(was.argmax())]} ({was.max():.0%})", color="0.35")
    axes[0, 0].set_title("clean")
    for i, gallery in enumerate(galleries):
        axes[0, 1 + 2 * i].set_title("\n".join([*wrap(gallery.model, 14), "attacked"]))
        axes[0, 2 + 2 * i].set_title(f"change\nx {0.5 / largest:.2g}")
    return figure


def _picture(ax: Axes, image: Float[Tensor, "c h w"]) -> None:
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    ax.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.xaxis.label.set_fontsize("small")  # so that `was automobile (100%)` stays in its column
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _decision(ax: Axes, confidence: Float[Tensor, "k"], label: int, classes: tuple[str, ...]) -> None:
    decided = int(confidence.argmax())
    right = decided == label
    text = f"{'✓' if right else '✗'} {classes[decided]} ({confidence[decided]:.0%})"
    ax.set_xlabel(text, color=COLORS[0] if right else COLORS[1], fontweight="normal" if right else "bold")


@styled
def plot_magnitude(clean: ChannelStats, attacked: ChannelStats, *, ax: Axes | None = None) -> Axes:
    """Draw how strongly the channels respond, each condition sorted on its own from the strongest channel down.

    Args:
        clean: Statistics of clean images.
        attacked: Statistics of the same images under attack.
        ax: Where to draw; None makes a figure.

    Source: Bai et al., arXiv 2103.08307, figure 1.
    """
    ax = new_axes() if ax is None else ax
    heights = [stats.magnitude.sort(descending=True).values for stats in (clean, attacked)]
    _profiles(ax, heights, [f"mean {stats.mean_magnitude:#.3g}" for stats in (clean, attacked)])
    ax.set(xlabel="channel, by its own rank", ylabel="mean activation (units of the layer)")
    ax.set_ylim(bottom=0)
    return ax


@styled
def plot_frequency(clean: ChannelStats, attacked: ChannelStats, *, ax: Axes | None = None) -> Axes:
    """Draw how often the channels are active, both conditions in the order of the clean frequencies.

    Where the attacked profile stands above the clean one, the attack wakes a channel up; a flat profile is uniform.

    Args:
        clean: Statistics of clean images.
        attacked: Statistics of the same images under attack.
        ax: Where to draw; None makes a figure.

    Source: Bai et al., arXiv 2103.08307, figure 2.
    """
    ax = new_axes() if ax is None else ax
    order = clean.frequency.argsort(descending=True, stable=True)
    texts = [f"mean {stats.mean_frequency:.0%}, {stats.above_half} above 50 %" for stats in (clean, attacked)]
    _profiles(ax, [100 * stats.frequency[order] for stats in (clean, attacked)], texts)
    ax.axhline(50, color="0.35", linewidth=1, linestyle=":")
    ax.set(xlabel="channel, by its clean frequency", ylabel="images that activate it (%)")
    ax.set(ylim=(0, 135), yticks=range(0, 101, 25))  # the legend stands above 100 %
    return ax


@styled
def plot_panels(draw: Any, panels: Mapping[str, tuple[Any, ...]]) -> Figure:
    """Draw the same picture for several models side by side.

    All have one scale; the vertical axis is labelled once.

    Args:
        draw: A `plot_*` function of this file that takes `ax`.
        panels: What it draws for each model, by the model's name.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.4))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, records) in zip(axes, panels.items(), strict=True):
        draw(*records, ax=ax).set_title(name)
        ax.label_outer()
    return figure


def _profiles(ax: Axes, heights: list[Tensor], texts: list[str]) -> None:
    for values, condition, text, color in zip(heights, ("clean", "attacked"), texts, COLORS, strict=False):
        edges = values.cpu().numpy()
        ax.stairs(edges, fill=True, alpha=0.25, color=color)
        ax.stairs(edges, color=color, linewidth=1.4, label=f"{condition}: {text}")
    ax.set_xlim(0, len(heights[0]))
    ax.legend(loc="upper right")


@dataclass(frozen=True)
class Purified:
    """A picture before and after total variation minimization.

    Attributes:
        name: What was done to it before.
        image: As it came.
        kept: Pixels that count, one mask for all channels.
        result: Purified.
        before: Energy of the picture as it came, its dropped pixels filled in from their neighbors.
        after: Energy of the result.
    """

    name: str
    image: Float[Tensor, "c h w"]
    kept: Bool[Tensor, "1 h w"]
    result: Float[Tensor, "c h w"]
    before: float
    after: float


@styled
def plot_purified(rows: list[Purified]) -> Figure:
    """Draw one row for each picture: as it came, the pixels that are kept, and what TVM makes of them."""
    figure = Figure(figsize=(6.6, 2.2 * len(rows) + 0.3))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (came, kept, result), row in zip(axes, rows, strict=True):
        for ax, image in zip((came, kept, result), (row.image, row.image * row.kept, row.result), strict=True):
            _picture(ax, image)
        came.set_ylabel(row.name)
        kept.set_xlabel(f"E = {row.before:.1f} at the start")
        result.set_xlabel(f"E = {row.after:.1f}")
    for ax, title in zip(axes[0], ("as it came", "kept pixels", "purified"), strict=True):
        ax.set_title(title)
    return figure
