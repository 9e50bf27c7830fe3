"""The few helpers that attacks, training and evaluation share."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustviz.types import Images, PerImage, Threat

Model = TypeVar("Model", bound=nn.Module)


def per_image(values: Float[Tensor, "n"], like: Float[Tensor, "n ..."]) -> Tensor:
    """View one number per image as (n, 1, 1, ...), so that it multiplies whole images."""
    return values.view(-1, *[1] * (like.dim() - 1))


def wide(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half precision (float16, bfloat16) as float32, so that small differences survive; others as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


def norms(perturbation: Float[Tensor, "n ..."], norm: str) -> PerImage:
    """Length of each perturbation, in pixel units: the largest change (`"linf"`) or the Euclidean length (`"l2"`)."""
    flat = wide(perturbation).flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def distances(images: Images, attacked: Images, norm: str) -> PerImage:
    """Distance of each attacked image from its image, in pixel units; half precision is subtracted in float32."""
    return norms(wide(attacked) - wide(images), norm)


def project(images: Images, attacked: Float[Tensor, "n c h w"], threat: Threat) -> Images:
    """Return the nearest point to `attacked` in the threat's ball around `images`, then clip it to [0, 1].

    The ball is applied to the difference and not through precomputed bounds: clamping to `images - epsilon` and
    `images + epsilon` rounds differently and drifts away from what other libraries compute. Images of half precision
    are projected in float32, and each pixel is then rounded towards the image, so that none leaves the ball.
    """
    clean = wide(images)
    perturbation = wide(attacked) - clean
    if threat.norm == "linf":
        perturbation = perturbation.clamp(-threat.epsilon, threat.epsilon)
    else:
        length = norms(perturbation, "l2").clamp_min(torch.finfo(images.dtype).tiny)
        perturbation = perturbation * per_image((threat.epsilon / length).clamp_max(1), perturbation)
    nearest = (clean + perturbation).clamp(0, 1)
    return rounded_inwards(images, nearest)


def rounded_inwards(images: Images, points: Float[Tensor, "n c h w"]) -> Images:
    """Round points to the half precision of the images, so that no pixel gets farther away; else return them.

    A pixel that rounding moves outwards takes the next number inwards. Numbers >= 0 of a floating-point type are
    ordered as their bit patterns are, so the next one is one bit away.
    """
    if images.dtype.itemsize >= 4:
        return points
    rounded = points.to(images.dtype)
    outwards = (wide(rounded) - wide(images)).abs() > (points - wide(images)).abs()
    step = torch.where(images > rounded, 1, -1).to(torch.int16)
    return torch.where(outwards, (rounded.view(torch.int16) + step).view(images.dtype), rounded)


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


def shared_copy(model: Model, exchanged: Mapping[nn.Module, nn.Module] = MappingProxyType({})) -> Model:
    """Copy the modules of a network, so that their settings may change, and share its tensors and generators.

    Args:
        model: Stays as it is.
        exchanged: Modules of it, and what takes the place of each in the copy.
    """
    tensors = (*model.parameters(), *model.buffers())
    generators = (getattr(module, "generator", None) for module in model.modules())
    memo: dict[int, Any] = {id(value): value for value in (*tensors, *generators)}
    return deepcopy(model, memo | {id(module): other for module, other in exchanged.items()})


def batch_dependent(model: nn.Module, images: Images | None = None) -> bool:
    """Tell whether the answer for one image depends on the other images of its batch.

    A module says so of itself by `batch_dependent = True`; batch norm without running statistics is known. Any other
    kind is found by asking, if there are images to ask with.

    Args:
        model: The model, left as it is.
        images: Images in [0, 1], to ask with. The first is passed through the model beside itself and beside its
            opposite (white where it is dark), both times with the same random draws.

    Returns:
        Whether it depends; also True if the model cannot answer two images, because it wants a batch of one size.

    Raises:
        TypeError: If the model is not a `torch.nn.Module`.
    """
    check_model(model)
    if any(getattr(module, "batch_dependent", False) or _counts_the_batch(module) for module in model.modules()):
        return True
    return images is not None and _answers_jointly(model, images[:1])


def stochastic(model: nn.Module) -> bool:
    """Tell whether a module of the model draws at random (`stochastic = True`); see `drawing`."""
    check_model(model)
    return any(getattr(module, "stochastic", False) for module in model.modules())


def _counts_the_batch(module: nn.Module) -> bool:
    """Whether a module is batch norm that has no running statistics, and so uses those of the batch at all times."""
    return isinstance(module, _BatchNorm) and module.running_mean is None and module.running_var is None


@contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled modules uncompiled inside the block: once for another batch size, or back more than once."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
def _answers_jointly(model: nn.Module, image: Float[Tensor, "1 c h w"]) -> bool:
    """Whether the answer for an image differs beside itself and beside its opposite, by more than rounding."""
    answers = []
    streams = [torch.default_generator, *([torch.cuda.default_generators[image.get_device()]] if image.is_cuda else [])]
    with evaluating(model), eagerly(), torch.random.fork_rng([image.device] if image.is_cuda else []):
        for other in (image, (image < 0.5).to(image.dtype)):
            for stream in streams:
                stream.manual_seed(0)
            with drawing(model, seeded(0)):
                try:
                    output = model(torch.cat([image, other]))
                except (RuntimeError, ValueError):
                    return True
            if isinstance(output, Tensor) and output.dim() and len(output) != 2:
                return True
            if not isinstance(output, Tensor) or output.dim() != 2:
                return False  # not logits: whoever asked for them says so, of the images that were given
            answers.append(wide(output[0]))
    least = min(torch.finfo(image.dtype).eps ** 0.5, 0.1) * answers[0].abs().amax()
    return bool((answers[0] - answers[1]).abs().amax() > least)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without parameter gradients; give all of it back at the end.

    Every submodule gets its own mode back and every parameter its own `requires_grad`, also after an error, so
    a network that is partly frozen stays so.

    Raises:
        TypeError: If the model is not a `torch.nn.Module`.
    """
    check_model(model)
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


def check_model(model: Any) -> None:
    """Refuse with a TypeError what is not a module."""
    if not isinstance(model, nn.Module):
        remedy = "call a function in the forward method of a module"
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; {remedy}")
