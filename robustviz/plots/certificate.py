"""The band between a certificate and an attack."""

from typing import Any

from matplotlib.axes import Axes

from robustviz.certificate import Bounds
from robustviz.plots.style import COLORS, new_axes, styled


@styled
def plot_bounds(bounds: Bounds, *, ax: Axes | None = None) -> Axes:
    """Draw both bounds of a smoothed network against the L2 radius; the truth lies in the shaded band.

    The dotted line is the largest radius that the draws can certify: beyond it the lower bound is 0 by construction.
    """
    ax = new_axes() if ax is None else ax
    certified, attacked = ([100 * share for share in shares] for shares in (bounds.certified, bounds.attacked))
    # Between two radii the lower bound is that of the larger one, and the upper bound that of the smaller one.
    edges = [radius for radius in bounds.radii for _ in range(2)]
    low = [certified[0], *(share for share in certified[1:] for _ in range(2)), certified[-1]]
    high = [attacked[0], *(share for share in attacked for _ in range(2))][: len(edges)]
    ax.fill_between(edges, low, high, color="0.85", label="the truth lies here")
    upper: dict[str, Any] = {"color": COLORS[1], "marker": "x", "drawstyle": "steps-post"}
    lower: dict[str, Any] = {"color": COLORS[0], "marker": "o", "drawstyle": "steps-pre"}
    ax.plot(bounds.radii, attacked, label="under attack (upper bound)", **upper)
    ax.plot(bounds.radii, certified, label="certified (lower bound)", **lower)
    ax.axvline(bounds.ceiling, color="0.4", linestyle=":", label="ceiling of the draws")
    ax.set(xlabel="L2 radius of the attacker (pixel units)", ylabel="accuracy (%)", ylim=(0, 105), xlim=(0, None))
    ax.legend(loc="lower left")
    return ax


def describe_bounds(bounds: Bounds) -> str:
    """Write the alternative text of `plot_bounds` from its numbers."""
    start = f"Without an attacker the smoothed network classifies {bounds.attacked[0]:.0%} of {bounds.images} images"
    middle = len(bounds.radii) // 2
    return (
        f"{start} correctly and certifies {bounds.certified[0]:.0%}. At radius {bounds.radii[middle]:.3g}, "
        f"{bounds.certified[middle]:.0%} are certified and {bounds.attacked[middle]:.0%} withstand the attack; at "
        f"{bounds.radii[-1]:.3g} it is {bounds.certified[-1]:.0%} and {bounds.attacked[-1]:.0%}. No certificate "
        f"reaches beyond {bounds.ceiling:.3g}."
    )
