"""What the feature explorer measures: features of many images at every strength of one attack, and where they lie."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.features import FeatureSnapshot, snapshot
from robustviz.geometry import Embedding, Trajectory, distance_ratio, embed, margins, trace_strengths
from robustviz.models import Classifier
from robustviz.neighbors import nearest
from robustviz.types import Labels, PerImage, Progress

LAYER = "body"
"""Its output is what the head sees: the penultimate features."""

METHODS = ("PCA", "UMAP")

SHOWN_NEIGHBORS = 5
"""Training images that are shown beside the chosen one."""


@dataclass(frozen=True)
class FeatureState:
    """A setting of the feature explorer.

    Attributes:
        epsilon: Largest change of a pixel; a strength of the slider, because all of them are measured beforehand.
        method: How the map is made, "PCA" or "UMAP".
        image: Which of the images on the map is shown large, from 0.
    """

    epsilon: float = 0.15
    method: str = "PCA"
    image: int = 0


@dataclass(frozen=True)
class FeatureRecord:
    """Where the images lie on the map at one strength, and what is known of the chosen one.

    Attributes:
        state: The setting.
        embedding: The map, fitted on clean training features.
        clean: Places of the clean images on it.
        attacked: Places of the attacked ones.
        predictions: Decisions about the attacked ones.
        stage: Place of the strength in `FeatureMeasurements.strengths`.
        pair: The chosen image, clean and attacked.
        neighbors: Its nearest training images in feature space, under attack, nearest first.
        fallen: Share of the images that are decided wrongly.
    """

    state: FeatureState
    embedding: Embedding
    clean: Float[Tensor, "n 2"]
    attacked: Float[Tensor, "n 2"]
    predictions: Labels
    stage: int
    pair: Float[Tensor, "2 c h w"]
    neighbors: Int[Tensor, "m"]
    fallen: float


class FeatureMeasurements:
    """Features of a network at every strength of PGD-10; measured at the start, and mapped when first asked for.

    Args:
        network: Any classifier.
        training: Clean images that the maps are fitted on.
        images: Attacked and followed.
        strengths: Strengths of the slider, from 0.
        progress: Told how many strengths are done.

    Attributes:
        trajectory: Images, features and decisions at every strength.
        distance: How far each image is from the data at every strength (see `geometry.distance_ratio`).
        margin: Probability of the true class minus the best other, at every strength.
    """

    def __init__(
        self,
        network: Classifier,
        training: ImageSet,
        images: ImageSet,
        strengths: tuple[float, ...],
        progress: Progress = lambda done, total: None,
    ):
        self.training, self.images, self.strengths = training, images, strengths
        clean: dict[str, Any] = {"layer": LAYER, "condition": "training"}
        self.reference: FeatureSnapshot = snapshot(network, training.images, training.labels, **clean)
        settings: dict[str, Any] = {"layer": LAYER, "condition": "PGD-10", "on_stage": progress}
        self.trajectory: Trajectory = trace_strengths(
            network, images.images, images.labels, partial(pgd, steps=10), strengths, **settings
        )
        self.distance: list[PerImage] = [
            distance_ratio(self.reference, self.trajectory.snapshot(stage)) for stage in range(len(strengths))
        ]
        self.margin: list[PerImage] = [margins(network, some, images.labels) for some in self.trajectory.images]
        self.maps: dict[str, Embedding] = {}

    def compute(self, state: FeatureState, progress: Progress) -> FeatureRecord:
        """Look a state up; a map is fitted when its method is first asked for.

        Raises:
            ValueError: If the state names an image, a strength or a method that does not exist.
        """
        if not 0 <= state.image < len(self.images):
            raise ValueError(f"image must be from 0 to {len(self.images) - 1}, got {state.image}")
        if state.epsilon not in self.strengths:
            known = ", ".join(f"{strength:g}" for strength in self.strengths)
            raise ValueError(f"epsilon must be one of {known}, got {state.epsilon}")
        if state.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {state.method!r}")
        embedding = self._map(state.method, progress)
        stage = self.strengths.index(state.epsilon)
        places, trajectory = embedding.positions[self.trajectory.condition], self.trajectory
        chosen = trajectory.values[stage, state.image][None].double()
        found = nearest(chosen, self.reference.values.double(), SHOWN_NEIGHBORS)
        return FeatureRecord(
            state,
            embedding,
            places[0],
            places[stage],
            trajectory.predictions[stage].cpu(),
            stage,
            torch.stack([trajectory.images[which, state.image].cpu() for which in (0, stage)]),
            found.indices[0][found.squared[0].argsort()].cpu(),
            (trajectory.predictions[stage] != trajectory.labels).double().mean().item(),
        )

    def _map(self, method: str, progress: Progress) -> Embedding:
        if method not in self.maps:
            progress(0, 1)  # UMAP compiles itself the first time, which takes many seconds
            self.maps[method] = embed(self.reference, [self.trajectory], method="umap" if method == "UMAP" else "pca")
        return self.maps[method]
