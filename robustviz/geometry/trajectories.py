"""How an attack moves images through feature space: over a sweep of its strength, or over its steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from robustviz.attacks import Step
from robustviz.checks import check_images
from robustviz.features import FeatureSnapshot, Pool, snapshot
from robustviz.geometry.arrays import read_arrays, write_arrays
from robustviz.tensors import draw_seed, seeded
from robustviz.types import Images, Labels, Norm, Progress, Threat

Unit = Literal["epsilon", "step"]


@dataclass(frozen=True)
class Trajectory:
    """Images, their features and the model's decisions at every stage of an attack.

    Attributes:
        layer: Name of the layer.
        condition: Name of the attack.
        unit: What the stages count: the strength "epsilon" in pixel units, or the "step" of one attack.
        stages: Growing; the first is 0, the clean images or the start of the attack.
        images: In [0, 1].
        values: Features; maps are averaged over their positions.
        predictions: Decisions.
        labels: True classes.
        indices: Place of each image among those given.
    """

    layer: str
    condition: str
    unit: Unit
    stages: tuple[float, ...]
    images: Float[Tensor, "e n c h w"]
    values: Float[Tensor, "e n k"]
    predictions: Int[Tensor, "e n"]
    labels: Int[Tensor, "n"]
    indices: Int[Tensor, "n"]

    def snapshot(self, stage: int) -> FeatureSnapshot:
        """Return the features at one stage, given by its place in `stages`; the condition names it."""
        condition = f"{self.condition}, {self.unit} {self.stages[stage]:.4g}"
        indexed = (self.values[stage], self.labels, self.predictions[stage], self.indices)
        return FeatureSnapshot(self.layer, condition, *indexed)

    def select(self, rows: Any) -> "Trajectory":
        """Keep some of the images, chosen by a slice, a mask or indices."""
        moving = {name: getattr(self, name)[:, rows] for name in ("images", "values", "predictions")}
        return replace(self, **moving, labels=self.labels[rows], indices=self.indices[rows])

    def save(self, path: Path | str) -> Path:
        """Write everything to one safetensors file, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        settings = {name: getattr(self, name) for name in ("layer", "condition", "unit")}
        return write_arrays(path, "trajectory", arrays, {**settings, "stages": list(self.stages)})

    @classmethod
    def load(cls, path: Path | str) -> "Trajectory":
        """Read a trajectory.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        arrays, settings = read_arrays(path, "trajectory")
        try:
            known = (settings["layer"], settings["condition"], settings["unit"], tuple(settings["stages"]))
            return cls(*known, *(arrays[name] for name in _ARRAYS))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no whole trajectory of robustviz: {error!r}") from error


_ARRAYS = ("images", "values", "predictions", "labels", "indices")


def trace_strengths(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attack: Callable[..., Images],
    epsilons: Sequence[float],
    *,
    layer: str,
    condition: str,
    norm: Norm = "linf",
    batch_size: int = 256,
    pool: Pool | None = None,
    generator: Generator | None = None,
    on_stage: Progress | None = None,
) -> Trajectory:
    """Attack images at growing strength and keep their features at one layer.

    A batch has the same noise at every strength, so that a path is not blurred by random starts.

    Args:
        model: Any network; left as it was.
        images: Clean, in [0, 1].
        labels: Their classes.
        attack: Anything that takes `threat`; other settings fixed with `partial`.
        epsilons: Radii in pixel units; 0 is added if it is missing.
        layer: Name as in `model.named_modules()`.
        condition: Name of the attack.
        norm: Norm of the radii.
        batch_size: Images at a time.
        pool: How maps or tokens become one row (see `snapshot`).
        generator: Source of the seed; None is a fresh one seeded 0.
        on_stage: Called after every strength with (done, total).

    Raises:
        ValueError: If images, labels, a radius or the batch size are out of range, or the layer is unknown.
    """
    check_images(images, labels)
    stages, seed = sorted({0.0, *map(float, epsilons)}), draw_seed(generator)
    threats = [Threat(norm, stage) for stage in stages]
    found, taken = [], []
    for done, threat in enumerate(threats):
        points = images
        if threat.epsilon:
            points = attack_batches(
                model, images, labels, partial(attack, threat=threat), batch_size=batch_size, seed=seed
            )
        found.append(points)
        settings: dict[str, Any] = {"layer": layer, "condition": condition, "batch_size": batch_size, "pool": pool}
        taken.append(snapshot(model, points, labels, **settings))
        if on_stage is not None:
            on_stage(done + 1, len(stages))
    return _joined("epsilon", stages, found, taken)


def attack_batches(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attack: Callable[..., Images],
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> Images:
    """Attack images as `trace_strengths` does: the noise of a batch depends on the seed and its number alone.

    A model whose answers depend on the batch is so attacked in the batches that `snapshot` and `margins` ask it in.
    """
    batches = zip(torch.split(images, max(batch_size, 1)), torch.split(labels, max(batch_size, 1)), strict=True)
    return torch.cat([attack(model, *batch, generator=seeded(seed, i)) for i, batch in enumerate(batches)])


def trace_steps(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attack: Callable[..., Images],
    *,
    layer: str,
    condition: str,
    batch_size: int = 256,
    pool: Pool | None = None,
    generator: Generator | None = None,
) -> Trajectory:
    """Run one attack and keep the features of every point that it visits.

    Args:
        model: Any network; left as it was.
        images: Clean, in [0, 1].
        labels: Their classes.
        attack: Anything that takes `on_step` and calls it with every `Step`, with one restart; settings fixed with
            `partial`, the threat among them. Where it stops early for a batch, these images stay where they are.
        layer: Name as in `model.named_modules()`.
        condition: Name of the attack.
        batch_size: Images at a time.
        pool: How maps or tokens become one row (see `snapshot`).
        generator: Source of the seed; None is a fresh one seeded 0.

    Raises:
        ValueError: If images, labels or the batch size are out of range, the layer is unknown, or the attack reports
            no step or several restarts.
    """
    check_images(images, labels)
    seed = draw_seed(generator)
    visited: list[dict[int, Images]] = []
    batches = zip(torch.split(images, max(batch_size, 1)), torch.split(labels, max(batch_size, 1)), strict=True)
    for i, batch in enumerate(batches):
        steps: list[Step] = []
        attack(model, *batch, on_step=steps.append, generator=seeded(seed, i))
        if not steps or any(step.restart for step in steps):
            raise ValueError(f"attack must report the steps of one restart, got {len(steps)} steps of several or none")
        visited.append({step.step: step.images.detach() for step in steps})
    stages = sorted(set().union(*visited))
    found = [torch.cat([path[max(step for step in path if step <= stage)] for path in visited]) for stage in stages]
    settings: dict[str, Any] = {"layer": layer, "condition": condition, "batch_size": batch_size, "pool": pool}
    return _joined(
        "step",
        [float(stage) for stage in stages],
        found,
        [snapshot(model, points, labels, **settings) for points in found],
    )


def _joined(unit: Unit, stages: Sequence[float], found: list[Images], taken: list[FeatureSnapshot]) -> Trajectory:
    first = taken[0]
    return Trajectory(
        first.layer,
        first.condition,
        unit,
        tuple(stages),
        torch.stack(found),
        torch.stack([snapshot.values for snapshot in taken]),
        torch.stack([snapshot.predictions for snapshot in taken]),
        first.labels,
        first.indices,
    )
