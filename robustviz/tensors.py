"""The few helpers that attacks, training and evaluation share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustviz.types import Images, Labels, PerImage, Threat


def per_image(values: Float[Tensor, "n"], like: Float[Tensor, "n ..."]) -> Tensor:
    """View one number per image as (n, 1, 1, ...), so that it multiplies whole images."""
    return values.view(-1, *[1] * (like.dim() - 1))


def norms(perturbation: Float[Tensor, "n ..."], norm: str) -> PerImage:
    """Length of each perturbation, in pixel units: the largest change (`"linf"`) or the Euclidean length (`"l2"`)."""
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def project(images: Images, attacked: Images, threat: Threat) -> Images:
    """Return the nearest point to `attacked` in the threat's ball around `images`, then clip it to [0, 1].

    The ball is applied to the difference and not through precomputed bounds: clamping to `images - epsilon` and
    `images + epsilon` rounds differently and drifts away from what other libraries compute.
    """
    perturbation = attacked - images
    if threat.norm == "linf":
        perturbation = perturbation.clamp(-threat.epsilon, threat.epsilon)
    else:
        length = norms(perturbation, "l2").clamp_min(torch.finfo(images.dtype).tiny)
        perturbation = perturbation * per_image((threat.epsilon / length).clamp_max(1), perturbation)
    return (images + perturbation).clamp(0, 1)


def seeded(*seeds: int) -> Generator:
    """Make a fresh CPU generator whose stream depends on all the given integers and on nothing else.

    `seeded(seed, epoch, batch)` gives every batch its own noise, whoever computes it and in whatever order.
    """
    # The count goes in too, because a seed sequence takes (1,) and (1, 0) for the same.
    state = np.random.SeedSequence([len(seeds), *(abs(int(s)) for s in seeds)]).generate_state(2, np.uint32)
    return Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def draw_seed(generator: Generator | None) -> int:
    """Take one integer from the generator; without one, the seed is 0, so that a call repeats."""
    return 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))


def batch_dependent(model: nn.Module) -> bool:
    """Tell whether the answer for one image depends on the other images of its batch."""
    return any(getattr(module, "batch_dependent", False) for module in model.modules())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without parameter gradients; give all of it back at the end.

    Every submodule gets its own mode back and every parameter its own `requires_grad`, also after an error, so
    a network that is partly frozen stays so.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def drawing(model: nn.Module, generator: Generator | None) -> Iterator[None]:
    """Let every stochastic module of the model draw from `generator` inside the block.

    A stochastic module has `stochastic = True` and an attribute `generator`. Outside such a block that is None, and
    the module draws from a fresh generator seeded 0 at each forward pass, so that a forward pass repeats.
    """
    modules: list[Any] = [module for module in model.modules() if getattr(module, "stochastic", False)]
    before = [module.generator for module in modules]
    try:
        for module in modules:
            module.generator = generator
        yield
    finally:
        for module, previous in zip(modules, before, strict=True):
            module.generator = previous


def check_images(images: Any, labels: Any = None, *, classes: int | None = None) -> None:
    """Refuse images and labels that no function of the library can use.

    Args:
        images: Should be a float tensor (n, c, h, w) in [0, 1].
        labels: Should be an int64 tensor (n,), if given.
        classes: How many classes there are; labels must lie below, if given.

    Raises:
        TypeError: If either is not a tensor, or has the wrong kind of numbers.
        ValueError: If the shape, range or length is wrong, or a value is not finite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor, got {kind}; bytes become images by `.float() / 255`")
    if images.dim() != 4 or not images.numel():
        raise ValueError(f"images must have shape (n, c, h, w) and not be empty, got {tuple(images.shape)}")
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low != low or high != high:
        raise ValueError("images must be finite, but contain NaN")
    if low < 0 or high > 1:
        remedy = ": divide by 255" if low >= 0 and 2 < high <= 255 else "; normalization belongs inside the model"
        raise ValueError(f"images must lie in [0, 1], but reach from {low:.4g} to {high:.4g}{remedy}")
    if labels is not None:
        check_labels(labels, len(images), classes)


def check_labels(labels: Labels, count: int, classes: int | None = None) -> None:
    """Refuse labels that do not fit `count` images of `classes` classes.

    Raises:
        TypeError: If labels are not an int64 tensor: others index as masks, or not at all.
        ValueError: If their shape or range is wrong.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor, got {kind}; integers of another size become one by `.long()`")
    if labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each image, got {tuple(labels.shape)}")
    if count and labels.min() < 0:
        raise ValueError(f"labels must be class indices from 0, got {labels.min().item()}")
    if classes is not None and count and labels.max() >= classes:
        raise ValueError(f"labels must lie below the number of classes {classes}, got {labels.max().item()}")
