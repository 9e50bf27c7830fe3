"""Interpolation by the weighted nonlocal Laplacian, with its exact gradient.

    sum_y (w_xy + w_yx) (u_x - u_y)  +  mu * sum_{y in template} w_yx (u_x - u_y)  =  0     for unlabelled x
    u_y = one-hot label of y                                                                for y in the template

It is a network of resistors. A pair (x, y) of the weights is a wire with conductance w_xy, or (1 + mu) w_xy if x is a
template point; the template is held at the voltages of its labels, and u is the voltage of everything else.
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

from robustviz.defenses.wnll.graph import Weights, nearest

DENSE_LIMIT = 2000
"""Up to so many unlabelled points the system is factored; above, it is solved by conjugate gradients."""

Solver = Callable[[Tensor], Tensor]
"""Takes right-hand sides (u, classes) to solutions of the same shape."""


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
    source, target = weights.source[used], weights.target[used]
    conductance = weights.values.index_select(0, used).double() * (1 + multiplier * (source >= unlabelled).double())
    links = _links(weights, source, target, conductance.detach(), unlabelled)
    source, target = torch.cat([source, links[:, 0]]), torch.cat([target, links[:, 1]])
    conductance = torch.cat([conductance, conductance.new_ones(len(links))])
    voltages = _Voltages.apply(conductance, source, target, template_labels, classes, unlabelled)
    return voltages.to(weights.values.dtype)


def check_template(template_labels: Tensor, classes: int) -> None:
    """Refuse an empty template and labels outside 0..classes - 1."""
    if not len(template_labels):
        raise ValueError("template must hold at least one labelled point, got none")
    low, high = (int(bound) for bound in template_labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"template_labels must lie in 0..{classes - 1}, got {low if low < 0 else high}")


class _Voltages(torch.autograd.Function):
    """Solve A u = b once for the voltages, and A lambda = dl/du once more for the gradient (A is symmetric)."""

    @staticmethod
    def forward(
        ctx: Any, conductance: Tensor, source: Tensor, target: Tensor, labels: Tensor, classes: int, unlabelled: int
    ) -> Tensor:
        inputs = conductance.new_zeros(unlabelled, classes)
        for near, far in ((source, target), (target, source)):
            held = far >= unlabelled
            inputs.index_put_((near[held], labels[far[held] - unlabelled]), conductance[held], accumulate=True)
        ctx.solve = _solver(conductance, source, target, unlabelled)
        # Rounding in a badly conditioned system scales whole rows; their sum is known.
        voltages = ctx.solve(inputs).clamp_min(0)
        voltages /= voltages.sum(1, keepdim=True)
        ctx.save_for_backward(voltages, source, target, labels)
        return voltages

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        voltages, source, target, labels = ctx.saved_tensors
        adjoint = F.pad(ctx.solve(gradient), (0, 0, 0, len(labels)))
        voltages = torch.cat([voltages, F.one_hot(labels.long(), voltages.shape[1]).to(voltages)])
        # How much a wire matters: the drop of the adjoint along it times the drop of the voltage against it.
        drop = adjoint.index_select(0, source) - adjoint.index_select(0, target)
        rise = voltages.index_select(0, target) - voltages.index_select(0, source)
        return (drop * rise).sum(1), None, None, None, None, None


def _solver(conductance: Tensor, source: Tensor, target: Tensor, unlabelled: int) -> Solver:
    """Choose how to solve the system: by division if no unlabelled points are joined, else factored or iterated."""
    ends = torch.cat([source, target]).clamp_max(unlabelled)
    degree = conductance.new_zeros(unlabelled + 1).index_add(0, ends, conductance.repeat(2))[:unlabelled]
    inside = (source < unlabelled) & (target < unlabelled)
    if not inside.any():
        return lambda inputs: inputs / degree[:, None]
    pairs, values = torch.stack([source[inside], target[inside]]), conductance[inside]
    if unlabelled > DENSE_LIMIT:
        both = torch.cat([pairs, pairs.flip(0)], 1)
        joined = torch.sparse_coo_tensor(both, values.repeat(2), (unlabelled, unlabelled), check_invariants=False)
        return partial(_conjugate_gradients, joined.coalesce(), degree)
    matrix = degree.diag()
    for row, column in (pairs, pairs.flip(0)):
        matrix.index_put_((row, column), -values, accumulate=True)
    factor = torch.linalg.cholesky(matrix)
    return lambda inputs: torch.cholesky_solve(inputs, factor)


def _conjugate_gradients(joined: Tensor, degree: Tensor, inputs: Tensor, *, tolerance: float = 1e-13) -> Tensor:
    """Solve (degree - joined) u = inputs for every column at once, with a Jacobi preconditioner."""
    degree = degree[:, None]
    solution = torch.zeros_like(inputs)
    residual, direction = inputs, inputs / degree
    energy = (residual * direction).sum(0)
    goal = tolerance**2 * energy
    for _ in range(10 * len(inputs)):
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


def _links(weights: Weights, source: Tensor, target: Tensor, conductance: Tensor, unlabelled: int) -> Tensor:
    """Join every component without a template point to the template point nearest to it: pairs (links, 2).

    A wire counts as cut when it is nearly lost to rounding beside the others of both its ends. What a link weighs does
    not matter, because everything behind it takes the label of its other end.
    """
    ends = torch.stack([source, target]).clamp_max(unlabelled)
    degree = conductance.new_zeros(unlabelled + 1)
    degree.index_add_(0, ends.flatten(), conductance.repeat(2))
    degree[unlabelled] = torch.inf
    strong = conductance > 1e-10 * degree[ends].amin(0)
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
