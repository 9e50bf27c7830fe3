"""What attacks share: their look at the model, the steepest step, the points of a path, the best point so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from math import inf, isfinite
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from robustviz.objectives import objective_and_logits
from robustviz.tensors import batch_dependent, check_model, evaluating, norms, per_image, shared_copy, wide
from robustviz.types import Images, Labels, Logits, Norm, Objective, PerImage, Threat


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


STORED, SUMMED = 8, 64
"""Rounding errors by which a minimal attack must win: those of the numbers, and those of the sums behind them.

Both count relative to the largest logit; sums of half precision are taken in float32.
"""

OnStep = Callable[[Step], Any]


class Seen(NamedTuple):
    """What an attack sees of a model at some points.

    Attributes:
        values: What the attack raises, one number for each point.
        fooled: Whether the model decides there as the attacker wants.
        logits: What the model answers, without gradient.
    """

    values: PerImage
    fooled: Bool[Tensor, "m"]
    logits: Logits


Look = Callable[[Images, Int[Tensor, "m"]], Seen]
"""`(points, rows)`: asks the model about points that belong to the images `rows`; one forward pass."""


def looking(
    model: nn.Module,
    labels: Labels,
    objective: Objective,
    targeted: bool,
    generator: Generator | None,
    *,
    choosing: bool = True,
) -> Look:
    """Make the look of an attack: an objective that is raised, or lowered towards the labels of a targeted attack.

    Args:
        model: The model; in evaluation mode by now.
        labels: Classes of all images.
        objective: What is raised or lowered.
        targeted: Whether `labels` are where the attacker wants to go.
        generator: Handed to the objective.
        choosing: Whether the attack chooses between points by what it sees. Of a batch-dependent model it then sees
            what the model answers to one image at a time, because points of different batches compete, with the
            gradient through the whole batch; that costs a second forward pass.
    """
    judge = one_at_a_time(model) if choosing else model

    def look(points: Images, rows: Int[Tensor, "m"]) -> Seen:
        values, logits = objective_and_logits(objective, model, points, labels[rows], generator)
        if judge is not model:
            with torch.no_grad():
                alone, logits = objective_and_logits(objective, judge, points.detach(), labels[rows], generator)
            values = straight_through(alone, values)
        return Seen(-values if targeted else values, (logits.argmax(1) == labels[rows]) == targeted, logits)

    return look


def straight_through(values: Float[Tensor, "..."], moving: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the first values with the gradient of the second."""
    return values + (moving - moving.detach())


def report(on_step: OnStep | None, restart: int, step: int, points: Images, seen: Seen, targeted: bool = False) -> None:
    """Call `on_step`, if there is one, with a point of the path as the attack sees it."""
    if on_step is not None:
        values = seen.values.detach()
        on_step(Step(restart, step, points, -values if targeted else values, seen.fooled))


def sure(logits: Logits, points: Images) -> PerImage:
    """Return the margin from which on a decision is no matter of rounding.

    The same image gets slightly other logits in another batch, on another device or in another memory layout. An
    attack that looks for the nearest image ends where logits tie, and must go beyond.
    """
    stored = max(torch.finfo(logits.dtype).eps, torch.finfo(points.dtype).eps)
    summed = min(stored, torch.finfo(torch.float32).eps)
    return (STORED * stored + SUMMED * summed) * logits.abs().amax(1).to(wide(points).dtype)


@contextmanager
def attacking(
    model: nn.Module, images: Images, labels: Labels, *, gradients: bool = True
) -> Iterator[tuple[Images, Labels]]:
    """Attack a model in evaluation mode, with or without gradients, also inside `torch.no_grad` and inference mode.

    Yields:
        Images and labels without history, as autograd can use them.

    Raises:
        TypeError: If the model is not a module.
        ValueError: If gradients are needed and the model itself was made in inference mode.
    """
    check_model(model)
    if gradients and any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "model must be made outside torch.inference_mode(), because its tensors keep no gradient there"
        )
    with evaluating(model), torch.inference_mode(False), torch.set_grad_enabled(gradients):
        images, labels = (values.clone() if values.is_inference() else values for values in (images, labels))
        yield images.detach(), labels


