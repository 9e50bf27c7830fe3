"""Paired timing: every round runs every candidate once, and only times of the same round are divided.

CPU time of one thread, so that a busy machine disturbs little; what still drifts, drifts for all of a round.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
