"""The energy, and the function that minimizes it: drop some pixels, then find the simplest picture that fits the rest.

    E(z) = 1/2 * sum over kept pixels of (z - images)^2  +  weight * sum over channels and pixels of sqrt(dv^2 + dh^2)

dv and dh are forward differences, downwards and to the right, and 0 beyond the edge. Small perturbations
cost variation and vanish; edges stay.

Source: Guo, Rana, Cisse & van der Maaten, "Countering adversarial images using input transformations", arXiv
1711.00117, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from robustviz.checks import check_images
from robustviz.defenses.tvm.primal_dual import Descent, Maps
from robustviz.tensors import seeded
from robustviz.types import Images, PerImage

Kept = Bool[Tensor, "n k h w"]
"""Which pixels count: k is 1 where the channels share a mask, else the number of channels."""

FIRST_RATIO, DECAY = 1.5, 1.5
"""Ratio by which tau is longer (and sigma shorter) at the first step, and the power by which it falls to 0 at the last
one; tuned on photographs. Long steps of pixels travel, short ones settle."""

CACHED = 2**16
"""Numbers in the pictures that a CPU works on at a time, so that all maps stay in its cache."""

CHECK_EVERY = 10
"""Steps between two looks at how far each picture is from its minimum; a look costs as much as a step or two."""


@dataclass(frozen=True)
class TVStep:
    """One point on the way down, handed to `on_step`.

    Attributes:
        step: Steps made so far; 0 is the start, in which dropped pixels are filled in from their neighbors.
        images: The pictures at this step.
        energy: Their energies.
    """

    step: int
    images: Images
    energy: PerImage


def total_variation(images: Images) -> PerImage:
    """Sum over channels and pixels of the length of the gradient (forward differences, 0 beyond the edge).

    Raises:
        TypeError: If images are not a floating-point tensor; the differences of unsigned ones would wrap around.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"images must be a floating-point tensor, got {images.dtype}; convert with images.float() / 255"
        )
    down = images.diff(dim=2, append=images[:, :, -1:])
    right = images.diff(dim=3, append=images[..., -1:])
    squared = torch.addcmul(down * down, right, right)
    # The square root has no gradient at 0; where a picture is flat, 0 is one.
    flat = squared == 0
    return squared.masked_fill(flat, 1).sqrt().masked_fill(flat, 0).sum((1, 2, 3))


def tv_energy(images: Images, observed: Images, kept: Kept, *, weight: float = 0.03) -> PerImage:
    """Compute what `minimize_tv` minimizes: half the squared distance on the kept pixels + weight * total variation.

    Raises:
        ValueError: If the mask is not one of true and false that fits the images.
    """
    if kept.dtype != torch.bool or kept.shape not in (images.shape, (len(images), 1, *images.shape[2:])):
        raise ValueError(
            f"kept must be a mask of {tuple(images.shape)}, or of one channel, for these images, got "
            f"{tuple(kept.shape)} of {kept.dtype}"
        )
    return ((images - observed) * kept).square().sum((1, 2, 3)) / 2 + weight * total_variation(images)


def draw_kept(images: Images, keep: float, *, per_channel: bool = False, generator: Generator | None = None) -> Kept:
    """Keep each pixel with probability `keep`, all its channels together or each on its own.

    Drawn on the generator's device; None is a fresh generator seeded 0. A batch and its parts, drawn one after the
    other, get the same masks.

    Raises:
        ValueError: If keep is not in (0, 1].
    """
    _check_keep(keep)
    generator = seeded(0) if generator is None else generator
    shape = (len(images), images.shape[1] if per_channel else 1, *images.shape[2:])
    return (torch.rand(shape, generator=generator, device=generator.device) < keep).to(images.device)


