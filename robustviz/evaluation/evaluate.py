"""How often a model is right, clean and under attack: one row of decisions for each condition, image by image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice, product
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from robustviz.distributed import processes
from robustviz.evaluation.state import Tally
from robustviz.evaluation.table import CLEAN, RobustnessTable, wilson
from robustviz.fingerprint import fingerprint
from robustviz.networks.folding import Precision, folded
from robustviz.records import describe
from robustviz.tensors import batch_dependent, check_images, check_labels, draw_seed, drawing, evaluating, norms, seeded
from robustviz.types import Attack, Images, Labels, Norm, Threat

__all__ = ["CLEAN", "RobustnessTable", "Sweep", "evaluate", "sweep", "wilson"]


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    repeats: int = 1,
    survivors_only: bool = False,
    fast: bool | Literal["bf16"] = False,
    resume: Path | str | None = None,
    generator: Generator | None = None,
    on_batch: Callable[[str, int, int], Any] | None = None,
) -> RobustnessTable:
    """Measure a model on clean images and under each attack.

    The noise of a batch depends on the seed, the repeat and the number of the batch alone, so the table does not
    depend on which conditions are asked for or who computes them; with `survivors_only` a condition depends on those
    before it.

    Args:
        model: Evaluated in evaluation mode and left as it was.
        images: Test images in [0, 1].
        labels: Their classes.
        attacks: Name of each condition and the attack that makes it, settings fixed with `functools.partial`.
        batch_size: Images at a time. A batch-dependent model answers by these batches, the last one smaller.
        repeats: How often everything is done, with other noise; for random attacks and models.
        survivors_only: Attack only images that every earlier condition left right; the others keep their wrong
            decision and its distance. The worst case is the same and much faster, but a single condition then means
            "up to here".
        fast: Make the attacks on a `folded` copy of the model, with `"bf16"` in bfloat16. Every decision is the
            model's own: an image that fools the copy alone is attacked again on the model. The settings of the table
            hold for each condition on how many images copy and model differed.
        resume: File to keep every finished batch in. If it exists, the evaluation goes on where it stopped, and the
            table has the same bits as without a stop. A closure among the attacks is known by its name alone.
        generator: Source of the seed; None is a fresh one seeded 0.
        on_batch: Called after every batch with (condition, done, total): images so far and in the end, counted over
            all conditions and repeats.

    Raises:
        ValueError: If images, labels or a setting are out of range, a condition is called `clean`, an attack is
            targeted, `survivors_only` or `fast` meets a model whose answers depend on the whole batch, or `resume` is
            a file of another evaluation.
    """
    check_images(images, labels)
    _check(model, attacks, batch_size=batch_size, repeats=repeats, survivors_only=survivors_only, fast=bool(fast))
    settings: dict[str, Any] = {
        "attacks": describe(dict(attacks)),
        "batch_size": batch_size,
        "repeats": repeats,
        "survivors_only": survivors_only,
        "fast": fast,
        "seed": draw_seed(generator),
    }
    conditions = (CLEAN, *attacks)
    known = settings | {"order of attacks": conditions, "attacks": dict(attacks)}
    if resume is not None:
        known |= {
            "model": fingerprint(model, dict(attacks)),
            "images": fingerprint(images),
            "labels": fingerprint(labels),
        }
    tally = Tally(len(conditions), repeats, len(labels), known, resume)
    precision: Precision = "bf16" if fast == "bf16" else "fp32"
    copy = folded(model, precision=precision, images=images[:batch_size]) if fast else None
    batches = torch.split(torch.arange(len(labels)), batch_size)

    def measured(turn: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Attack a batch: which images, what the model decides, how far they moved, how often the copy differs."""
        c, repeat, batch = turn
        rows, attack = batches[batch], attacks[conditions[c]] if c else None
        if survivors_only and c:
            rows = tally.inherit(c, repeat, rows, labels.cpu())
        if not len(rows):
            return rows, rows, torch.zeros(0), 0
        part, noise = images[rows], seeded(settings["seed"], repeat, batch)
        attacked, decided, differing = _decide(model, copy, part, labels[rows], attack, noise)
        return rows, decided.cpu(), norms((attacked - part).detach(), _norm(attack)).float().cpu(), differing

    turns = islice(product(range(len(conditions)), range(repeats), range(len(batches))), tally.done, None)
    for c, of_condition in groupby(turns, itemgetter(0)):
        for (_, repeat, batch), found in processes().work(of_condition, measured):
            if survivors_only and c:
                tally.inherit(c, repeat, batches[batch], labels.cpu())
            tally.add(c, repeat, *found)
            tally.keep()
            if on_batch is not None:
                done = (c * repeats + repeat) * len(labels) + min((batch + 1) * batch_size, len(labels))
                on_batch(conditions[c], done, len(conditions) * repeats * len(labels))
    if fast:
        settings["differing"] = dict(zip(conditions, tally.differing, strict=True))
    return RobustnessTable(conditions, labels.cpu(), tally.predictions, tally.distances, settings)


