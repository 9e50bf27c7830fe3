"""What an attack of the checks came to: its images, and how the network decides there."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from robustviz.types import Images

Right = Bool[Tensor, "n"]
"""Whether the decision on each image is correct."""


@dataclass(frozen=True)
class Outcome:
    """What one attack made, and how the network decides there.

    Attributes:
        images: The attacked images.
        right: Whether each decision is correct; an image outside the ball does not count as fooled.
    """

    images: Images
    right: Right


@dataclass(frozen=True)
class Walk:
    """What PGD went through.

    Attributes:
        ends: Where each restart ends; a random network decides there under fresh draws.
        lost: Whether the first restart passed a wrong decision and ended where the attack saw a correct one.
    """

    ends: tuple[Outcome, ...]
    lost: Right

    @property
    def right(self) -> Bool[Tensor, "restarts n"]:
        """Whether each decision is correct where each restart ends."""
        return torch.stack([end.right for end in self.ends])
