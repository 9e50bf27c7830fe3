"""The weights of WNLL's graph: which points are neighbors, and how alike they are.

    w_xy = exp(-|x - y|^2 / sigma_x^2)    for the K nearest neighbors y of x, sigma_x = distance to the M-th of them

Points are ordered as in the papers' union of batch and template: unlabelled first, then the template. Which points are
neighbors is decided without gradient and held fixed; the weights are differentiable in the points, sigma included.

Three functions give the same weights: `affinity` from the points alone; `joined_graph` from neighbor lists that the
template has already, so that the cost grows linearly with it; `alone` for many features, each as if it were the only
one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustviz.neighbors import Neighbors, Pairs, nearest, nearest_and_reached, unit_factor


@dataclass(frozen=True)
class Weights:
    """A sparse weight matrix: w_xy for the pairs listed, 0 for all others. It is not symmetric.

    Attributes:
        source: x of every pair.
        target: y of every pair.
        values: w_xy, from 0 to 1.
        count: Number of points.
        points: The points up to a common factor, without gradient; None if only the weights are known.
    """

    source: Int[Tensor, "e"]
    target: Int[Tensor, "e"]
    values: Float[Tensor, "e"]
    count: int
    points: Float[Tensor, "n d"] | None = None

    def to_dense(self) -> Float[Tensor, "n n"]:
        """Return the whole matrix, row x and column y."""
        empty = self.values.new_zeros(self.count, self.count)
        return empty.index_put((self.source, self.target), self.values, accumulate=True)


def affinity(points: Float[Tensor, "n d"], *, neighbors: int = 15, scale_neighbor: int = 8) -> Weights:
    """Weigh every point's nearest neighbors: w_xy = exp(-|x - y|^2 / sigma_x^2), where sigma_x is itself a distance.

    Multiplying all points by a number changes nothing.

    Args:
        points: Unlabelled points first, then the template. Half precision is computed in float32.
        neighbors: K, the number of neighbors of a point, itself not counted; at most n - 1 are used.
        scale_neighbor: M, the neighbor whose distance is sigma_x; at most K. Where it is 0, points in the same place
            weigh 1 and all others 0.

    Returns:
        Weights with their gradient with respect to all points.

    Raises:
        ValueError: If points are not finite, or a setting is out of range.

    Source: Wang et al., arXiv 1802.00168, section 2; Wang et al., arXiv 1809.08516, section 3.
    """
    check_graph(neighbors, scale_neighbor)
    points = checked(points)
    moving = points * unit_factor(points)
    found = nearest(moving, moving, min(neighbors, max(0, len(points) - 1)), itself=True)
    rows = torch.arange(len(points), device=points.device)
    return _weigh(moving, moving.detach(), rows, found, scale_neighbor)


def joined_graph(
    features: Float[Tensor, "u d"],
    template: Float[Tensor, "m d"],
    prepared: Neighbors,
    *,
    neighbors: int,
    scale_neighbor: int,
) -> Weights:
    """Compute `affinity` of features and template together, but from neighbor lists that the template already has.

    A feature enters the list of every template point that it is nearer to than its K-th neighbor. Pairs inside the
    template are left out, because the labels there are given; so cost and memory grow linearly with it.

    Args:
        features: The batch.
        template: The labelled points, taken as constant.
        prepared: `nearest(template, template, ...)`, itself not counted.
        neighbors: K.
        scale_neighbor: M.
    """
    moving, points, prepared = _together(features, template, prepared)
    batch, count = len(moving), min(neighbors, len(points) - 1)
    own, pairs = nearest_and_reached(moving, points, count, _reach(prepared, neighbors), itself=True)
    entered, theirs = _entered(prepared, pairs, batch, count)
    rows = torch.cat([torch.arange(batch, device=points.device), batch + entered])
    lists = Neighbors(torch.cat([own.indices, theirs.indices]), torch.cat([own.squared, theirs.squared]))
    return _weigh(moving, points, rows, lists, scale_neighbor)


def alone(
    features: Float[Tensor, "u d"],
    template: Float[Tensor, "m d"],
    prepared: Neighbors,
    *,
    neighbors: int,
    scale_neighbor: int,
) -> Weights:
    """Weigh each feature against the template as if it were the only one; arguments are those of `joined_graph`.

    The weights are those of `affinity` of one feature and the template, for all features at once.
    """
    moving, points, prepared = _together(features, template, prepared)
    batch, size = len(moving), len(template)
    own, pairs = nearest_and_reached(moving, points[batch:], min(neighbors, size), _reach(prepared, neighbors))
    rows = torch.arange(batch, device=points.device)
    weights = _weigh(moving, points, rows, Neighbors(own.indices + batch, own.squared), scale_neighbor)
    squared = _SquaredDistances.apply(moving, points, pairs.squared, batch + pairs.points, pairs.queries)
    # The feature may push the M-th neighbor of a template point back by one place, or be it.
    scale = min(scale_neighbor, size)
    mth = _reach(prepared, scale)[pairs.points]
    nearer = _reach(prepared, scale - 1)[pairs.points] if scale > 1 else torch.zeros_like(mth)
    values = _bell(squared, torch.maximum(torch.minimum(squared, mth), nearer))
    return Weights(
        torch.cat([weights.source, batch + pairs.points]),
        torch.cat([weights.target, pairs.queries]),
        torch.cat([weights.values, values.to(points.dtype)]),
        len(points),
        points,
    )


def check_graph(neighbors: int, scale_neighbor: int) -> None:
    """Refuse settings of which no graph can be made."""
    if not 1 <= scale_neighbor <= neighbors:
        raise ValueError(
            f"scale_neighbor must be from 1 to neighbors, got scale_neighbor={scale_neighbor} and neighbors={neighbors}"
        )


def checked(points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Refuse points that are not finite; return them in float32 at least."""
    if not bool(points.isfinite().all()):
        raise ValueError("features must be finite, but contain NaN or infinity")
    return points.to(torch.promote_types(points.dtype, torch.float32))


