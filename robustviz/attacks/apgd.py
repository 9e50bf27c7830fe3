"""Auto-PGD: projected gradient ascent with momentum that chooses the step size of each image by itself.

    z_k+1   = P(x_k + eta_k d(grad J(x_k, y)))                         eta_0 = 2 epsilon
    x_k+1   = P(x_k + alpha (z_k+1 - x_k) + (1 - alpha) (x_k - x_k-1))   alpha = 0.75, at the first step 1

d and P are those of `gradient`. At each of the checkpoints w_j an image whose objective J rose in fewer than
rho (w_j - w_j-1) of the steps since the last one, or whose step size and largest objective both stayed the same,
halves eta and goes back to its best point. In the code 1 - alpha is `MOMENTUM`, rho `RISING`, eta `size`, and the w_j
are `checkpoint_steps`. A step costs one forward and one backward pass; the last point is only looked at.
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
    Seen,
    at_least,
    attacking,
    check_early_exit,
    looking,
    pixel_gradient,
    random_perturbation,
    report,
    steepest,
    whole,
)
from robustviz.checks import check_images, check_labels, logits_of
from robustviz.objectives import cross_entropy
from robustviz.records import revision
from robustviz.tensors import per_image, project, seeded, wide
from robustviz.types import LINF_8, Images, Labels, Objective, PerImage, Threat

MOMENTUM = 0.25
"""1 - alpha: share of the last move in the next one."""
RISING = 0.75
"""rho: share of steps between two checkpoints that must raise the objective for the step size to stay."""


@revision(2)
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
        Of all points on the path, one that fools the model, else the one with the largest objective. In
        a batch-dependent model the batch moves as a whole, and each image chooses by what the model answers to it
        alone.

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range, if `early_exit` is used with a
            batch-dependent model or `on_step`, or if the objective has no gradient with respect to the images.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690, algorithm 1.
    """
    at_least(1, steps=steps, restarts=restarts)
    check_images(images, labels)
    check_early_exit(early_exit, model, images, on_step)
    generator = seeded(0) if generator is None else generator
    with attacking(model, images, labels) as (images, labels):
        look = looking(model, labels, objective, targeted, generator)
        search = _Search(threat, steps, random_start, early_exit, on_step, targeted)
        return search.run(images, repeat(look, restarts), generator)


@revision(2)
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
    check_early_exit(early_exit, model, images, on_step)
    generator = seeded(0) if generator is None else generator
    with attacking(model, images, labels) as (images, labels):
        with torch.no_grad():
            logits = logits_of(model, images)
        check_labels(labels, len(images), logits.shape[1])
        ranked = logits.scatter(1, labels[:, None], -inf).argsort(1, descending=True)

        def look(points: Images, rows: Int[Tensor, "m"], rank: int) -> Seen:
            towards = partial(_dlr_towards, targets=ranked[rows, rank])
            return looking(model, labels, towards, False, generator)(points, rows)

        looks = (partial(look, rank=rank) for rank in range(min(targets, logits.shape[1] - 1)))
        return _Search(threat, steps, random_start, early_exit, on_step).run(images, looks, generator)


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


def checkpoint_steps(steps: int) -> set[int]:
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

    @classmethod
    def at(cls, start: Images, clean: Images, rows: Int[Tensor, "m"], epsilon: float) -> "_Climb":
        """Begin at a point that nothing is known of."""
        zero, still = wide(clean.new_zeros(len(clean))), torch.zeros_like(clean)
        return cls(
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
            size=zero + 2 * epsilon,
            rises=zero,
            halved=torch.ones_like(zero, dtype=torch.bool),
        )

    def move(self, threat: Threat, momentum: float) -> None:
        """Step along the gradient, keep a share of the last move, and stay in the ball."""
        direction = steepest(self.gradient, threat.norm)
        ahead = project(self.clean, self.point + per_image(self.size, direction) * direction, threat)
        ahead, point, previous = wide(ahead), wide(self.point), wide(self.previous)
        ahead = point.lerp(ahead, 1 - momentum).add_(point - previous, alpha=momentum)
        self.previous, self.point = self.point, project(self.clean, ahead, threat)

    def note(self, values: PerImage) -> None:
        """Remember how high the point is, whether the objective rose, and the best point so far."""
        rises, higher = values > self.values, values > self.height
        self.rises, self.values = self.rises + rises, values
        self.height = torch.where(higher, values, self.height)
        self.peak = torch.where(whole(higher), self.point, self.peak)
        self.peak_gradient = torch.where(whole(higher), self.gradient, self.peak_gradient)

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
    """The settings of a search, and its loop: one climb for each look."""

    threat: Threat
    steps: int
    random_start: bool
    early_exit: bool
    on_step: OnStep | None
    targeted: bool = False

    def run(self, images: Images, looks: Iterator[Look], generator: Generator) -> Images:
        """Climb once for each look and keep for each image the best point seen."""
        best = Best(images)
        for restart, look in enumerate(looks):
            rows = best.open() if self.early_exit else best.everyone
            if not len(rows):
                break
            clean = start = images[rows]
            if self.random_start:
                start = project(clean, clean + random_perturbation(clean, self.threat, generator), self.threat)
            self.climb(best, look, _Climb.at(start, clean, rows, self.threat.epsilon), restart)
        return best.images

    def climb(self, best: Best, look: Look, climb: _Climb, restart: int) -> None:
        """Make the steps of one run and offer every point to `best`."""
        self.visit(climb, best, look, restart, 0)
        marks = checkpoint_steps(self.steps)
        for step in range(1, self.steps + 1):
            if not len(climb.rows):
                break
            climb.move(self.threat, MOMENTUM if step > 1 else 0.0)
            self.visit(climb, best, look, restart, step)
            if step in marks:
                climb.judge(step - max([mark for mark in marks if mark < step], default=0))

    def visit(self, climb: _Climb, best: Best, look: Look, restart: int, step: int) -> None:
        """Evaluate the points, remember each image's best one, and take the gradient unless it is the last step."""
        point = climb.point.detach().requires_grad_(step < self.steps)
        with torch.set_grad_enabled(step < self.steps):
            seen = look(point, climb.rows)
        if step < self.steps:
            climb.gradient = pixel_gradient(seen.values, point)
        report(self.on_step, restart, step, climb.point, seen, self.targeted)
        best.offer(climb.rows, climb.point, seen.fooled, seen.values)
        climb.note(seen.values.detach())
        if self.early_exit and seen.fooled.any():
            climb.leave(seen.fooled)
