"""The system of the weighted nonlocal Laplacian: `dense_interpolation` writes it down, `interpolate` solves it fast.

    sum_y (w_xy + w_yx) (u_x - u_y)  +  mu * sum_{y in L} w_yx (u_x - u_y)  =  0     for x in U (not in the template)
    u_y = g_y, the one-hot label of y                                                for y in L (the template)

With c_xy = w_xy + w_yx + mu [y in L] w_yx this is one symmetric positive definite system for all classes:

    A u_U = c_UL g,    A = diag(sum_y c_xy) - c_UU

Its gradient takes one more solve with the same matrix. For a loss l(u_U): A lambda = dl/du_U, lambda_L = 0, and then
dl/dc_xy = (lambda_x - lambda_y) . (u_y - u_x) for every pair.

(The same equations describe a network of resistors: c_xy is the conductance between x and y, the template is held at
the voltages g, and u is the voltage everywhere else.)
"""

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustviz.defenses.wnll.graph import Weights
from robustviz.neighbors import nearest

DENSE_LIMIT = 2000
"""Up to this many unlabelled points the matrix is factored; above, the system is solved by conjugate gradients."""

Solver = Callable[[Tensor], Tensor]
"""Takes right-hand sides (u, classes) to solutions of the same shape."""


def dense_interpolation(
    weights: Float[Tensor, "n n"], template_labels: Int[Tensor, "m"], classes: int, multiplier: float
) -> Float[Tensor, "u classes"]:
    """Solve the system as it is written in the paper, with whole matrices; `interpolate` gives the same, fast.

    Args:
        weights: w_xy, unlabelled points first, then the template; each unlabelled point must be joined to it.
        template_labels: Classes of the template points.
        classes: How many classes there are.
        multiplier: mu; n / m - 1 for WNLL, 0 for plain Laplace learning.

    Returns:
        u for the unlabelled points: a share of every class.
    """
    unlabelled = len(weights) - len(template_labels)
    c = weights + weights.T
    c[:unlabelled, unlabelled:] += multiplier * weights[unlabelled:, :unlabelled].T
    c_uu, c_ul = c[:unlabelled, :unlabelled], c[:unlabelled, unlabelled:]
    g = F.one_hot(template_labels, classes).to(weights)
    return torch.linalg.solve(c[:unlabelled].sum(1).diag() - c_uu, c_ul @ g)


def interpolate(
    weights: Weights | Float[Tensor, "n n"],
    template_labels: Int[Tensor, "m"],
    classes: int,
    *,
    multiplier: float | int | None = None,
) -> Float[Tensor, "u classes"]:
    """Carry the template's labels over to the unlabelled points.

    Args:
        weights: From `affinity`, or a matrix w_xy >= 0 of your own; unlabelled points first, then the template.
        template_labels: Classes of the template points.
        classes: How many classes there are.
        multiplier: mu, how much more the template counts; None is n / m - 1, as published, and 0 is plain Laplace
            learning.

    Returns:
        For every unlabelled point a share of each class: in [0, 1], rows sum to 1. The gradient with respect to the
        weights is exact. The system is solved in float64, whatever the weights are in.

    Raises:
        ValueError: If labels do not fit, or weights of your own are negative, not finite, or cut a point off from the
            template. (Points cut off by `affinity` are joined to their nearest template point.)

    Source: Shi, Osher & Zhu, "Weighted nonlocal Laplacian on interpolation from sparse data", 2017, equation 9;
    Wang et al., arXiv 1802.00168, section 2.
    """
    if isinstance(weights, Tensor):
        weights = _pairs(weights, len(template_labels))
    check_template(template_labels, classes)
    size = len(template_labels)
    unlabelled = weights.count - size
    if unlabelled < 0:
        raise ValueError(f"template_labels must not be longer than the {weights.count} points, got {size}")
    multiplier = weights.count / size - 1 if multiplier is None else multiplier
    if not (isfinite(multiplier) and multiplier >= 0):
        raise ValueError(f"multiplier must be finite and >= 0, got {multiplier}")
    used = ((weights.source < unlabelled) | (weights.target < unlabelled)).nonzero().squeeze(1)
    source, target = weights.source.index_select(0, used), weights.target.index_select(0, used)
    # A pair (x, y) adds this to c_xy and to c_yx: w_xy, or (1 + mu) w_xy where x is a template point.
    edges = weights.values.index_select(0, used).double() * (1 + multiplier * (source >= unlabelled).double())
    links = _links(weights, source, target, edges.detach(), unlabelled)
    source, target = torch.cat([source, links[:, 0]]), torch.cat([target, links[:, 1]])
    edges = torch.cat([edges, edges.new_ones(len(links))])
    return _Solution.apply(edges, source, target, template_labels, classes, unlabelled).to(weights.values.dtype)


def check_template(template_labels: Tensor, classes: int) -> None:
    """Refuse an empty template and labels outside 0..classes - 1."""
    if not len(template_labels):
        raise ValueError("template must hold at least one labelled point, got none")
    low, high = (int(bound) for bound in template_labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"template_labels must lie in 0..{classes - 1}, got {low if low < 0 else high}")