def _together(features: Tensor, template: Tensor, prepared: Neighbors) -> tuple[Tensor, Tensor, Neighbors]:
    """Features with gradient, all points without, and the template's lists, in a common unit of length."""
    factor = unit_factor(template)
    moving = features * factor
    points = torch.cat([moving.detach(), template.detach() * factor])
    return moving, points, Neighbors(prepared.indices, prepared.squared * factor**2)


def _reach(prepared: Neighbors, place: int) -> Tensor:
    """Squared distance of every point to its neighbor in a place, from 1; infinite where there are fewer."""
    if place > prepared.squared.shape[1]:
        return prepared.squared.new_full((len(prepared.squared),), torch.inf)
    return prepared.squared[:, place - 1]


def _entered(prepared: Neighbors, pairs: Pairs, batch: int, count: int) -> tuple[Tensor, Neighbors]:
    """Template points whose lists batch points enter, and these lists; the numbers in them are those of all points.

    Of points at the same distance those with higher numbers come first, as in `nearest`.
    """
    order = pairs.queries.argsort(descending=True)
    for key in (pairs.squared, pairs.points):
        order = order.index_select(0, key.index_select(0, order).argsort(stable=True))
    entered, sizes = torch.unique_consecutive(pairs.points.index_select(0, order), return_counts=True)
    row = torch.arange(len(entered), device=order.device).repeat_interleave(sizes)
    place = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
    early = place < count
    order, row, place = order[early], row[early], place[early]
    width = int(place.amax()) + 1 if len(place) else 0
    squared = pairs.squared.new_full((len(entered), width), torch.inf).index_put((row, place), pairs.squared[order])
    indices = pairs.queries.new_zeros(len(entered), width).index_put((row, place), pairs.queries[order])
    squared = torch.cat([prepared.squared.index_select(0, entered), squared], 1)
    indices = torch.cat([prepared.indices.index_select(0, entered) + batch, indices], 1)
    squared, order = squared.sort(dim=1, stable=True)
    return entered, Neighbors(indices.gather(1, order[:, :count]), squared[:, :count])


class _SquaredDistances(torch.autograd.Function):
    """Squared distances of pairs, known already, with their gradient in the points that move (the first ones).

    d|x - y|^2 = 2 (x - y) (dx - dy), by subtraction; pairs without gradient cost nothing.
    """

    @staticmethod
    def forward(ctx: Any, moving: Tensor, points: Tensor, squared: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(points, source, target)
        ctx.moving = len(moving)
        return squared.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        points, source, target = ctx.saved_tensors
        used = ((gradient != 0) & ((source < ctx.moving) | (target < ctx.moving))).nonzero().squeeze(1)
        source, target = source.index_select(0, used), target.index_select(0, used)
        slope = points.index_select(0, source).sub_(points.index_select(0, target))
        slope *= (2 * gradient.index_select(0, used)[:, None]).to(points.dtype)
        total = points.new_zeros(ctx.moving + 1, points.shape[1])  # the last row takes what belongs to constant points
        total.index_add_(0, source.clamp_max(ctx.moving), slope)
        total.index_add_(0, target.clamp_max(ctx.moving), slope, alpha=-1)
        return total[:-1], None, None, None, None


def _bell(squared: Tensor, scale: Tensor) -> Tensor:
    """exp(-squared / scale), and its limit where the scale is 0; finite gradients everywhere."""
    near = squared <= 700 * scale
    tiny = torch.finfo(scale.dtype).tiny ** 0.5
    ratio = torch.where(near, squared, 0) / torch.where(scale > tiny, scale, 1)
    return torch.where(near, torch.exp(-ratio), 0)


def _weigh(moving: Tensor, points: Tensor, rows: Tensor, lists: Neighbors, scale_neighbor: int) -> Weights:
    """Weigh the pairs of each row and the points in its list; of constant rows only those with a moving point."""
    source, target = rows[:, None].expand_as(lists.indices).flatten(), lists.indices.flatten()
    squared = _SquaredDistances.apply(moving, points, lists.squared.flatten(), source, target).view_as(lists.squared)
    keep = ((source < len(moving)) | (target < len(moving))).nonzero().squeeze(1)
    place = torch.arange(len(rows), device=rows.device).repeat_interleave(lists.indices.shape[1]).index_select(0, keep)
    scale = squared[:, :scale_neighbor][:, -1:].flatten().index_select(0, place)
    values = _bell(squared.flatten().index_select(0, keep), scale).to(points.dtype)
    return Weights(source.index_select(0, keep), target.index_select(0, keep), values, len(points), points)
