"""The words of the library: what an image, a threat, an objective and an attack are.

Everything else is written in these terms, so that a signature says what goes in and what comes out.
Shapes are checked while the tests run (jaxtyping and beartype) and cost nothing otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

Images = Float[Tensor, "n c h w"]
"""Pixels in [0, 1]."""

Labels = Int[Tensor, "n"]
"""Class indices 0..K-1."""

Logits = Float[Tensor, "n classes"]
"""Unnormalized scores; the largest is the decision."""

PerImage = Float[Tensor, "n"]
"""One number for each image."""

Objective = Callable[..., PerImage]
"""`(model, images, labels, /, *, generator=None) -> (n,)`: the trainer lowers it, the attacker raises it."""

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Threat:
    """What the attacker may do: move an image by at most `epsilon`, measured in `norm`, inside [0, 1].

    Attributes:
        norm: `"linf"` (largest change of any pixel) or `"l2"` (Euclidean length of the change).
        epsilon: Radius in pixel units of [0, 1]; the usual CIFAR-10 radius of 8 gray levels is 8 / 255.

    Raises:
        ValueError: If the norm is unknown, or epsilon is negative or not finite.
    """

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        if not (isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be finite and >= 0 on the [0, 1] pixel scale, got {self.epsilon}")


LINF_8 = Threat("linf", 8 / 255)
"""The standard threat on CIFAR-10: every pixel may change by 8 of 255 gray levels."""


@runtime_checkable
class Attack(Protocol):
    """A function that looks for images near the given ones which the model gets wrong.

    Settings are fixed beforehand with `functools.partial`, so every attack is called in the same way.
    """

    def __call__(
        self, model: nn.Module, images: Images, labels: Labels, /, *, generator: Generator | None = None
    ) -> Images:
        """Return images of the same shape, in [0, 1]."""
        ...


Progress = Callable[[int, int], Any]
"""`(done, total)`: called by long loops so that a caller can draw a progress bar."""
