"""Auto-PGD: projected gradient ascent with momentum that chooses its step size by itself.

It starts with steps as wide as the ball and, image by image, halves them and goes back to the best point whenever the
objective stops rising. A step costs one forward and one backward pass; the last point is only looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from math import ceil, inf

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from robustviz.attacks.common import (
    Best,
    Look,
    OnStep,
    Step,
    at_least,
    lengths,
    pixel_gradient,
    random_perturbation,
    whole,
)
from robustviz.objectives import cross_entropy, objective_and_logits
from robustviz.tensors import batch_dependent, check_images, evaluating, per_image, project, seeded
from robustviz.types import LINF_8, Images, Labels, Objective, PerImage, Threat

MOMENTUM = 0.25
"""Share of the last move in the next one."""
RISING = 0.75
"""Share of steps between two checkpoints that must raise the objective for the step size to stay."""


def apgd(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    early_exit: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Auto-PGD on any objective: APGD-CE as it is, APGD-DLR with `objective=dlr`.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        threat: Norm and radius of the ball.
        steps: Updates in each restart.
        restarts: Independent runs.
        random_start: Start at a uniformly drawn point of the ball, not at the image.
        targeted: Move towards `labels` instead of away from them.
        objective: What is raised (lowered, if targeted).
        early_exit: Stop working on an image as soon as the model is fooled.
        on_step: Called with every `Step` of the path; costs nothing.
        generator: Source of the random starts and of the objective's own draws; None is a fresh one seeded 0.

    Returns:
        Of all points on the path, one that fools the model, else the one with the largest objective. A
        batch-dependent model keeps whole batches instead.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or a setting are out of range, if `early_exit` meets a batch-dependent model or
            `on_step`, or if the objective has no gradient with respect to the images.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690, algorithm 1.
    """
    at_least(1, steps=steps, restarts=restarts)
    generator = seeded(0) if generator is None else generator

    def look(points: Images, rows: Int[Tensor, "m"]) -> tuple[PerImage, Bool[Tensor, "m"]]:
        values, logits = objective_and_logits(objective, model, points, labels[rows], generator)
        return -values if targeted else values, (logits.argmax(1) == labels[rows]) == targeted

    search = _Search(threat, steps, random_start, early_exit, on_step, -1 if targeted else 1)
    return search.run(model, images, labels, repeat(look, restarts), generator)


