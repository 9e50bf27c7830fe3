"""How strongly and how often channels respond."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustviz.features import ChannelStats
from robustviz.plots.style import COLORS, new_axes, styled


@styled
def plot_magnitude(
    clean: ChannelStats, attacked: ChannelStats, *, by_channel: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw how strongly the channels respond, from the strongest channel down.

    Args:
        clean: Statistics of clean images.
        attacked: Statistics of the same images under attack.
        by_channel: False sorts each condition on its own, as the paper does: one place shows two channels. True
            keeps the order of the clean magnitudes: a cross above the profile is a channel that the attack raises.
        ax: Where to draw; None makes a figure.

    Source: Bai et al., arXiv 2103.08307, figure 1.
    """
    ax = new_axes() if ax is None else ax
    order, own_order = (stats.magnitude.argsort(descending=True, stable=True) for stats in (clean, attacked))
    rows = [clean.magnitude[order], attacked.magnitude[order if by_channel else own_order]]
    _profiles(ax, rows, [f"mean {stats.mean_magnitude:#.3g}" for stats in (clean, attacked)])
    label = "channel, by its clean magnitude" if by_channel else "channel, by its own rank"
    ax.set(xlabel=label, ylabel="mean activation (units of the layer)")
    highest = max(row.max().item() for row in rows)
    ax.set_ylim(0, max(1.3 * highest, ax.get_ylim()[1]))  # the legend is above; panels share the highest limit
    return ax


@styled
def plot_frequency(clean: ChannelStats, attacked: ChannelStats, *, ax: Axes | None = None) -> Axes:
    """Draw how often the channels are active, both conditions in the order of the clean frequencies.

    Where a cross is above the profile, the attack wakes a channel up; a flat profile is uniform.

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
    ax.set(ylim=(0, 135), yticks=range(0, 101, 25))  # the legend is above 100 %
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


def _profiles(ax: Axes, rows: list[Tensor], texts: list[str]) -> None:
    """Draw the clean row as a filled profile and the attacked one as crosses, so that color is not the only code."""
    clean, attacked = (row.cpu().numpy() for row in rows)
    ax.stairs(clean, fill=True, alpha=0.25, color=COLORS[0])
    ax.stairs(clean, color=COLORS[0], linewidth=1.4, label=f"clean: {texts[0]}")
    places = np.arange(len(attacked)) + 0.5
    ax.plot(places, attacked, "x", color=COLORS[1], markersize=4, label=f"attacked: {texts[1]}")
    ax.set_xlim(0, len(clean))
    ax.legend(loc="upper right")
