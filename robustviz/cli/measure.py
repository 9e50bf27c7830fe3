"""Measuring with a progress bar, for the commands that measure."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from robustviz.data import ImageSet
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.types import Attack


def measure(
    model: nn.Module, test_set: ImageSet, attacks: Mapping[str, Attack], generator: torch.Generator, **settings: Any
) -> RobustnessTable:
    """Evaluate with a progress bar; further settings are those of `evaluate`."""
    images, labels = test_set.images, test_set.labels
    with progress() as advance:
        return evaluate(model, images, labels, attacks, generator=generator, on_batch=advance, **settings)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; what is yielded is the `on_batch` of `evaluate`."""
    with tqdm(unit="image", leave=False, disable=processes().silent) as bar:

        def advance(condition: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(condition)

        yield advance