def apgd_targeted(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 100,
    targets: int = 9,
    random_start: bool = True,
    early_exit: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Auto-PGD towards each of the most likely wrong classes in turn, with the targeted DLR objective.

    `targets` is the number of classes, each a run of its own; there are never more than K - 1. Labels are the true
    classes, and any wrong decision counts. With fewer than four classes the objective is the difference of the two
    logits. Other arguments, result and errors are those of `apgd`; one more forward pass ranks the classes.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690 (targeted DLR).
    """
    at_least(1, steps=steps, targets=targets)
    check_images(images, labels)
    generator = seeded(0) if generator is None else generator
    with evaluating(model), torch.no_grad():
        logits = objective_and_logits(cross_entropy, model, images, labels, generator)[1]
    ranked = logits.scatter(1, labels[:, None], -inf).argsort(1, descending=True)

    def look(points: Images, rows: Int[Tensor, "m"], rank: int) -> tuple[PerImage, Bool[Tensor, "m"]]:
        towards = partial(_dlr_towards, targets=ranked[rows, rank])
        values, logits = objective_and_logits(towards, model, points, labels[rows], generator)
        return values, logits.argmax(1) != labels[rows]

    looks = (partial(look, rank=rank) for rank in range(min(targets, logits.shape[1] - 1)))
    search = _Search(threat, steps, random_start, early_exit, on_step)
    return search.run(model, images, labels, looks, generator)


def _dlr_towards(
    model: nn.Module, images: Images, labels: Labels, /, *, targets: Labels, generator: Generator | None = None
) -> PerImage:
    """How far the target's logit stands above the label's, in units of the gap between the best and the next ones."""
    logits = model(images)
    rise = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return rise
    top = logits.topk(4, dim=1).values
    return rise / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


def checkpoints(steps: int) -> set[int]:
    """Return the steps at which the step size is judged: at first rarely, then ever more often."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1}


@dataclass
class _Climb:
    """Where the images of one run stand; every field has one entry per image."""

    rows: Int[Tensor, "m"]
    clean: Images
    point: Images
    previous: Images
    gradient: Images
    values: PerImage
    peak: Images
    peak_gradient: Images
    height: PerImage
    last_height: PerImage
    size: PerImage
    rises: PerImage
    halved: Bool[Tensor, "m"]

    def leave(self, gone: Bool[Tensor, "m"]) -> None:
        """Let images go."""
        for name, value in vars(self).items():
            setattr(self, name, value[~gone])

    def judge(self, length: int) -> None:
        """At a checkpoint, `length` steps after the last: halve the steps of images that stopped rising."""
        stuck = (self.rises < RISING * length) | (~self.halved & (self.height == self.last_height))
        self.size = torch.where(stuck, self.size / 2, self.size)
        self.point = torch.where(whole(stuck), self.peak, self.point)
        self.gradient = torch.where(whole(stuck), self.peak_gradient, self.gradient)
        self.values = torch.where(stuck, self.height, self.values)
        self.last_height, self.halved, self.rises = self.height.clone(), stuck, torch.zeros_like(self.rises)


@dataclass(frozen=True)
class _Search:
    """The loop behind both attacks, with its settings."""

    threat: Threat
    steps: int
    random_start: bool
    early_exit: bool
    on_step: OnStep | None
    sign: int = 1

    def run(
        self, model: nn.Module, images: Images, labels: Labels, looks: Iterator[Look], generator: Generator
    ) -> Images:
        """Climb once for each look and keep for each image the best point seen."""
        check_images(images, labels)
        images = images.detach()
        if self.early_exit and batch_dependent(model):
            raise ValueError("early_exit must be False for a model whose answers depend on the whole batch")
        if self.early_exit and self.on_step is not None:
            raise ValueError("early_exit must be False with on_step, because a trace follows every image to the end")
        best = Best(model, images)
        with evaluating(model), torch.enable_grad():
            for restart, look in enumerate(looks):
                rows = best.open() if self.early_exit else torch.arange(len(images), device=images.device)
                if not len(rows):
                    break
                self.climb(best, look, rows, images[rows], restart, generator)
        return best.images

    def climb(
        self, best: Best, look: Look, rows: Int[Tensor, "m"], clean: Images, restart: int, generator: Generator
    ) -> None:
        """Make the steps of one run and offer every point to `best`."""
        start = clean.clone()
        if self.random_start:
            start = project(clean, clean + random_perturbation(clean, self.threat, generator), self.threat)
        zero, still = clean.new_zeros(len(clean)), torch.zeros_like(clean)
        climb = _Climb(
            rows=rows,
            clean=clean,
            point=start,
            previous=start,
            gradient=still,
            values=zero + inf,
            peak=start,
            peak_gradient=still,
            height=zero - inf,
            last_height=zero - inf,
            size=zero + 2 * self.threat.epsilon,
            rises=zero,
            halved=torch.ones_like(zero, dtype=torch.bool),
        )
        self.visit(climb, best, look, restart, 0)
        marks = checkpoints(self.steps)
        for step in range(1, self.steps + 1):
            if not len(climb.rows):
                break
            self.move(climb, MOMENTUM if step > 1 else 0.0)
            self.visit(climb, best, look, restart, step)
            if step in marks:
                climb.judge(step - max([mark for mark in marks if mark < step], default=0))

    def move(self, climb: _Climb, momentum: float) -> None:
        """Step along the gradient, keep a share of the last move, and stay in the ball."""
        linf = self.threat.norm == "linf"
        direction = climb.gradient.sign() if linf else climb.gradient / lengths(climb.gradient, 2)
        ahead = project(climb.clean, climb.point + per_image(climb.size, direction) * direction, self.threat)
        ahead = climb.point.lerp(ahead, 1 - momentum).add_(climb.point - climb.previous, alpha=momentum)
        climb.previous, climb.point = climb.point, project(climb.clean, ahead, self.threat)

    def visit(self, climb: _Climb, best: Best, look: Look, restart: int, step: int) -> None:
        """Evaluate the points, remember each image's best one, and take the gradient unless it is the last step."""
        point = climb.point.detach().requires_grad_(step < self.steps)
        with torch.set_grad_enabled(step < self.steps):
            values, fooled = look(point, climb.rows)
        if step < self.steps:
            climb.gradient = pixel_gradient(values, point)
        values = values.detach()
        if self.on_step is not None:
            self.on_step(Step(restart, step, climb.point, self.sign * values, fooled))
        best.offer(climb.rows, climb.point, fooled, values)
        if best.together:
            values = values.mean().expand_as(values)
        rises, higher = values > climb.values, values > climb.height
        climb.rises, climb.values = climb.rises + rises, values
        climb.height = torch.where(higher, values, climb.height)
        climb.peak = torch.where(whole(higher), climb.point, climb.peak)
        climb.peak_gradient = torch.where(whole(higher), climb.gradient, climb.peak_gradient)
        if self.early_exit and fooled.any():
            climb.leave(fooled)