def one_at_a_time(model: nn.Module) -> nn.Module:
    """Return the model as it answers one image at a time.

    A batch-dependent module offers this form of itself by a method `alone()`; weights are shared. A model that has no
    such form, or no need of it, is returned itself.
    """
    check_model(model)
    joint = [module for module in model.modules() if getattr(module, "batch_dependent", False)]
    if not joint or not all(hasattr(module, "alone") for module in joint):
        return model
    return shared_copy(model, {module: cast(Any, module).alone() for module in joint})


def check_early_exit(early_exit: bool, model: nn.Module, images: Images, on_step: OnStep | None) -> None:
    """Refuse `early_exit` where images may not leave.

    Raises:
        ValueError: With the reason.
    """
    if early_exit and on_step is not None:
        raise ValueError("early_exit must be False with on_step, because a trace follows every image to the end")
    if early_exit and batch_dependent(model, images):
        raise ValueError("early_exit must be False for a model whose answers depend on the whole batch")


class Best:
    """The best point found so far for each image: one that fools goes before one that does not, then the score decides.

    Args:
        images: Kept until something better is offered.
        score: What the images themselves count: 0 where the score is minus the distance, else minus infinity.

    Attributes:
        images: The best points.
        fooled: Whether the model decides there as the attacker wants.
        score: Their scores; larger is better.
        everyone: The indices of all images.
    """

    def __init__(self, images: Images, score: float = -inf):
        self.images = images.clone()
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.score = wide(images.new_zeros(len(images))) + score
        self.everyone = torch.arange(len(images), device=images.device)

    def offer(self, rows: Int[Tensor, "m"], points: Images, fooled: Bool[Tensor, "m"], score: PerImage) -> None:
        """Keep those of the offered points that are better than what is kept for the images `rows`."""
        before, height = self.fooled[rows], self.score[rows]
        score = score.detach()
        better = (fooled & ~before) | ((fooled == before) & (score > height))
        kept = rows[better]
        self.images[kept], self.fooled[kept], self.score[kept] = points[better], fooled[better], score[better]

    def open(self) -> Int[Tensor, "m"]:
        """Return the indices of the images that do not fool yet."""
        return self.everyone[~self.fooled]


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


def steepest(gradient: Images, norm: Norm) -> Images:
    """Return the step of length 1 along which a value with this gradient rises most: sign(g), or g / ||g||_2 in L2.

    A gradient of zero gives no step. Half precision becomes float32.
    """
    return wide(gradient).sign() if norm == "linf" else normalized(gradient, 2)


def steepness(gradient: Images, norm: Norm) -> PerImage:
    """Return how much a value with this gradient rises along that step: the dual norm, ||g||_1 or ||g||_2; never 0."""
    scaled, scale = _in_range(gradient)
    dual = scaled.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1) * scale.flatten()
    return dual.clamp_min(torch.finfo(dual.dtype).tiny)


def normalized(gradient: Images, order: int) -> Images:
    """Divide each gradient by its mean absolute value (order 1) or Euclidean length (2); one of zero stays zero."""
    scaled, _ = _in_range(gradient)
    flat = scaled.flatten(1)
    length = flat.abs().mean(1) if order == 1 else flat.norm(dim=1)
    return scaled / per_image(length.clamp_min(torch.finfo(flat.dtype).tiny), scaled)


def _in_range(gradient: Images) -> tuple[Images, Float[Tensor, "n 1 1 1"]]:
    """Return gradients and the factors they were divided by: 1, unless squares or sums would leave the number range."""
    gradient = wide(gradient)
    peak = gradient.flatten(1).abs().amax(1)
    scale = per_image(torch.where((peak > 1e16) | ((peak < 1e-18) & (peak > 0)), peak, 1), gradient)
    return gradient / scale, scale
