"""The channel explorer's chart: the two figures of the CAS paper for each network, and accuracy over strength."""

import json

import altair as alt
import torch

from robustviz.explorers.frames import Frames
from robustviz.explorers.pictures import rounded
from robustviz.explorers.theme import PALETTE, by_network, strength_title

FIGURES = {"m": "magnitude", "f": "frequency (% of images)"}


def draw_channels(frames: Frames, unit: str, width: int) -> alt.VConcatChart | alt.HConcatChart:
    """Lay the figures out for a width: a column for each network, with accuracy beside or below."""
    names, narrow = frames.about["networks"], width < 700
    size = (270, 130) if narrow else (290, 140) if width < 1100 else (320, 170)
    columns = [_network(frames, place, name, size) for place, name in enumerate(names)]
    if narrow:
        return alt.vconcat(*columns, _accuracy(frames, unit, *size), spacing=14)
    beside = alt.hconcat(*columns, spacing=20)
    if width < 1100:
        return alt.vconcat(beside, _accuracy(frames, unit, 600, 130), spacing=14)
    return alt.hconcat(beside, _accuracy(frames, unit, 330, 2 * size[1] + 40), spacing=24)


def _network(frames: Frames, place: int, name: str, size: tuple[int, int]) -> alt.VConcatChart:
    """Return both figures of one network; the axes stand still while the attack changes."""
    every = [frames.arrays[f"magnitude {n}"].amax((0, 1, 3)) for n in range(len(frames.about["networks"]))]
    tops = [max(top, 1e-9) for top in torch.stack(every).amax(0).tolist()]
    figures = []
    for column, title in FIGURES.items():
        top = alt.ExprRef(f"{rounded(tops)}[group]") if column == "m" else 100
        scale = alt.Scale(domainMin=0, domainMax=top, nice=column == "m")
        count = frames.arrays[f"magnitude {place}"].shape[-1]
        named = f"datum.n == {json.dumps(name)}"
        clean = alt.Chart(alt.NamedData("clean")).transform_filter(f"datum.g == group && {named}")
        attacked = alt.Chart(alt.NamedData("rows")).transform_filter(f"datum.k == frame && {named}")
        order = "channel, strongest first" if column == "m" else "channel, most often active clean first"
        x = alt.X("c:Q", title=order, scale=alt.Scale(domain=[1, count]), axis=alt.Axis(tickCount=5, format="d"))
        y = alt.Y(f"{column}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4))
        area = clean.transform_flatten([column]).transform_window(c="row_number()")
        crosses = attacked.transform_flatten([column]).transform_window(c="row_number()")
        shade = area.mark_area(opacity=0.35, interpolate="step", color="#888888", line={"color": "#888888"})
        marks = crosses.mark_point(
            shape="cross", size=34, opacity=1, strokeWidth=1.6, color=PALETTE[place % len(PALETTE)]
        )
        chart = (shade.encode(x=x, y=y) + marks.encode(x=x, y=y)).properties(width=size[0], height=size[1])
        figures.append(chart.properties(title=name) if column == "m" else chart)
    return alt.vconcat(*figures, spacing=10)


def _accuracy(frames: Frames, unit: str, width: int, height: int) -> alt.LayerChart:
    """Accuracy over strength under the chosen attack, with that under the attack on the final logits as a thin line."""
    names, strengths = list(frames.about["networks"]), frames.grid["strength"]
    every = alt.Chart(alt.NamedData("curves")).transform_filter("datum.g == group")
    base = every.transform_filter("datum.a == attack")
    ends = alt.Scale(domain=[strengths[0], strengths[-1]], nice=False)
    x = alt.X("x:Q", title=strength_title(unit), scale=ends, axis=alt.Axis(tickCount=4))
    y = alt.Y("y:Q", title=None, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(values=[0, 50, 100]))
    color = by_network(alt.Color, names)
    first = json.dumps(frames.grid["attack"][0])
    thin = every.transform_filter(f"datum.a == {first}").mark_line(strokeWidth=1, opacity=0.6)
    band = base.mark_area(opacity=0.15).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color)
    line = base.mark_line(strokeWidth=2.5).encode(x=x, y=y, color=color)
    here = base.transform_filter("abs(datum.x - strength) < 1e-9")
    rule = here.mark_rule(strokeDash=[3, 3]).encode(x=x)
    titles = {"n:N": "network", "y:Q": "accuracy (%)", "low:Q": "95 % interval from", "high:Q": "to"}
    tips = [alt.Tooltip(column, title=title) for column, title in titles.items()]
    marks = here.mark_point(filled=True, size=110, opacity=1)
    points = marks.encode(x=x, y=y, color=color, shape=by_network(alt.Shape, names), tooltip=tips)
    chart = band + thin.encode(x=x, y=y, color=color) + line + rule + points
    return chart.properties(width=width, height=height, title="accuracy (%)")
