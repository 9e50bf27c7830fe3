"""The faces of ten road signs, drawn by code: every shape is a signed distance, so that its edge is smooth.

A face lives on a square from -1 to 1, x to the right and y down. A shape is its distance function on the grid of
pixel centers: negative inside, positive outside. Letters and figures are strokes along lines and arcs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

SIGNS = (
    "stop",
    "give way",
    "no entry",
    "priority road",
    "limit 30",
    "limit 50",
    "limit 80",
    "turn left",
    "turn right",
    "caution",
)
"""Names of the ten signs."""

SIDE = 64
"""Pixels of a face from edge to edge."""

_Number = int | float
Point = tuple[_Number, _Number]
_Shape = Float[Tensor, "h w"]

RED, WHITE, BLACK = (0.74, 0.07, 0.10), (0.95, 0.95, 0.94), (0.07, 0.07, 0.08)
BLUE, YELLOW = (0.03, 0.28, 0.68), (0.98, 0.74, 0.05)


def faces() -> Float[Tensor, "10 4 64 64"]:
    """Draw the ten faces: red, green and blue, each multiplied by the fourth channel, which covers from 0 to 1."""
    bar = _polygon([(-0.66, -0.17), (0.66, -0.17), (0.66, 0.17), (-0.66, 0.17)])
    down, up = _regular(3, 1.08, 90, (0, -0.22)), _regular(3, 1.08, -90, (0, 0.22))
    left = _arrow(-1)
    return torch.stack(
        [
            _painted((_regular(8, 1.0, 22.5), WHITE), (_regular(8, 0.92, 22.5), RED), (_word("STOP"), WHITE)),
            _painted((down, RED), (_regular(3, 0.60, 90, (0, -0.22)), WHITE)),
            _painted((_disc(0.97), WHITE), (_disc(0.92), RED), (bar, WHITE)),
            _painted((_regular(4, 1.0, 0), BLACK), (_regular(4, 0.95, 0), WHITE), (_regular(4, 0.68, 0), YELLOW)),
            *(
                _painted((_disc(0.97), RED), (_disc(0.74), WHITE), (_number(text), BLACK))
                for text in ("30", "50", "80")
            ),
            _painted((_disc(0.97), WHITE), (_disc(0.92), BLUE), (left, WHITE)),
            _painted((_disc(0.97), WHITE), (_disc(0.92), BLUE), (left.flip(1), WHITE)),
            _painted((up, RED), (_regular(3, 0.64, -90, (0, 0.22)), WHITE), (_exclamation(), BLACK)),
        ]
    )


def _painted(*coats: tuple[_Shape, tuple[_Number, _Number, _Number]]) -> Float[Tensor, "4 h w"]:
    """Lay colored shapes over each other, the first at the bottom; edges are one pixel wide."""
    picture = torch.zeros(4, SIDE, SIDE)
    for shape, color in coats:
        cover = (0.5 - shape * SIDE / 2).clamp(0, 1)
        picture = picture * (1 - cover) + cover * torch.tensor([*color, 1.0]).view(4, 1, 1)
    return picture


def _grid() -> tuple[Tensor, Tensor]:
    """Coordinates x and y of the pixel centers."""
    centers = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    return centers.expand(SIDE, SIDE), centers[:, None].expand(SIDE, SIDE)


def _disc(radius: _Number) -> _Shape:
    x, y = _grid()
    return torch.hypot(x, y) - radius


def _polygon(corners: Sequence[Point]) -> _Shape:
    """A convex polygon, its corners clockwise as one sees them."""
    x, y = _grid()
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        sides.append(((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return torch.stack(sides).amax(0)


def _regular(count: int, radius: _Number, first: _Number, center: Point = (0, 0)) -> _Shape:
    """A regular polygon whose first corner lies at an angle in degrees, clockwise from the right."""
    return _polygon(_arc(*center, radius, radius, first, first + 360, count)[:-1])


def _stroke(points: Sequence[Point], width: _Number) -> _Shape:
    """Everything within half a width of a line through the points."""
    x, y = _grid()
    distances = []
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        along = (((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
        distances.append(torch.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return torch.stack(distances).amin(0) - width / 2


def _union(*shapes: _Shape) -> _Shape:
    return torch.stack(shapes).amin(0)


def _arc(
    x: _Number, y: _Number, across: _Number, down: _Number, start: _Number, end: _Number, count: int = 16
) -> list[Point]:
    """Points along an ellipse from one angle in degrees to another, clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / count) for i in range(count + 1)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


# Letters and figures in a box from -1 to 1, as lines to draw; some need two.
_GLYPHS: dict[str, list[list[Point]]] = {
    "S": [[*_arc(0, -0.5, 0.9, 0.5, -25, -270), *_arc(0, 0.5, 0.9, 0.5, -90, 155)]],
    "T": [[(-1, -1), (1, -1)], [(0, -1), (0, 1)]],
    "O": [_arc(0, 0, 1, 1, 0, 360, 24)],
    "P": [[(-0.8, 1), (-0.8, -1), (0.1, -1), *_arc(0.1, -0.45, 0.8, 0.55, -90, 90), (-0.8, 0.1)]],
    "0": [_arc(0, 0, 1, 1, 0, 360, 24)],
    "3": [[*_arc(-0.1, -0.5, 0.9, 0.5, -160, 90), *_arc(-0.1, 0.5, 1.1, 0.5, -90, 160)]],
    "5": [[(0.9, -1), (-0.7, -1), (-0.85, -0.05), *_arc(-0.05, 0.37, 1.05, 0.63, -140, 150)]],
    "8": [_arc(0, -0.52, 0.85, 0.48, 0, 360), _arc(0, 0.5, 1.05, 0.5, 0, 360)],
}


def _glyph(name: str, x: _Number, half: _Number, height: _Number, width: _Number) -> _Shape:
    lines = _GLYPHS[name]
    return _union(*(_stroke([(x + half * u, height * v) for u, v in line], width) for line in lines))


def _word(text: str) -> _Shape:
    """A word of four letters across an octagon."""
    return _union(*(_glyph(letter, -0.63 + 0.42 * i, 0.125, 0.27, 0.115) for i, letter in enumerate(text)))


def _number(text: str) -> _Shape:
    """A number of two figures inside a ring."""
    return _union(*(_glyph(figure, side * 0.29, 0.18, 0.38, 0.16) for side, figure in zip((-1, 1), text, strict=True)))


def _exclamation() -> _Shape:
    x, y = _grid()
    return _union(_stroke([(0, -0.16), (0, 0.22)], 0.17), torch.hypot(x, y - 0.42) - 0.095)


def _arrow(direction: int) -> _Shape:
    """An arrow from below that turns to the left (-1) or right (1)."""
    shaft = _stroke([(-direction * 0.34, 0.55), (-direction * 0.34, -0.12), (direction * 0.1, -0.12)], 0.24)
    head = [(direction * 0.66, -0.12), (direction * 0.06, -0.56), (direction * 0.06, 0.32)]
    return _union(shaft, _polygon(head if direction < 0 else head[::-1]))
