"""Accuracy of one model under one attack at growing strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from robustviz.evaluation.evaluate import evaluate
from robustviz.evaluation.table import RobustnessTable
from robustviz.types import Images, Labels, Norm, Threat


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
        """95 % interval at each radius; see `RobustnessTable.interval`."""
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
        epsilons: Radii in pixel units; 0 is the clean images.
        norm: Norm of the radii.
        **settings: Passed to `evaluate`.

    Raises:
        ValueError: If two radii agree in six digits, or `evaluate` refuses an argument.
    """
    radii = sorted(set(epsilons) - {0})
    attacks = {f"epsilon {radius:.6g}": partial(attack, threat=Threat(norm, radius)) for radius in radii}
    if len(attacks) < len(radii):
        raise ValueError(f"epsilons must differ in their first six digits, got {radii}")
    measured = evaluate(model, images, labels, attacks, **settings)
    return Sweep((0.0, *radii), measured.conditions, measured)
