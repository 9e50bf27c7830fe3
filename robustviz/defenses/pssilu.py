"""PSSiLU: an activation whose shape is learned, in place of every ReLU.

    f(x) = x * (sigmoid(|a| x) - |b|) / (1 - |b|)                     a = 1, b = 1e-8 at the start, |b| < 1

One pair (a, b) for the whole network, trained with the weights and without weight decay. b = 0 is x sigmoid(|a| x), and
so SiLU at a = 1; b > 0 lets negative inputs have positive outputs. It is smooth, so it hides no gradient: what is
measured with it should survive every attack, and the adaptive set is the standard ensemble.

Source: Dai, Mahloujifar & Mittal, "Parameterizing activation functions for adversarial robustness", arXiv 2110.05626.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.defenses.defense import Defense, Stage, Training
from robustviz.models import Classifier
from robustviz.networks.places import activations, rewired

_Shape = Literal["pssilu", "silu"]

CLOSEST = 1 - 1e-3
"""Largest |b| in use: at 1 the activation is not defined."""


class PSSiLU(nn.Module):
    """The activation, with its two parameters.

    Args:
        pair: Another one, whose parameters this one shares; None has its own.

    Attributes:
        a: Steepness; its absolute value counts.
        b: How far below 0 the output may turn up again; its absolute value counts, up to `CLOSEST`.
        no_weight_decay: Names of parameters that training does not decay.
    """

    a: nn.Parameter
    b: nn.Parameter
    no_weight_decay = ("a", "b")

    def __init__(self, pair: "PSSiLU | None" = None):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0)) if pair is None else pair.a
        self.b = nn.Parameter(torch.tensor(1e-8)) if pair is None else pair.b

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f of each number."""
        b = self.b.abs().clamp_max(CLOSEST)
        return values * (torch.sigmoid(self.a.abs() * values) - b) / (1 - b)


@dataclass(frozen=True)
class PSSiLUOptions:
    """Which activation replaces the network's own.

    Attributes:
        activation: pssilu learns its shape; silu is the same with the shape fixed, as a control.
    """

    activation: _Shape = "pssilu"

    def __post_init__(self) -> None:
        _check(self.activation)


def build_pssilu(classifier: Classifier, *, activation: _Shape = "pssilu") -> Classifier:
    """Copy a network with another activation in place of every one of its body; the weights are kept.

    Args:
        classifier: Its activations must be modules.
        activation: `"pssilu"`, one pair of parameters for all places, or `"silu"`, which has none.

    Raises:
        ValueError: If the name is unknown, or the body has no activation that is a module.
    """
    _check(activation)
    places = [name for name in activations(classifier) if name.startswith("body.")]
    if not places:
        raise ValueError("classifier must have activations that are modules in its body, got none; see `activations`")
    pair = PSSiLU().to(next(classifier.parameters()))
    make = partial(PSSiLU, pair) if activation == "pssilu" else FixedSiLU
    return rewired(classifier, places, lambda place: make(), where="instead")


class FixedSiLU(nn.SiLU):
    """SiLU as the control of this defense: x * sigmoid(x)."""


def has_pssilu(network: nn.Module) -> bool:
    """Tell whether a network has a smooth activation of this file."""
    return any(isinstance(module, PSSiLU | FixedSiLU) for module in network.modules())


def pssilu_stages(training: Training, options: PSSiLUOptions) -> Iterator[Stage]:
    """Put the chosen activation in place and train as any other network."""
    model = training.model
    if not has_pssilu(model) or pssilu_settings(model)["activation"] != options.activation:
        model.body = build_pssilu(model, activation=options.activation).body
    yield from training.stages()


def pssilu_settings(classifier: Classifier) -> dict[str, Any]:
    """Give the settings with which `build_pssilu` makes a network again."""
    learned = any(isinstance(module, PSSiLU) for module in classifier.modules())
    return {"activation": "pssilu" if learned else "silu"}


def _check(activation: str) -> None:
    if activation not in get_args(_Shape):
        raise ValueError(f"activation must be one of {', '.join(get_args(_Shape))}, got {activation!r}")


PSSILU_DEFENSE = Defense(
    name="pssilu",
    title="PSSiLU",
    source="Dai, Mahloujifar & Mittal, arXiv 2110.05626",
    present=has_pssilu,
    build=build_pssilu,
    settings=pssilu_settings,
    options=PSSiLUOptions,
    stages=pssilu_stages,
)
"""Smooth activations: nothing is masked, so there is no attack of its own; without them the network is another one."""
