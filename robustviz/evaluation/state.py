"""The decisions of an evaluation while it runs, and the file from which it goes on after a stop."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustviz.records import describe, write_whole
from robustviz.types import Labels

PLAIN = (bool, int, float, str, tuple)
"""Attributes of a module that are settings as they stand."""


class Tally:
    """Counts batch by batch. With a file, the count so far is written after every batch, whole or not at all.

    Args:
        conditions: How many conditions there are.
        repeats: How often each is measured.
        images: How many images there are.
        settings: What must be the same for an evaluation to go on.
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
        if self.path is not None:
            content = {
                "settings": self.settings,
                "done": self.done,
                "differing": self.differing,
                "predictions": self.predictions.tolist(),
                "distances": self.distances.tolist(),
            }
            write_whole(self.path, json.dumps(content))

    def _restore(self, path: Path) -> None:
        remedy = "remove it to start anew"
        try:
            stored = json.loads(path.read_text())
            before, self.done, self.differing = stored["settings"], stored["done"], stored["differing"]
            if not isinstance(self.done, int) or self.done < 0:
                raise ValueError(f"done must be a count, got {self.done!r}")
            predictions, distances = torch.tensor(stored["predictions"]), torch.tensor(stored["distances"])
            now = json.loads(json.dumps(self.settings))
            changed = sorted(name for name in now | before if now.get(name) != before.get(name))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or no unfinished evaluation ({error!r}); {remedy}") from error
        if changed:
            raise ValueError(
                f"{path} belongs to an evaluation with another {' and '.join(changed)}; "
                f"use what it was started with, or {remedy}"
            )
        if (predictions.shape, distances.shape) != (self.predictions.shape, self.distances.shape):
            raise ValueError(f"{path} is damaged: its decisions do not fit its settings; {remedy}")
        self.predictions, self.distances = predictions, distances


def settings_of(model: nn.Module) -> Iterator[str]:
    """Write down a network without its weights: name, type and settings of every module.

    Settings are the public attributes that are plain, dataclasses, or dictionaries, of which the plain values count.
    """
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
        for key, setting in sorted(vars(module).items()):
            if key == "training" or key.startswith("_"):
                continue
            if isinstance(setting, PLAIN):
                yield f"{key} {setting!r}"
            elif isinstance(setting, dict):
                yield f"{key} {[(name, value) for name, value in setting.items() if isinstance(value, PLAIN)]!r}"
            elif is_dataclass(setting):
                yield f"{key} {describe(setting)!r}"


def fingerprint(*values: Any) -> str:
    """Give a short text that changes with any number in tensors and modules, and with the settings of modules.

    Args:
        *values: Tensors and modules; of a `functools.partial` or a container, those inside. Anything else is passed
            over: `describe` writes it down.
    """
    digest = hashlib.sha256()
    for value in values:
        for item in _parts(value):
            digest.update(item)
    return digest.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    """Walk through what a fingerprint is made of."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1)
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield flat.contiguous().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, nn.Module):
        yield from (line.encode() for line in settings_of(value))
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield name.encode()
            yield from _parts(tensor)
    elif isinstance(value, partial):
        yield from _parts([*value.args, *value.keywords.values()])
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
