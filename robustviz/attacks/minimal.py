"""Attacks that look for the nearest image the model gets wrong: DeepFool and fast minimum norm.

They and Carlini & Wagner know no radius. Whether an image falls within a threat is read off the distance afterwards:
`bounded` does so.
"""

from math import cos, inf, pi
from typing import get_args

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from robustviz.attacks.common import (
    Best,
    OnStep,
    Step,
    at_least,
    attacking,
    looking,
    one_at_a_time,
    pixel_gradient,
    report,
    steepest,
    steepness,
    straight_through,
    sure,
    whole,
)
from robustviz.checks import check_images, check_labels, logits_of
from robustviz.objectives import logit_margin, margin
from robustviz.records import revision
from robustviz.tensors import batch_dependent, distances, eagerly, norms, per_image, wide
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

    A model that answers a whole batch jointly is then given another batch than by the attack, and may be fooled less.

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
    inside = distances(images, attacked, threat.norm) <= threat.epsilon + ROUNDING
    return torch.where(whole(inside), attacked, images)


@revision(2)
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
        The nearest adversarial image found, else the image itself. In a batch-dependent model the batch moves as a
        whole, and each image chooses by what the model answers to it alone.

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range, or the model cuts the gradient off.

    Source: Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    arXiv 2102.12827, algorithm 1.
    """
    check_images(images, labels)
    _check_norm(norm)
    at_least(1, steps=steps)
    at_least(0, step_size=step_size, gamma=gamma)
    with attacking(model, images, labels) as (images, labels):
        best, look = Best(images, score=0.0), looking(model, labels, margin, targeted, generator)
        x, radius = images, torch.full_like(best.score, inf)
        for step in range(steps):
            fade = (1 + cos(pi * step / steps)) / 2
            here = x.clone().requires_grad_()
            seen = look(here, best.everyone)
            slope = wide(pixel_gradient(seen.values, here))
            # A pixel at the end of the box that is pushed outwards cannot help, and must not count.
            slope = slope.where((x + slope.sign()).sub(0.5).abs() < 1.5, 0)
            distance, missing = distances(images, x, norm), sure(seen.logits, here) - seen.values.detach()
            fooled = seen.fooled & (missing < 0)
            best.offer(best.everyone, x, fooled, -distance)
            report(on_step, 0, step, x, seen)
            rate = 0.001 + (gamma - 0.001) * fade
            boundary = 1.001 * (distance + missing.abs() / steepness(slope, norm))  # a little beyond
            outside = torch.where(best.fooled, radius * (1 + rate), boundary)
            radius = torch.where(fooled, torch.minimum(radius * (1 - rate), -best.score), outside)
            length = step_size * (0.01 + 0.99 * fade)
            x = _within(images, x + length * steepest(slope, "l2"), radius, norm)
        return best.images


@revision(2)
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

    An image has crossed when its lead is more than rounding can take back, in another batch too; then it leaves. A step
    costs one forward pass and one backward pass for each candidate class.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes.
        norm: How distance is measured, `"l2"` or `"linf"`.
        steps: Most updates of an image.
        overshoot: The whole way is lengthened by this share, so that it ends behind the boundary.
        candidates: How many of the most likely wrong classes are considered.
        on_step: Called with every `Step`; `objective` is the margin, and an image that has left stays where it is.
        generator: Not used; the attack is deterministic.

    Returns:
        Images at the end of the walk. One that never fools the model ends where the last step took it. In a
        batch-dependent model an image stops when the model is fooled by it alone.

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range, or the model cuts the gradient off.

    Source: Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool", arXiv 1511.04599, algorithm 2 and section 3.2.
    """
    check_images(images, labels)
    _check_norm(norm)
    at_least(1, steps=steps, candidates=candidates)
    at_least(0, overshoot=overshoot)
    joint = batch_dependent(model, images)
    with attacking(model, images, labels) as (images, labels), eagerly():
        judge = one_at_a_time(model)
        x, way, lead = images.clone(), torch.zeros_like(wide(images)), wide(images.new_zeros(len(images)))
        right, rivals = torch.ones_like(labels, dtype=torch.bool), labels[:, None]
        for step in range(steps + (on_step is not None)):
            rows = (right | joint).nonzero().squeeze(1)
            here = x[rows].requires_grad_(step < steps)
            answers = logits_of(model, here)
            if judge is not model:
                answers = straight_through(logits_of(judge, here.detach()), answers)
            known, logits = sure(answers.detach(), here), answers.to(way.dtype)
            if step == 0:
                check_labels(labels, len(images), logits.shape[1])
                ranked = logits.detach().scatter(1, labels[:, None], -inf).argsort(1, descending=True)
                rivals = ranked[:, : min(candidates, logits.shape[1] - 1)]
            lead[rows] = logit_margin(logits.detach(), labels[rows])
            right[rows] = lead[rows] <= known
            if on_step is not None:
                on_step(Step(0, step, x.clone(), lead.clone(), lead > 0))
            if step == steps or not right.any():
                break
            low, high = logits.detach().aminmax(dim=1)
            beyond = torch.maximum(1.5 * known, 1e-6 * (high - low))  # adding a constant to all logits changes nothing
            move = _to_boundary(logits, here, labels[rows], rivals[rows], beyond, norm)
            still = right[rows]
            rows = rows[still]
            way[rows] += move[still]
            x[rows] = (wide(images[rows]) + (1 + overshoot) * way[rows]).clamp(0, 1).to(images.dtype)
        return x


def _to_boundary(
    logits: Logits, images: Images, labels: Labels, rivals: Int[Tensor, "m k"], beyond: PerImage, norm: Norm
) -> Images:
    """Return the shortest step after which a linear model with these logits and gradients would have changed sides.

    Its margin is then `beyond`.
    """
    nearest, step = torch.full_like(beyond, inf), torch.zeros_like(wide(images))
    for rival in rivals.T:
        lead = (logits.gather(1, labels[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)
        if not lead.requires_grad:
            raise ValueError("logits must have a gradient with respect to the images, but the model cuts it off")
        slope = -torch.autograd.grad(lead.sum(), images, retain_graph=True)[0].nan_to_num(0)
        distance = (lead.detach() + beyond) / steepness(slope, norm)
        step = torch.where(whole(distance < nearest), per_image(distance, slope) * steepest(slope, norm), step)
        nearest = torch.minimum(nearest, distance)
    return step


def _within(images: Images, points: Images, radius: PerImage, norm: Norm) -> Images:
    """Project points onto the ball of each image's own radius, then clip them to [0, 1]."""
    change = wide(points) - wide(images)
    if norm == "linf":
        change = torch.maximum(torch.minimum(change, per_image(radius, change)), -per_image(radius, change))
    else:
        length = norms(change, "l2").clamp_min(torch.finfo(change.dtype).tiny)
        change = change * per_image((radius / length).clamp_max(1), change)
    return (wide(images) + change).clamp(0, 1).to(images.dtype)


def _check_norm(norm: str) -> None:
    """Refuse a norm that no attack knows."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
