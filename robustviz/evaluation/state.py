"""The decisions of an evaluation while it runs, and the file from which it goes on after a stop."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustviz.distributed import processes
from robustviz.fingerprint import check_same
from robustviz.records import describe, write_atomic
from robustviz.types import Labels

FORMAT = 2
"""Of the files; one of another format cannot go on."""


class Tally:
    """Counts batch by batch. With a file, the count so far is written after every batch, whole or not at all.

    Args:
        conditions: How many conditions there are.
        repeats: How often each is measured.
        images: How many images there are.
        settings: What must mean the same for an evaluation to go on: functions and values, not their descriptions.
        path: File to keep the count in; None keeps it in memory alone. If it exists, the count goes on from there.

    Attributes:
        predictions: Decision for condition c, repeat r and image n.
        distances: Size of the perturbation for condition c and image n.
        differing: For each condition, on how many images the fast copy and the model decided differently.
        done: Batches that are counted, over all conditions and repeats.

    Raises:
        ValueError: If the file is damaged, or belongs to another evaluation; what differs is named.
    """

    def __init__(
        self, conditions: int, repeats: int, images: int, settings: dict[str, Any], path: Path | str | None = None
    ):
        self.predictions = torch.zeros(conditions, repeats, images, dtype=torch.long)
        self.distances = torch.zeros(conditions, images)
        self.differing, self.done = [0] * conditions, 0
        self.settings, self.path = settings, None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            self._restore(self.path)

    def add(
        self,
        condition: int,
        repeat: int,
        rows: Int[Tensor, "m"],
        decided: Int[Tensor, "m"],
        distances: Float[Tensor, "m"],
        differing: int = 0,
    ) -> None:
        """Note the decisions on some images; of several repeats the largest distance stays."""
        self.predictions[condition, repeat, rows] = decided
        self.distances[condition, rows] = torch.maximum(self.distances[condition, rows], distances)
        self.differing[condition] += differing

    def inherit(self, condition: int, repeat: int, rows: Int[Tensor, "m"], labels: Labels) -> Int[Tensor, "k"]:
        """Take over what the condition before says of images it left wrong; return those that it left right."""
        before = self.predictions[condition - 1, repeat, rows]
        wrong = before != labels[rows]
        self.add(condition, repeat, rows[wrong], before[wrong], self.distances[condition - 1, rows[wrong]])
        return rows[~wrong]

    def keep(self) -> None:
        """Count one more batch and write the file, if there is one."""
        self.done += 1
        if self.path is not None and processes().first:
            content = {
                "format": FORMAT,
                "settings": describe(self.settings),
                "done": self.done,
                "differing": self.differing,
                "predictions": self.predictions.tolist(),
                "distances": self.distances.tolist(),
            }
            write_atomic(self.path, json.dumps(content))

    def _restore(self, path: Path) -> None:
        remedy = "remove it to start again"
        try:
            stored = json.loads(path.read_text())
            before, self.done, self.differing = stored["settings"], stored["done"], stored["differing"]
            if not isinstance(before, dict) or not isinstance(self.done, int) or self.done < 0:
                raise ValueError(f"settings must be a dictionary and done a count, got {self.done!r}")
            predictions, distances = torch.tensor(stored["predictions"]), torch.tensor(stored["distances"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or not an unfinished evaluation ({error!r}); {remedy}") from error
        if stored.get("format") != FORMAT:
            raise ValueError(f"{path} was written by another version of robustviz and cannot go on; {remedy}")
        check_same(path, before, self.settings, "an evaluation")
        if (predictions.shape, distances.shape) != (self.predictions.shape, self.distances.shape):
            raise ValueError(f"{path} is damaged: its decisions do not fit its settings; {remedy}")
        self.predictions, self.distances = predictions, distances
