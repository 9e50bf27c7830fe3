"""Accuracy against attack strength."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robustviz.evaluation import CLEAN, Sweep
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison
from robustviz.plots.style import COLORS, MARKERS, new_axes, styled


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
            for condition in (PUBLISHED, WORST_OF_ALL)
        )
        ax.fill_between(epsilons, worst, published, color=color, alpha=0.15, linewidth=0)
        ax.plot(epsilons, published, color=color, linestyle="--", marker="o", markerfacecolor="white")
        ax.plot(epsilons, worst, color=color, linestyle="-", marker="s")
    ax.set(xlabel="attack strength epsilon (largest change of a pixel, pixels in [0, 1])", ylabel="accuracy (%)")
    ax.set_ylim(-3, 103)
    entries = [Line2D([], [], color=c, linewidth=4, label=n) for c, n in zip(COLORS, networks.values(), strict=False)]
    entries.append(Line2D([], [], color="0.35", linestyle="--", marker="o", markerfacecolor="white", label=PUBLISHED))
    entries.append(Line2D([], [], color="0.35", marker="s", label=WORST_OF_ALL))
    ax.figure.legend(handles=entries, loc="outside upper left", ncols=2, handlelength=2.4)
    return ax
