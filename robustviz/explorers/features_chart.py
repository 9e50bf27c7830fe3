"""The feature explorer's chart: a map of features on which images wander, and the chosen image beside it."""

import json
from collections.abc import Sequence
from itertools import combinations

import altair as alt
import torch

from robustviz.explorers.frames import Frames
from robustviz.explorers.theme import CLASS_PALETTE, LETTERS, strength_title

FEATURE_PICTURES = ("clean", "attacked", "change")
LINE = LETTERS + 4
"""Height of a line of words, in pixels."""

CURVES = {"margin": "margin of the true class", "distance": "distance to the data"}


def draw_features(frames: Frames, unit: str, width: int) -> alt.VConcatChart | alt.HConcatChart:
    """Lay map and chosen image out for a width: side by side, or one below the other."""
    if width >= 1100:
        beside = alt.vconcat(_pictures(frames, 112), _neighbors(frames, 70), _curves(frames, unit, 380, 60), spacing=10)
        return alt.hconcat(_map(frames, 680, 450), beside, spacing=28)
    if width >= 700:
        below = alt.hconcat(alt.vconcat(_pictures(frames, 104), _neighbors(frames, 58), spacing=8),
                            _curves(frames, unit, 250, 70), spacing=24)  # fmt: skip
        return alt.vconcat(_map(frames, 690, 420), below, spacing=12)
    parts = _pictures(frames, 94), _neighbors(frames, 54), _curves(frames, unit, 260, 90)
    return alt.vconcat(_map(frames, 300, 300), *parts, spacing=12)


def _class(classes: Sequence[str], column: str = "c:N") -> alt.Color:
    colors = [CLASS_PALETTE[place % len(CLASS_PALETTE)] for place in range(len(classes))]
    return alt.Color(column, scale=alt.Scale(domain=list(classes), range=colors), legend=None)


def _map(frames: Frames, width: int, height: int) -> alt.LayerChart | alt.FacetChart:
    """Training images as small dots, attacked ones as circles or, where decided wrongly, crosses; the path of one."""
    color = _class(frames.about["classes"])
    maps, extent = json.dumps(list(frames.grid["map"])), frames.arrays["extent"].tolist()

    def scale(first: int, last: int) -> alt.Scale:
        ends = [[round(corner[place], 4) for corner in extent] for place in (first, last)]
        return alt.Scale(domain=[alt.ExprRef(f"{json.dumps(end)}[indexof({maps}, map)]") for end in ends], nice=False)

    axis = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    x = alt.X("x:Q", title=None, scale=scale(0, 2), axis=axis)
    y = alt.Y("y:Q", title=None, scale=scale(1, 3), axis=axis)
    on_map = "datum.m == map"
    regions = alt.Chart(alt.NamedData("regions")).transform_filter(on_map)
    ground = alt.Chart(alt.NamedData("ground")).transform_filter(on_map)
    names = alt.Chart(alt.NamedData("names")).transform_filter(on_map)
    every = alt.Chart(alt.NamedData("points")).transform_filter(on_map)
    now = every.transform_filter("datum.s == stage")
    path = every.transform_filter("datum.i == image && datum.s <= stage")
    here = now.transform_filter("datum.i == image")
    shape = alt.Shape("r:N", scale=alt.Scale(domain=["right", "wrong"], range=["circle", "cross"]), legend=None)
    table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
    tips = {"url:N": "image", "i:Q": "number", "c:N": "class", "d:N": "decided", "mar:Q": "margin", "dis:Q": "distance"}
    apart = alt.ExprRef(f"{json.dumps(_shifts(frames, width, height))}[datum.m][datum.c]")
    moving = now.transform_lookup("i", from_=table).mark_point(filled=True, size=70, opacity=0.95)
    layers = [
        regions.mark_rect(opacity=0.13, stroke=None).encode(x=x, x2="x2", y=y, y2="y2", color=color),
        ground.mark_circle(size=10, opacity=0.35).encode(x=x, y=y, color=color),
        names.mark_text(fontSize=LETTERS + 2, fontWeight="bold", dy=apart).encode(x=x, y=y, text="c:N"),
        path.mark_line(strokeWidth=1.5).encode(x=x, y=y, order="s:Q", color=color),
        moving.encode(x=x, y=y, color=color, shape=shape, tooltip=[alt.Tooltip(c, title=t) for c, t in tips.items()]),
        here.mark_point(size=330, filled=False, strokeWidth=2.5).encode(x=x, y=y, color=color),
    ]  # fmt: skip
    title = "● right, ✚ wrong; dots: training"
    return alt.layer(*layers).properties(width=width, height=height, title=title)


def name_places(frames: Frames, m: int) -> dict[str, tuple[float, float]]:
    """Return where the name of each class belongs on a map: at the median of its training images."""
    classes, labels, places = frames.about["classes"], frames.arrays["ground_labels"], frames.arrays["ground"][m]
    medians = {label: places[labels == label].median(0).values.tolist() for label in torch.unique(labels).tolist()}
    return {classes[label]: (x, y) for label, (x, y) in medians.items()}


