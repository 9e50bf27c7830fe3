"""Attacks that need no gradient of the model: Square, random noise, and images made on another model."""

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustviz.attacks.common import (
    Best,
    OnStep,
    Step,
    at_least,
    attacking,
    looking,
    normalized,
    one_at_a_time,
    random_perturbation,
)
from robustviz.checks import check_images
from robustviz.objectives import margin
from robustviz.records import revision
from robustviz.tensors import batch_dependent, norms, per_image, project, rounded_inwards, seeded, wide
from robustviz.types import LINF_8, Attack, Images, Labels, Objective, Threat

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 steps, those at which Square halves the area it changes."""

Propose = Callable[[int, Images, Images], Images]
"""`(step, clean, current)`: the points to try next, one for each image that is still attacked."""


@revision(2)
def square(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 1000,
    share: float = 0.8,
    targeted: bool = False,
    objective: Objective = margin,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Square attack: change a random square window at a time and keep what raises the objective.

    It sees only the outputs of the model, so that gradient masking cannot mislead it.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        threat: Norm and radius of the ball.
        steps: Proposals; each costs one forward pass on the images that do not fool the model yet.
        share: Share of the picture that the first windows cover, in (0, 1]; halved nine times on the way.
        targeted: Move towards `labels` instead of away from them.
        objective: What is raised (lowered, if targeted).
        on_step: Called with the best of every image after each step; step 0 are the clean images.
        generator: Source of the windows; None is a fresh one seeded 0.

    Returns:
        The first image found that fools the model, else the one with the largest objective. A batch-dependent model
        is attacked as it answers one image at a time.

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range.

    Source: Andriushchenko et al., "Square Attack", arXiv 1912.00049, algorithms 1-3.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    generator = seeded(0) if generator is None else generator

    def propose(step: int, clean: Images, current: Images) -> Images:
        if step == 1:
            start = _stripes(clean, generator) if threat.norm == "linf" else _tiles(clean, generator)
            return project(clean, clean + threat.epsilon * start, threat)
        halvings = sum(step * 10_000 / max(steps, 1) > mark for mark in HALVINGS)
        height, width = clean.shape[2:]
        side = min(max(round(sqrt(share / 2**halvings * height * width)), 1), height, width)
        if threat.norm == "linf":
            return _paint(clean, current, side, threat, generator)
        return _shift(clean, current, min(max(side, 3), height, width), threat, generator)

    return _query(model, images, labels, propose, steps, targeted, objective, on_step, generator)


@revision(2)
def random_noise(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 100,
    targeted: bool = False,
    objective: Objective = margin,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Try `steps` points drawn uniformly from the ball: the weakest attack, and the floor for every other.

    Other arguments, result and errors are those of `square`.
    """
    generator = seeded(0) if generator is None else generator

    def propose(step: int, clean: Images, current: Images) -> Images:
        return project(clean, clean + random_perturbation(clean, threat, generator), threat)

    return _query(model, images, labels, propose, steps, targeted, objective, on_step, generator)


def transfer(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    source: nn.Module,
    attack: Attack,
    generator: Generator | None = None,
) -> Images:
    """Attack another model and return its images: `source` stands for a model that cannot be looked into.

    Args:
        model: The model that the images are meant for; it is not touched.
        images: Clean images in [0, 1].
        labels: True classes.
        source: The model that is attacked.
        attack: How it is attacked.
        generator: Handed to the attack.

    Returns:
        What the attack returns.

    Source: Papernot, McDaniel & Goodfellow, "Transferability in machine learning", arXiv 1605.07277.
    """
    return attack(source, images, labels, generator=generator)


def _query(
    model: nn.Module,
    images: Images,
    labels: Labels,
    propose: Propose,
    steps: int,
    targeted: bool,
    objective: Objective,
    on_step: OnStep | None,
    generator: Generator,
) -> Images:
    """Try the image itself, then `steps` proposals, on the images that do not fool yet; keep the best."""
    check_images(images, labels)
    at_least(1, steps=steps)
    model, sign = one_at_a_time(model), -1 if targeted else 1
    joint = batch_dependent(model, images)
    with attacking(model, images, labels, gradients=False) as (images, labels):
        best, look = Best(images), looking(model, labels, objective, targeted, generator)
        for step in range(steps + 1):
            rows = best.everyone if joint else best.open()
            if not len(rows):
                break
            points = propose(step, images[rows], best.images[rows]) if step else images[rows]
            seen = look(points, rows)
            best.offer(rows, points, seen.fooled, seen.values)
            if on_step is not None:
                on_step(Step(0, step, best.images.clone(), sign * best.score, best.fooled.clone()))
        return best.images


