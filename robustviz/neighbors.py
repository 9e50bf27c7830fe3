"""Exact nearest neighbors at the price of one matrix product: found roughly, measured exactly, and certified.

    |q - p|^2 = |q|^2 + |p|^2 - 2 q.p

The right side is one product, fast and rounded; it proposes a few candidates more than are wanted. Their distances are
then computed by subtraction in float64. What rounding can do to the product has a bound; where it could have hidden a
nearer point, the search is repeated in float64, and where that does not suffice either, by subtraction throughout.

WNLL builds its graph from neighbors, and `geometry` measures with them how far images are from the training data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**23
"""How many rough distances are held in memory at once."""

SPARE = 4
"""Candidates beyond the neighbors that are wanted, so that rounding in the fast search is seen and made good."""

ROUGH = (torch.float32, torch.float64, None)
"""Precision of the matrix product, from fast to safe; None: differences instead of a product."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbors of some points, nearest first.

    Attributes:
        indices: Which points they are.
        squared: Their squared distances, float64.
    """

    indices: Int[Tensor, "n k"]
    squared: Float[Tensor, "n k"]


@dataclass(frozen=True)
class Pairs:
    """Queries that come nearer to a point than a radius of that point.

    Attributes:
        queries: Which queries.
        points: Which points.
        squared: Their squared distances, float64.
    """

    queries: Int[Tensor, "e"]
    points: Int[Tensor, "e"]
    squared: Float[Tensor, "e"]


def nearest(
    queries: Float[Tensor, "q d"], points: Float[Tensor, "n d"], count: int, *, itself: bool = False
) -> Neighbors:
    """Find the `count` nearest points of every query, exactly, in blocks of bounded memory.

    Of points at the same distance those with higher numbers come first.

    Args:
        queries: Points whose neighbors are wanted.
        points: Points to choose from.
        count: Number of neighbors, at most as many as there are.
        itself: The queries are the first of the points, and none is its own neighbor.
    """
    return nearest_and_reached(queries, points, count, points.new_zeros(0), itself=itself)[0]


@torch.no_grad()
def nearest_and_reached(
    queries: Float[Tensor, "q d"],
    points: Float[Tensor, "n d"],
    count: int,
    reach: Float[Tensor, "m"],
    *,
    itself: bool = False,
) -> tuple[Neighbors, Pairs]:
    """Find the nearest points of every query, and the queries within reach of a point, from the same distances.

    Args:
        queries: Points whose neighbors are wanted.
        points: Points to choose from.
        count: Number of neighbors, at most as many as there are.
        reach: Squared radii of the last m points; only what is strictly nearer counts.
        itself: The queries are the first of the points, and none is its own neighbor.

    Returns:
        Neighbors of all queries, and pairs in no particular order; their points are numbered from the first that has a
        radius.
    """
    factor = unit_factor(points)
    queries, points, reach = queries.detach() * factor, points.detach() * factor, reach.detach().double() * factor**2
    indices = torch.zeros(len(queries), count, dtype=torch.long, device=points.device)
    squared = torch.zeros(len(queries), count, dtype=torch.float64, device=points.device)
    rows, reached = torch.arange(len(queries) if points.numel() else 0, device=points.device), []
    candidates = min(count + SPARE, len(points) - itself)
    for precision in ROUGH[0 if _single_is_single() else 1 :]:
        doubtful = [rows[:0]]
        for some, rough, error in _blocks(queries, points, rows, precision):
            if itself:
                rough[torch.arange(len(some), device=rows.device), some] = torch.inf
            values, found = (_smallest if precision else _smallest_of_all)(rough, candidates)
            found = found.sort(1, descending=True).values  # a stable sort then leaves ties in this order
            exact, order = _squared(queries[some], points, found).sort(dim=1, stable=True)
            indices[some], squared[some] = found.gather(1, order[:, :count]), exact[:, :count]
            sure = torch.ones_like(some, dtype=torch.bool)
            if precision and count > 0 and candidates < len(points) - itself:
                # Every other point is at least as far as the farthest candidate, up to the error.
                sure = values.double().amax(1) - error > exact[:, count - 1]
            doubtful.append(some[~sure])
            if len(reach) and sure.any():
                if not sure.all():
                    rough[~sure] = torch.nan  # compares as false; these queries come again
                reached.append(_within(queries[some], points, rough, float(error[sure].amax()), reach, some))
        rows = torch.cat(doubtful)
        if not len(rows):
            break
    none = (indices.new_zeros(0), indices.new_zeros(0), squared.new_zeros(0))
    pairs = [torch.cat(part) for part in zip(none, *reached, strict=True)]
    return Neighbors(indices, squared / factor**2), Pairs(pairs[0], pairs[1], pairs[2] / factor**2)


def unit_factor(points: Tensor) -> float:
    """Return the power of two that brings the largest coordinate to between 1/2 and 1, so that squares stay in range.

    Multiplying by it rounds nothing.
    """
    low, high = points.detach().aminmax() if points.numel() else (0.0, 0.0)
    largest = max(-float(low), float(high))
    return 2.0 ** -max(-120, min(120, frexp(largest)[1])) if 0 < largest < torch.inf else 1.0


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` smallest of every row: values and columns, in no particular order.

    Columns are taken in groups. The smallest values of a row all lie in the groups whose own smallest values are the
    smallest; only these are sorted.
    """
    columns = values.shape[1]
    size = min(16, int((columns / max(count, 1)) ** 0.5))  # larger groups are slower to look into
    groups = columns // max(size, 1)
    if size < 3 or groups < count:
        return values.topk(count, largest=False, sorted=False)
    lowest = values[:, : size * groups].view(len(values), size, groups).amin(1)
    chosen = lowest.topk(count, largest=False, sorted=False).indices
    inside = chosen[:, None] + groups * torch.arange(size, device=values.device)[:, None]
    rest = torch.arange(size * groups, columns, device=values.device).expand(len(values), -1)
    places = torch.cat([inside.flatten(1), rest], 1)
    best = values.gather(1, places).topk(count, largest=False, sorted=False)
    return best.values, places.gather(1, best.indices)


