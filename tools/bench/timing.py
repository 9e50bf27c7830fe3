"""Paired timing: every round runs every candidate once, and only times of the same round are divided.

CPU time of one thread, so that a busy machine disturbs little; what still drifts, drifts for all of a round.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

ROUNDS = 9


@dataclass(frozen=True)
class Ratio:
    """What one thing costs in units of another: one number for each round, and the most it should be."""

    name: str
    against: str
    values: list[float]
    target: float

    @property
    def row(self):
        middle = median(self.values)
        spread = f"{min(self.values):.3f} .. {max(self.values):.3f}"
        met = "yes" if middle <= self.target else "NO"
        return f"{self.name:<26}{self.against:<22}{middle:>7.3f}   {spread:<18}{self.target:>6.2f}   {met}"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU seconds of each candidate in each round, on one thread; the order turns by one from round to round."""
    names, threads = list(candidates), torch.get_num_threads()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    torch.set_num_threads(1)
    try:
        for turn in range(-1, rounds):  # round -1 warms up
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.process_time()
                candidates[name]()
                if turn >= 0:
                    seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds


def ratios(label: str, seconds: Mapping[str, list[float]], ours: str, targets: Mapping[str, float]) -> list[Ratio]:
    """Divide our times by those of every other candidate that was measured, round by round."""
    return [
        Ratio(label, other, [a / b for a, b in zip(seconds[ours], seconds[other], strict=True)], target)
        for other, target in targets.items()
        if other in seconds
    ]


def growth(
    label: str, sizes: Sequence[int], measure: Callable[[int], tuple[float, float]], target: float
) -> Iterator[Ratio]:
    """Print CPU seconds and peak GiB at growing sizes, and compare the fitted exponent of the time with a target.

    Args:
        label: What grows.
        sizes: At least two sizes.
        measure: Returns seconds and GiB at a size.
        target: The largest exponent that is well: 1 is linear, 2 quadratic.
    """
    found = [measure(size) for size in sizes]
    for size, (seconds, memory) in zip(sizes, found, strict=True):
        print(f"    {label} {size:>7,}: {seconds:8.3f} s {memory:6.2f} GiB")
    powers = [
        math.log(after[0] / before[0]) / math.log(larger / smaller)
        for (smaller, before), (larger, after) in pairwise(zip(sizes, found, strict=True))
    ]
    yield Ratio(f"{label}, growth", "exponent", powers, target)


def peak_memory() -> float:
    """The most memory that this process has held, in GiB, imports included."""
    status = Path("/proc/self/status")
    if status.exists():  # the other count begins with the memory of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