def _check(model: nn.Module, attacks: Mapping[str, Attack], *, batch_size: int, repeats: int, **alone: bool) -> None:
    """Refuse what cannot be evaluated; `alone` are settings that need one answer for each image."""
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be >= 1, got {batch_size} and {repeats}")
    if CLEAN in attacks:
        raise ValueError(f"attacks must not be called {CLEAN!r}, which names the condition without attack")
    for name, attack in attacks.items():
        if _targeted(attack):
            raise ValueError(
                f"attack {name!r} is targeted at the labels it gets, which are the true ones here and would be helped; "
                "leave targeted out, or use apgd_targeted, which aims at the other classes"
            )
    for name, wanted in alone.items():
        if wanted and batch_dependent(model):
            raise ValueError(f"{name} must be False for a model whose answers depend on the whole batch")


def _targeted(attack: Any) -> bool:
    """Whether an attack, or the one it is made of, has the setting `targeted`."""
    settings = getattr(attack, "keywords", {})
    return bool(settings.get("targeted")) or ("attack" in settings and _targeted(settings["attack"]))


def _decide(
    model: nn.Module, copy: nn.Module | None, images: Images, labels: Labels, attack: Attack | None, noise: Generator
) -> tuple[Images, Labels, int]:
    """Attack one batch and let the model decide; also count where the fast copy, if there is one, decides otherwise."""
    if attack is None:
        return images, _decisions(model, images, labels, noise), 0
    with evaluating(model):
        attacked = attack(model if copy is None else copy, images, labels, generator=noise)
    believed = None if copy is None else _decisions(copy, attacked, labels, noise.clone_state())
    decided = _decisions(model, attacked, labels, noise)
    if believed is None:
        return attacked, decided, 0
    differing, missed = int((believed != decided).sum()), (believed != labels) & (decided == labels)
    if missed.any():
        with evaluating(model):
            again = attack(model, images[missed], labels[missed], generator=noise)
        attacked, decided = attacked.clone(), decided.clone()
        attacked[missed], decided[missed] = again, _decisions(model, again, labels[missed], noise)
    return attacked, decided, differing


def _decisions(model: nn.Module, images: Images, labels: Labels, noise: Generator) -> Labels:
    """Let the model decide in evaluation mode."""
    with evaluating(model), drawing(model, noise), torch.no_grad():
        logits = model(images)
    check_labels(labels, len(images), logits.shape[1])
    if logits.isnan().any():
        raise ValueError("model must return numbers, but its logits contain NaN; did its training diverge?")
    return logits.argmax(1)


def _norm(attack: Attack | None) -> str:
    """Norm in which an attack's perturbation is measured: that of its threat, else its own, else Euclidean."""
    settings = describe(attack)
    while isinstance(settings, dict):
        if isinstance(settings.get("threat"), dict):
            return str(settings["threat"]["norm"])
        if isinstance(settings.get("norm"), str):
            return str(settings["norm"])
        settings = settings.get("attack")  # an attack that is made of another one
    return "l2"


@dataclass(frozen=True)
class Sweep:
    """Accuracy of one model under one attack at growing strength.

    Attributes:
        epsilons: Radii in pixel units, growing; 0 is the clean image.
        conditions: Name of each radius in the table.
        table: The decisions.
    """

    epsilons: tuple[float, ...]
    conditions: tuple[str, ...]
    table: RobustnessTable

    def accuracies(self) -> list[float]:
        """Accuracy at each radius, from 0 to 1."""
        return [self.table.accuracy(condition) for condition in self.conditions]

    def intervals(self) -> list[tuple[float, float]]:
        """Wilson's 95 % interval at each radius."""
        return [self.table.interval(condition) for condition in self.conditions]


def sweep(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attack: Callable[..., Images],
    epsilons: Sequence[float],
    *,
    norm: Norm = "linf",
    **settings: Any,
) -> Sweep:
    """Run one attack at several radii; the other arguments are those of `evaluate`.

    Args:
        model: Evaluated and left as it was.
        images: Test images in [0, 1].
        labels: Their classes.
        attack: Anything that takes `threat`.
        epsilons: Radii in pixel units; 0 stands for the clean images.
        norm: Norm of the radii.
        **settings: Passed to `evaluate`.

    Raises:
        ValueError: As in `evaluate`, or if two radii agree in six digits.
    """
    radii = sorted(set(epsilons) - {0})
    attacks = {f"epsilon {radius:.6g}": partial(attack, threat=Threat(norm, radius)) for radius in radii}
    if len(attacks) < len(radii):
        raise ValueError(f"epsilons must differ in their first six digits, got {radii}")
    measured = evaluate(model, images, labels, attacks, **settings)
    return Sweep((0.0, *radii), measured.conditions, measured)
