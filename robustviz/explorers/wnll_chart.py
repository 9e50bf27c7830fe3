"""The WNLL explorer's chart: an image and its voters, clean and attacked, shares of the classes, and the attacks."""

import json
from typing import Literal

import altair as alt

from robustviz.explorers.frames import Frames
from robustviz.explorers.theme import DASHES, LETTERS, PALETTE, SHAPES
from robustviz.explorers.training_chart import APART, Figure
from robustviz.explorers.wnll import VOTERS

BARS = 10
"""Most classes that have a bar; of more, those with a share."""


def draw_wnll(frames: Frames, unit: str, width: int) -> alt.VConcatChart | alt.HConcatChart:
    """Lay the parts out for a width: votes and shares above, curves below; or one below the other."""
    if width >= 1100:
        above = alt.hconcat(_votes(frames, 104, 74), _shares(frames, 250, 214), spacing=34)
        below = alt.hconcat(_share(frames, unit, 380, 112), _accuracy(frames, unit, 380, 112, "right"), spacing=34)
        return alt.vconcat(above, below.resolve_scale(**APART), spacing=14).resolve_scale(**APART)
    if width >= 700:
        below = alt.hconcat(_shares(frames, 180, 230), _share(frames, unit, 300, 200), spacing=24)
        return alt.vconcat(_votes(frames, 90, 66), below, _accuracy(frames, unit, 600, 140), spacing=14).resolve_scale(
            **APART
        )
    parts = _shares(frames, 230, 220), _share(frames, unit, 270, 140), _accuracy(frames, unit, 270, 140)
    return alt.vconcat(_votes(frames, 76, 58), *parts, spacing=14).resolve_scale(**APART)


def _votes(frames: Frames, size: int, side: int) -> alt.VConcatChart:
    """Return a row for the clean and one for the attacked image: itself, and its voters, heaviest first."""
    rows = []
    for what, where in (("clean", "datum.k == before"), ("attacked", "datum.k == frame")):
        count = 1 if what == "clean" else len(frames.grid["strength"])
        table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
        if what == "clean":
            strip = alt.Chart(alt.NamedData("strips")).transform_filter("datum.g == image")
            found = strip.transform_lookup("i", from_=table)
        else:
            strip = alt.Chart(alt.NamedData("strips")).transform_filter("datum.g == strip")
            found = strip.transform_lookup("z", from_=table)
        image = found.mark_image(
            width=size * count, height=size, align="left", baseline="top", smooth=False, clip=True, aspect=False,
            x=alt.ExprRef(f"-stage * {size}") if count > 1 else 0, y=0,
        )  # fmt: skip
        words = alt.Chart(alt.NamedData("rows")).transform_filter(where)
        below = words.mark_text(x=size / 2, y=size + 13, limit=size + 20, fontSize=LETTERS).encode(text="said:N")
        title = alt.TitleParams(what, anchor="middle", offset=4)
        cell = (image.encode(url="url:N") + below).properties(width=size, height=size, title=title)
        rows.append(alt.hconcat(cell, _voters(where, side, size, VOTERS if size > 80 else 4), spacing=14))
    return alt.vconcat(*rows, spacing=8)


def _voters(where: str, side: int, height: int, most: int) -> Figure:
    """Template images that vote, with their class and weight; a check marks those that vote for the true class."""
    table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
    row = alt.Chart(alt.NamedData("rows")).transform_filter(where).transform_flatten(["z", "c", "w"])
    counted = row.transform_window(place="row_number()").transform_filter(f"datum.place <= {most}")
    x = alt.X("place:O", axis=None, scale=alt.Scale(domain=list(range(1, most + 1)), padding=0))
    image = counted.transform_lookup("z", from_=table).mark_image(width=side - 8, height=side - 8, smooth=False)
    words = counted.mark_text(fontSize=LETTERS, limit=side)
    layers = (
        image.encode(x=x, y=alt.value(side / 2 - 4), url="url:N"),
        words.encode(x=x, y=alt.value(side + 4), text="c:N"),
        words.encode(x=x, y=alt.value(side + 22), text="w:N"),
    )
    title = alt.TitleParams("voters, heaviest first", offset=4)
    return alt.layer(*layers).properties(width=most * side, height=height, title=title)


