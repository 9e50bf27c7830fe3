"""What an evaluation gives: every answer on every image, and the figures that follow from them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustviz.evaluation.shares import bootstrap, cross_fitted, lowest_set, wilson
from robustviz.records import table, write_atomic
from robustviz.types import Labels

CLEAN = "clean"
"""Name of the condition without attack; it always comes first."""

WORST = "worst case per image"
"""Name of the last row of a table."""


@dataclass(frozen=True)
class TableRow:
    """One line of a table, in shares from 0 to 1.

    Attributes:
        condition: Name of the condition, or `WORST`.
        accuracy: Share of right answers.
        low: Lower end of its 95 % interval.
        high: Upper end.
        distance: Median size of the perturbations; None for the worst case.
    """

    condition: str
    accuracy: float
    low: float
    high: float
    distance: float | None


@dataclass(frozen=True)
class RobustnessTable:
    """Answers of one model on the same images under several conditions; every number is derived from them.

    Robust accuracy is an upper bound: a stronger attack may find more.

    Attributes:
        conditions: Names, the clean images first.
        labels: True classes (n,).
        predictions: Decision for condition c, answer a and image n. Each repeat of the attacks has `draws` answers on
            the same attacked images, one after the other.
        distances: Size of the perturbation for condition c and image n, the largest over the repeats, in the norm of
            the attack's threat (Euclidean for attacks without a threat).
        settings: How each condition was made, batch size and seed included.
        draws: How often the model answered each attacked image; 1 for a deterministic model.
        assembled: Only for a model that answers jointly: decision for draw d and image n when every image is attacked
            by what the other half of the draws chose for it, and all are answered together.
    """

    conditions: tuple[str, ...]
    labels: Labels
    predictions: Int[Tensor, "c a n"]
    distances: Float[Tensor, "c n"]
    settings: dict[str, Any]
    draws: int = 1
    assembled: Int[Tensor, "d n"] | None = None

    @property
    def correct(self) -> Bool[Tensor, "c a n"]:
        """Whether each answer is right."""
        return self.predictions == self.labels

    def accuracy(self, condition: str, *, within: float | None = None) -> float:
        """Share of right answers under one condition, from 0 to 1: the mean over images, repeats and draws.

        Args:
            condition: Name of the condition.
            within: Count an image as fooled only if its perturbation is at most so long; for attacks that look for
                the nearest adversarial image without a limit.

        Raises:
            ValueError: If the condition is unknown, or `within` is used with several repeats or attacks on survivors
                only, of which the table does not hold every length.
        """
        right = self._row(condition)
        if within is not None:
            if len(right) > self.draws or self.settings.get("survivors_only"):
                raise ValueError(
                    f"within={within} needs the length of every attack on every image; evaluate with repeats=1 and "
                    "survivors_only=False"
                )
            # Rounding of pixels makes a perturbation longer by less than a millionth.
            right = right | (self.distances[self.conditions.index(condition)] > within + 1e-6)
        return right.double().mean().item()

    def accuracies(self, *, within: float | None = None) -> dict[str, float]:
        """Accuracy under every condition, by name; see `accuracy`."""
        return {name: self.accuracy(name, within=within) for name in self.conditions}

    def worst_case(self, conditions: Sequence[str] | None = None) -> float:
        """Share of images that withstand the worst condition for each, from 0 to 1.

        With one draw, an image counts if it is right under every condition and in every repeat. With several, each
        image is scored under the attack that is worst on the other half of the draws (`robustviz.evaluation.shares`).
        For a model that answers jointly it is the lowest of the whole conditions and of the assembled set, which exists
        for all conditions together.

        Args:
            conditions: Those to take the worst of; None takes all.

        Raises:
            ValueError: If a condition is unknown.
        """
        return self._worst(conditions).double().mean().item()

    def worst_case_interval(self, conditions: Sequence[str] | None = None) -> tuple[float, float]:
        """95 % interval of the worst case; see `interval`."""
        return self._interval(self._worst(conditions))

    def spread(self, condition: str) -> float:
        """Standard deviation of the accuracy over the repeats; 0 for a single one."""
        shares = self._row(condition).double().mean(1).view(-1, self.draws).mean(1)
        return shares.std().item() if len(shares) > 1 else 0.0

    def interval(self, condition: str) -> tuple[float, float]:
        """95 % interval of the accuracy: what the finite number of images, and of draws, leaves open.

        It is Wilson's with one draw, and a bootstrap over images and draws with several. Repeats on the same images
        are averaged and do not make it narrower.
        """
        return self._interval(self._row(condition))

    def rows(self) -> list[TableRow]:
        """Every condition and the worst case with its interval, as plain numbers."""
        medians = self.distances.double().median(1).values.tolist()
        found = [
            TableRow(name, self.accuracy(name), *self.interval(name), median)
            for name, median in zip(self.conditions, medians, strict=True)
        ]
        return [*found, TableRow(WORST, self.worst_case(), *self.worst_case_interval(), None)]

    def to_markdown(self) -> str:
        """Give the table as Markdown that is also readable as plain text; percentages."""
        return table([f"condition ({len(self.labels)} images)", *_HEADERS], self._cells())

    def to_csv(self) -> str:
        """Give the table as comma-separated values with a header: names, shares from 0 to 1, median distance."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(TableRow))
        writer.writerows(astuple(row) for row in self.rows())
        return file.getvalue()

    def to_latex(self) -> str:
        """Give the table as a LaTeX tabular in the style of the package booktabs; percentages."""
        lines = [
            " & ".join(_escaped(cell) for cell in row) + r" \\"
            for row in ([f"condition ({len(self.labels)} images)", *_HEADERS], *self._cells())
        ]
        rules = [r"\begin{tabular}{lrrr}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([*rules, r"\end{tabular}"]) + "\n"

    def to_json(self) -> str:
        """Give everything as JSON, one entry for each image."""
        arrays = {name: getattr(self, name).tolist() for name in ("labels", "predictions", "distances")}
        assembled = None if self.assembled is None else self.assembled.tolist()
        return json.dumps(asdict(self) | arrays | {"assembled": assembled})

    def save(self, path: Path | str) -> Path:
        """Write everything as JSON, whole or not at all."""
        return write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "RobustnessTable":
        """Read what `save` wrote, or the record that a command wrote; a file that says nothing of draws has one draw.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is something else.
        """
        try:
            content = json.loads(Path(path).read_text())
            content = content["results"]["table"] if "results" in content else content
            assembled = content.get("assembled")
            return cls(
                tuple(content["conditions"]),
                torch.tensor(content["labels"]),
                torch.tensor(content["predictions"]),
                torch.tensor(content["distances"]),
                content["settings"],
                content.get("draws", 1),
                None if assembled is None else torch.tensor(assembled),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a robustness table: {error!r}") from error

    def _row(self, condition: str) -> Bool[Tensor, "a n"]:
        if condition not in self.conditions:
            raise ValueError(f"condition must be one of {', '.join(self.conditions)}, got {condition!r}")
        return self.correct[self.conditions.index(condition)]

    def _worst(self, conditions: Sequence[str] | None) -> Bool[Tensor, "d n"]:
        """Whether each answer is right under the worst condition; one row with one draw."""
        chosen = self.conditions if conditions is None else tuple(conditions)
        # The clean images come last, so that of equals an attack is chosen.
        rows = [self._row(name) for name in sorted(chosen, key=CLEAN.__eq__)]
        if not rows:
            raise ValueError("conditions must name at least one condition, got none")
        if self.draws == 1:
            return torch.cat(rows).all(0, keepdim=True)
        candidates = torch.cat(rows).view(-1, self.draws, len(self.labels))
        if self.assembled is None:
            return cross_fitted(candidates)
        assembled = [] if set(chosen) != set(self.conditions) else [(self.assembled == self.labels)[None]]
        return lowest_set(torch.cat([*assembled, candidates]))

    def _interval(self, right: Bool[Tensor, "a n"]) -> tuple[float, float]:
        return wilson(right.double().mean().item(), len(self.labels)) if self.draws == 1 else bootstrap(right)

    def _cells(self) -> list[list[str]]:
        return [
            [
                row.condition,
                f"{row.accuracy:.1%}",
                f"{row.low:.1%} - {row.high:.1%}",
                "" if row.distance is None else f"{row.distance:.3f}",
            ]
            for row in self.rows()
        ]


_HEADERS = ("accuracy", "95 % interval", "median distance")

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _escaped(text: str) -> str:
    """Escape the characters that LaTeX reads as commands."""
    return "".join(_LATEX.get(character, character) for character in text)