def _windows(like: Images, side: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a square window for each image; return the index (n, c, side, side) that picks its pixels."""
    count, channels, height, width = like.shape
    device, span = like.device, torch.arange(side, device=like.device)
    draw = torch.rand(2, count, generator=generator, device=generator.device).to(device)
    top, left = (draw[0] * (height - side + 1)).long(), (draw[1] * (width - side + 1)).long()
    return (
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        (top[:, None] + span)[:, None, :, None],
        (left[:, None] + span)[:, None, None, :],
    )


def _signs(like: Images, generator: Generator, *shape: int) -> Tensor:
    """Draw -1 and 1 with equal chance."""
    draw = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * draw - 1).to(like.device, like.dtype)


def _stripes(images: Images, generator: Generator) -> Images:
    """Vertical stripes of random sign in every channel: the first perturbation in L-inf."""
    count, channels, _, width = images.shape
    return _signs(images, generator, count, channels, 1, width).expand_as(images)


def _paint(clean: Images, current: Images, side: int, threat: Threat, generator: Generator) -> Images:
    """Set a window to the upper or lower end of the ball, channel by channel; never leave it as it was."""
    window, count, channels = _windows(clean, side, generator), len(clean), clean.shape[1]
    ends = threat.epsilon * wide(_signs(clean, generator, count, channels, 1, 1))
    before = clean[window]
    painted = rounded_inwards(before, (wide(before) + ends).clamp(0, 1))
    same = (painted == current[window]).flatten(1).all(1)
    ends[same] = -ends[same]
    points = current.clone()
    points[window] = rounded_inwards(before, (wide(before) + ends).clamp(0, 1))
    return points


def _tiles(images: Images, generator: Generator) -> Images:
    """The first perturbation in L2: about five by five bumps of random sign, together of length 1."""
    count, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs = _signs(images, generator, count, channels, rows, columns)
    tiles = signs.repeat_interleave(side, 2).repeat_interleave(side, 3) * _bumps(images, side).repeat(rows, columns)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    tiles = F.pad(tiles, (left, width - columns * side - left, top, height - rows * side - top))
    return normalized(tiles, 2)


def _bumps(like: Images, side: int) -> Float[Tensor, "side side"]:
    """Return a square of length 1 made of two bumps, one up and one down, each highest in its middle."""

    def bump(height: int, width: int) -> Tensor:
        middle = max(height // 2, width // 2)
        rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
        ring = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        return (1 / (middle + 1 - torch.arange(middle + 1.0)) ** 2).cumsum(0)[middle - ring]

    half = side // 2
    both = torch.cat([bump(half, side), -bump(side - half, side)]) if half else bump(side, side)
    return (both / both.norm()).to(like.device, like.dtype)


def _shift(clean: Images, current: Images, side: int, threat: Threat, generator: Generator) -> Images:
    """Clear one window and spend what its perturbation cost, and what is unused, on bumps in another window."""
    change, count, channels = wide(current) - wide(clean), len(clean), clean.shape[1]
    window, cleared = _windows(clean, side, generator), _windows(clean, side, generator)
    bumps = _bumps(clean, side)
    upright = _signs(clean, generator, count, 1, 1, 1) > 0
    fresh = _signs(clean, generator, count, channels, 1, 1) * torch.where(upright, bumps, bumps.T)
    fresh = fresh + _unit(change[window])
    unused = (threat.epsilon**2 - norms(change, "l2").square()).clamp_min(0) / channels
    before = change.square().sum((2, 3), keepdim=True)
    change[cleared] = 0
    change[window] = 0
    budget = before - change.square().sum((2, 3), keepdim=True) + per_image(unused, change)
    change[window] = _unit(fresh) * budget.clamp_min(0).sqrt()
    return project(clean, clean + change, threat)


def _unit(windows: Float[Tensor, "n c side side"]) -> Float[Tensor, "n c side side"]:
    """Scale every channel of every window to length 1; an empty one stays empty."""
    return windows / windows.square().sum((2, 3), keepdim=True).sqrt().clamp_min(torch.finfo(windows.dtype).tiny)
