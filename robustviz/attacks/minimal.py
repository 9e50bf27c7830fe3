"""Attacks that look for the nearest image the model gets wrong: Carlini & Wagner, DeepFool, fast minimum norm.

They know no radius. Whether an image falls within a threat is read off the distance afterwards.
"""

from math import atanh, cos, inf, pi
from typing import get_args

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from robustviz.attacks.gradient import OnStep, Step, _gradient, _length
from robustviz.attacks.search import Best, Look, at_least, whole
from robustviz.objectives import logit_margin, margin, objective_and_logits
from robustviz.tensors import batch_dependent, check_images, check_labels, evaluating, norms, per_image
from robustviz.types import Images, Labels, Logits, Norm, PerImage

SHRINK = 0.8
"""Pixels are squeezed to [-SHRINK, SHRINK] before atanh, so that black and white have a finite place and can move."""


def carlini_wagner(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    steps: int = 100,
    confidence: float = 0.0,
    search_steps: int = 9,
    initial_const: float = 1e-2,
    lr: float = 1e-2,
    targeted: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Find the nearest adversarial image in L2 by minimizing distance² + const * (confidence - margin)+.

    Adam moves the pixels in tanh space, where the box [0, 1] needs no clipping. Each image has its own constant, found
    by `search_steps` rounds of bisection, and stops by itself when a tenth of a round brings no progress.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        steps: Points looked at in each round; each costs one forward and one backward pass.
        confidence: Lead, in logits, that the adversarial class must have.
        search_steps: Rounds of the search for the constant.
        initial_const: Constant of the first round, > 0.
        lr: Learning rate of Adam, in tanh space.
        targeted: Move towards `labels` instead of away from them.
        on_step: Called with every `Step`: `restart` is the round, `objective` the margin in favor of the attacker,
            and an image that has stopped stays where it is.
        generator: Not used; the attack is deterministic.

    Returns:
        The nearest adversarial image found, else the image itself. A batch-dependent model keeps whole batches
        instead, and no image stops before the others.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or a setting are out of range, or the model cuts the gradient off.

    Source: Carlini & Wagner, "Towards evaluating the robustness of neural networks", arXiv 1608.04644, sections V-VI.
    """
    check_images(images, labels)
    images = images.detach()
    at_least(1, steps=steps, search_steps=search_steps)
    at_least(0, confidence=confidence)
    at_least(1e-12, initial_const=initial_const, lr=lr)
    best = Best(model, images, score=0.0)
    low, const, high = (images.new_full((len(images),), value) for value in (0.0, initial_const, inf))
    with evaluating(model), torch.enable_grad():
        for search in range(search_steps):

            def look(points: Images, rows: Int[Tensor, "m"]) -> tuple[PerImage, Bool[Tensor, "m"]]:
                values, logits = objective_and_logits(margin, model, points, labels[rows], generator)
                lead = -values if targeted else values
                return lead, ((logits.argmax(1) == labels[rows]) == targeted) & (lead >= confidence)

            found = _descend(look, images, const, best, search, steps, confidence, lr, on_step)
            low, high = torch.where(found, low, const), torch.where(found, const, high)
            const = torch.where(high.isinf(), 10 * const, (low + high) / 2)
    return best.images


def _descend(
    look: Look,
    images: Images,
    const: PerImage,
    best: Best,
    search: int,
    steps: int,
    confidence: float,
    lr: float,
    on_step: OnStep | None,
) -> Bool[Tensor, "n"]:
    """Make one round of Carlini & Wagner with a fixed constant for each image; return which images fooled."""
    rows, clean, here, point = torch.arange(len(images), device=images.device), images, images, images.clone()
    curve, edge = SHRINK * (2 * images - 1), atanh(SHRINK)
    place, first, second = curve.atanh(), torch.zeros_like(images), torch.zeros_like(images)
    found, wins = torch.zeros_like(best.fooled), torch.zeros_like(best.fooled)
    lead, lowest = torch.zeros_like(const), torch.full_like(const, inf)
    for step in range(steps):
        here = here.detach().requires_grad_()
        values, fooled = look(here, rows)
        missing = const[rows] * (confidence - values).clamp_min(0)
        slope, here = _gradient(missing, here), here.detach()
        change = here - clean
        distance = norms(change, "l2")
        best.offer(rows, here, fooled, -distance)
        found[rows] |= fooled
        if on_step is not None:
            point[rows], lead[rows], wins[rows] = here, values.detach(), fooled
            on_step(Step(search, step, point.clone(), lead.clone(), wins.clone()))
        done = fooled & (distance == 0)  # wrong as it is: nothing nearer can be found
        if (step + 1) % max(steps // 10, 1) == 0:
            loss = missing.detach() + distance.square()
            done |= loss > 0.9999 * lowest[rows]
            lowest[rows] = loss
        if done.any() and not best.together:
            state = (rows, clean, curve, place, first, second, slope, change)
            rows, clean, curve, place, first, second, slope, change = (values[~done] for values in state)
            if not len(rows):
                break
        # Adam, with the slope carried from pixels to their places on the curve.
        slope = slope.add_(change, alpha=2).mul_((1 - curve.square()) / (2 * SHRINK))
        first = first.lerp_(slope, 0.1)
        second = second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        scale = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        place = place.addcdiv_(first, scale, value=-lr / (1 - 0.9 ** (step + 1))).clamp_(-edge, edge)
        curve = place.tanh()
        here = (curve / (2 * SHRINK)).add_(0.5).clamp_(0, 1)
    return found


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
            slope, point = sign * _gradient(values, point), point.detach()
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
            point = _within(images, point + length * slope / _length(slope, 2), radius, norm)
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
            logits = model(here)
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
        direction = slope.sign() if norm == "linf" else slope / _length(slope, 2)
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
        change = change * (radius / _length(change, 2)).clamp_max(1)
    return (images + change).clamp(0, 1)


def _check_norm(norm: str) -> None:
    """Refuse a norm that no attack knows."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
