"""Named places: every activation of any network by its name, and what may be put before, after or instead of it.

    for name, place in activations(network).items(): ...
    network = rewired(network, activations(network), lambda place: Sparsifier(place.channels), where="before")

A place is a module that the forward pass calls, so a name of `network.named_modules()` says where it is. An activation
written as a function (`F.relu(x)`) has no name and is not found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from robustviz.networks.tracing import Call, Layout, example, layout_of, trace, untouched, unwrapped
from robustviz.tensors import seeded
from robustviz.types import Images

Network = TypeVar("Network", bound=nn.Module)

ELEMENTWISE = tuple(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in ("GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
)
"""PyTorch's activations that act on each number by itself."""


@dataclass(frozen=True)
class Place:
    """A module inside a network, and what it gives for one image.

    Attributes:
        name: Name as in `network.named_modules()`.
        module: The module itself, of the network that was looked at.
        channels: Channels of its output; of the last call if there are several.
        stage: 0 where maps are largest, one more for each smaller size; flat features are in the last one.
        layout: Where the channels are.
        widths: Channels at each call: one module may act at several places of a network.
        block: Name of the module around it that returns just what it returns, such as a residual block that ends in
            this activation; otherwise its own name.
    """

    name: str
    module: nn.Module
    channels: int
    stage: int
    layout: Layout
    widths: tuple[int, ...]
    block: str


def activations(network: nn.Module, images: Images | None = None) -> dict[str, Place]:
    """List the activations of any network by running one image, in the order in which they are first called.

    An activation acts on each number by itself and is not linear. PyTorch's are known by their type. Any other module
    is tried: one without layers inside, whose output has the shape of its input, is called with random numbers. So a
    module of one's own is found, also with parameters for each channel, and one that wraps another counts once. What
    is not found can still be given to `rewired` by name.

    Args:
        network: Left as it was; also compiled or wrapped, then names are those of the network inside.
        images: At least one image (n, c, h, w) that it accepts; None makes one (see `example`).

    Returns:
        Places by name; empty if all activations are functions without a name.

    Raises:
        ValueError: If no images are given and none that could be made runs.
    """
    network = unwrapped(network)
    calls = trace(network, example(network) if images is None else images[:1])
    return _places(calls)


def blocks(network: nn.Module, images: Images | None = None) -> dict[str, Place]:
    """Name the outermost blocks of layers that end in an activation, from input to output; flat features are left out.

    Args:
        network: See `activations`.
        images: See `activations`.

    Returns:
        By the name of the block; `name` and `module` of the place are those of the activation that ends it.
    """
    found = {p.block: p for p in activations(network, images).values() if p.layout != "flat"}
    return {name: place for name, place in found.items() if not any(name.startswith(f"{outer}.") for outer in found)}


def rewired(
    network: Network,
    places: Mapping[str, Place] | Iterable[str],
    make: Callable[[Place], nn.Module],
    *,
    where: Literal["before", "after", "instead"] = "before",
    images: Images | None = None,
) -> Network:
    """Copy a network with something new before, after or instead of some of its modules.

    Before and after, the place holds the two modules in a row, numbered in the order in which they are called. So
    `body.0.2` becomes `body.0.2.0` and `body.0.2.1`, and all other names stay as they are. Weights that were saved
    without the new modules still load: `load_state_dict(weights, strict=False)` misses the new ones alone.

    Args:
        network: Stays as it is, and shares nothing with the result.
        places: What `activations` or `blocks` found, or names of any modules that the forward pass calls.
        make: Gets a place and returns the new module, which moves to the device and dtype of the network.
        where: Where the new module goes. A module that acts at several places of the network has it at all of them.
        images: See `activations`.

    Returns:
        The copy, with `make` called once for each place, in their order; new modules take the mode of the place.

    Raises:
        TypeError: If `make` does not return a module.
        ValueError: If a name is not that of a module that is called and returns a tensor, one place lies inside
            another, or a module is called with different numbers of channels, where nothing can be before or after it.
    """
    if where not in ("before", "after", "instead"):
        raise ValueError(f"where must be before, after or instead, got {where!r}")
    network = unwrapped(network)  # type: ignore[assignment]  # what is inside a wrapper is the network
    names = list(places)
    if inner := [n for n in names for outer in names if n.startswith(f"{outer}.")]:
        raise ValueError(f"places must not lie inside one another, but {inner[0]} does")
    calls = trace(network, example(network) if images is None else images[:1])
    known = _places(calls, names)
    copied = deepcopy(network)
    aliases = [(name, module) for name, module in copied.named_modules(remove_duplicate=False) if name]
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    for place in known.values():
        if where != "instead" and len(set(place.widths)) > 1:
            raise ValueError(
                f"{place.name} is one module that is called with {', '.join(map(str, place.widths))} channels, so "
                f"nothing for a fixed number can be {where} it; give each call a module of its own, or name the blocks"
            )
        made = make(place)
        if not isinstance(made, nn.Module):
            raise TypeError(f"make must return an nn.Module, got {type(made).__name__}")
        old = copied.get_submodule(place.name)
        made = made.to(device=like.device, dtype=like.dtype).train(old.training)
        new = made if where == "instead" else Wired(made, old, old=1) if where == "before" else Wired(old, made, old=0)
        for name, module in aliases:
            if module is old:
                copied.set_submodule(name, new)
    return copied


