"""Attacks that look for the nearest image the model gets wrong: DeepFool and fast minimum norm.

They and Carlini & Wagner know no radius. Whether an image falls within a threat is read off the distance afterwards:
`bounded` does so.
"""

from math import cos, inf, pi
from typing import get_args

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from robustviz.attacks.common import Best, OnStep, Step, at_least, lengths, pixel_gradient, whole
from robustviz.objectives import logit_margin, margin, objective_and_logits
from robustviz.tensors import batch_dependent, check_images, check_labels, evaluating, norms, per_image
from robustviz.types import Attack, Images, Labels, Logits, Norm, PerImage, Threat

ROUNDING = 1e-6
"""By how much the rounding of pixels may lengthen a perturbation."""


def bounded(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat,
    attack: Attack,
    generator: Generator | None = None,
) -> Images:
    """Make an attack that knows no radius obey a threat: what it finds farther away is put back to the image itself.

    A model that answers a whole batch jointly then meets another batch than the attack did, and may be fooled less.

    Args:
        model: Handed to the attack.
        images: Clean images in [0, 1].
        labels: Their classes.
        threat: Norm and radius; the attack should look for the nearest image in the same norm.
        attack: A minimal-norm attack, its settings fixed with `functools.partial`.
        generator: Handed to the attack.

    Returns:
        The attack's images where they lie in the ball, and the clean images elsewhere.
    """
    attacked = attack(model, images, labels, generator=generator)
    inside = norms(attacked - images, threat.norm) <= threat.epsilon + ROUNDING
    return torch.where(whole(inside), attacked, images)


