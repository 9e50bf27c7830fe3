"""How strongly and how often channels respond."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustviz.features import ChannelStats
from robustviz.plots.style import COLORS, new_axes, styled


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
        draw: A `plot_*` function that takes `ax`.
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
