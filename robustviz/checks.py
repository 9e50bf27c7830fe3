"""What may go in and what may come out: images, labels, logits and attacked images, refused in words."""

from typing import Any

import torch
from torch import Tensor, nn

from robustviz.tensors import distances, wide
from robustviz.types import Images, Labels, Logits, Threat

FORGIVEN = 1e-3 / 255
"""By how much rounding may carry a pixel out of its bounds: a thousandth of a gray level."""


def logits_of(model: nn.Module, images: Images) -> Logits:
    """Pass a copy of the images through the model, which may write into it, and `check_logits`."""
    return check_logits(model(images.clone()), len(images))


def check_logits(output: Any, count: int) -> Logits:
    """Return what a model answered for `count` images, if it is logits.

    Raises:
        ValueError: If it is not a floating-point tensor (count, classes) with at least two classes.
    """
    if not isinstance(output, Tensor):
        remedy = "wrap it in a module that returns the tensor of logits alone"
        raise ValueError(f"model must return logits of shape ({count}, classes), got {type(output).__name__}; {remedy}")
    if output.dim() != 2 or len(output) != count:
        raise ValueError(f"model must return logits of shape ({count}, classes), got {tuple(output.shape)}")
    if not output.is_floating_point():
        raise ValueError(f"model must return floating-point logits, got {output.dtype}")
    if output.shape[1] < 2:
        raise ValueError(
            f"model must return a logit for each of at least two classes, got shape {tuple(output.shape)}; a network "
            "with one logit z decides between the logits (0, z): return torch.cat([torch.zeros_like(z), z], 1)"
        )
    return output


def check_attacked(images: Images, attacked: Any, threat: Threat | None = None) -> None:
    """Refuse what an attack may not return: another shape, NaN, pixels outside [0, 1], points outside the ball.

    Args:
        images: The images that were attacked.
        attacked: What the attack made of them.
        threat: The ball; None checks all but this. A thousandth of a gray level is forgiven, for rounding.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it is out of shape or range; with the rule, the value and the remedy.
    """
    if not isinstance(attacked, Tensor) or not attacked.is_floating_point():
        kind = attacked.dtype if isinstance(attacked, Tensor) else type(attacked).__name__
        raise TypeError(f"attacked images must be a floating-point tensor, got {kind}")
    if attacked.shape != images.shape:
        raise ValueError(f"attacked images must have the shape {tuple(images.shape)}, got {tuple(attacked.shape)}")
    if not attacked.numel():
        return
    low, high = (bound.item() for bound in wide(attacked.detach()).aminmax())
    if not (low >= -FORGIVEN and high <= 1 + FORGIVEN):
        raise ValueError(f"attacked images must lie in [0, 1], but reach from {low:.4g} to {high:.4g}; clip them")
    farthest = 0.0 if threat is None else distances(images, attacked.detach(), threat.norm).max().item()
    if threat is not None and farthest > threat.epsilon * (1 + 1e-4) + FORGIVEN:
        raise ValueError(
            f"attacked images must lie within {threat.norm} distance {threat.epsilon:.4g} of the images, but one is at "
            f"{farthest:.4g}; project them (tensors.project), or wrap the attack in attacks.bounded"
        )


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