def fmn(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    targeted: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Fast minimum norm: follow the margin inside a ball that shrinks while the model is fooled and grows while not.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        norm: How distance is measured, `"linf"` or `"l2"`.
        steps: Points looked at; each costs one forward and one backward pass.
        step_size: Euclidean length of the first step in pixel units; the last is a hundredth of it.
        gamma: Share by which the radius changes at first; at the end it is 0.001.
        targeted: Move towards `labels` instead of away from them.
        on_step: Called with every `Step`; `objective` is the margin in favor of the attacker.
        generator: Handed to the model's objective; the attack itself is deterministic.

    Returns:
        The nearest adversarial image found, else the image itself. A batch-dependent model keeps whole batches.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or a setting are out of range, or the model cuts the gradient off.

    Source: Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    arXiv 2102.12827, algorithm 1.
    """
    check_images(images, labels)
    images = images.detach()
    _check_norm(norm)
    at_least(1, steps=steps)
    at_least(0, step_size=step_size, gamma=gamma)
    best, everyone = Best(model, images, score=0.0), torch.arange(len(images), device=images.device)
    point, radius, sign = images, images.new_full((len(images),), inf), -1 if targeted else 1
    with evaluating(model), torch.enable_grad():
        for step in range(steps):
            fade = (1 + cos(pi * step / steps)) / 2
            point = point.detach().requires_grad_()
            values, logits = objective_and_logits(margin, model, point, labels, generator)
            slope, point = sign * pixel_gradient(values, point), point.detach()
            # A pixel at the end of the box that is pushed outwards cannot help, and must not count.
            slope = slope.where((point + slope.sign()).sub(0.5).abs() < 1.5, 0)
            values, fooled = sign * values.detach(), (logits.argmax(1) == labels) == targeted
            distance = norms(point - images, norm)
            best.offer(everyone, point, fooled, -distance)
            if on_step is not None:
                on_step(Step(0, step, point, values, fooled))
            rate = 0.001 + (gamma - 0.001) * fade
            boundary = 1.001 * (distance + values.abs() / _dual(slope, norm))  # a little beyond
            outside = torch.where(best.fooled, radius * (1 + rate), boundary)
            radius = torch.where(fooled, torch.minimum(radius * (1 - rate), -best.score), outside)
            length = step_size * (0.01 + 0.99 * fade)
            point = _within(images, point + length * slope / lengths(slope, 2), radius, norm)
    return best.images


def deepfool(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    norm: Norm = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Walk to the nearest boundary of the model as it looks from here, again and again until it is crossed.

    Images that fool the model leave the batch. A step costs one forward pass and one backward pass for each
    candidate class.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes.
        norm: How distance is measured, `"l2"` or `"linf"`.
        steps: Most updates of an image.
        overshoot: The whole way is lengthened by this share, in order to land behind the boundary.
        candidates: How many of the most likely wrong classes are considered.
        on_step: Called with every `Step`; `objective` is the margin, and an image that has left stays where it is.
        generator: Not used; the attack is deterministic.

    Returns:
        Images at the end of the walk. One that never fools the model ends where the last step took it.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or a setting are out of range, or the model cuts the gradient off.

    Source: Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool", arXiv 1511.04599, algorithm 2 and section 3.2.
    """
    check_images(images, labels)
    images = images.detach()
    _check_norm(norm)
    at_least(1, steps=steps, candidates=candidates)
    at_least(0, overshoot=overshoot)
    point, way, together = images.clone(), torch.zeros_like(images), batch_dependent(model)
    right, lead = torch.ones_like(labels, dtype=torch.bool), images.new_zeros(len(images))
    rivals = labels[:, None]
    with evaluating(model), torch.enable_grad():
        for step in range(steps + (on_step is not None)):
            rows = (right | together).nonzero().squeeze(1)
            here = point[rows].requires_grad_(step < steps)
            logits = model(here).to(images.dtype)
            if step == 0:
                check_labels(labels, len(images), logits.shape[1])
                ranked = logits.detach().scatter(1, labels[:, None], -inf).argsort(1, descending=True)
                rivals = ranked[:, : min(candidates, logits.shape[1] - 1)]
            lead[rows], right[rows] = logit_margin(logits.detach(), labels[rows]), logits.argmax(1) == labels[rows]
            if on_step is not None:
                on_step(Step(0, step, point.clone(), lead.clone(), ~right))
            if step == steps or not right.any():
                break
            move = _to_boundary(logits, here, labels[rows], rivals[rows], norm)
            still = right[rows]
            rows = rows[still]
            way[rows] += move[still]
            point[rows] = (images[rows] + (1 + overshoot) * way[rows]).clamp(0, 1)
    return point


def _to_boundary(logits: Logits, images: Images, labels: Labels, rivals: Int[Tensor, "m k"], norm: Norm) -> Images:
    """Return the shortest step after which a linear model with these logits and gradients would hesitate."""
    nearest, step = logits.new_full((len(images),), inf), torch.zeros_like(images)
    for rival in rivals.T:
        lead = (logits.gather(1, labels[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)
        if not lead.requires_grad:
            raise ValueError("logits must have a gradient with respect to the images, but the model cuts it off")
        slope = -torch.autograd.grad(lead.sum(), images, retain_graph=True)[0].nan_to_num(0)
        distance = (lead.detach() + 1e-6) / _dual(slope, norm)
        direction = slope.sign() if norm == "linf" else slope / lengths(slope, 2)
        step = torch.where(whole(distance < nearest), per_image(distance, slope) * direction, step)
        nearest = torch.minimum(nearest, distance)
    return step


def _dual(slope: Images, norm: Norm) -> PerImage:
    """How fast a value with this gradient rises per unit of distance, at best; never 0."""
    return slope.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1).clamp_min(torch.finfo(slope.dtype).tiny)


def _within(images: Images, points: Images, radius: PerImage, norm: Norm) -> Images:
    """Project points onto the ball of each image's own radius, then clip them to [0, 1]."""
    change, radius = points - images, per_image(radius, images)
    if norm == "linf":
        change = torch.maximum(torch.minimum(change, radius), -radius)
    else:
        change = change * (radius / lengths(change, 2)).clamp_max(1)
    return (images + change).clamp(0, 1)


def _check_norm(norm: str) -> None:
    """Refuse a norm that no attack knows."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