def _smallest_of_all(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` smallest of every row, of equal ones the last."""
    best = values.flip(1).sort(dim=1, stable=True)
    return best.values[:, :count], values.shape[1] - 1 - best.indices[:, :count]


def _within(
    queries: Tensor, points: Tensor, rough: Tensor, error: float, reach: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of the queries of a block, whose numbers are `rows`, with the points that they are within reach of."""
    first = len(points) - len(reach)
    limit = (reach + error).to(rough.dtype).nextafter(rough.new_tensor(torch.inf))  # rounded up, so none is lost
    row, point = (rough[:, first:] <= limit).nonzero().unbind(1)
    squared = []
    for some, others in zip(torch.split(row, BLOCK // 64 + 1), torch.split(point, BLOCK // 64 + 1), strict=True):
        squared.append(_squared(queries.index_select(0, some), points, first + others[:, None])[:, 0])
    exact = torch.cat(squared)
    near = (exact < reach.index_select(0, point)).nonzero().squeeze(1)
    row, point, exact = (values.index_select(0, near) for values in (row, point, exact))
    return rows.index_select(0, row), point, exact


def _blocks(
    queries: Tensor, points: Tensor, rows: Tensor, precision: torch.dtype | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rough squared distances of some queries, block by block: which queries, (rows, n), and the most they can be off.

    Every block uses the same memory.
    """
    if not len(rows):
        return
    parts = torch.split(rows, max(1, BLOCK // len(points)))
    width, eps = points.shape[1] + 8, torch.finfo(precision or torch.float64).eps
    if precision is None:
        points = points.double()
        for some in parts:
            rough = torch.cdist(queries[some].double(), points, compute_mode="donot_use_mm_for_euclid_dist").square_()
            yield some, rough, width * eps * rough.amax(1)
        return
    wide = torch.promote_types(points.dtype, precision)
    middle = points.to(wide).mean(0)
    points = (points.to(wide) - middle).to(precision)
    lengths = points.square().sum(1, keepdim=True)
    right = torch.cat([points, lengths, torch.ones_like(lengths)], 1).T
    longest = lengths.amax().double().sqrt()
    buffer = points.new_empty(len(parts[0]), len(points))
    for some in parts:
        left = (queries[some].to(wide) - middle).to(precision)
        own = left.square().sum(1, keepdim=True)
        with torch.autocast(points.device.type, enabled=False):
            left = torch.cat([-2 * left, torch.ones_like(own), own], 1)
            rough = torch.mm(left, right, out=buffer[: len(some)])
        yield some, rough, (width * eps * (own.double().sqrt() + longest).square()).squeeze(1)


def _squared(queries: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """Squared distances (q, k) of queries to the points listed beside them, by subtraction, float64."""
    size = max(1, 2**17 // max(1, indices.shape[1] * points.shape[1]))  # small enough for a CPU's cache
    found = queries.new_empty(indices.shape, dtype=torch.float64)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        chosen = indices[part]
        difference = points.index_select(0, chosen.flatten()).view(*chosen.shape, points.shape[1]).double()
        difference -= queries[part, None]
        torch.sum(difference.square_(), 2, out=found[part])
    return found


def _single_is_single() -> bool:
    """Tell whether float32 products are computed in float32; the user may have allowed less."""
    return torch.get_float32_matmul_precision() == "highest"
