"""The answers of an evaluation while it runs, and the files from which it goes on after a stop."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustviz.distributed import processes
from robustviz.fingerprint import check_same
from robustviz.records import describe, write_atomic
from robustviz.types import Images, Labels

_FORMAT = 2
"""Of the files; one of another format cannot go on."""

REMEDY = "remove it to start again"

Position = tuple[str, int, int]
"""Name of the condition, number of the repeat, number of the batch."""


class Tally:
    """Keeps answers batch by batch. With a file, what is known so far is written after every batch.

    Args:
        shape: How many conditions, repeats, draws and images there are.
        settings: What must mean the same for an evaluation to go on: functions and values, not their descriptions.
        path: File to keep the answers in; None keeps them in memory alone. If it exists, they go on from there.

    Attributes:
        predictions: Decision for condition c, repeat r, draw d and image n.
        assembled: Decision for draw d and image n of the assembled set.
        distances: Size of the perturbation for condition c and image n.
        differing: For each condition, on how many images the fast copy and the model decided differently.
        done: Turns that are counted.

    Raises:
        ValueError: If the file is damaged, or belongs to another evaluation; what differs is named.
    """

    def __init__(self, shape: tuple[int, int, int, int], settings: dict[str, Any], path: Path | str | None = None):
        conditions, _, draws, images = shape
        self.predictions = torch.zeros(shape, dtype=torch.long)
        self.assembled = torch.zeros(draws, images, dtype=torch.long)
        self.distances = torch.zeros(conditions, images)
        self.differing, self.done = [0] * conditions, 0
        self.settings, self.path = settings, None if path is None else Path(path)
        self._images: dict[Position, Images] = {}
        if self.path is not None and self.path.exists():
            self._restore(self.path)

    def add(
        self,
        condition: int,
        repeat: int,
        rows: Int[Tensor, "m"],
        decided: Int[Tensor, "d m"] | None,
        distances: Float[Tensor, "m"] | None = None,
        differing: int = 0,
        draws: slice = slice(None),
    ) -> None:
        """Note decisions on some images; of several repeats the largest distance stays."""
        if decided is not None:
            self.predictions[condition, repeat, draws, rows] = decided
        if distances is not None:
            self.distances[condition, rows] = torch.maximum(self.distances[condition, rows], distances)
        self.differing[condition] += differing

    def inherit(self, condition: int, repeat: int, rows: Int[Tensor, "m"], labels: Labels) -> Int[Tensor, "k"]:
        """Take over what the condition before says of images it left wrong; return those that it left right."""
        before = self.predictions[condition - 1, repeat, 0, rows]
        wrong = before != labels[rows]
        self.add(condition, repeat, rows[wrong], before[wrong][None], self.distances[condition - 1, rows[wrong]])
        return rows[~wrong]

    def keep(self) -> None:
        """Count one more turn and write the file, if there is one; of several processes the first one writes."""
        self.done += 1
        if self.path is not None and processes().first:
            arrays = {name: getattr(self, name).tolist() for name in ("predictions", "assembled", "distances")}
            content = {"format": _FORMAT, "settings": describe(self.settings), "done": self.done}
            write_atomic(self.path, json.dumps({**content, "differing": self.differing, **arrays}))

    def keep_images(self, place: Position, attacked: Images) -> None:
        """Keep attacked images that are still to be answered, in memory and, if there is a file, beside it."""
        self._images[place] = attacked
        if self.path is not None and processes().first:
            write_atomic(self._beside(place), save({"images": attacked.contiguous()}))

    def read_images(self, place: Position, images: Images) -> None:
        """Read attacked images back that were kept before a stop.

        Args:
            place: Where they were kept.
            images: The images that were attacked.

        Raises:
            ValueError: If the file is missing, damaged or of another shape.
        """
        file = self._beside(place)
        try:
            attacked = load(file.read_bytes())["images"]
            if (attacked.shape, attacked.dtype) != (images.shape, images.dtype):
                raise ValueError(f"it holds {tuple(attacked.shape)}, not {tuple(images.shape)}")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file} must hold the attacked images that {self.path} counts ({error}); remove both to start again"
            ) from error
        self._images[place] = attacked

    def all_images(self, condition: str, repeat: int, batches: int) -> Images:
        """Return the attacked images of all batches."""
        return torch.cat([self._images[condition, repeat, batch] for batch in range(batches)])

    def forget_images(self, places: Iterable[Position]) -> None:
        """Drop attacked images whose answers are all known."""
        for place in places:
            self._images.pop(place, None)
            if self.path is not None and processes().first:
                self._beside(place).unlink(missing_ok=True)

    def _beside(self, place: Position) -> Path:
        condition, repeat, batch = place
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{crc32(condition.encode()):08x}-{repeat}-{batch}.safetensors")

    def _restore(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text())
            before, self.done, self.differing = stored["settings"], stored["done"], stored["differing"]
            if not isinstance(before, dict) or not isinstance(self.done, int) or self.done < 0:
                raise ValueError(f"settings must be a dictionary and done a count, got {self.done!r}")
            if stored.get("format") == _FORMAT:
                arrays = {name: torch.tensor(stored[name]) for name in ("predictions", "assembled", "distances")}
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or not an unfinished evaluation ({error!r}); {REMEDY}") from error
        if stored.get("format") != _FORMAT:
            raise ValueError(f"{path} was written by another version of robustviz and cannot go on; {REMEDY}")
        check_same(path, before, self.settings, "an evaluation")
        if any(array.shape != getattr(self, name).shape for name, array in arrays.items()):
            raise ValueError(f"{path} is damaged: its decisions do not fit its settings; {REMEDY}")
        for name, array in arrays.items():
            setattr(self, name, array)