class Wired(nn.Sequential):
    """An old module and a new one in a row, where the old one was alone.

    Args:
        first: Called first.
        second: Called with what the first one returns.
        old: Which of them was there before, 0 or 1.
    """

    def __init__(self, first: nn.Module, second: nn.Module, *, old: int):
        super().__init__(first, second)
        self.old = old
        self.training = self[old].training

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give weights that were saved when the old module was alone the names that they have now."""
        names = [(f"{prefix}{key}", f"{prefix}{self.old}.{key}") for key in self[self.old].state_dict()]
        if all(plain in state_dict for plain, _ in names) and not all(now in state_dict for _, now in names):
            values = [state_dict.pop(plain) for plain, _ in names]
            state_dict.update({now: value for (_, now), value in zip(names, values, strict=True)})
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _places(calls: Sequence[Call], names: Iterable[str] | None = None) -> dict[str, Place]:
    """Describe modules by their calls; None takes the activations."""
    outputs: dict[str, list[tuple[Layout, int, int]]] = {}
    for index, call in enumerate(calls):
        if isinstance(call.output, Tensor) and call.output.dim() > 1:
            layout = layout_of(calls, index) or "channels-last"
            channels = call.output.shape[1 if layout == "maps" else -1]
            positions = call.output.numel() // max(len(call.output) * channels, 1)
            outputs.setdefault(call.name, []).append((layout, channels, positions))
    verdicts: dict[str, bool] = {}
    for call in calls:
        if call.name and call.name in outputs and call.name not in verdicts:
            verdicts[call.name] = _is_activation(call)
    found = [name for name, verdict in verdicts.items() if verdict]
    active = [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]
    sizes = {positions for name in active for _, _, positions in outputs[name]}
    last = {call.name: call for call in calls}
    places = {}
    for name in active if names is None else names:
        if name not in outputs:
            known = ", ".join(filter(None, outputs))
            raise ValueError(f"places must be modules that are called and return a tensor: {known}; got {name!r}")
        layout, channels, positions = outputs[name][-1]
        around = last.get(name.rpartition(".")[0] or name, last[name])
        places[name] = Place(
            name=name,
            module=last[name].module,
            channels=channels,
            stage=sum(size > positions for size in sizes),
            layout=layout,
            widths=tuple(width for _, width, _ in outputs[name]),
            block=around.name if around.output is last[name].output else name,
        )
    return places


def _is_activation(call: Call) -> bool:
    """Tell whether a module acts on each number by itself and is not linear: by its type, else by trying it."""
    if isinstance(call.module, ELEMENTWISE):
        return True
    layers = [m for m in call.module.modules() if type(m).__module__.startswith("torch.nn.")]
    inputs = call.inputs[0] if len(call.inputs) == 1 else None
    if (
        not all(isinstance(layer, (*ELEMENTWISE, nn.Sequential, nn.Identity)) for layer in layers)
        or type(call.module) is nn.Identity
        or not (isinstance(inputs, Tensor) and isinstance(call.output, Tensor) and inputs.is_floating_point())
        or inputs.shape != call.output.shape
    ):
        return False
    try:
        return _acts_elementwise(deepcopy(call.module), inputs.shape)
    except Exception:  # a foreign module may raise anything on numbers that it does not expect
        return False


def _acts_elementwise(module: nn.Module, shape: torch.Size) -> bool:
    """Try a module on numbers of all magnitudes: each output must depend on its own input alone, not linearly."""
    generator = seeded(0)

    def draw() -> Tensor:
        size = 10.0 ** (4 * torch.rand(shape, generator=generator) - 2)
        return torch.randn(shape, generator=generator, dtype=torch.float64) * size

    def apply(values: Tensor) -> Tensor:
        with untouched(module):
            return module(values.clone())

    module = module.to("cpu", torch.float64)
    first, second = draw(), draw()
    chosen = torch.rand(shape, generator=generator) < 0.5
    given = apply(first), apply(second)
    bound = 1e-8 * (given[0].abs() + given[1].abs())
    mixed = apply(torch.where(chosen, first, second)) - torch.where(chosen, *given)
    middle = apply((first + second) / 2) - (given[0] + given[1]) / 2
    return bool((mixed.abs() <= bound).all()) and not bool((middle.abs() <= bound).all())
