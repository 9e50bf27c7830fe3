"""One pass of one image through any network, written down: which module was called with what, and what it gave.

Everything that has to know how a network is built looks at such a trace and not at the types of its parts.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustviz.models import Classifier
from robustviz.tensors import evaluating, seeded
from robustviz.types import Images

Layout = Literal["flat", "maps", "tokens", "channels-last"]
"""Where the channels are: (n, c), (n, c, h, w), (n, tokens, c) or (n, h, w, c)."""

_SIZES = (32, 224, 28, 8, 64, 96, 16, 299, 384)
"""Heights of the square pictures that `example` tries, in this order."""

CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.pooling._MaxPoolNd)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in a forward pass.

    Attributes:
        name: Name as in `network.named_modules()`; the first one of a module that has several.
        module: The module itself.
        inputs: Its positional arguments.
        output: What it returned. An operation in place may have written into it later.
    """

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, `DataParallel` or `DistributedDataParallel`; any other as it is."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Run a network inside the block without gradient, in evaluation mode, from seed 0, and leave no trace of it."""
    devices = sorted({p.device.index or 0 for p in network.parameters() if p.device.type == "cuda"})
    with evaluating(network), torch.no_grad(), torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        yield


def trace(network: nn.Module, images: Images) -> list[Call]:
    """Run the network once and return every call of a module, in the order in which they end.

    The purifier of a `Classifier` is left out: it answers in pixels.
    """
    modules = dict(network.named_modules())
    network = network.replace(purify=None) if isinstance(network, Classifier) else network
    calls: list[Call] = []

    def keep(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append(Call(name, module, inputs, output))

    with ExitStack() as stack:
        stack.enter_context(untouched(network))
        for name, module in network.named_modules():
            if (modules[name] is module or not name) and not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_hook(partial(keep, name)).remove)
        network(images.clone())
    return calls


def example(network: nn.Module) -> Images:
    """Make one random image, the same each time, that the network accepts.

    The channels are those of the first convolution (or as many as the first linear layer allows), the size is what
    the network says of itself (`image_size`, `img_size`) or the first of `_SIZES` that runs.

    Raises:
        ValueError: If none runs.
    """
    network = network.replace(purify=None) if isinstance(network, Classifier) else network
    failed: Exception | None = None
    for shape in _shapes(network):
        weight = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
        images = torch.rand(1, *shape, generator=seeded(0)).to(weight)
        try:
            with untouched(network):
                network(images.clone())
        except Exception as error:  # a foreign network may raise anything
            failed = error
        else:
            return images
    raise ValueError(
        f"network must accept an image (1, c, h, h) of one of the sizes {', '.join(map(str, _SIZES))}, but none runs; "
        f"give `images`, at least one picture of the right shape. The last error was: {failed}"
    )


def _shapes(network: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Propose (c, h, w), the likeliest first."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    first = layers[0] if layers else None
    if isinstance(first, nn.Linear):
        for channels in (1, 3):
            side = isqrt(first.in_features // channels)
            if side and channels * side**2 == first.in_features:
                yield channels, side, side
    likely = [first.in_channels] if isinstance(first, nn.modules.conv._ConvNd) else []
    said = [getattr(m, name, None) for m in network.modules() for name in ("image_size", "img_size")]
    sizes = [size[0] if isinstance(size, tuple) and size else size for size in said]
    for channels in dict.fromkeys([*likely, 3, 1]):
        for size in dict.fromkeys([*(size for size in sizes if isinstance(size, int) and size > 0), *_SIZES]):
            yield channels, size, size


def layout_of(calls: Sequence[Call], index: int) -> Layout | None:
    """Tell where the channels of a call's output are.

    The evidence is the last layer before it whose output has the same shape: convolutions, batch norm and pooling keep
    channels second, linear layers and layer norm last. Without such a layer, three dimensions are tokens and four are
    maps, unless height and width agree in the other reading alone: then nobody can tell.

    Args:
        calls: A trace.
        index: Which call; its output is a tensor of two or more dimensions.

    Returns:
        The layout; None if it is ambiguous, or the tensor has other than two to four dimensions.
    """
    shape = calls[index].output.shape
    if len(shape) not in (3, 4):
        return "flat" if len(shape) == 2 else None
    for call in reversed(calls[: index + 1]):
        if isinstance(call.output, Tensor) and call.output.shape == shape:
            if isinstance(call.module, CHANNELS_FIRST):
                return "maps"
            if isinstance(call.module, nn.Linear) or type(call.module) is nn.LayerNorm:
                return "tokens" if len(shape) == 3 else "channels-last"
    if len(shape) == 3:
        return "tokens"
    return None if shape[1] == shape[2] != shape[3] else "maps"


def agree(expected: object, found: object) -> bool:
    """Tell whether two answers of a network are tensors that differ by rounding at most."""
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor) and expected.shape == found.shape):
        return False
    bound = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max().clamp_min(1)
    return bool(((found - expected).abs() <= bound).all())
