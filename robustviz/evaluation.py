"""How often a model is right, clean and under attack: one row of decisions for each condition, image by image."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from robustviz.records import describe, table, write_whole
from robustviz.tensors import batch_dependent, check_images, check_labels, draw_seed, drawing, evaluating, norms, seeded
from robustviz.types import Attack, Images, Labels, Norm, Threat

CLEAN = "clean"
"""Name of the condition without attack; it always comes first."""


@dataclass(frozen=True)
class RobustnessTable:
    """Decisions of one model on the same images under several conditions; every number is derived from them.

    Robust accuracy is an upper bound: a stronger attack may find more.

    Attributes:
        conditions: Names, the clean images first.
        labels: True classes (n,).
        predictions: Decision for condition c, repeat r and image n.
        distances: Size of the perturbation for condition c and image n, the largest over the repeats, in the norm of
            the attack's threat (Euclidean for attacks without a threat).
        settings: How each condition was made, batch size and seed included.
    """

    conditions: tuple[str, ...]
    labels: Labels
    predictions: Int[Tensor, "c r n"]
    distances: Float[Tensor, "c n"]
    settings: dict[str, Any]

    @property
    def correct(self) -> Bool[Tensor, "c r n"]:
        """Whether each decision is right."""
        return self.predictions == self.labels

    def accuracy(self, condition: str | None = None, *, within: float | None = None) -> Any:
        """Share of right decisions, averaged over repeats, from 0 to 1.

        Args:
            condition: Name of one condition; None gives a dictionary of all.
            within: Count an image as fooled only if its perturbation is at most so long; for attacks that look for
                the nearest adversarial image without a limit.

        Raises:
            ValueError: If the condition is unknown.
        """
        if condition is None:
            return {name: self.accuracy(name, within=within) for name in self.conditions}
        right = self._row(condition)
        if within is not None:
            # Rounding of pixels makes a perturbation longer by less than a millionth.
            right = right | (self.distances[self.conditions.index(condition)] > within + 1e-6)
        return right.double().mean().item()

    def worst_case(self) -> float:
        """Share of images that are right under every condition and in every repeat, from 0 to 1."""
        return self.correct.all(0).all(0).double().mean().item()

    def spread(self, condition: str) -> float:
        """Standard deviation of the accuracy over the repeats; 0 for a single one."""
        shares = self._row(condition).double().mean(1)
        return shares.std().item() if len(shares) > 1 else 0.0

    def interval(self, condition: str) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy: what the finite number of images leaves open.

        Repeats on the same images are averaged and do not make it narrower.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
        """
        return wilson(self.accuracy(condition), len(self.labels))

    def to_markdown(self) -> str:
        """Give the table as Markdown that is also readable as plain text; percentages."""
        rows = []
        for index, condition in enumerate(self.conditions):
            low, high = self.interval(condition)
            rows.append(
                [
                    condition,
                    f"{self.accuracy(condition):.1%}",
                    f"{low:.1%} - {high:.1%}",
                    f"{self.distances[index].double().median():.3f}",
                ]
            )
        low, high = wilson(self.worst_case(), len(self.labels))
        rows.append(["worst case per image", f"{self.worst_case():.1%}", f"{low:.1%} - {high:.1%}", ""])
        return table([f"condition ({len(self.labels)} images)", "accuracy", "95 % interval", "median distance"], rows)

    def to_json(self, path: Path | str | None = None) -> str:
        """Give everything as JSON, one entry for each image, and write it to a file if one is named."""
        content = asdict(self) | {
            "labels": self.labels.tolist(),
            "predictions": self.predictions.tolist(),
            "distances": self.distances.tolist(),
        }
        text = json.dumps(content)
        if path is not None:
            write_whole(path, text)
        return text

    @classmethod
    def from_json(cls, text: str) -> "RobustnessTable":
        """Read what `to_json` gave.

        Raises:
            ValueError: If the text is something else.
        """
        try:
            content = json.loads(text)
            return cls(
                tuple(content["conditions"]),
                torch.tensor(content["labels"]),
                torch.tensor(content["predictions"]),
                torch.tensor(content["distances"]),
                content["settings"],
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"text is not a robustness table: {error!r}") from error

    def _row(self, condition: str) -> Bool[Tensor, "r n"]:
        if condition not in self.conditions:
            raise ValueError(f"condition must be one of {', '.join(self.conditions)}, got {condition!r}")
        return self.correct[self.conditions.index(condition)]


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval that holds the true share with 95 % confidence, given the share among `count` draws."""
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, center - half), min(1.0, center + half)


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    repeats: int = 1,
    survivors_only: bool = False,
    generator: Generator | None = None,
    on_batch: Callable[[str, int, int], Any] | None = None,
) -> RobustnessTable:
    """Measure a model on clean images and under each attack.

    The noise of a batch depends on the seed, the repeat and the number of the batch alone, so the table does not
    depend on which conditions are asked for or who computes them.

    Args:
        model: Evaluated in evaluation mode and left as it was.
        images: Test images in [0, 1].
        labels: Their classes.
        attacks: Name of each condition and the attack that makes it, settings fixed with `functools.partial`.
        batch_size: Images at a time. A batch-dependent model answers by these batches, the last one smaller.
        repeats: How often everything is done, with other noise; for random attacks and models.
        survivors_only: Attack only images that every earlier condition left right; the others keep their wrong
            decision. The worst case is the same and much faster, but a single condition then means "up to here".
        generator: Source of the seed; None is a fresh one seeded 0.
        on_batch: Called after every batch with (condition, done, total): images so far and in the end, counted over
            all conditions and repeats.

    Raises:
        ValueError: If images, labels or a setting are out of range, a condition is called `clean`, or
            `survivors_only` meets a model whose answers depend on the whole batch.
    """
    check_images(images, labels)
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be >= 1, got {batch_size} and {repeats}")
    if CLEAN in attacks:
        raise ValueError(f"attacks must not be called {CLEAN!r}, which names the condition without attack")
    if survivors_only and batch_dependent(model):
        raise ValueError("survivors_only must be False for a model whose answers depend on the whole batch")
    seed = draw_seed(generator)
    conditions = (CLEAN, *attacks)
    predictions = torch.zeros(len(conditions), repeats, len(labels), dtype=torch.long)
    distances = torch.zeros(len(conditions), len(labels))
    for c, (condition, attack) in enumerate([(CLEAN, None), *attacks.items()]):
        norm = _norm(attack)
        for repeat in range(repeats):
            for batch, rows in enumerate(torch.split(torch.arange(len(labels)), batch_size)):
                if survivors_only and c:
                    before = predictions[c - 1, repeat, rows]
                    predictions[c, repeat, rows] = before
                    rows = rows[before == labels[rows].cpu()]
                if len(rows):
                    part, noise = images[rows], seeded(seed, repeat, batch)
                    attacked, decided = _decide(model, part, labels[rows], attack, noise)
                    predictions[c, repeat, rows] = decided.cpu()
                    distances[c, rows] = torch.maximum(distances[c, rows], norms(attacked - part, norm).float().cpu())
                if on_batch is not None:
                    before_this = (c * repeats + repeat) * len(labels)
                    done = min((batch + 1) * batch_size, len(labels))
                    on_batch(condition, before_this + done, len(conditions) * repeats * len(labels))
    settings = {
        "attacks": describe(dict(attacks)),
        "batch_size": batch_size,
        "repeats": repeats,
        "survivors_only": survivors_only,
        "seed": seed,
    }
    return RobustnessTable(conditions, labels.cpu(), predictions, distances, settings)


def _decide(
    model: nn.Module, images: Images, labels: Labels, attack: Attack | None, noise: Generator
) -> tuple[Images, Labels]:
    """Attack one batch and let the model decide."""
    with evaluating(model):
        attacked = images if attack is None else attack(model, images, labels, generator=noise)
        with drawing(model, noise), torch.no_grad():
            logits = model(attacked)
    check_labels(labels, len(images), logits.shape[1])
    if logits.isnan().any():
        raise ValueError("model must return numbers, but its logits contain NaN; did its training diverge?")
    return attacked, logits.argmax(1)


def _norm(attack: Attack | None) -> str:
    """Norm in which an attack's perturbation is measured: that of its threat, else Euclidean."""
    settings = describe(attack)
    while isinstance(settings, dict):
        if isinstance(settings.get("threat"), dict):
            return str(settings["threat"]["norm"])
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
    """
    attacks = {f"epsilon {e:.6g}": partial(attack, threat=Threat(norm, e)) for e in sorted(set(epsilons) - {0})}
    measured = evaluate(model, images, labels, attacks, **settings)
    return Sweep((0.0, *sorted(set(epsilons) - {0})), measured.conditions, measured)
