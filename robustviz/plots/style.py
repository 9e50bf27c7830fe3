"""What every picture shares: the style sheet, the colors, and how an image is shown."""

from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

STYLE = Path(__file__).parents[1] / "robustviz.mplstyle"
"""Style sheet of every picture; nothing is set globally."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, safe for color-blind readers; the first belongs to the first model, and so on."""

MARKERS = "os^Dv*"

CLASS_COLORS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#E69F00",
    "#AA4499",
    "#555555",
)
"""Colors of classes: Paul Tol's muted palette, safe for color-blind readers, two changed; names are beside them."""


def class_color(label: int, *, dark: bool = False) -> tuple[float, float, float]:
    """Color of a class, if asked for dark enough for letters and thin lines; after ten classes they come again."""
    red, green, blue = to_rgb(CLASS_COLORS[label % len(CLASS_COLORS)])
    shade = 0.68 if dark else 1.0
    return red * shade, green * shade, blue * shade


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


def pixels(image: Float[Tensor, "c h w"]) -> np.ndarray:
    """Lay an image out as Matplotlib wants it: (h, w) if it is gray, else (h, w, c), clipped to [0, 1]."""
    laid = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return laid.squeeze(2) if laid.shape[2] == 1 else laid


def caption(name: str, share: float) -> str:
    """Write a class and its share below a small picture; a long name takes a line of its own."""
    gap = "\n" if len(name) > 4 else " "
    return f"{name}{gap}({share:.0%})"


def judge(ax: Axes, text: str, right: bool, *, colored: bool = True) -> None:
    """Write what a model says below a picture: ✓ or ✗ before it, and bold if it is wrong; color says it again.

    Args:
        ax: That holds the picture.
        text: What the model says.
        right: Whether that is the true class.
        colored: False where color has another meaning.
    """
    color = COLORS[0 if right else 1] if colored else "black"
    ax.set_xlabel(f"{'✓' if right else '✗'} {text}", color=color, fontweight="normal" if right else "bold")


def show_picture(ax: Axes, image: Float[Tensor, "c h w"]) -> None:
    """Show an image, gray or in color, without axes."""
    ax.imshow(pixels(image), vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.xaxis.label.set_fontsize("small")  # so that `was automobile (100%)` stays in its column
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
