"""Maps of features in two dimensions, by PCA or UMAP: fitted on clean training features, then applied to all others."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robustviz.features import FeatureSnapshot
from robustviz.geometry.arrays import read_arrays, write_arrays
from robustviz.neighbors import nearest

Method = Literal["umap", "pca"]

MAP_NEIGHBORS = 15
"""Neighbors that UMAP fits with, and that place a new point on its map."""


@runtime_checkable
class Featured(Protocol):
    """Features of some images under one condition: a `FeatureSnapshot` or a `Trajectory`."""

    @property
    def layer(self) -> str:
        """Name of the layer."""
        ...

    @property
    def condition(self) -> str:
        """What was done to the images."""
        ...

    @property
    def values(self) -> Tensor:
        """Features (..., k)."""
        ...


@dataclass(frozen=True)
class Embedding:
    """A map of features: where the clean training features lie, and where others fall.

    Everything in it lies on the CPU. Distances on a UMAP map mean little: a point far from all data is drawn near some
    of them. Read it beside the numbers of `separation` and the PCA map, whose positions are exact projections.

    Attributes:
        method: "umap" or "pca".
        seed: Seed of the fit; PCA has no use for it.
        reference: The clean training features that the map was fitted on.
        coordinates: Where they lie, float64.
        axes: PCA only: the two unit vectors that are projected on, largest variance first.
        positions: By condition, where the features of other records fall; shape (..., 2) for features (..., k).
    """

    method: Method
    seed: int
    reference: FeatureSnapshot
    coordinates: Float[Tensor, "n 2"]
    axes: Float[Tensor, "2 k"] | None = None
    positions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def explained(self) -> tuple[float, float] | None:
        """PCA only: the share of the reference's variance along each axis, 0 to 1."""
        if self.axes is None:
            return None
        first, second = self.coordinates.var(0) / self.reference.values.double().var(0).sum()
        return first.item(), second.item()

    def place(self, values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch 2"]:
        """Put features on the map: PCA projects them; UMAP takes the mean of their 15 nearest neighbors' coordinates.

        The mean weighs each neighbor by the inverse of its distance, so a training feature falls on its own place. It
        stays about 1 % of the map's size away from UMAP's own slower answer, and never leaves the data.

        Args:
            values: Features of the same layer.

        Raises:
            ValueError: If their number of channels differs from the reference, or a value is not finite.
        """
        _check_values(values, self.reference)
        flat = values.detach().cpu().reshape(-1, values.shape[-1]).double()
        reference = self.reference.values.double()
        if self.axes is not None:
            placed = (flat - reference.mean(0)) @ self.axes.T
        else:
            placed = _weighted_mean(flat, reference, self.coordinates)
        return placed.reshape(*values.shape[:-1], 2)

    def lift(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch k"]:
        """Go back from the map to features: the distance-weighted mean of the features of the 15 nearest points there.

        A PCA map adds what is then missing along its axes, so that `place(lift(points))` returns the points.
        """
        flat = points.reshape(-1, 2).double()
        lifted = _weighted_mean(flat, self.coordinates, self.reference.values.double())
        if self.axes is not None:
            lifted = lifted + (flat - self.place(lifted)) @ self.axes
        return lifted.reshape(*points.shape[:-1], lifted.shape[1])

    def extended(self, records: Sequence[Featured]) -> "Embedding":
        """Return a map that also holds these records, where `place` puts them; so a loaded map can take more.

        Raises:
            ValueError: If a record is of another layer or its condition is there already.
        """
        _check_records(records, self.reference, tuple(self.positions))
        return replace(self, positions={**self.positions, **{r.condition: self.place(r.values) for r in records}})

    def refitted(self, records: Sequence[Featured] = ()) -> "Embedding":
        """Fit again on the same reference with the same seed, which gives the same coordinates, and apply to records.

        Unlike `extended`, UMAP then answers for the records itself.
        """
        return embed(self.reference, records, method=self.method, seed=self.seed)

    def save(self, path: Path | str) -> Path:
        """Write everything to one safetensors file, whole or not at all."""
        snapshot = self.reference
        arrays = {name: getattr(snapshot, name) for name in ("values", "labels", "predictions", "indices")}
        arrays |= {"coordinates": self.coordinates} | ({} if self.axes is None else {"axes": self.axes})
        arrays |= {f"positions {i}": positions for i, positions in enumerate(self.positions.values())}
        settings = {"method": self.method, "seed": self.seed, "layer": snapshot.layer, "condition": snapshot.condition}
        return write_arrays(path, "embedding", arrays, {**settings, "positions": list(self.positions)})

    @classmethod
    def load(cls, path: Path | str) -> "Embedding":
        """Read a map; it places new points as before it was saved.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        arrays, settings = read_arrays(path, "embedding")
        try:
            parts = [arrays[name] for name in ("values", "labels", "predictions", "indices")]
            reference = FeatureSnapshot(settings["layer"], settings["condition"], *parts)
            positions = {condition: arrays[f"positions {i}"] for i, condition in enumerate(settings["positions"])}
            method, seed = settings["method"], settings["seed"]
            return cls(method, seed, reference, arrays["coordinates"], arrays.get("axes"), positions)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no whole embedding of robustviz: {error!r}") from error


def embed(
    reference: FeatureSnapshot, records: Sequence[Featured] = (), *, method: Method = "umap", seed: int = 0
) -> Embedding:
    """Fit a map on clean training features alone, then put other features on it, all in one pass.

    Args:
        reference: Clean training features; nothing else shapes the map.
        records: Snapshots or trajectories of the same layer, each with a condition of its own.
        method: "umap" keeps neighborhoods (its first import after an installation compiles for about 20 s); "pca"
            projects on the two directions of largest variance.
        seed: Seed of UMAP, from 0 to 2**32 - 1. The same seed gives the same map on one machine, bit for bit.

    Raises:
        ValueError: If the method is unknown or the seed out of range; if the reference has too few points or channels,
            is constant or not finite; or if a record is of another layer, not finite, or shares its condition with
            another one.

    Source: McInnes, Healy & Melville, "UMAP: Uniform manifold approximation and projection", arXiv 1802.03426;
    Pearson, "On lines and planes of closest fit to systems of points in space", 1901. PCA maps of penultimate features
    explain WNLL in Wang et al., arXiv 1809.08516.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    _check_reference(reference)
    _check_records(records, reference, ())
    parts = ("values", "labels", "predictions", "indices")
    reference = replace(reference, **{name: getattr(reference, name).detach().cpu() for name in parts})
    if method == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(2, svd_solver="full").fit(reference.values.double().numpy())
        axes = torch.from_numpy(fitted.components_)
        plane = Embedding("pca", seed, reference, torch.zeros(len(reference.values), 2).double(), axes)
        return replace(plane, coordinates=plane.place(reference.values)).extended(records)
    values = [record.values.reshape(-1, record.values.shape[-1]) for record in records]
    threads = torch.get_num_threads()
    try:
        coordinates, placed = _umap(reference.values, values, seed)
    finally:
        torch.set_num_threads(threads)  # numba changes it for the whole process
    positions = {
        record.condition: part.reshape(*record.values.shape[:-1], 2)
        for record, part in zip(records, placed, strict=True)
    }
    return Embedding("umap", seed, reference, coordinates, None, positions)


def _umap(reference: Tensor, others: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
    """Fit UMAP and transform everything else in one call; one thread, so that it can be repeated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # UMAP misses TensorFlow, which only its networks need
        from umap import UMAP

    def numbers(values: Tensor) -> np.ndarray:
        return values.detach().float().cpu().numpy()

    fitted = UMAP(n_neighbors=MAP_NEIGHBORS, random_state=seed, n_jobs=1).fit(numbers(reference))
    coordinates = torch.from_numpy(fitted.embedding_).double()
    sizes = [len(values) for values in others]
    if not sum(sizes):
        return coordinates, [torch.zeros(size, 2).double() for size in sizes]
    placed = torch.from_numpy(fitted.transform(numbers(torch.cat(list(others))))).double()
    return coordinates, list(torch.split(placed, sizes))


def _weighted_mean(queries: Tensor, points: Tensor, targets: Tensor) -> Tensor:
    """Mean of the targets of the nearest points, weighed by inverse distance."""
    found = nearest(queries, points, min(MAP_NEIGHBORS, len(points)))
    weights = 1 / found.squared.sqrt().clamp_min(1e-12)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[..., None] * targets[found.indices]).sum(1)


def _check_reference(reference: FeatureSnapshot) -> None:
    values = reference.values
    if values.dim() != 2 or len(values) <= MAP_NEIGHBORS or values.shape[1] < 2:
        raise ValueError(
            f"reference must hold at least {MAP_NEIGHBORS + 1} points of at least 2 channels, got {tuple(values.shape)}"
        )
    _check_values(values, reference)
    if bool((values == values[0]).all()):
        raise ValueError(
            f"reference must vary, but all {len(values)} features of layer {reference.layer} are the same; "
            "choose another layer, or a network that is trained"
        )


def _check_values(values: Tensor, reference: FeatureSnapshot) -> None:
    if values.dim() < 1 or values.shape[-1] != reference.values.shape[1]:
        raise ValueError(
            f"features must have {reference.values.shape[1]} channels, as the reference, got {tuple(values.shape)}"
        )
    if wrong := int((~values.isfinite()).sum()):
        raise ValueError(f"features must be finite, but {wrong} of {values.numel()} are not; did the training diverge?")


def _check_records(records: Sequence[Featured], reference: FeatureSnapshot, known: tuple[str, ...]) -> None:
    conditions = [*known, *(record.condition for record in records)]
    if twice := {condition for condition in conditions if conditions.count(condition) > 1}:
        raise ValueError(f"records must have a condition each, but {sorted(twice)[0]!r} comes twice")
    for record in records:
        if record.layer != reference.layer:
            raise ValueError(f"records must be of layer {reference.layer}, as the reference, got {record.layer}")
        _check_values(record.values, reference)
