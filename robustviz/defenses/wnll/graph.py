"""The graph of the weighted nonlocal Laplacian: who is a neighbor of whom, and how alike they are.

    w_xy = exp(-|x - y|^2 / sigma_x^2)    for the K nearest neighbors y of x, sigma_x = distance to the M-th of them

Points are ordered as in the papers' union of batch and template: unlabelled first, then the template. Which points are
neighbors is decided without gradient and held fixed; the weights are differentiable in all points, sigma included.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustviz.neighbors import Neighbors, blocks, nearest


@dataclass(frozen=True)
class Weights:
    """A sparse weight matrix: w_xy for the pairs listed, 0 for all others. It is not symmetric.

    Attributes:
        source: x of every pair.
        target: y of every pair.
        values: w_xy, from 0 to 1.
        count: How many points there are.
        points: Where they are, without gradient; None if only the weights are known.
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

    Args:
        points: Unlabelled points first, then the template. Half precision is computed in float32.
        neighbors: K, how many neighbors a point listens to, itself not counted; at most n - 1 are used.
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
    count = min(neighbors, max(0, len(points) - 1))
    lists = nearest(points, points, count, itself=True).indices
    return _weigh(points, torch.arange(len(points), device=points.device), lists, scale_neighbor)


def joined(
    features: Float[Tensor, "u d"],
    template: Float[Tensor, "m d"],
    prepared: Neighbors,
    *,
    neighbors: int,
    scale_neighbor: int,
) -> Weights:
    """Compute `affinity` of features and template together, but from neighbor lists that the template already has.

    A batch point takes a place in the list of every template point that it is nearer to than its K-th neighbor. Pairs
    inside the template are left out, because the labels there are given; so cost and memory grow linearly with it.

    Args:
        features: The batch.
        template: The labelled points.
        prepared: `nearest(template, template, ...)`, itself not counted.
        neighbors: K.
        scale_neighbor: M.
    """
    points, batch = torch.cat([features, template]), len(features)
    count = min(neighbors, len(points) - 1)
    own = nearest(features, points, count, itself=True).indices
    rows = [torch.zeros(0, dtype=torch.long, device=points.device)]
    reach = _reach(prepared, neighbors)
    for start, squared, error in blocks(template, features):
        near = squared.amin(1) <= reach[start : start + len(squared)] + error
        rows.append(start + near.nonzero().squeeze(1))
    entered = torch.cat(rows)
    new = nearest(template[entered], features, min(neighbors, batch))
    squared = torch.cat([prepared.squared[entered], new.squared], 1)
    order = squared.topk(min(count, squared.shape[1]), largest=False).indices
    theirs = torch.cat([prepared.indices[entered] + batch, new.indices], 1).gather(1, order)
    return _weigh(
        points,
        torch.cat([torch.arange(batch, device=points.device), batch + entered]),
        torch.cat([own, theirs]),
        scale_neighbor,
        unlabelled=batch,
    )


def alone(
    features: Float[Tensor, "u d"],
    template: Float[Tensor, "m d"],
    prepared: Neighbors,
    *,
    neighbors: int,
    scale_neighbor: int,
) -> Weights:
    """Weigh each feature against the template as if it were the only one; arguments are those of `joined`.

    The weights are those of `affinity` of one feature and the template, for all features at once.
    """
    points, batch, size = torch.cat([features, template]), len(features), len(template)
    own = nearest(features, template, min(neighbors, size)).indices
    weights = _weigh(points, torch.arange(batch, device=points.device), own + batch, scale_neighbor)
    pairs = [torch.zeros(0, 2, dtype=torch.long, device=points.device)]
    reach = _reach(prepared, neighbors)
    for start, squared, error in blocks(template, features):
        near = squared <= reach[start : start + len(squared), None] + error[:, None]
        pairs.append(near.nonzero() + torch.tensor([start, 0], device=points.device))
    source, target = torch.cat(pairs).unbind(1)
    exact = _squared(points, batch + source, target)
    enters = exact.detach() < reach[source]
    source, target, exact = source[enters], target[enters], exact[enters]
    # The feature may push the M-th neighbor back by one place, or be it.
    scale = min(scale_neighbor, size)
    nearer = _reach(prepared, scale - 1)[source] if scale > 1 else torch.zeros_like(exact)
    sigma = torch.maximum(torch.minimum(exact, _reach(prepared, scale)[source].to(exact)), nearer.to(exact))
    return Weights(
        torch.cat([weights.source, batch + source]),
        torch.cat([weights.target, target]),
        torch.cat([weights.values, _bell(exact, sigma)]),
        len(points),
        points.detach(),
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


def _squared(points: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Squared distances of pairs of points, by subtraction, with gradient."""
    return (points.index_select(0, source) - points.index_select(0, target)).square().sum(1)


def _bell(squared: Tensor, scale: Tensor) -> Tensor:
    """exp(-squared / scale), and its limit where the scale is 0; finite gradients everywhere."""
    near = squared <= 700 * scale
    tiny = torch.finfo(scale.dtype).tiny ** 0.5
    ratio = torch.where(near, squared, 0) / torch.where(scale > tiny, scale, 1)
    return torch.where(near, torch.exp(-ratio), 0)


def _reach(prepared: Neighbors, place: int) -> Tensor:
    """Squared distance of every point to its neighbor in a place, from 1; infinite where there are fewer."""
    if place > prepared.squared.shape[1]:
        return prepared.squared.new_full((len(prepared.squared),), torch.inf)
    return prepared.squared[:, place - 1]


def _weigh(
    points: Tensor, rows: Tensor, lists: Tensor, scale_neighbor: int, *, unlabelled: int | None = None
) -> Weights:
    """Weigh the pairs of each row and the points in its list; of template rows only those with an unlabelled point."""
    last = lists[:, :scale_neighbor][:, -1] if lists.shape[1] else rows
    scale = _squared(points, rows, last)
    keep = torch.ones_like(lists, dtype=torch.bool)
    if unlabelled is not None:
        keep = (rows < unlabelled)[:, None] | (lists < unlabelled)
    row, place = keep.nonzero(as_tuple=True)
    source, target = rows[row], lists[row, place]
    values = _bell(_squared(points, source, target), scale.index_select(0, row))
    return Weights(source, target, values, len(points), points.detach())
