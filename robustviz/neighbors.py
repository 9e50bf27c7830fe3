"""Exact nearest neighbors: found by one fast matrix product, then checked, so that rounding decides nothing.

WNLL builds its graph from them, and `geometry` measures with them how far images are from the training data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**23
"""How many numbers are held in memory at once while neighbors are looked for, in float64."""

SPARE = 8
"""Candidates beyond the neighbors that are wanted, so that rounding in the fast search is seen and made good."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbors of some points, nearest first.

    Attributes:
        indices: Which points they are.
        squared: Their squared distances, float64.
    """

    indices: Int[Tensor, "n k"]
    squared: Float[Tensor, "n k"]


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "q d"], points: Float[Tensor, "n d"], count: int, *, itself: bool = False
) -> Neighbors:
    """Find the `count` nearest points of every query, exactly, in blocks of bounded memory.

    Candidates come from the expanded square |q|^2 + |p|^2 - 2 q.p, which is fast; their distances are then computed by
    subtraction. Where rounding could have hidden a nearer point, all distances are computed by subtraction.

    Args:
        queries: Points whose neighbors are wanted.
        points: Points to choose from.
        count: How many, at most as many as there are.
        itself: The queries are the first of the points, and none is its own neighbor.
    """
    available = len(points) - itself
    found = []
    for start, block, error in blocks(queries, points, (count + SPARE) * points.shape[1]):
        rows = torch.arange(len(block), device=block.device)
        if itself:
            block[rows, start + rows] = torch.inf
        rough = block.topk(min(count + SPARE, available), largest=False)
        indices = rough.indices
        squared = _squared_rows(queries[start : start + len(block)], points, indices)
        kth = squared.topk(count, largest=False).values.amax(1) if count else squared.new_zeros(len(block))
        doubtful = (rough.values.amax(1) - error < kth) if indices.shape[1] < available else rows < 0
        if doubtful.any():
            some = queries[start : start + len(block)][doubtful].double()
            direct = torch.cdist(some, points.double(), compute_mode="donot_use_mm_for_euclid_dist")
            if itself:
                direct[torch.arange(len(direct), device=direct.device), start + rows[doubtful]] = torch.inf
            indices[doubtful] = direct.topk(indices.shape[1], largest=False).indices
            squared[doubtful] = _squared_rows(some, points, indices[doubtful])
        best = squared.topk(count, largest=False)
        found.append((indices.gather(1, best.indices), best.values))
    if not found:
        empty = points.new_zeros(0, count)
        return Neighbors(empty.long(), empty.double())
    return Neighbors(*(torch.cat(part) for part in zip(*found, strict=True)))


def blocks(queries: Tensor, points: Tensor, width: int = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Expanded squared distances in blocks of rows: first row, block (rows, n), and the most that rounding can do.

    The caller makes arrays of (rows, width) from a block.
    """
    queries, points = queries.detach().double(), points.detach().double()
    if not points.numel():
        queries = queries[:0]
    middle, step = points.mean(0), max(1, BLOCK // max(1, len(points), width))
    points = points - middle
    lengths = points.square().sum(1, keepdim=True)
    right = torch.cat([points, lengths, torch.ones_like(lengths)], 1).T
    for start in range(0, len(queries), step):
        rows = queries[start : start + step] - middle
        own = rows.square().sum(1, keepdim=True)
        # One product makes |q|^2 + |p|^2 - 2 q.p.
        block = torch.cat([-2 * rows, torch.ones_like(own), own], 1) @ right
        error = (points.shape[1] + 8) * torch.finfo(block.dtype).eps * (own.sqrt() + lengths.amax().sqrt()).square()
        yield start, block, error.squeeze(1)


def _squared_rows(queries: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """Squared distances (q, k) of queries to the points listed beside them, by subtraction, float64."""
    return (queries[:, None].double() - points[indices].double()).square_().sum(2)
