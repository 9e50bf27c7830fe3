"""Training each kind of defended network from start to finish, on top of the one training loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robustviz.assembly import defended
from robustviz.data import ImageSet
from robustviz.defenses import tvm
from robustviz.defenses.cas import joint
from robustviz.defenses.wnll import only_buffer_trains, wnll_classifier, wnll_objective
from robustviz.defenses.wnll_head import Gradient
from robustviz.models import Classifier, initialized
from robustviz.recipes import OWN_ATTACK, TrainingAttack, training_attack, training_objective
from robustviz.resume import EpochLog
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, hold_out, train
from robustviz.types import Attack, Objective, Threat

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
    steps: int = 10,
    step_size: float | None = None,
    validation: float = 0.1,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    state: Path | None = None,
    on_epoch: Callable[[EpochLog], Any] | None = None,
) -> Hardened:
    """Train a network with a defense, naturally or against an attack.

    Args:
        image_set: Training images.
        network: Name of a network of `robustviz.models`.
        config: Of the training.
        threat: What the attacker may do.
        attack: `"none"`, `"fgsm-rs"`, `"pgd"`, or `"trades"` or `"mart"`, objectives that hold PGD. PGD watches all
            but the first.
        defense: `"none"`; `"wnll"`: two rounds of training through the linear head and of the buffer through WNLL;
            `"cas"`: channel suppression with its joint objective for trainer and attacker; `"tvm"`: images are purified
            by total variation minimization. The purifier is put in front after training, because with it in place
            every update, and every step of an attack, would wait for it; the epoch is chosen on purified images.
        augment: `"tvm"` trains on the images together with their TVM versions; the held-out images get none.
        gradient: With WNLL, what stage B and attacks during training follow, and what the finished head has.
        steps: Of PGD.
        step_size: Of the attack, in pixel units; None is the usual one.
        validation: Share of the training images that chooses the epoch.
        device: Where to train.
        cache: Folder that keeps TVM versions for the next time; None keeps none.
        state: Where an interrupted training keeps its state; files with a further ending stand beside it.
        on_epoch: Called after every epoch.

    Raises:
        ValueError: If TRADES or MART meets WNLL, which has an objective of its own, or augmentation does, because an
            image and its TVM version could stand on both sides of an interpolation.
    """
    shape: dict[str, Any] = {
        "network": network,
        "classes": len(image_set.classes),
        "channels": image_set.images.shape[1],
    }
    objective, against, monitor = players(attack, defense, threat, steps, step_size)
    loop: dict[str, Any] = {"validation": validation, "on_epoch": on_epoch}
    if defense == "wnll" and augment != "none":
        raise ValueError(f"augment must be none with WNLL, got {augment!r}; put a WNLL head on the augmented network")
    if "tvm" in (defense, augment):
        image_set, loop["validation"] = _purified(image_set, defense, augment, validation, config.seed, device, cache)
    if defense == "wnll":
        if attack in OWN_ATTACK:
            raise ValueError(f"attack must be none, fgsm-rs or pgd with WNLL, got {attack!r}")
        build = partial(defended, **shape, buffer=True)
        classifier = initialized(build, config.seed).to(device)
        loop |= {"attack": against, "monitor": monitor}
        return _alternate(classifier, build, image_set, config, state, gradient, loop)
    build = partial(defended, **shape, cas=defense == "cas")
    classifier = initialized(build, config.seed).to(device)
    loop |= {"objective": objective, "attack": against, "monitor": monitor, "resume": state}
    logs = train(classifier, image_set.images, image_set.labels, config, **loop)
    if defense == "tvm":
        purifier = tvm.TVM()
        return Hardened(classifier.eval().replace(purify=purifier.eval()), partial(build, tvm=purifier.settings), logs)
    return Hardened(classifier.eval(), build, logs)


def _purified(
    image_set: ImageSet,
    defense: Defense,
    augment: Augmentation,
    validation: float,
    seed: int,
    device: torch.device | str,
    cache: Path | None,
) -> tuple[ImageSet, Tensor]:
    """Put TVM versions into both parts of an image set, each made from its own images: no image is in both.

    The training part grows by its versions if they augment it; the validation part becomes its versions if the network
    will see purified images alone.

    Returns:
        The image set, and the indices of its validation part.
    """
    parts: list[list[tvm.Part]] = [["clean", "tvm"] if augment == "tvm" else ["clean"]]
    parts += [["tvm"] if defense == "tvm" else ["clean"]]
    made = [
        tvm.augment(image_set[rows].to(device), tvm.TVM(), parts=kinds, folder=cache, generator=seeded(seed, number))
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


WNLL_ROUNDS = 2
"""How often the two stages alternate (arXiv 1802.00168, algorithm 1, N = 2)."""


def _alternate(
    classifier: Classifier,
    build: partial[Classifier],
    image_set: ImageSet,
    config: TrainConfig,
    state: Path | None,
    gradient: Gradient,
    loop: dict[str, Any],
) -> Hardened:
    """Alternate: everything through the linear head (A), the buffer through WNLL (B); then draw the final template.

    The second round starts A at a fifth of the learning rate. B takes two epochs at a hundredth, on clean images or on
    images that the attack makes through the WNLL head; half of the training images serve there as the pool that
    templates are drawn from, the other half learns. The final template is drawn from all of them, never from the
    held-out part.

    Source: Wang et al., arXiv 1802.00168, algorithm 1.
    """
    kept, _ = hold_out(image_set.labels, loop["validation"])
    source = image_set[kept]
    # An image must not stand in the template that its own label is interpolated from.
    learners, pool = source.split(seeded(config.seed), share=0.5)
    size = min(1000, len(pool))
    logs: list[EpochLog] = []
    for number in range(WNLL_ROUNDS):
        files = [None if state is None else state.with_name(f"{state.name}-{number + 1}{stage}") for stage in "ab"]
        stage_a = replace(config, learning_rate=config.learning_rate / (1 if number == 0 else 5))
        logs += train(classifier, image_set.images, image_set.labels, stage_a, resume=files[0], **loop)
        stage_b = replace(config, learning_rate=config.learning_rate / 100, epochs=2, schedule="constant")
        loop_b = loop | {"objective": wnll_objective(pool, size), "resume": files[1]}
        interpolating = wnll_classifier(classifier, pool, size=size, gradient=gradient)
        with only_buffer_trains(interpolating):
            logs += train(interpolating, learners.images, learners.labels, stage_b, **loop_b)
    settings: dict[str, Any] = {"size": min(1000, len(source)), "gradient": gradient}
    model = wnll_classifier(classifier, source, **settings, generator=seeded(config.seed))
    return Hardened(model.eval(), partial(build, wnll=settings), logs)