def minimize_tv(
    images: Images,
    *,
    weight: float = 0.03,
    keep: float = 0.5,
    steps: int = 100,
    tolerance: float = 1e-3,
    per_channel: bool = False,
    on_step: Callable[[TVStep], Any] | None = None,
    generator: Generator | None = None,
) -> Images:
    """Forget a random part of the pixels and return the pictures of least energy (see the top of this file).

    The minimum is that of split Bregman, found without a linear system for each step: primal-dual steps with
    over-relaxation, all pictures at once. Each picture stops by itself, so a batch and its parts give the same. With
    gradients enabled, they pass through all the steps.

    Args:
        images: Pixels in [0, 1]; the values of dropped ones do not matter.
        weight: Price of variation against fidelity, > 0; larger is smoother.
        keep: Probability that a pixel is kept, in (0, 1].
        steps: Maximum number; step lengths shrink towards the last one, so 50 of 50 come closer than 50 of 100. With
            half of the pixels dropped, it takes twice as many to come as close to the minimum.
        tolerance: A picture of which nothing was dropped is done once its energy is proven to be within this share of
            the minimum (duality gap). With dropped pixels the proof comes too late: such a picture is done once ten
            steps have changed its energy by less than this share, and is then usually as near; small or flat pictures
            may be ten times farther.
        per_channel: Drop the channels of a pixel one by one instead of together.
        on_step: Called with a `TVStep` at the start and after every step.
        generator: Source of the mask; None is a fresh one seeded 0.

    Returns:
        Pictures in [0, 1], in no channel beyond the range of its kept pixels, with at most the energy of the start.

    Raises:
        TypeError: If images are not a floating-point tensor.
        ValueError: If images or a setting are out of range.

    Source: Goldstein & Osher, "The split Bregman method for L1-regularized problems", 2009, for the problem;
    Chambolle & Pock, "A first-order primal-dual algorithm for convex problems", 2011, algorithm 1, for the steps;
    Pock & Chambolle, "Diagonal preconditioning for first order primal-dual algorithms in convex optimization", 2011,
    for lengths that differ from pixel to pixel.
    """
    check_settings(weight, keep, steps, tolerance)
    check_images(images)
    kept = draw_kept(images, keep, per_channel=per_channel, generator=generator)
    size = max(1, CACHED // images[0].numel()) if on_step is None and images.device.type == "cpu" else len(images)
    parts = zip(torch.split(images, size), torch.split(kept, size), strict=True)
    return torch.cat([_minimize(some, some_kept, weight, steps, tolerance, on_step) for some, some_kept in parts])


def check_settings(weight: float, keep: float, steps: int, tolerance: float) -> None:
    """Refuse settings of `minimize_tv` that are out of range.

    Raises:
        ValueError: If one is.
    """
    _check_keep(keep)
    if not (isfinite(weight) and weight > 0):
        raise ValueError(f"weight must be finite and > 0, got {weight}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")


def _check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], the share of pixels that stay, got {keep}")


def _minimize(
    images: Images,
    kept: Kept,
    weight: float,
    steps: int,
    tolerance: float,
    on_step: Callable[[TVStep], Any] | None = None,
) -> Images:
    """Take the steps under a given mask."""
    descent = Descent(images, kept, weight)
    for step in range(steps + 1):
        look = step % CHECK_EVERY == 0
        if look or step == steps or on_step is not None:
            descent.collect()
        if on_step is not None:
            now = _images_of(descent.result.detach())
            on_step(TVStep(step, now, tv_energy(now, images.detach(), kept, weight=weight)))
        if look and not descent.leave(tolerance):
            break
        if step < steps:
            descent.step(FIRST_RATIO * (1 - step / steps) ** DECAY)
    start, result = _images_of(descent.start), _images_of(descent.result)
    with torch.no_grad():
        before, after = (tv_energy(point, images, kept, weight=weight) for point in (start, result))
    return torch.where((after <= before).view(-1, 1, 1, 1), result, start)


def _images_of(maps: Maps) -> Images:
    """Turn the solver's layout (h, w, n, c) back into (n, c, h, w)."""
    return maps.permute(2, 3, 0, 1).contiguous()
