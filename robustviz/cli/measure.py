"""Measuring with a progress bar, for the commands that measure."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from robustviz.cli.app import say
from robustviz.data import ImageSet
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.tensors import seeded
from robustviz.types import Attack


def measure(
    model: nn.Module, test_set: ImageSet, attacks: Mapping[str, Attack], generator: torch.Generator, **settings: Any
) -> RobustnessTable:
    """Evaluate with a progress bar; further settings are those of `evaluate`."""
    images, labels = test_set.images, test_set.labels
    with progress() as advance:
        return evaluate(model, images, labels, attacks, generator=generator, on_batch=advance, **settings)


def say_luck(model: nn.Module, test_set: ImageSet, measured: RobustnessTable, seed: int) -> None:
    """Report how many clean images a stochastic network still gets right in as many draws as the worst case holds."""
    if not any(getattr(module, "stochastic", False) for module in model.modules()):
        return
    draws = len(measured.conditions)
    batch_size = measured.settings["batch_size"]
    luck = measure(model, test_set, {}, seeded(seed, 2), repeats=draws, batch_size=batch_size).worst_case()
    say(
        f"The network draws at random, again for every condition: of the clean images, {luck:.1%} are right in all of "
        f"{draws} draws." + (" A part of the worst case is luck." if luck < measured.accuracy("clean") else "")
    )


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; what is yielded is the `on_batch` of `evaluate`."""
    with tqdm(unit="image", leave=False, disable=processes().silent) as bar:

        def advance(condition: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(condition)

        yield advance
