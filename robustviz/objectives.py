"""Objectives: one number for each image that the trainer lowers and the attacker raises.

Each is a plain function `(model, images, labels, /, *, generator=None) -> (n,)`; pass it to `train` or to an attack.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robustviz.checks import check_labels, check_logits
from robustviz.tensors import evaluating
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

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690.
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
    objective never passes them, one more forward pass is made. The model gets a copy at every pass, because it may
    write into what it is given.

    Returns:
        The objective (n,) with its gradient, in the dtype of the images but in float32 at least, and the logits
        (n, K) without, as the model gave them.

    Raises:
        ValueError: If the model does not return logits of shape (n, K), or a label is not below K.
    """
    asked: list[bool] = []
    seen: list[Logits] = []

    def copy(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        asked.append(bool(inputs) and inputs[0] is images)
        return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)

    def remember(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if asked.pop():
            logits = check_logits(output, len(images))
            check_labels(labels, len(images), logits.shape[1])
            seen.append(logits.detach())

    if isinstance(model, torch.jit.ScriptModule):  # takes no hooks itself
        model = nn.Sequential(model)
    hooks = model.register_forward_pre_hook(copy, prepend=True), model.register_forward_hook(remember)
    try:
        values = objective(model, images, labels, generator=generator)
        if not seen:
            with torch.no_grad():
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return values.to(torch.promote_types(images.dtype, torch.float32)), seen[-1]


Heads = Callable[..., list[tuple[float, Logits]]]
"""`(model, images, labels, /) -> [(weight, logits), ...]`: the decisions of a network that an objective counts.

An ordinary classifier takes one (`final`); a network with auxiliary classifiers takes several in one forward pass.
"""


def final(model: nn.Module, images: Images, labels: Labels, /) -> list[tuple[float, Logits]]:
    """Give the one decision of an ordinary classifier, with weight 1."""
    return [(1.0, model(images))]


def over_heads(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    objective: Objective,
    heads: Heads = final,
    generator: Generator | None = None,
) -> PerImage:
    """Apply an objective of one decision to every decision and add the values by their weights; one forward pass."""
    decisions = heads(model, images, labels)
    values = [weight * objective(_Known(logits), images, labels, generator=generator) for weight, logits in decisions]
    return torch.stack(values).sum(0)


def kl(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    reference: list[tuple[float, Logits]],
    heads: Heads = final,
    generator: Generator | None = None,
) -> PerImage:
    """How far the predicted probabilities are from those of the reference: `divergence(reference, now)`, in nats.

    At the reference itself the gradient is 0, so an attack needs a random start.

    Args:
        model: Maps images to logits.
        images: Where the prediction is taken.
        labels: Only handed on to `heads`.
        reference: What `heads` gave for the images to compare with, one row for each of `images`.
        heads: The decisions that count, by the weights of `reference`.
        generator: Not used.

    Raises:
        ValueError: If reference and images differ in number, as when an attack with early exit drops images.
    """
    if any(len(logits) != len(images) for _, logits in reference):
        raise ValueError(f"reference must have one row for each of {len(images)} images; attack without early_exit")
    pairs = zip(reference, heads(model, images, labels), strict=True)
    return torch.stack([weight * divergence(before, after) for (weight, before), (_, after) in pairs]).sum(0)


def trades(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    attack: Callable[..., Images],
    factor: float = 6.0,
    heads: Heads = final,
    generator: Generator | None = None,
) -> PerImage:
    """TRADES: cross-entropy of the clean image, plus a penalty on what the worst nearby image changes.

    The objective holds its own attack, so a trainer passes clean images:
    `partial(trades, attack=partial(pgd, threat=LINF_8, steps=10, step_size=2 / 255))`.

    Args:
        model: Maps images to logits; the loss is taken in its present mode, the attack in evaluation mode.
        images: Clean images.
        labels: True classes.
        attack: Called with a further keyword `objective`, the divergence from the clean prediction. It starts at
            random in the ball (published: Gaussian noise of deviation 0.001), because at the image the gradient is 0.
        factor: Weight of the penalty, 1 / lambda of the paper; 6 is its value for CIFAR-10.
        heads: The decisions that count.
        generator: Source of the attack's draws.

    Source: Zhang et al., "Theoretically principled trade-off between robustness and accuracy", arXiv 1901.08573,
    algorithm 1.
    """
    with evaluating(model), torch.no_grad():
        reference = heads(model, images, labels)
    raised = partial(kl, reference=reference, heads=heads)
    with evaluating(model):
        attacked = attack(model, images, labels, objective=raised, generator=generator)
    return _paired(partial(trades_loss, factor=factor), model, images, attacked, labels, heads)


def mart(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    attack: Callable[..., Images],
    factor: float = 5.0,
    heads: Heads = final,
    generator: Generator | None = None,
) -> PerImage:
    """MART: a boosted cross-entropy of the attacked image, plus a penalty that counts most where the clean one fails.

    Like `trades` it holds its own attack, here on cross-entropy. Arguments are those of `trades`. Of several
    decisions, each is weighed by its own probability of the true class.

    Source: Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020,
    the MART risk; factor 5 as used with CAS (arXiv 2103.08307).
    """
    raised = partial(over_heads, objective=cross_entropy, heads=heads)
    with evaluating(model):
        attacked = attack(model, images, labels, objective=raised, generator=generator)
    return _paired(partial(mart_loss, factor=factor), model, images, attacked, labels, heads)


def divergence(before: Logits, after: Logits) -> PerImage:
    """Kullback-Leibler divergence KL(softmax(before) || softmax(after)), in nats."""
    return F.kl_div(after.log_softmax(1), before.log_softmax(1), reduction="none", log_target=True).sum(1)


def trades_loss(clean: Logits, attacked: Logits, labels: Labels, *, factor: float) -> PerImage:
    """Return -log p_y + factor * KL(p || q) with p from the clean and q from the attacked logits."""
    return F.cross_entropy(clean, labels, reduction="none") + factor * divergence(clean, attacked)


def mart_loss(clean: Logits, attacked: Logits, labels: Labels, *, factor: float) -> PerImage:
    """Return -log q_y - log(1 - max of q over wrong classes) + factor * KL(p || q) * (1 - p_y).

    1 - q_k is the sum of the other probabilities, so its logarithm is taken without cancellation.
    """
    wrong = attacked.scatter(1, labels[:, None], -torch.inf).argmax(1, keepdim=True)
    boost = attacked.logsumexp(1) - attacked.scatter(1, wrong, -torch.inf).logsumexp(1)
    unsure = 1 - clean.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return F.cross_entropy(attacked, labels, reduction="none") + boost + factor * divergence(clean, attacked) * unsure


def _paired(
    loss: Callable[..., PerImage], model: nn.Module, images: Images, attacked: Images, labels: Labels, heads: Heads
) -> PerImage:
    """Weighted sum of a loss of clean and attacked logits over the decisions of a network."""
    pairs = zip(heads(model, images, labels), heads(model, attacked, labels), strict=True)
    return torch.stack([weight * loss(clean, moved, labels) for (weight, clean), (_, moved) in pairs]).sum(0)


class _Known(nn.Module):
    """Stands in for a model whose logits are there already."""

    def __init__(self, logits: Logits):
        super().__init__()
        self.logits = logits

    def forward(self, images: Images) -> Logits:
        """Return the logits, whatever the images."""
        return self.logits