def _shares(frames: Frames, width: int, height: int) -> Figure:
    """Share of every class: a bar when attacked, a line when clean; the true class has a sign."""
    classes = frames.about["classes"]
    rows = alt.Chart(alt.NamedData("rows"))
    names = f"{json.dumps(classes)}[datum.count - 1]"

    def flat(where: str) -> alt.Chart:
        counted = rows.transform_filter(where).transform_flatten(["p"]).transform_window(count="row_number()")
        return counted.transform_calculate(d=names)

    bars, ticks = flat("datum.k == frame"), flat("datum.k == before")
    if len(classes) > BARS:
        bars, ticks = (chart.transform_filter("datum.p > 0.005") for chart in (bars, ticks))
    axis = alt.Axis(labelExpr="(datum.label == truth ? '✓ ' : '') + datum.label", labelLimit=110, grid=False)
    y = alt.Y("d:N", title=None, sort=classes, axis=axis)
    x = alt.X("p:Q", title="bar attacked, line clean", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=3))
    drawn = bars.mark_bar(color=PALETTE[1]).encode(x=x, y=y) + ticks.mark_tick(thickness=2).encode(x=x, y=y)
    return drawn.properties(width=width, height=height, title="share of the votes")


def _lines(
    frames: Frames, base: alt.Chart, column: str, unit: str, top: float, legend: alt.Legend | None = None
) -> tuple[Figure, alt.X]:
    """One line for each attack, the chosen one thick; a line where the slider is."""
    names, strengths = list(frames.grid["attack"]), frames.grid["strength"]
    ends = alt.Scale(domain=[strengths[0], strengths[-1]], nice=False)
    x = alt.X("x:Q", title=f"strength{unit}", scale=ends, axis=alt.Axis(tickCount=4))
    y = alt.Y(f"{column}:Q", title=None, scale=alt.Scale(domain=[0, top]), axis=alt.Axis(values=[0, top / 2, top]))
    color = alt.Color("a:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=list(PALETTE[:4])))
    dash = alt.StrokeDash("a:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=list(DASHES[:4])))
    shape = alt.Shape("a:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=list(SHAPES[:4])))
    chosen = base.transform_filter("datum.a == attack")
    here = chosen.transform_filter("datum.s == stage")
    tips = [alt.Tooltip(c, title=t) for c, t in {"a:N": "attack", "x:Q": "strength", f"{column}:Q": "value"}.items()]
    layers = [
        base.mark_line(strokeWidth=1.3).encode(x=x, y=y, color=color, strokeDash=dash),
        base.mark_point(filled=True, size=30, opacity=1).encode(x=x, y=y, color=color, shape=shape, tooltip=tips),
        chosen.mark_line(strokeWidth=3.5, opacity=0.8).encode(x=x, y=y, color=color),
        here.mark_rule(strokeDash=[3, 3]).encode(x=x),
        here.mark_point(filled=True, size=130, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    ]
    return alt.layer(*layers), x


def _share(frames: Frames, unit: str, width: int, height: int) -> Figure:
    """Share of the true class of the chosen image over strength."""
    base = alt.Chart(alt.NamedData("rows")).transform_filter("datum.g == graph && datum.i == image")
    lines, _ = _lines(frames, base, "true", unit, 1.0)
    return lines.properties(width=width, height=height, title="share of the true class, by attack")


def _accuracy(frames: Frames, unit: str, width: int, height: int, side: Literal["top", "right"] = "top") -> Figure:
    """Accuracy of all images over strength, with the interval of the chosen attack."""
    base = alt.Chart(alt.NamedData("curves")).transform_filter("datum.g == graph")
    lines, x = _lines(frames, base, "y", unit, 100.0, alt.Legend(orient=side, columns=1 if side == "right" else 2))
    band = base.transform_filter("datum.a == attack").mark_area(opacity=0.15)
    drawn = band.encode(x=x, y=alt.Y("low:Q"), y2="high:Q") + lines
    return drawn.properties(width=width, height=height, title=f"accuracy on {frames.about['images']} images (%)")
