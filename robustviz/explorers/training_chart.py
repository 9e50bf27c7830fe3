"""The training explorer's chart: accuracy over strength, clean against attacked, and both over the epochs."""

from typing import Any

import altair as alt

from robustviz.explorers.frames import Frames
from robustviz.explorers.theme import PALETTE, by_network, strength_title

Figure = alt.LayerChart | alt.FacetChart

TIPS = {"n:N": "trained against", "e:Q": "epochs", "x:Q": "strength", "c:Q": "clean (%)", "y:Q": "attacked (%)",
        "low:Q": "95 % interval from", "high:Q": "to"}  # fmt: skip


APART: dict[str, Any] = {"color": "independent", "shape": "independent", "strokeDash": "independent"}
"""The third figure tells clean from attacked, the others networks."""


def draw_training(frames: Frames, names: tuple[str, ...], unit: str, width: int) -> alt.VConcatChart | alt.HConcatChart:
    """Lay the three figures out for a width: side by side, or one below the other."""
    if width >= 1100:
        parts = _strengths(frames, names, unit, 360, 390), _tradeoff(frames, names, 330, 390), _epochs(frames, 300, 390)
        return alt.hconcat(*parts, spacing=26).resolve_scale(**APART)
    if width >= 700:
        above = _strengths(frames, names, unit, 310, 250), _tradeoff(frames, names, 300, 250)
        beside = alt.hconcat(*above, spacing=22).resolve_scale(**APART)
        return alt.vconcat(beside, _epochs(frames, 640, 150), spacing=14).resolve_scale(**APART)
    parts = _strengths(frames, names, unit, 270, 220), _tradeoff(frames, names, 270, 220), _epochs(frames, 270, 150)
    return alt.vconcat(*parts, spacing=14).resolve_scale(**APART)


def _rows(where: str) -> alt.Chart:
    return alt.Chart(alt.NamedData("rows")).transform_filter(where)


def _percent(column: str, title: str | None, low: float = 0.0) -> dict[str, Any]:
    ticks = alt.Axis(tickCount=5)
    return {"shorthand": column, "title": title, "scale": alt.Scale(domain=[low, 100], nice=False), "axis": ticks}


def _tips() -> list[alt.Tooltip]:
    return [alt.Tooltip(column, title=title) for column, title in TIPS.items()]


def _strengths(frames: Frames, names: tuple[str, ...], unit: str, width: int, height: int) -> Figure:
    """Accuracy over strength of all networks after the chosen epochs; the chosen one is thick and has its interval."""
    strengths = frames.grid["strength"]
    every, chosen = _rows("datum.j == epochs_place"), _rows("datum.j == epochs_place && datum.i == radius_place")
    ends = alt.Scale(domain=[strengths[0], strengths[-1]], nice=False)
    x = alt.X("x:Q", title=strength_title(unit), scale=ends, axis=alt.Axis(tickCount=5))
    y = alt.Y(**_percent("y:Q", None))
    legend = alt.Legend(columns=3 if width < 300 else 6, title="trained against")
    color = by_network(alt.Color, list(names)).legend(legend).title("trained against")
    dash = by_network(alt.StrokeDash, list(names)).title("trained against")
    shape = by_network(alt.Shape, list(names)).title("trained against")
    lines = every.mark_line(strokeWidth=1.3, opacity=0.85).encode(x=x, y=y, color=color, strokeDash=dash)
    points = every.mark_point(filled=True, size=34, opacity=0.9).encode(x=x, y=y, color=color, shape=shape)
    band = chosen.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color)
    thick = chosen.mark_line(strokeWidth=4).encode(x=x, y=y, color=color)
    here = chosen.transform_filter("datum.s == strength_place")
    rule = here.mark_rule(strokeDash=[3, 3]).encode(x=x)
    spot = here.mark_point(filled=True, size=150, opacity=1)
    spot = spot.encode(x=x, y=y, color=color, shape=shape, tooltip=_tips())
    title = f"accuracy over strength, {frames.about['images']} images (%)"
    return alt.layer(band, lines, points, thick, rule, spot).properties(width=width, height=height, title=title)


def _tradeoff(frames: Frames, names: tuple[str, ...], width: int, height: int) -> Figure:
    """Clean accuracy against accuracy at the chosen strength: all networks, and the trail of the chosen one."""
    least = 100 * float(frames.arrays["accuracy"][:, :, 0].min())
    x = alt.X(**_percent("c:Q", "clean accuracy (%)", max(0.0, 10 * (least // 10) - 1)))
    y = alt.Y(**_percent("y:Q", None))
    now = _rows("datum.s == strength_place && datum.j == epochs_place")
    trail = _rows("datum.s == strength_place && datum.i == radius_place")
    here = now.transform_filter("datum.i == radius_place")
    color, shape = by_network(alt.Color, list(names)).legend(None), by_network(alt.Shape, list(names)).legend(None)
    way = trail.mark_line(strokeWidth=1.2, strokeDash=[2, 3], opacity=0.8, point={"size": 14, "opacity": 0.8})
    layers = [
        now.mark_line(strokeWidth=1, color="#888888").encode(x=x, y=y, order="i:Q"),
        way.encode(x=x, y=y, order="j:Q", color=color),
        here.mark_rule(strokeWidth=1.5).encode(x=x, y="low:Q", y2="high:Q", color=color),
        here.mark_rule(strokeWidth=1.5).encode(x="lowc:Q", x2="highc:Q", y=y, color=color),
        now.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=color, shape=shape, tooltip=_tips()),
        here.mark_point(size=330, strokeWidth=2.5).encode(x=x, y=y, color=color),
    ]
    return alt.layer(*layers).properties(width=width, height=height, title="attacked (%) against clean")


def _epochs(frames: Frames, width: int, height: int) -> Figure:
    """Clean and attacked accuracy of the chosen network over the epochs."""
    counts = frames.grid["epochs"]
    clean, attacked = "clean", "attacked"
    every = _rows("datum.s == strength_place && datum.i == radius_place")
    ends = alt.Scale(domain=[0, counts[-1]], nice=False)
    x = alt.X("e:Q", title="epochs", scale=ends, axis=alt.Axis(values=[0, *map(int, counts)], format="d"))
    y = alt.Y(**_percent("a:Q", None))
    folded = every.transform_fold(["c", "y"], as_=["which", "a"])
    base = folded.transform_calculate(w=f"datum.which == 'c' ? '{clean}' : '{attacked}'")
    domain = [clean, attacked]
    color = alt.Color("w:N", title=None, scale=alt.Scale(domain=domain, range=["#888888", PALETTE[1]]))
    dash = alt.StrokeDash("w:N", title=None, scale=alt.Scale(domain=domain, range=[[6, 3], [1, 0]]))
    shape = alt.Shape("w:N", title=None, scale=alt.Scale(domain=domain, range=["square", "circle"]))
    band = every.mark_area(opacity=0.18, color=PALETTE[1]).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color, shape=shape)
    rule = every.transform_filter("datum.j == epochs_place").mark_rule(strokeDash=[3, 3]).encode(x=x)
    return alt.layer(band, line, points, rule).properties(width=width, height=height, title="over the epochs (%)")
