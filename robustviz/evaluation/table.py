"""What an evaluation gives: every decision on every image, and the figures that follow from them."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustviz.records import table, write_atomic
from robustviz.types import Labels

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
            ValueError: If the condition is unknown, or `within` meets several repeats or attacks on survivors only, of
                which the table does not hold every length.
        """
        if within is not None and (self.predictions.shape[1] > 1 or self.settings.get("survivors_only")):
            raise ValueError(
                f"within={within} needs the length of every attack on every image; evaluate with repeats=1 and "
                "survivors_only=False"
            )
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
            write_atomic(path, text)
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
