"""The attack explorer's chart: pictures, probabilities, the loss over the steps, and accuracy over strength."""

from typing import Literal

import altair as alt

from robustviz.explorers.frames import Frames
from robustviz.explorers.theme import LETTERS, PALETTE, by_network, strength_title, wrapped

PICTURES = ("clean", "attacked", "change")


def draw_attack(frames: Frames, unit: str, width: int) -> alt.VConcatChart | alt.HConcatChart:
    """Lay the four parts out for a width: side by side, two by two, or one below the other."""
    size = 96 if width < 700 else 144 if width < 1100 else 152
    pictures = _pictures(frames, size)
    high = len(frames.about["networks"]) * (size + 32)
    if width >= 1100:
        bars = _bars(frames, 220, high - 40)
        curves = alt.vconcat(
            _losses(frames, 330, high // 2 - 60), _accuracy(frames, unit, 330, high // 2 - 60), spacing=12
        )
        return alt.hconcat(pictures, bars, curves, spacing=24)
    if width >= 700:
        above = alt.hconcat(pictures, _bars(frames, 130, high - 40), spacing=16)
        below = alt.hconcat(_losses(frames, 300, 130), _accuracy(frames, unit, 300, 130), spacing=24)
        return alt.vconcat(above, below, spacing=14)
    parts = _bars(frames, 190, 280, side="right"), _losses(frames, 280, 140), _accuracy(frames, unit, 280, 140)
    return alt.vconcat(pictures, *parts, spacing=14)


def _chosen() -> alt.Chart:
    return alt.Chart(alt.NamedData("rows")).transform_filter("datum.k == frame")


def _pictures(frames: Frames, size: int) -> alt.VConcatChart:
    """Return a row for each network: clean, attacked and change, and below them what the network says."""
    rows = []
    for place, name in enumerate(frames.about["networks"]):
        cells = []
        for what in PICTURES:
            cell = _cell(frames, name, what, size)
            if what == PICTURES[0]:
                lines = wrapped(name, 13 if size < 100 else 16)
                side = alt.Chart(alt.NamedData("one")).mark_text(
                    text=lines, x=-10 - 8 * len(lines), y=size / 2, angle=270, align="center",
                    baseline="middle", fontWeight="bold", color=PALETTE[place % len(PALETTE)],
                )  # fmt: skip
                cell = side + cell
            cell = cell.properties(width=size, height=size)
            cells.append(cell if place else cell.properties(title=alt.TitleParams(what, anchor="middle", offset=4)))
        rows.append(alt.hconcat(*cells, spacing=8))
    return alt.vconcat(*rows, spacing=8)


def _cell(frames: Frames, name: str, what: str, size: int) -> alt.LayerChart:
    """Return a window on a strip of pictures, and the words below it."""
    strengths = 1 if what == "clean" else len(frames.grid["strength"])
    strip = alt.Chart(alt.NamedData("strips")).transform_filter(
        f"datum.g == group && datum.what == '{what}' && datum.n == {name!r}"
    )
    table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
    image = strip.transform_lookup("z", from_=table).mark_image(
        width=size * strengths, height=size, align="left", baseline="top", smooth=False, clip=True, aspect=False,
        x=alt.ExprRef(f"-stage * {size}") if strengths > 1 else 0, y=0,
    )  # fmt: skip
    words = _chosen().transform_filter(f"datum.n == {name!r}")
    below = words.mark_text(x=size / 2, y=size + 13, limit=size + 8, fontSize=LETTERS).encode(text=f"{what}:N")
    return image.encode(url="url:N") + below


def _bars(frames: Frames, width: int, height: int, *, side: Literal["left", "right"] = "left") -> alt.LayerChart:
    """Probability of each class: a bar when attacked, a line when clean; the true class has a sign."""
    names = list(frames.about["networks"])
    base = _chosen().transform_flatten(["d", "p", "q"])
    axis = alt.Axis(
        labelExpr="(datum.label == truth ? '✓ ' : '') + datum.label", labelLimit=110, grid=False, orient=side
    )
    y = alt.Y("d:N", title=None, sort=frames.about["classes"], axis=axis)
    offset = alt.YOffset("n:N", sort=names)
    tops = alt.Axis(values=[0, 0.5, 1], labelExpr="datum.value")
    x = alt.X("p:Q", title="bar attacked, line clean", scale=alt.Scale(domain=[0, 1]), axis=tops)
    bars = base.mark_bar().encode(x=x, y=y, yOffset=offset, color=by_network(alt.Color, names))
    ticks = base.mark_tick(thickness=2).encode(x="q:Q", y=y, yOffset=offset)
    return (bars + ticks).properties(width=width, height=height, title="probability")


def _losses(frames: Frames, width: int, height: int) -> alt.LayerChart:
    """Cross-entropy at the start of the attack and after each step."""
    names, losses = list(frames.about["networks"]), frames.arrays["losses"]
    top, last = max(1.0, float(losses.nan_to_num(0).max())), losses.shape[-1] - 1
    counted = _chosen().transform_flatten(["t"]).transform_window(count="row_number()", groupby=["n"])
    base = counted.transform_calculate(step="datum.count - 1")
    ticks = alt.Axis(values=list(range(0, last + 1, max(1, -(-last // 10)))), format="d")
    x = alt.X("step:Q", title="step of the attack", scale=alt.Scale(domain=[0, last]), axis=ticks)
    scale = alt.Scale(type="symlog", constant=1, domain=[0, top])
    y = alt.Y("t:Q", title=None, scale=scale, axis=alt.Axis(values=[v for v in (0, 1, 3, 10, 30, 100) if v <= top]))
    color = by_network(alt.Color, names)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=by_network(alt.StrokeDash, names))
    marks = base.mark_point(filled=True, size=50, opacity=1)
    points = marks.encode(x=x, y=y, color=color, shape=by_network(alt.Shape, names))
    return (line + points).properties(width=width, height=height, title="loss of the true class")


def _accuracy(frames: Frames, unit: str, width: int, height: int) -> alt.LayerChart:
    """Accuracy of all images over strength under the chosen attack; a line where the slider is."""
    names, strengths = list(frames.about["networks"]), frames.grid["strength"]
    base = alt.Chart(alt.NamedData("curves")).transform_filter("datum.a == attack")
    ends = alt.Scale(domain=[strengths[0], strengths[-1]], nice=False)
    x = alt.X("x:Q", title=strength_title(unit), scale=ends, axis=alt.Axis(tickCount=4))
    y = alt.Y("y:Q", title=None, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(values=[0, 50, 100]))
    color = by_network(alt.Color, names)
    band = base.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=by_network(alt.StrokeDash, names))
    here = base.transform_filter("abs(datum.x - strength) < 1e-9")
    rule = here.mark_rule(strokeDash=[3, 3]).encode(x=x)
    titles = {"n:N": "network", "y:Q": "accuracy (%)", "low:Q": "95 % interval from", "high:Q": "to"}
    tips = [alt.Tooltip(column, title=title) for column, title in titles.items()]
    marks = here.mark_point(filled=True, size=110, opacity=1)
    points = marks.encode(x=x, y=y, color=color, shape=by_network(alt.Shape, names), tooltip=tips)
    title = f"accuracy on {frames.about['images']} images (%)"
    return (band + line + rule + points).properties(width=width, height=height, title=title)
