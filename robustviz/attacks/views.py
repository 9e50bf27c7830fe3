"""Adaptive attacks: made on another view of the model, scored on the model itself.

A defense whose gradient is missing, borrowed or masked looks robust to an attack that follows it. A view shows the
attack a model with a more useful gradient: `against(model, images, labels, view=..., attack=...)`. No single view is
enough; the worst case over several is what a defense withstands.

Source: Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", arXiv 1802.00420; Tramer et
al., "On adaptive attacks to adversarial example defenses", arXiv 2002.08347.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from robustviz.objectives import logit_margin
from robustviz.tensors import shared_copy
from robustviz.types import Attack, Images, Labels, PerImage

View = Callable[[Any], nn.Module]
"""Takes the model to one that decides alike, or nearly so, and has another gradient; the weights are shared."""


def against(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    view: View,
    attack: Attack,
    generator: Generator | None = None,
) -> Images:
    """Run an attack on a view of the model; whoever evaluates the result does so on the model.

    Args:
        model: The defended model.
        images: Clean images in [0, 1].
        labels: Their classes.
        view: What the attack sees; a function or partial of this file, or of your own.
        attack: Any attack, its settings fixed with `functools.partial`.
        generator: Handed to the attack.

    Returns:
        The attack's images.
    """
    return attack(view(model), images, labels, generator=generator)


def combined(model: Any, *, views: Sequence[View]) -> nn.Module:
    """View: several views, one after the other."""
    for view in views:
        model = view(model)
    return model


def identity_backward(model: Any) -> nn.Module:
    """View (BPDA): images are purified, but the gradient passes the purifier as if it were not there.

    Source: Athalye, Carlini & Wagner, arXiv 1802.00420, section 4.1.
    """
    return model.replace(purify=_IdentityBackward(model.purify))


def surrogate_head(model: Any, *, logarithm: bool = False) -> nn.Module:
    """View: a WNLL head with the gradient of the linear head beside it, as published.

    Args:
        model: Classifier with a WNLL head.
        logarithm: Let the objective see log u instead of u, which is the more fitting gradient of the two.
    """
    return model.replace(head=model.head.with_settings(gradient="surrogate-log" if logarithm else "surrogate"))


def exact_head(model: Any) -> nn.Module:
    """View: a WNLL head with its exact gradient, whatever gradient the model itself has."""
    return model.replace(head=model.head.with_settings(gradient="exact"))


def wide_graph(neighbors: int) -> View:
    """Make a view: a WNLL head on a wider graph, with exact gradient.

    Where all neighbors of an image are of one class the gradient is zero; with more neighbors (60, 150, 200) it is not.
    """
    return partial(wider_head, neighbors=neighbors)


def wider_head(model: Any, *, neighbors: int) -> nn.Module:
    """Evaluate the view that `wide_graph` makes: K = `neighbors`, and half of it for the scale."""
    scale_neighbor = max(1, neighbors // 2)
    head = model.head.with_settings(gradient="exact", neighbors=neighbors, scale_neighbor=scale_neighbor)
    return model.replace(head=head)


def alone_head(model: Any) -> nn.Module:
    """View: a WNLL head that answers one image at a time, with exact gradient."""
    return model.replace(head=model.head.with_settings(gradient="exact", joint=False))


def linear_head(model: Any) -> nn.Module:
    """View: the linear head beside a WNLL head; the attack then transfers from it."""
    if model.head.linear is None:
        raise ValueError("head must have a linear head beside it, got none")
    return model.replace(head=model.head.linear)


def soft_mask(temperature: float = 1.0) -> View:
    """Make a view (BPDA): channel masks are chosen by argmax as ever, the gradient goes through a soft choice of them.

    Args:
        temperature: Temperature of the softmax over the channel logits; large values mix all masks, small ones leave no
            gradient.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    return partial(softly_masked, temperature=temperature)


def softly_masked(model: Any, *, temperature: float) -> nn.Module:
    """Evaluate the view that `soft_mask` makes."""
    view: nn.Module = shared_copy(model)
    masks: list[Any] = [module for module in view.modules() if hasattr(module, "mask_temperature")]
    if not masks:
        raise ValueError("model must choose channel masks (mask_temperature), got one that does not")
    for module in masks:
        module.mask_temperature = temperature
    return view


def probability_margin(
    model: nn.Module, images: Images, labels: Labels, /, *, generator: Generator | None = None
) -> PerImage:
    """How far the most probable wrong class stands above the label, from -1 to 1.

    For a WNLL head with its exact gradient the probabilities are u itself, and this is max u_c - u_y.
    """
    return logit_margin(model(images).softmax(1), labels)


class _IdentityBackward(nn.Module):
    """Wrap a module: its output forward, the identity backward."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, images: Images) -> Images:
        with torch.no_grad():
            output: Tensor = self.module(images)
        return output.detach() + (images - images.detach())
