"""Attacks that follow the gradient of an objective to the pixels: FGSM, IFGSM, PGD and MI-FGSM.

They are one loop. FGSM is one step of it, IFGSM starts at the image itself, PGD at a random point of the ball, and
MI-FGSM accumulates momentum. A step costs one forward pass and one backward pass to the pixels, and nothing more.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from robustviz.attacks.common import Best, OnStep, Step, at_least, lengths, pixel_gradient, random_perturbation
from robustviz.objectives import cross_entropy, objective_and_logits
from robustviz.tensors import batch_dependent, check_images, evaluating, project, seeded
from robustviz.types import LINF_8, Images, Labels, Objective, PerImage, Threat


def fgsm(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    objective: Objective = cross_entropy,
    targeted: bool = False,
    generator: Generator | None = None,
) -> Images:
    """Fast gradient sign method: one step to the edge of the ball.

    Arguments, result and errors are those of `pgd`. In L2 the step follows the normalized gradient.

    Source: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", arXiv 1412.6572, section 4.
    """
    return pgd(
        model,
        images,
        labels,
        threat=threat,
        steps=1,
        step_size=threat.epsilon,
        random_start=False,
        targeted=targeted,
        objective=objective,
        generator=generator,
    )


def ifgsm(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 10,
    step_size: float | None = None,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    early_exit: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Iterative fast gradient sign method: PGD that starts at the image itself.

    Arguments, result and errors are those of `pgd`.

    Source: Kurakin, Goodfellow & Bengio, "Adversarial examples in the physical world", arXiv 1607.02533, section 2.2.
    """
    return pgd(
        model,
        images,
        labels,
        threat=threat,
        steps=steps,
        step_size=step_size,
        random_start=False,
        targeted=targeted,
        objective=objective,
        early_exit=early_exit,
        on_step=on_step,
        generator=generator,
    )


