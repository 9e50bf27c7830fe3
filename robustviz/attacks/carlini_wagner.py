"""The attack of Carlini & Wagner: the nearest adversarial image in L2, by Adam in tanh space."""

from math import atanh, inf

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from robustviz.attacks.common import Best, Look, OnStep, Step, at_least, pixel_gradient
from robustviz.objectives import margin, objective_and_logits
from robustviz.tensors import check_images, evaluating, norms
from robustviz.types import Images, Labels, PerImage

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
        slope, here = pixel_gradient(missing, here), here.detach()
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
