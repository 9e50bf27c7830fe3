"""One batch: attacked within the rules, and answered by the model."""

from typing import Any

import torch
from torch import Generator, nn

from robustviz.attacks.common import threat_of
from robustviz.checks import check_attacked, check_labels, logits_of
from robustviz.records import describe
from robustviz.tensors import batch_dependent, drawing, evaluating, stochastic
from robustviz.types import Attack, Images, Labels

_DRAWS = 16
"""How often a random or batch-dependent model answers unless the caller says otherwise."""


def usual_draws(model: nn.Module) -> int:
    """How often a model must answer the same images: once if it is deterministic, else 16 times."""
    return _DRAWS if stochastic(model) or batch_dependent(model) else 1


def attack_batch(
    model: nn.Module, copy: nn.Module | None, images: Images, labels: Labels, attack: Attack | None, noise: Generator
) -> tuple[Images, Labels | None, int]:
    """Attack one batch, on the fast copy if there is one; what fools the copy alone is attacked again on the model.

    Returns:
        The images; what the model decides, if it was asked; on how many the copy decides otherwise.
    """
    if attack is None:
        return images, None, 0
    with evaluating(model):
        attacked = attack(model if copy is None else copy, images, labels, generator=noise)
    if copy is None:
        return attacked, None, 0
    believed = decisions(copy, attacked, labels, noise.clone_state())
    decided = decisions(model, attacked, labels, noise)
    differing, missed = int((believed != decided).sum()), (believed != labels) & (decided == labels)
    if missed.any():
        with evaluating(model):
            again = attack(model, images[missed], labels[missed], generator=noise)
        attacked, decided = attacked.clone(), decided.clone()
        attacked[missed], decided[missed] = again, decisions(model, again, labels[missed], noise)
    return attacked, decided, differing


def checked_model(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    name: str,
    attack: Attack,
    generator: Generator | None = None,
) -> Images:
    """Run an attack and refuse images that it may not make."""
    attacked = attack(model, images, labels, generator=generator)
    try:
        check_attacked(images, attacked, threat_of(attack))
    except (TypeError, ValueError) as error:
        raise type(error)(f"attack {name!r}: {error}") from error
    return attacked


def decisions(model: nn.Module, images: Images, labels: Labels, noise: Generator) -> Labels:
    """Let the model decide in evaluation mode.

    Raises:
        ValueError: If it does not return logits, they contain NaN, or there are fewer of them than classes.
    """
    with evaluating(model), drawing(model, noise), torch.no_grad():
        logits = logits_of(model, images)
    check_labels(labels, len(images), logits.shape[1])
    if logits.isnan().any():
        raise ValueError("model must return numbers, but its logits contain NaN; did its training diverge?")
    return logits.argmax(1)


def norm_of(attack: Any) -> str:
    """Norm in which an attack's perturbation is measured: that of its threat, else its own, else Euclidean."""
    settings = describe(attack)
    while isinstance(settings, dict):
        if isinstance(settings.get("threat"), dict):
            return str(settings["threat"]["norm"])
        if isinstance(settings.get("norm"), str):
            return str(settings["norm"])
        settings = settings.get("attack")  # an attack that is made of another one
    return "l2"
