"""What attacks share that look at many points and keep the best of them."""

from collections.abc import Callable
from math import inf, isfinite

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from robustviz.tensors import batch_dependent
from robustviz.types import Images, PerImage

Look = Callable[[Images, Int[Tensor, "m"]], tuple[PerImage, Bool[Tensor, "m"]]]
"""`(points, rows)`: what is raised, at points that belong to the images `rows`, and whether the model is fooled."""


class Best:
    """The best point found so far for each image: one that fools goes before one that does not, then the score decides.

    Where the answers of the model depend on the whole batch, points of different batches may not be mixed. Whole
    batches are compared there: first by how many images fool, then by the mean score.

    Args:
        model: Asked only whether its answers depend on the batch.
        images: Kept until something better is offered.
        score: What the images themselves count: 0 where the score is minus the distance, else minus infinity.

    Attributes:
        images: The best points.
        fooled: Whether the model decides there as the attacker wants.
        score: Their scores; larger is better.
        together: Whether whole batches are compared.
    """

    def __init__(self, model: nn.Module, images: Images, score: float = -inf):
        self.images = images.clone()
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.score = images.new_full((len(images),), score)
        self.together = batch_dependent(model)

    def offer(self, rows: Int[Tensor, "m"], images: Images, fooled: Bool[Tensor, "m"], score: PerImage) -> None:
        """Keep those of the offered points that are better than what is kept for the images `rows`."""
        before, height = self.fooled[rows], self.score[rows]
        better = (fooled & ~before) | ((fooled == before) & (score > height))
        if self.together:
            rank = [(int(won.sum()), float(value.mean())) for won, value in ((fooled, score), (before, height))]
            better = torch.full_like(better, rank[0] > rank[1])
        kept = rows[better]
        self.images[kept], self.fooled[kept], self.score[kept] = images[better], fooled[better], score[better]

    def open(self) -> Int[Tensor, "m"]:
        """Return the indices of the images that do not fool yet; of all images, if whole batches are compared."""
        return (~self.fooled | self.together).nonzero().squeeze(1)


def whole(mask: Bool[Tensor, "m"]) -> Bool[Tensor, "m 1 1 1"]:
    """View one truth value per image so that it chooses whole images."""
    return mask[:, None, None, None]


def at_least(least: float | int, **settings: float | int) -> None:
    """Refuse settings that are not finite or lie below `least`.

    Raises:
        ValueError: With the name, the rule and the value.
    """
    for name, value in settings.items():
        if not (isfinite(value) and value >= least):
            raise ValueError(f"{name} must be finite and >= {least}, got {value}")
