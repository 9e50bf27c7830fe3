"""The attack of Carlini & Wagner: the nearest adversarial image in L2, by Adam in tanh space.

    minimize over w:  ||x' - x||^2 + c (kappa - Z(x'))+      x' = (tanh(w) / SHRINK + 1) / 2

Z is the margin by which the attacker wins, kappa the confidence asked for, and c a constant that is searched for each
image by bisection: the smallest with which the attack succeeds comes nearest. In the code w is `place`, tanh(w)
`curve`, Z the look's `values`, kappa `confidence`, c `const`.
"""

from math import atanh, inf

import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from robustviz.attacks.common import (
    Best,
    Look,
    OnStep,
    Step,
    at_least,
    attacking,
    looking,
    pixel_gradient,
    sure,
)
from robustviz.checks import check_images
from robustviz.objectives import margin
from robustviz.records import revision
from robustviz.tensors import batch_dependent, norms, wide
from robustviz.types import Images, Labels, PerImage

SHRINK = 0.8
"""Pixels are squeezed to [-SHRINK, SHRINK] before atanh, so that black and white have a finite place and can move."""


@revision(2)
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
        The nearest adversarial image found, else the image itself. It leads by `confidence`, and by more than rounding
        can take back. In a batch-dependent model the batch moves as a whole, no image stops before the others, and
        each image chooses by what the model answers to it alone.

    Raises:
        TypeError: If the model is not a module, or images or labels are not tensors of the right kind.
        ValueError: If images, labels, logits or a setting are out of range, or the model cuts the gradient off.

    Source: Carlini & Wagner, "Towards evaluating the robustness of neural networks", arXiv 1608.04644, sections V-VI.
    """
    check_images(images, labels)
    at_least(1, steps=steps, search_steps=search_steps)
    at_least(0, confidence=confidence)
    at_least(1e-12, initial_const=initial_const, lr=lr)
    joint = batch_dependent(model, images)
    with attacking(model, images, labels) as (images, labels):
        best, look = Best(images, score=0.0), looking(model, labels, margin, targeted, generator)
        low, const, high = (torch.full_like(best.score, value) for value in (0.0, initial_const, inf))
        for search in range(search_steps):
            found = _descend(look, images, const, best, joint, search, steps, confidence, lr, on_step)
            low, high = torch.where(found, low, const), torch.where(found, const, high)
            const = torch.where(high.isinf(), 10 * const, (low + high) / 2)
        return best.images


def _descend(
    look: Look,
    images: Images,
    const: PerImage,
    best: Best,
    joint: bool,
    search: int,
    steps: int,
    confidence: float,
    lr: float,
    on_step: OnStep | None,
) -> Bool[Tensor, "n"]:
    """Make one round with a fixed constant for each image; return which images fooled."""
    rows, clean, here, point = best.everyone, wide(images), images, images.clone()
    curve, edge = SHRINK * (2 * clean - 1), atanh(SHRINK)
    place, first, second = curve.atanh(), torch.zeros_like(clean), torch.zeros_like(clean)
    found, wins = torch.zeros_like(best.fooled), torch.zeros_like(best.fooled)
    lead, lowest = torch.zeros_like(const), torch.full_like(const, inf)
    for step in range(steps):
        here = here.detach().requires_grad_()
        seen = look(here, rows)
        missing = confidence + sure(seen.logits, here) - seen.values
        penalty = const[rows] * missing.clamp_min(0)
        slope, here = wide(pixel_gradient(penalty, here)), here.detach()
        change = wide(here) - clean
        distance, fooled = norms(change, "l2"), seen.fooled & (missing < 0)
        best.offer(rows, here, fooled, -distance)
        found[rows] |= fooled
        if on_step is not None:
            point[rows], lead[rows], wins[rows] = here, seen.values.detach(), seen.fooled
            on_step(Step(search, step, point.clone(), lead.clone(), wins.clone()))
        done = fooled & (distance == 0)  # wrong as it is: nothing nearer can be found
        if (step + 1) % max(steps // 10, 1) == 0:
            loss = penalty.detach() + distance.square()
            done |= loss > 0.9999 * lowest[rows]
            lowest[rows] = loss
        if done.any() and not joint:
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
        here = (curve / (2 * SHRINK)).add_(0.5).clamp_(0, 1).to(images.dtype)
    return found
