"""What attacks share: the points of their path, the gradient to the pixels, and the best point found so far."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from math import inf, isfinite
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from robustviz.tensors import batch_dependent, norms, per_image
from robustviz.types import Images, PerImage, Threat


@dataclass(frozen=True)
class Step:
    """One point of an attack's path, handed to `on_step`.

    Attributes:
        restart: Which restart, from 0.
        step: Updates made so far: 0 is the start, the last one is what the restart ends with.
        images: Where the attack stands.
        objective: Its value there, one number for each image.
        fooled: Whether the model decides there as the attacker wants.
    """

    restart: int
    step: int
    images: Images
    objective: PerImage
    fooled: Bool[Tensor, "n"]


OnStep = Callable[[Step], Any]

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


def threat_of(attack: Any) -> Threat | None:
    """Read off the threat of an attack: its setting `threat`, else that of the attack it is made of, else None.

    Args:
        attack: A function or partial; defaults count too.
    """
    parameters = signature(attack).parameters if callable(attack) else {}
    threat = parameters["threat"].default if "threat" in parameters else None
    if isinstance(threat, Threat):
        return threat
    return threat_of(parameters["attack"].default) if "attack" in parameters else None


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


def random_perturbation(images: Images, threat: Threat, generator: Generator) -> Images:
    """Draw a perturbation uniformly from the ball, on the generator's device, then move it to the images'."""
    draw: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": images.dtype}
    if threat.norm == "linf":
        return (threat.epsilon * (2 * torch.rand(images.shape, **draw) - 1)).to(images.device)
    direction = torch.randn(images.shape, **draw)
    radius = torch.rand(len(images), **draw) ** (1 / images[0].numel())
    length = norms(direction, "l2").clamp_min(torch.finfo(images.dtype).tiny)
    return (direction * per_image(threat.epsilon * radius / length, direction)).to(images.device)


def pixel_gradient(values: PerImage, images: Images) -> Images:
    """Take the gradient of each value with respect to its own pixels; where it is not a number, it is 0.

    Args:
        values: One number per image, each made from that image; a batch-dependent model adds them up.
        images: The leaf tensor that they were made from.

    Raises:
        ValueError: If the values do not depend on the images.
    """
    if not values.requires_grad:
        raise ValueError("objective must have a gradient with respect to the images, but the model cuts it off")
    return torch.autograd.grad(values.sum(), images)[0].nan_to_num(0)


def lengths(gradient: Images, order: int) -> Tensor:
    """Measure each gradient, as (n, 1, 1, 1) to divide by: its mean absolute value (order 1) or Euclidean length (2).

    Never 0, so that a gradient that vanishes is left as it is.
    """
    flat = gradient.flatten(1)
    length = flat.abs().mean(1) if order == 1 else flat.norm(dim=1)
    return per_image(length.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