def pgd(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    early_exit: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Projected gradient descent: repeated steps along the gradient, each followed by projection onto the ball.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        threat: Norm and radius of the ball.
        steps: Updates in each restart.
        step_size: Length of one step in pixel units, measured in the threat's norm; None is 2.5 * epsilon / steps.
        restarts: Independent runs. Of several, an image keeps any that fools the model, else the one with the
            largest objective; a batch-dependent model keeps whole batches instead.
        random_start: Start at a uniformly drawn point of the ball, not at the image.
        targeted: Move towards `labels` instead of away from them.
        objective: What is raised (lowered, if targeted).
        early_exit: Stop working on an image as soon as the model is fooled. Much faster for evaluation; the result
            is then the first image that fools and not the last iterate.
        on_step: Called with every `Step` of the path; costs one more forward pass for each restart.
        generator: Source of the random starts and of the objective's own draws; None is a fresh one seeded 0.

    Returns:
        Attacked images, inside the ball and inside [0, 1]. One restart without early exit gives the last iterate.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or a setting are out of range, if `early_exit` meets a batch-dependent model or
            `on_step`, or if the objective has no gradient with respect to the images.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083,
    section 2.1.
    """
    return _Ascent(
        threat=threat,
        steps=steps,
        step_size=2.5 * threat.epsilon / max(steps, 1) if step_size is None else step_size,
        decay=0.0,
        restarts=restarts,
        random_start=random_start,
        targeted=targeted,
        objective=objective,
        early_exit=early_exit,
        on_step=on_step,
        generator=generator,
    ).run(model, images, labels)


def mifgsm(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    early_exit: bool = False,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Momentum iterative FGSM: steps along a decaying sum of normalized gradients, which transfer better.

    `decay` weighs the past (0 is IFGSM); `step_size` None is epsilon / steps, as published. Other arguments, result
    and errors are those of `pgd`.

    Source: Dong et al., "Boosting adversarial attacks with momentum", arXiv 1710.06081, algorithm 1.
    """
    return _Ascent(
        threat=threat,
        steps=steps,
        step_size=threat.epsilon / max(steps, 1) if step_size is None else step_size,
        decay=decay,
        restarts=1,
        random_start=False,
        targeted=targeted,
        objective=objective,
        early_exit=early_exit,
        on_step=on_step,
        generator=generator,
    ).run(model, images, labels)


@dataclass(frozen=True)
class _Ascent:
    """The loop behind every attack of this file, with its settings."""

    threat: Threat
    steps: int
    step_size: float
    decay: float
    restarts: int
    random_start: bool
    targeted: bool
    objective: Objective
    early_exit: bool
    on_step: OnStep | None
    generator: Generator | None

    def run(self, model: nn.Module, images: Images, labels: Labels) -> Images:
        """Run the restarts; keep for each image whatever fools the model, else the largest objective."""
        self.check(model, images, labels)
        images, best = images.detach(), Best(model, images.detach())
        generator = seeded(0) if self.generator is None else self.generator
        with evaluating(model), torch.enable_grad():
            for restart in range(self.restarts):
                rows = best.open() if self.early_exit else torch.arange(len(images), device=images.device)
                if not len(rows):
                    break
                clean, classes = images[rows], labels[rows]
                start = clean
                if self.random_start:
                    start = project(clean, clean + random_perturbation(clean, self.threat, generator), self.threat)
                point = self.climb(model, clean, classes, start, restart, generator)
                if self.restarts == 1 and self.on_step is None:
                    return point
                with torch.no_grad():
                    values, fooled = self.look(model, point, classes, generator)
                if self.on_step is not None:
                    self.on_step(Step(restart, self.steps, point, values, fooled))
                best.offer(rows, point, fooled, -values if self.targeted else values)
        return best.images

    def climb(
        self, model: nn.Module, images: Images, labels: Labels, start: Images, restart: int, generator: Generator
    ) -> Images:
        """Take the steps of one restart and return where they end; with early exit, fooled images leave on the way."""
        end, rows = start.clone(), torch.arange(len(images), device=images.device)
        point, momentum = start, torch.zeros_like(start)
        for step in range(self.steps):
            point = point.detach().requires_grad_()
            values, fooled = self.look(model, point, labels, generator)
            gradient = pixel_gradient(values, point)
            point = point.detach()
            if self.on_step is not None:
                self.on_step(Step(restart, step, point, values.detach(), fooled))
            if self.early_exit and fooled.any():
                end[rows[fooled]] = point[fooled]
                stay = ~fooled
                rows, images, labels = rows[stay], images[stay], labels[stay]
                point, gradient, momentum = point[stay], gradient[stay], momentum[stay]
                if not len(rows):
                    break
            if self.decay:
                momentum = self.decay * momentum + gradient / lengths(gradient, 1)
                gradient = momentum
            direction = gradient.sign() if self.threat.norm == "linf" else gradient / lengths(gradient, 2)
            point = project(images, point + (-1 if self.targeted else 1) * self.step_size * direction, self.threat)
        end[rows] = point
        return end

    def look(
        self, model: nn.Module, images: Images, labels: Labels, generator: Generator
    ) -> tuple[PerImage, Bool[Tensor, "n"]]:
        """Value of the objective for each image, and whether the attacker has what it wants; one forward pass."""
        values, logits = objective_and_logits(self.objective, model, images, labels, generator)
        return values, (logits.argmax(1) == labels) == self.targeted

    def check(self, model: nn.Module, images: Images, labels: Labels) -> None:
        """Refuse what cannot be run."""
        check_images(images, labels)
        at_least(1, steps=self.steps, restarts=self.restarts)
        at_least(0, step_size=self.step_size, decay=self.decay)
        if self.early_exit and batch_dependent(model):
            raise ValueError("early_exit must be False for a model whose answers depend on the whole batch")
        if self.early_exit and self.on_step is not None:
            raise ValueError("early_exit must be False with on_step, because a trace follows every image to the end")
