"""Attacks that follow the gradient of an objective to the pixels: FGSM, IFGSM, PGD and MI-FGSM are one update rule.

    x_0     = x                            FGSM, IFGSM, MI-FGSM
              x + u                        PGD, u uniform in the ball of radius epsilon
    g_k+1   = grad J(x_k, y)               or, with momentum mu:  mu g_k + grad J(x_k, y) / ||grad J(x_k, y)||_1
    x_k+1   = P(x_k + alpha d(g_k+1))      d(g) = sign(g) in L-inf,  g / ||g||_2 in L2

P projects onto the ball around x and clips to [0, 1]; a targeted attack lowers J(x, t) instead. In the code J is
`objective`, alpha `step_size`, mu `decay`, d `steepest`, P `project` and u `random_perturbation`. FGSM is one step of
length epsilon. A step costs one forward pass and one backward pass to the pixels, and nothing more.
"""

from typing import Literal

import torch
from torch import Generator, nn

from robustviz.attacks.common import (
    Best,
    OnStep,
    at_least,
    attacking,
    check_early_exit,
    looking,
    normalized,
    pixel_gradient,
    random_perturbation,
    report,
    steepest,
)
from robustviz.checks import check_images
from robustviz.objectives import cross_entropy
from robustviz.tensors import project, seeded, stochastic, wide
from robustviz.types import LINF_8, Images, Labels, Objective, Threat


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
    keep: Literal["last", "best"] = "last",
    decay: float = 0.0,
    on_step: OnStep | None = None,
    generator: Generator | None = None,
) -> Images:
    """Projected gradient descent: repeated steps along the gradient, each followed by projection onto the ball.

    A batch-dependent model is attacked as a whole batch, all images together. Where points of different batches
    compete (several restarts, `keep="best"`), each image chooses by what the model answers to it alone.

    Args:
        model: Maps images in [0, 1] to logits; it is attacked in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1].
        labels: True classes; with `targeted`, the classes that the attacker wants to see.
        threat: Norm and radius of the ball.
        steps: Updates in each restart.
        step_size: Length of one step in pixel units, measured in the threat's norm; None is 2.5 * epsilon / steps.
        restarts: Independent runs. Of several, an image keeps any that fools the model, else the one with the
            largest objective.
        random_start: Start at a uniformly drawn point of the ball, not at the image.
        targeted: Move towards `labels` instead of away from them.
        objective: What is raised (lowered, if targeted).
        early_exit: Stop working on an image as soon as the model is fooled. Much faster for evaluation; the result
            is then the first image that fools and not the last iterate.
        keep: `"last"`, the last iterate, as published, or `"best"`, the iterate with the largest objective (the
            smallest, if targeted), of all restarts; costs one more forward pass for each restart.
        decay: Momentum mu, at least 0; 0 is none, as published.
        on_step: Called with every `Step` of the path; costs one more forward pass for each restart.
        generator: Source of the random starts and of the objective's own draws; None is a fresh one seeded 0.

    Returns:
        Attacked images, inside the ball and inside [0, 1].

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range; if `early_exit` is used with a
            batch-dependent model, `on_step` or `keep="best"`; if `keep="best"` is used with a model that draws at
            random; or if the objective has no gradient with respect to the images.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083,
    section 2.1.
    """
    check_images(images, labels)
    step_size = 2.5 * threat.epsilon / max(steps, 1) if step_size is None else step_size
    at_least(1, steps=steps, restarts=restarts)
    at_least(0, step_size=step_size, decay=decay)
    check_early_exit(early_exit, model, images, on_step)
    _check_keep(keep, model, early_exit)
    choosing = restarts > 1 or keep == "best"
    generator = seeded(0) if generator is None else generator
    with attacking(model, images, labels) as (images, labels):
        best, look = Best(images), looking(model, labels, objective, targeted, generator, choosing=choosing)
        for restart in range(restarts):
            started = rows = best.open() if early_exit else best.everyone
            if not len(rows):
                break
            x, momentum = images.clone(), torch.zeros_like(wide(images))
            if random_start:
                x[rows] = project(x[rows], x[rows] + random_perturbation(x[rows], threat, generator), threat)
            for step in range(steps):
                here = x[rows].requires_grad_()
                seen = look(here, rows)
                gradient, here = pixel_gradient(seen.values, here), here.detach()
                report(on_step, restart, step, here, seen, targeted)
                if keep == "best":
                    best.offer(rows, here, best.fooled, seen.values)
                stay = ~seen.fooled if early_exit else slice(None)
                rows, here, gradient = rows[stay], here[stay], gradient[stay]
                if not len(rows):
                    break
                if decay:
                    momentum[rows] = gradient = decay * momentum[rows] + normalized(gradient, 1)
                x[rows] = project(images[rows], here + step_size * steepest(gradient, threat.norm), threat)
            if not choosing and on_step is None:
                return x
            with torch.no_grad():
                seen = look(x[started], started)
            report(on_step, restart, steps, x, seen, targeted)
            best.offer(started, x[started], seen.fooled if keep == "last" else best.fooled, seen.values)
        return best.images


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
    """Fast gradient sign method: one step to the edge of the ball; in L2 along the normalized gradient.

    Arguments, result and errors are those of `pgd`.

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
    keep: Literal["last", "best"] = "last",
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
        keep=keep,
        on_step=on_step,
        generator=generator,
    )


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
    return pgd(
        model,
        images,
        labels,
        threat=threat,
        steps=steps,
        step_size=threat.epsilon / max(steps, 1) if step_size is None else step_size,
        random_start=False,
        targeted=targeted,
        objective=objective,
        early_exit=early_exit,
        decay=decay,
        on_step=on_step,
        generator=generator,
    )


def _check_keep(keep: str, model: nn.Module, early_exit: bool) -> None:
    """Refuse to keep the best iterate where there is none."""
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best', got {keep!r}")
    if keep == "best" and early_exit:
        raise ValueError("keep must be 'last' with early_exit, which returns the first iterate that fools")
    if keep == "best" and stochastic(model):
        raise ValueError("keep must be 'last' for a model that draws at random: its best iterate was lucky")
