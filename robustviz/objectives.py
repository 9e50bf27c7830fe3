"""Objectives: one number for each image that the trainer lowers and the attacker raises.

Each is a plain function `(model, images, labels, /, *, generator=None) -> (n,)`; pass it to `train` or to an attack.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robustviz.tensors import check_labels
from robustviz.types import Images, Labels, Logits, Objective, PerImage


def cross_entropy(
    model: nn.Module, images: Images, labels: Labels, /, *, generator: Generator | None = None
) -> PerImage:
    """Negative log-probability of the label, in nats; at least 0."""
    return F.cross_entropy(model(images), labels, reduction="none")


def margin(model: nn.Module, images: Images, labels: Labels, /, *, generator: Generator | None = None) -> PerImage:
    """How far the best wrong logit stands above the label's; positive exactly when the decision is wrong.

    Unlike cross-entropy it has no saturation: logits of any size give a gradient.

    Source: Carlini & Wagner, "Towards evaluating the robustness of neural networks", arXiv 1608.04644, section V.
    """
    return logit_margin(model(images), labels)


def dlr(model: nn.Module, images: Images, labels: Labels, /, *, generator: Generator | None = None) -> PerImage:
    """Margin divided by the gap between the largest and the third largest logit: unchanged when logits are rescaled.

    With fewer than three classes there is no third logit, and the plain margin is returned.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690, section 4.1.
    """
    logits = model(images)
    if logits.shape[1] < 3:
        return logit_margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return logit_margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def logit_margin(logits: Logits, labels: Labels) -> PerImage:
    """Largest logit of a wrong class minus the logit of the label."""
    index = labels[:, None]
    others = logits.scatter(1, index, -torch.inf).amax(1)
    return others - logits.gather(1, index).squeeze(1)


def objective_and_logits(
    objective: Objective, model: nn.Module, images: Images, labels: Labels, generator: Generator | None = None
) -> tuple[PerImage, Logits]:
    """Evaluate an objective and keep the logits that its forward pass made, so that one pass serves both.

    An objective may pass other images through the model too; the logits returned are those of `images`. Where the
    objective never passes them, one more forward pass is made.

    Returns:
        The objective (n,) with its gradient, and the logits (n, K) without.

    Raises:
        ValueError: If the model does not return logits of shape (n, K), or a label is not below K.
    """
    seen: list[Logits] = []

    def remember(module: nn.Module, inputs: tuple[object, ...], output: Logits) -> None:
        if inputs and inputs[0] is images:
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"model must return logits of shape ({len(images)}, classes), got {shape}")
            check_labels(labels, len(images), output.shape[1])
            seen.append(output.detach())

    hook = model.register_forward_hook(remember)
    try:
        values = objective(model, images, labels, generator=generator)
        if not seen:
            with torch.no_grad():
                model(images)
    finally:
        hook.remove()
    return values, seen[-1]