def _shifts(frames: Frames, width: int, height: int) -> dict[str, dict[str, float]]:
    """Return for every map how many pixels each name is moved down, so that no name hides another."""
    shifts = {}
    for m, name in enumerate(frames.grid["map"]):
        left, low, right, high = frames.arrays["extent"][m].tolist()
        places = name_places(frames, m)
        across = {word: (x - left) / (right - left) * width for word, (x, _) in places.items()}
        down = {word: (high - y) / (high - low) * height for word, (_, y) in places.items()}
        shifts[str(name)] = {word: round(y - down[word], 1) for word, y in _spread(across, down, height).items()}
    return shifts


def _spread(across: dict[str, float], down: dict[str, float], height: int) -> dict[str, float]:
    """Move words that lie on each other up and down until they do not, within the height."""
    down, size = dict(down), 0.62 * (LETTERS + 2)
    for _ in range(200):
        for one, other in combinations(sorted(down, key=down.__getitem__), 2):
            lacking = LINE - abs(down[other] - down[one])
            if lacking > 0 and abs(across[one] - across[other]) < size * (len(one) + len(other)) / 2:
                higher, lower = sorted((one, other), key=down.__getitem__)
                down[higher] = max(LINE / 2, down[higher] - lacking / 2)
                down[lower] = min(height - LINE / 2, down[lower] + lacking / 2)
    return down


def _pictures(frames: Frames, size: int) -> alt.HConcatChart:
    """The chosen image before and after the attack, and the change."""
    cells = []
    for what in FEATURE_PICTURES:
        count = 1 if what == "clean" else len(frames.grid["strength"])
        strip = alt.Chart(alt.NamedData("strips")).transform_filter(f"datum.i == image && datum.what == '{what}'")
        table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
        image = strip.transform_lookup("z", from_=table).mark_image(
            width=size * count, height=size, align="left", baseline="top", smooth=False, clip=True, aspect=False,
            x=alt.ExprRef(f"-stage * {size}") if count > 1 else 0, y=0,
        )  # fmt: skip
        words = alt.Chart(alt.NamedData("rows")).transform_filter("datum.g == spot")
        below = words.mark_text(x=size / 2, y=size + 13, limit=size + 8, fontSize=LETTERS).encode(text=f"{what}:N")
        title = alt.TitleParams(what, anchor="middle", offset=4)
        cells.append((image.encode(url="url:N") + below).properties(width=size, height=size, title=title))
    return alt.hconcat(*cells, spacing=8)


def _neighbors(frames: Frames, size: int) -> alt.LayerChart:
    """The training images whose features are nearest to those of the chosen one, nearest first."""
    table = alt.LookupData(data=alt.NamedData("pictures"), key="z", fields=["url"])
    row = alt.Chart(alt.NamedData("rows")).transform_filter("datum.g == spot").transform_flatten(["z", "near"])
    counted = row.transform_window(place="row_number()")
    x = alt.X("place:O", axis=None, scale=alt.Scale(padding=0))
    image = counted.transform_lookup("z", from_=table).mark_image(width=size - 6, height=size - 6, smooth=False)
    words = counted.mark_text(fontSize=LETTERS, limit=size, lineBreak=" ", lineHeight=LETTERS + 2, baseline="top")
    chart = image.encode(x=x, y=alt.value(size / 2 - 3), url="url:N")
    chart += words.encode(x=x, y=alt.value(size - 2), text="near:N")
    title = alt.TitleParams("nearest training images", offset=4)
    lines = max(len(name.split(" ")) for name in frames.about["classes"])
    return chart.properties(width=5 * size, height=size + lines * (LETTERS + 2), title=title)


def _curves(frames: Frames, unit: str, width: int, height: int) -> alt.VConcatChart:
    """Margin and distance of the chosen image over strength; a line where the slider is."""
    strengths = frames.grid["strength"]
    every = alt.Chart(alt.NamedData("rows")).transform_filter("datum.i == image")
    ends = alt.Scale(domain=[strengths[0], strengths[-1]], nice=False)
    charts = []
    for column, title in CURVES.items():
        top = 1.0 if column == "margin" else max(2.0, float(frames.arrays["distances"].max()))
        scale = alt.Scale(domain=[-1 if column == "margin" else 0, top], nice=False)
        last = column == list(CURVES)[-1]
        x = alt.X(
            "x:Q", title=strength_title(unit) if last else None, scale=ends, axis=alt.Axis(tickCount=4, labels=last)
        )
        y = alt.Y(f"{column}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=3))
        line = every.mark_line(strokeWidth=2, color=CLASS_PALETTE[0]).encode(x=x, y=y)
        here = every.transform_filter("datum.g == spot")
        rule = here.mark_rule(strokeDash=[3, 3]).encode(x=x)
        point = here.mark_point(filled=True, size=90, opacity=1, color=CLASS_PALETTE[0]).encode(x=x, y=y)
        charts.append((line + rule + point).properties(width=width, height=height, title=title))
    return alt.vconcat(*charts, spacing=6)