class _Solution(torch.autograd.Function):
    """Solve A u = c_UL g once for the value, and A lambda = dl/du once more for the gradient (A is symmetric)."""

    @staticmethod
    def forward(
        ctx: Any, edges: Tensor, source: Tensor, target: Tensor, labels: Tensor, classes: int, unlabelled: int
    ) -> Tensor:
        right = edges.new_zeros(unlabelled, classes)
        for x, y in ((source, target), (target, source)):
            labelled = y >= unlabelled
            right.index_put_((x[labelled], labels[y[labelled] - unlabelled]), edges[labelled], accumulate=True)
        ctx.solve = _solver(edges, source, target, unlabelled)
        # Rounding in a badly conditioned system scales whole rows; their sum is known.
        u = ctx.solve(right).clamp_min(0)
        u /= u.sum(1, keepdim=True)
        ctx.save_for_backward(u, source, target, labels)
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, source, target, labels = ctx.saved_tensors
        adjoint = F.pad(ctx.solve(gradient), (0, 0, 0, len(labels)))  # lambda, 0 on the template
        u = torch.cat([u, F.one_hot(labels.long(), u.shape[1]).to(u)])
        across = adjoint.index_select(0, source) - adjoint.index_select(0, target)
        return (across * (u.index_select(0, target) - u.index_select(0, source))).sum(1), *[None] * 5


def _solver(edges: Tensor, source: Tensor, target: Tensor, unlabelled: int) -> Solver:
    """Choose how to solve the system: by division if no unlabelled points are joined, else factored or iterated."""
    ends = torch.cat([source, target]).clamp_max(unlabelled)
    degree = edges.new_zeros(unlabelled + 1).index_add(0, ends, edges.repeat(2))[:unlabelled]
    inside = (source < unlabelled) & (target < unlabelled)
    if not inside.any():
        return lambda right: right / degree[:, None]
    pairs, values = torch.stack([source[inside], target[inside]]), edges[inside]
    if unlabelled > DENSE_LIMIT:
        both = torch.cat([pairs, pairs.flip(0)], 1)
        joined = torch.sparse_coo_tensor(both, values.repeat(2), (unlabelled, unlabelled), check_invariants=False)
        return partial(_conjugate_gradients, joined.coalesce(), degree)
    matrix = degree.diag()
    for row, column in (pairs, pairs.flip(0)):
        matrix.index_put_((row, column), -values, accumulate=True)
    factor = torch.linalg.cholesky(matrix)
    return lambda right: torch.cholesky_solve(right, factor)


def _conjugate_gradients(joined: Tensor, degree: Tensor, right: Tensor, *, tolerance: float = 1e-13) -> Tensor:
    """Solve (degree - joined) u = right for every column at once, with a Jacobi preconditioner."""
    degree = degree[:, None]
    solution = torch.zeros_like(right)
    residual, direction = right, right / degree
    energy = (residual * direction).sum(0)
    goal = tolerance**2 * energy
    for _ in range(10 * len(right)):
        if bool((energy <= goal).all()):
            break
        image = degree * direction - torch.sparse.mm(joined, direction)
        step = energy / (direction * image).sum(0)
        step = torch.where(energy > goal, step, 0)
        solution, residual = solution + step * direction, residual - step * image
        scaled = residual / degree
        previous, energy = energy, (residual * scaled).sum(0)
        direction = scaled + torch.where(previous > goal, energy / previous, 0) * direction
    return solution


def _links(weights: Weights, source: Tensor, target: Tensor, edges: Tensor, unlabelled: int) -> Tensor:
    """Join every component without a template point to the template point nearest to it: pairs (links, 2).

    An edge counts as cut when it is nearly lost to rounding beside the others of both its ends. What a link weighs does
    not matter, because everything behind it takes the label of its other end.
    """
    ends = torch.stack([source, target]).clamp_max(unlabelled)
    degree = edges.new_zeros(unlabelled + 1)
    degree.index_add_(0, ends.flatten(), edges.repeat(2))
    degree[unlabelled] = torch.inf
    strong = edges > 1e-10 * degree[ends].amin(0)
    rows, columns = ends[:, strong].cpu().numpy()
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(unlabelled + 1, unlabelled + 1))
    _, component = connected_components(graph, directed=False)
    lost = np.flatnonzero(component != component[unlabelled])
    if not len(lost):
        return source.new_zeros(0, 2)
    if weights.points is None:
        raise ValueError(
            f"weights must connect every unlabelled point with the template, but {len(lost)} are cut off; "
            "affinity gives weights that carry their points and are joined to the nearest template point"
        )
    points = torch.from_numpy(lost).to(source.device)
    found = nearest(weights.points[points], weights.points[unlabelled:], 1)
    order = np.lexsort((found.squared[:, 0].cpu().numpy(), component[lost]))
    first = order[np.unique(component[lost][order], return_index=True)[1]]
    chosen = torch.from_numpy(first).to(source.device)
    return torch.stack([points[chosen], found.indices[chosen, 0] + unlabelled], 1)


def _pairs(matrix: Tensor, size: int) -> Weights:
    """Turn a whole matrix into its pairs: the positive entries, or all if the gradient is wanted."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"weights must be a square matrix, got shape {tuple(matrix.shape)}")
    if not bool((matrix.isfinite() & (matrix >= 0)).all()):
        raise ValueError("weights must be finite and >= 0")
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    listed = torch.ones_like(matrix, dtype=torch.bool) if matrix.requires_grad else matrix > 0
    listed[len(matrix) - size :, len(matrix) - size :] = False
    source, target = listed.fill_diagonal_(False).nonzero(as_tuple=True)
    return Weights(source, target, matrix[source, target], len(matrix))
