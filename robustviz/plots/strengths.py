"""Accuracy against attack strength for several networks, a panel for each attack."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustviz.evaluation import CLEAN
from robustviz.evaluation.comparison import Comparison
from robustviz.plots.style import COLORS, MARKERS, styled


@styled
def plot_strengths(comparison: Comparison, networks: Mapping[str, str], conditions: Sequence[str]) -> Figure:
    """Draw what each attack leaves of each network, one panel for each attack, all on one scale.

    Args:
        comparison: With several strengths; of several seeds the mean is drawn.
        networks: Name in the comparison and name in the legend of each network, a color and a marker each.
        conditions: Attacks or worst cases; a network that an attack does not apply to is missing in its panel.
    """
    figure = Figure(figsize=(3.6 * len(conditions), 3.9))
    looks: list[dict[str, Any]] = [
        {"color": color, "marker": marker} for color, marker in zip(COLORS, MARKERS, strict=False)
    ]
    epsilons = comparison.epsilons
    axes = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
    for ax, condition in zip(axes, conditions, strict=True):
        for look, name in zip(looks, networks, strict=False):
            if comparison.values(name, epsilons[0], condition):
                left = [comparison.mean(name, epsilon, condition) for epsilon in epsilons]
                shares = [comparison.mean(name, epsilons[0], CLEAN), *left]
                ax.plot([0.0, *epsilons], [100 * share for share in shares], **look)
        ax.set(title=condition, xlabel="attack strength epsilon", ylabel="accuracy (%)")
        ax.set(xticks=[0.0, *epsilons], ylim=(-3, 103))
        ax.label_outer()
    entries = [Line2D([], [], label=text, **look) for text, look in zip(networks.values(), looks, strict=False)]
    figure.legend(handles=entries, loc="outside upper left", ncols=3, handlelength=2.4)
    return figure
