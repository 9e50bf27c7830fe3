"""The training explorer's measurement: small networks trained against growing radii, measured as their epochs pass."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.data.cache import cached
from robustviz.evaluation.sweep import sweep
from robustviz.explorers.frames import BUDGET, Frames, Value, check_budget
from robustviz.explorers.theme import PALETTE
from robustviz.fingerprint import fingerprint
from robustviz.models import Classifier, initialized, small_cnn
from robustviz.presets import training_attack, usual_threat
from robustviz.records import describe
from robustviz.tensors import seeded
from robustviz.training import EpochLog, TrainConfig, train
from robustviz.types import Threat

EPOCHS = (2, 4, 6, 8, 10, 12)

CONFIG = TrainConfig(batch_size=64, learning_rate=0.05, schedule="constant")
"""How every network is trained; at a constant rate, more epochs only go on from fewer."""

ATTACK = partial(pgd, steps=10, early_exit=True)
"""What every network is measured with; images that it has won are left alone, which changes no accuracy."""


def grids_around(epsilon: float) -> tuple[list[float], list[float]]:
    """Return five radii to train against and nine strengths to measure at, from 0 to twice a radius."""
    radii, strengths = ([round(epsilon * part / half, 9) for part in range(2 * half + 1)] for half in (2, 4))
    return radii, strengths


def training_frames(
    training: ImageSet,
    images: ImageSet,
    *,
    radii: Sequence[float] | None = None,
    epochs: Sequence[int] = EPOCHS,
    strengths: Sequence[float] | None = None,
    build: Callable[[], Classifier] | None = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> Frames:
    """Train a network against every radius and measure it whenever as many epochs have passed as are asked for.

    All begin with the same weights. They are trained against one step from a random start (FGSM-RS), at a constant
    learning rate, so that a network after four of twelve epochs is the one that four epochs give. They are measured by
    PGD-10 at growing strength; an image that a weaker attack has won is won by a stronger one, because the weaker one's
    answer is within its reach.

    What was trained for a radius is kept in the cache folder, so that a measurement that was stopped goes on with the
    next radius, and one that is repeated takes no time.

    Args:
        training: Images that are trained on, all of them.
        images: Measured.
        radii: Radii in L-infinity that are trained against, growing from 0 or more; at most six. 0 trains on clean
            images. None takes 0, 0.5, 1, 1.5 and 2 times the usual radius.
        epochs: Numbers of epochs, growing from 1 or more.
        strengths: Radii of the attack that measures; 0 is added. None takes nine, up to twice the usual radius.
        build: Makes an untrained network for the images; None takes `small_cnn`.
        seed: Seed of the weights, of training and of the attack that measures.
        budget: Most frames: radii x epochs x strengths.

    Returns:
        Frames over radius, epochs and strength with `accuracy`, from 0 to 1, for each of them.

    Raises:
        ValueError: If radii or epochs do not grow, there are more than six radii, the images are of other classes or
            shape than those that are trained on, or the grid exceeds its budget.
    """
    usual = grids_around(usual_threat(training.name).epsilon)
    radii = list(map(float, usual[0] if radii is None else radii))
    strengths = sorted({0.0, *map(float, usual[1] if strengths is None else strengths)})
    check_budget({"radii": len(radii), "epochs": len(epochs), "strengths": len(strengths)}, budget)
    _check(training, images, radii, epochs)
    if build is None:
        build = partial(small_cnn, len(training.classes), training.shape[0])
    config = replace(CONFIG, epochs=epochs[-1], seed=seed)
    accuracies = []
    for radius in tqdm(radii, desc="training frames", unit="network", leave=False):
        network = initialized(build, seed)
        job = partial(_measured, network, training, images, radius, epochs, strengths, config)
        settings = [describe([config, ATTACK]), radius, list(epochs), strengths, fingerprint(network)]
        settings += [describe(_against(radius)), fingerprint(training.pixels, training.labels)]
        settings += [fingerprint(images.pixels, images.labels)]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]
        shape = (len(epochs), len(strengths))
        kept = cached(f"training-{name}", job, partial(_fits, shape))
        accuracies.append(kept["accuracy"])
    grid: dict[str, tuple[Value, ...]] = {"radius": tuple(radii), "epochs": tuple(epochs), "strength": tuple(strengths)}
    about = {"data": training.name, "training": len(training), "images": len(images), "seed": seed}
    return Frames("training", grid, {"accuracy": torch.stack(accuracies)}, about)


def _check(training: ImageSet, images: ImageSet, radii: Sequence[float], epochs: Sequence[int]) -> None:
    if radii[0] < 0 or any(after <= before for before, after in pairwise(radii)):
        raise ValueError(f"radii must be >= 0 and grow, got {', '.join(f'{radius:g}' for radius in radii)}")
    if len(radii) > len(PALETTE):
        raise ValueError(f"radii must be at most {len(PALETTE)}, which colors and signs tell apart, got {len(radii)}")
    if epochs[0] < 1 or any(after <= before for before, after in pairwise(epochs)):
        raise ValueError(f"epochs must be >= 1 and grow, got {', '.join(map(str, epochs))}")
    if (images.classes, images.shape) != (training.classes, training.shape):
        raise ValueError(
            f"images must have the shape and classes of those trained on, got {images.name} of {images.shape} beside "
            f"{training.name} of {training.shape}"
        )


def _against(radius: float) -> Callable[..., Tensor] | None:
    return training_attack("fgsm-rs", Threat("linf", radius)) if radius else None


def _fits(shape: tuple[int, int], kept: dict[str, Tensor]) -> bool:
    return "accuracy" in kept and kept["accuracy"].shape == shape


def _measured(
    network: Classifier,
    training: ImageSet,
    images: ImageSet,
    radius: float,
    epochs: Sequence[int],
    strengths: Sequence[float],
    config: TrainConfig,
) -> dict[str, Tensor]:
    """Train one network and return its accuracies after the epochs that are asked for."""
    found: list[list[float]] = []

    def look(log: EpochLog) -> None:
        if log.epoch in epochs:
            noise = seeded(config.seed)
            pairs = images.images, images.labels
            measured = sweep(network, *pairs, ATTACK, strengths, survivors_only=True, generator=noise)
            found.append(measured.accuracies())

    train(network, training.pixels, training.labels, config, attack=_against(radius), validation=0.0, on_epoch=look)
    return {"accuracy": torch.tensor(found, dtype=torch.float64)}
