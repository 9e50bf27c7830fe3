"""Training each kind of defended network from start to finish, on top of the one training loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robustviz.data import ImageSet
from robustviz.defenses.assembly import defended, extended
from robustviz.defenses.cas import joint
from robustviz.defenses.tvm import layer as tvm
from robustviz.defenses.wnll import only_buffer_trains, refresh_template, wnll_classifier, wnll_objective
from robustviz.defenses.wnll.head import Gradient, expected_size
from robustviz.models import Classifier, initialized
from robustviz.presets import OWN_ATTACK, TrainingAttack, training_attack, training_objective
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, hold_out, train
from robustviz.training.state import EpochLog
from robustviz.types import Attack, Images, Labels, Objective, Threat

Defense = Literal["none", "wnll", "cas", "tvm"]
Augmentation = Literal["none", "tvm"]


@dataclass(frozen=True)
class Hardened:
    """A trained network with what makes it again.

    Attributes:
        model: In evaluation mode.
        build: Makes the same network untrained.
        logs: Of every epoch of every stage.
    """

    model: Classifier
    build: Callable[..., Classifier]
    logs: list[EpochLog]


def harden(
    image_set: ImageSet,
    *,
    network: str,
    config: TrainConfig,
    threat: Threat,
    attack: TrainingAttack = "none",
    defense: Defense = "none",
    augment: Augmentation = "none",
    gradient: Gradient = "exact",
    rounds: int = 2,
    start: Classifier | None = None,
    origin: str | None = None,
    steps: int = 10,
    step_size: float | None = None,
    validation: float = 0.1,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    state: Path | None = None,
    on_epoch: Callable[[EpochLog, int], Any] | None = None,
    say: Callable[[str], Any] = lambda message: None,
) -> Hardened:
    """Train a network with a defense, naturally or against an attack.

    Args:
        image_set: Training images.
        network: Name of a network of `robustviz.models`.
        config: Of the training.
        threat: What the attacker may do.
        attack: `"none"`, `"fgsm-rs"`, `"pgd"`, or `"trades"` or `"mart"`, objectives that hold PGD. PGD watches all
            but the first.
        defense: `"none"`; `"wnll"`: rounds of training through the linear head and of the buffer through WNLL;
            `"cas"`: channel suppression with its joint objective for trainer and attacker; `"tvm"`: images are purified
            by total variation minimization. The purifier is put in front after training, because with it in place
            every update, and every step of an attack, would wait for it; the epoch is chosen on purified images.
        augment: `"tvm"` trains on the images together with their TVM versions; the held-out images get none.
        gradient: With WNLL, what stage B and attacks during training follow, and what the finished head has.
        rounds: With WNLL, how often both stages are gone through (N of arXiv 1802.00168, algorithm 1).
        start: A trained network of the same kind to begin with; it stays as it is. What it lacks, such as CAS or the
            buffer of WNLL, is added (see `extended`). Its TVM purifier, if it has one, also stands in front of the
            result; WNLL then trains on purified images alone.
        origin: Says which network `start` is; an interrupted training goes on only from the same.
        steps: Of PGD.
        step_size: Of the attack, in pixel units; None is the usual one.
        validation: Share of the training images that chooses the epoch.
        device: Where to train.
        cache: Folder that keeps TVM versions for the next time; None keeps none.
        state: Where an interrupted training keeps its state; files with a further ending stand beside it.
        on_epoch: Called after every epoch with its log and the number of epochs of its stage.
        say: Called with a line of text when a stage begins.

    Raises:
        ValueError: If TRADES or MART meets WNLL, which has an objective of its own, or augmentation does, because an
            image and its TVM version could stand on both sides of an interpolation; if there are too few images for
            WNLL; or if `start` is a network of another kind.
    """
    if defense == "wnll" and attack in OWN_ATTACK:
        raise ValueError(f"attack must be none, fgsm-rs or pgd with WNLL, got {attack!r}")
    if defense == "wnll" and augment != "none":
        raise ValueError(
            f"augment must be none with WNLL, got {augment!r}; train with it first, then start WNLL from that network"
        )
    classes, channels = len(image_set.classes), image_set.images.shape[1]
    build = partial(defended, network=network, classes=classes, channels=channels)
    build = partial(build, cas=defense == "cas") if defense != "wnll" else partial(build, buffer=True)
    classifier = initialized(build if start is None else partial(extended, start, build), config.seed).to(device)
    purifier = _purifier(defense, start)
    objective, against, monitor = players(attack, defense, threat, steps, step_size)
    loop: dict[str, Any] = {"attack": against, "monitor": monitor, "validation": validation, "on_epoch": on_epoch}
    loop["origin"] = origin
    if purifier is not None or augment == "tvm":
        kinds: list[tvm.Part] = ["clean", "tvm"] if augment == "tvm" else ["tvm"] if defense == "wnll" else ["clean"]
        parts: list[list[tvm.Part]] = [kinds, ["clean"] if purifier is None else ["tvm"]]
        make = partial(tvm.augment, purifier=purifier or tvm.TVM(), folder=cache)
        image_set, loop["validation"] = _versions(image_set, parts, make, validation, config.seed, device)
    if defense == "wnll":
        hardened = _alternate(classifier, build, image_set, config, state, gradient, rounds, loop, say)
    else:
        loop |= {"objective": objective, "resume": state}
        logs = _train(classifier, image_set.images, image_set.labels, config, **loop)
        hardened = Hardened(classifier.eval(), build, logs)
    if purifier is None:
        return hardened
    build = partial(hardened.build, tvm=purifier.settings)
    return Hardened(hardened.model.replace(purify=purifier), build, hardened.logs)


def _train(
    model: Classifier,
    images: Images,
    labels: Labels,
    config: TrainConfig,
    *,
    on_epoch: Callable[[EpochLog, int], Any] | None,
    **loop: Any,
) -> list[EpochLog]:
    """Train for one stage."""
    told = None if on_epoch is None else lambda log: on_epoch(log, config.epochs)
    return train(model, images, labels, config, on_epoch=told, **loop)


def _purifier(defense: Defense, start: Classifier | None) -> tvm.TVM | None:
    """Choose what will stand in front of the network: what stood there, or TVM if it is the defense."""
    if start is not None and isinstance(start.purify, tvm.TVM):
        return tvm.TVM(**start.purify.settings).eval()
    return tvm.TVM().eval() if defense == "tvm" else None


def _versions(
    image_set: ImageSet,
    parts: list[list[tvm.Part]],
    make: Callable[..., ImageSet],
    validation: float,
    seed: int,
    device: torch.device | str,
) -> tuple[ImageSet, Tensor]:
    """Put TVM versions into both parts of an image set, each made from its own images: no image is in both.

    Args:
        image_set: Training images.
        parts: Versions of the images of the training part, and of those of the validation part.
        make: Makes the versions.
        validation: Share of the validation part.
        seed: Of the masks.
        device: Where the versions are made.

    Returns:
        The image set, and the indices of its validation part.
    """
    made = [
        make(image_set[rows].to(device), parts=kinds, generator=seeded(seed, number))
        for number, (rows, kinds) in enumerate(zip(hold_out(image_set.labels, validation), parts, strict=True))
        if len(rows)
    ]
    images, labels = (torch.cat([getattr(part, name).cpu() for part in made]) for name in ("images", "labels"))
    return replace(image_set, images=images, labels=labels), torch.arange(len(made[0]), len(images))


def players(
    attack: TrainingAttack, defense: Defense, threat: Threat, steps: int = 10, step_size: float | None = None
) -> tuple[Objective, Attack | None, Attack | None]:
    """Choose what the trainer lowers, the attack it trains against, and the attack that watches it.

    With CAS all three have the joint objective, and TRADES the factor 4 instead of 6 (arXiv 2103.08307).
    """
    objective = training_objective(attack, threat, steps, step_size)
    against: Any = training_attack(attack, threat, steps, step_size)
    monitor: Any = None if attack == "none" else training_attack("pgd", threat, steps)
    if defense == "cas":
        objective = joint(partial(objective, factor=4.0) if attack == "trades" else objective)
        against, monitor = (a and partial(a, objective=joint()) for a in (against, monitor))
    return objective, against, monitor


TEMPLATE = 1000
"""Most points of a template: of those that stage B draws, and of the one that the finished head keeps."""

BUFFER: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01, "schedule": "constant"}
"""How stage B trains the buffer; the papers take 2 to 5 epochs at rates from 0.0005 to 0.05."""

LEARNERS = 1000
"""Most images that learn in one update of stage B, where every update also needs the features of a whole template."""


def _alternate(
    classifier: Classifier,
    build: partial[Classifier],
    image_set: ImageSet,
    config: TrainConfig,
    state: Path | None,
    gradient: Gradient,
    rounds: int,
    loop: dict[str, Any],
    say: Callable[[str], Any],
) -> Hardened:
    """Alternate: everything through the linear head (A), the buffer through WNLL (B); then draw the final template.

    Later rounds start A at a fifth of the learning rate. B learns from clean images, or from images that the attack
    makes through the WNLL head; half of the training images serve there as the pool that templates are drawn from, the
    other half learns, and the held-out part chooses the epoch. For the attack and for the choice the head has a fixed
    template, whose features are made anew after every epoch. The final template is drawn from all training images.

    Source: Wang et al., arXiv 1802.00168, algorithm 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    kept, held = hold_out(image_set.labels, loop["validation"])
    source = image_set[kept]
    # An image must not stand in the template that its own label is interpolated from.
    learners, pool = _halves(source, config.seed)
    seen = torch.cat([learners.images, image_set.images[held]]), torch.cat([learners.labels, image_set.labels[held]])
    held_out = {"validation": torch.arange(len(learners), len(seen[1]))}
    batch_size = max(config.batch_size, min(LEARNERS, len(learners) // 10))
    stage_b = replace(config, batch_size=batch_size, **BUFFER)
    size = min(TEMPLATE, len(pool))
    logs: list[EpochLog] = []
    for number in range(rounds):
        files = [None if state is None else state.with_name(f"{state.name}-{number + 1}{stage}") for stage in "ab"]
        stage_a = replace(config, learning_rate=config.learning_rate / (1 if number == 0 else 5))
        say(f"round {number + 1} of {rounds}, stage A: everything learns through the linear head")
        logs += _train(classifier, image_set.images, image_set.labels, stage_a, resume=files[0], **loop)
        say(f"round {number + 1} of {rounds}, stage B: the buffer learns through WNLL, {BUFFER['epochs']} epochs")
        interpolating = wnll_classifier(classifier, pool, size=size, gradient=gradient)
        loop_b: dict[str, Any] = {"objective": wnll_objective(pool, size), "resume": files[1], **held_out}
        loop_b["before_validation"] = partial(refresh_template, interpolating, pool)
        with only_buffer_trains(interpolating):
            logs += _train(interpolating, *seen, stage_b, **(loop | loop_b))
    settings: dict[str, Any] = {"size": min(TEMPLATE, len(source)), "gradient": gradient}
    model = wnll_classifier(classifier, source, **settings, generator=seeded(config.seed))
    return Hardened(model.eval(), partial(build, wnll=settings), logs)


def _halves(source: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split the training part into images that learn and a pool for templates, which must hold every class."""
    classes = len(source.classes)
    learners, pool = source.split(seeded(seed), share=0.5)
    if lacking := classes - len(set(pool.labels.tolist())):
        raise ValueError(
            f"image_set must be larger for WNLL (--images on the command line): the {len(pool)} of its images that "
            f"templates are drawn from lack {lacking} of {classes} classes; random points hold all classes after "
            f"{expected_size(classes):.1f} on average"
        )
    return learners, pool
