"""What every chart shares: colors that a color-blind reader tells apart, letters of 14 px or more, light and dark."""

import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

import altair as alt

Channel = TypeVar("Channel", alt.Color, alt.StrokeDash, alt.Shape)

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B58900", "#56B4E9")
"""Of networks, after Okabe and Ito; dashes, shapes and names tell them apart too."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 2, 1, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

CLASS_PALETTE = (
    "#4477AA",
    "#EE6677",
    "#228833",
    "#B58900",
    "#66CCEE",
    "#AA3377",
    "#999933",
    "#EE7733",
    "#9966CC",
    "#888888",
)
"""Of classes, after Paul Tol; the name of the class is always written beside it."""

LETTERS = 14
"""Smallest size of letters, in pixels."""


FONT = "DejaVu Sans"
"""Of still pictures; it has the signs for right and wrong, and comes with Matplotlib."""


def config(*, dark: bool = False, font: str = "system-ui, sans-serif") -> dict[str, Any]:
    """Vega's settings for a page that is light or dark; the page's own background shows through."""
    ink, faint = ("#e8e8e8", "#555555") if dark else ("#222222", "#dddddd")
    words = {"labelFontSize": LETTERS, "titleFontSize": LETTERS, "labelColor": ink, "titleColor": ink}
    words |= {"titleFontWeight": "normal"}
    symbols = {"symbolStrokeWidth": 0, "symbolOpacity": 1}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {**words, "gridColor": faint, "domainColor": faint, "tickColor": faint},
        "legend": {**words, **symbols, "orient": "top", "titleFontWeight": "bold", "labelLimit": 260},
        "title": {"fontSize": LETTERS + 1, "color": ink, "anchor": "start", "fontWeight": "bold"},
        "text": {"fontSize": LETTERS, "color": ink},
        "rule": {"color": ink},
        "tick": {"color": ink},
    }


def by_network(channel: type[Channel], names: Sequence[str]) -> Channel:
    """Encode the network, column `n`, by color, dashes or shape; the legend joins them."""
    ranges: dict[type, Sequence[Any]] = {alt.Color: PALETTE, alt.StrokeDash: DASHES, alt.Shape: SHAPES}
    values = [ranges[channel][place % len(PALETTE)] for place in range(len(names))]
    return channel("n:N", scale=alt.Scale(domain=list(names), range=values), title=None)


def strength_title(unit: str) -> str:
    """Return the title of an axis of strengths, which says what they are counted in."""
    return f"strength (levels{unit})" if unit else "strength"


def wrapped(name: str, length: int = 16) -> list[str]:
    """Break a name into lines."""
    return textwrap.wrap(name, length) or [name]
