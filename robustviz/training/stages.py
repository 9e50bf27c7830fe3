"""Training a network with its defenses from start to finish: the stages of their records, on the one training loop."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustviz.data import ImageSet
from robustviz.defenses.assembly import architecture, check_same_shape, defended
from robustviz.defenses.defense import Defense, Stage, Training, known, named, present
from robustviz.distributed import processes
from robustviz.fingerprint import check_same
from robustviz.models import Classifier, initialized
from robustviz.presets import TrainingAttack, training_attack, training_objective
from robustviz.records import describe, write_atomic
from robustviz.tensors import evaluating
from robustviz.training.config import TrainConfig, hold_out
from robustviz.training.loop import train
from robustviz.training.state import EpochLog
from robustviz.types import Attack, Objective, Threat


@dataclass(frozen=True)
class Hardened:
    """A trained network with what makes it again.

    Attributes:
        model: In evaluation mode.
        build: Makes the same network untrained.
        logs: One log for every epoch of every stage.
        stages: For each stage, its name and what trained in it, as `describe` gives it.
    """

    model: Classifier
    build: Callable[..., Classifier]
    logs: list[EpochLog]
    stages: list[dict[str, Any]] = field(default_factory=list)


def harden(
    image_set: ImageSet,
    *,
    network: str | Mapping[str, Any],
    config: TrainConfig,
    threat: Threat,
    attack: TrainingAttack = "none",
    defenses: Sequence[Defense] = (),
    options: Mapping[str, Any] | None = None,
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
    """Train a network with its defenses, naturally or against an attack.

    Args:
        image_set: Training images.
        network: Name of a network of `robustviz.models`, or anybody's (see `defended`).
        config: Optimizer, schedule, augmentation and seed.
        threat: What the attacker may do.
        attack: `"none"`, `"fgsm-rs"`, `"pgd"`, or `"trades"` or `"mart"`, objectives that hold PGD. PGD watches all
            but the first.
        defenses: Records of the defenses to train.
        options: Options of these defenses, by the names of the fields of `Defense.options`; one that is not given is
            as in `start`, where that has the defense.
        start: A trained network of the same kind to begin with; it stays as it is. The defenses that it has stay in
            the result, and are trained too.
        origin: Says which network `start` is; an interrupted training goes on only from the same.
        steps: Steps of PGD.
        step_size: Step of the attack in pixel units; None is the usual one.
        validation: Share of the training images that chooses the epoch.
        device: Where to train.
        cache: Folder that keeps what takes long to compute for the next time; None keeps nothing.
        state: Where an interrupted training keeps what it is, and, in a file beside it for each stage (`state_files`),
            how far it is.
        on_epoch: Called after every epoch with its log and the number of epochs of its stage.
        say: Called with a line of text when a stage begins.

    Raises:
        ValueError: If an option belongs to none of the defenses; if a defense cannot be trained in this way; if `start`
            is a network of another kind; or if the interrupted training is another one.
    """
    options = {} if options is None else options
    check_options(defenses, options)
    kind: dict[str, Any] = {
        "network": network,
        "classes": len(image_set.classes),
        "channels": image_set.shape[0],
    }
    if start is not None:
        check_same_shape(start, architecture(start, **kind))
    model = initialized(partial(_begun, kind, start, defenses), config.seed).to(device)
    chosen = _outside_in(defenses, () if start is None else present(start))
    set_up = {defense.name: defense.configured(options, start) for defense in chosen}
    objective, against, monitor = players(attack, threat, steps, step_size)
    training = Training(
        model,
        image_set,
        hold_out(image_set.labels, validation)[1],
        config,
        objective,
        against,
        monitor,
        pretrained=start is not None,
        cache=cache,
        behind=[partial(defense.stages, options=set_up[defense.name]) for defense in chosen],
    )
    run = _Run({"network": network, "defenses": set_up}, state, origin, on_epoch)
    run.check()
    logs: list[EpochLog] = []
    stages: list[dict[str, Any]] = []
    for stage in training.stages():
        if stage.title:
            say(stage.title)
        logs += run.through(stage, model)
        stages.append(_described(stage))
    model.eval()
    return Hardened(model, architecture(model, **kind), logs, stages)


def check_options(defenses: Sequence[Defense], options: Mapping[str, Any]) -> None:
    """Refuse options that none of the defenses has.

    Raises:
        ValueError: If there is one; those that there are are listed.
    """
    owners = {name: defense.name for defense in defenses for name in defense.option_names}
    if unknown := [name for name in options if name not in owners]:
        names = " and ".join(defense.name for defense in defenses) or "a training without a defense"
        listed = ", ".join(owners) or "none"
        raise ValueError(f"options must be those of {names} ({listed}), got {unknown[0]!r}")


def players(
    attack: TrainingAttack, threat: Threat, steps: int = 10, step_size: float | None = None
) -> tuple[Objective, Attack | None, Attack | None]:
    """Choose what the trainer lowers, the attack it trains against, and the attack that watches it."""
    monitor = None if attack == "none" else training_attack("pgd", threat, steps)
    objective = training_objective(attack, threat, steps, step_size)
    return objective, training_attack(attack, threat, steps, step_size), monitor


def _begun(kind: dict[str, Any], start: Classifier | None, defenses: Sequence[Defense]) -> Classifier:
    """Make the network to train: a new one with its defenses, or a copy of a trained one with those that it lacks."""
    fresh = defended(**kind | {named(defense.name).name: {} for defense in defenses})
    if start is None:
        return fresh  # which is made in either case, so that parts that are added begin with the same numbers
    model = deepcopy(start)
    for defense in known():
        if defense in defenses and not defense.present(model):
            model = defense.build(model)
    return model


def _outside_in(defenses: Iterable[Defense], others: Iterable[Defense]) -> list[Defense]:
    """Put defenses in the order in which they are trained: one in front of the network around those inside it."""
    names = {defense.name for defense in (*defenses, *others)}
    return [defense for defense in reversed(known()) if defense.name in names]


def _described(stage: Stage) -> dict[str, Any]:
    """Write down what trained in a stage."""
    training = stage.training
    names = ("objective", "attack", "monitor", "config") if training is not None else ()
    return {"name": stage.name, **{name: describe(getattr(training, name)) for name in names}}


@dataclass
class _Run:
    """The files of a training that may be interrupted: what it is, and the state of each of its stages.

    Attributes:
        settings: What must mean the same for the training to go on, besides what the state of each stage holds.
        state: The file that says what the training is; None keeps nothing.
        origin: Says which network the training began with.
        on_epoch: Called after every epoch with its log and the number of epochs of its stage.
        stages: Names of the stages that have begun.
    """

    settings: dict[str, Any]
    state: Path | None
    origin: str | None
    on_epoch: Callable[[EpochLog, int], Any] | None
    stages: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse to go on from a training of another kind."""
        if self.state is not None and self.state.exists():
            check_same(self.state, _read(self.state)["run"], self.settings, "a run")

    def through(self, stage: Stage, model: Classifier) -> list[EpochLog]:
        """Go through a stage, from where it was interrupted.

        Raises:
            ValueError: If there was a stage of its name already.
        """
        if stage.name in self.stages:
            raise ValueError(f"stages must have different names, because each has a file, got {stage.name!r} twice")
        self.stages.append(stage.name)
        logs = [] if stage.training is None else self.train(stage.name, stage.training)
        if stage.gather is not None:
            with evaluating(model), torch.no_grad():
                stage.gather()
        return logs

    def train(self, name: str, training: Training) -> list[EpochLog]:
        """Train for one stage."""
        config: Any = training.config

        def told(log: EpochLog) -> None:
            self.keep()
            if self.on_epoch is not None:
                self.on_epoch(log, config.epochs)

        with training.within(training.model):
            return train(
                training.model,
                training.image_set.pixels,
                training.image_set.labels,
                config,
                objective=training.objective,
                attack=training.attack,
                monitor=training.monitor,
                validation=training.held,
                resume=None if self.state is None else _beside(self.state, name),
                origin=self.origin,
                before_validation=training.before_validation,
                on_epoch=told,
            )

    def keep(self) -> None:
        """Write down what the training is, once its first epoch is on disk."""
        if self.state is not None and processes().first:
            content = {"run": describe(self.settings), "stages": self.stages}
            write_atomic(self.state, json.dumps(content, indent=1) + "\n")


def state_files(state: Path) -> list[Path]:
    """Find what an interrupted training left: the file that says what it is, and the state of each of its stages."""
    if not state.exists():
        return []
    try:
        stages = [_beside(state, str(name)) for name in _read(state)["stages"]]
    except ValueError:
        stages = []
    return [state, *(file for file in stages if file.exists())]


def _beside(state: Path, stage: str) -> Path:
    return state.with_name(f"{state.name}-{stage}")


def _read(state: Path) -> dict[str, Any]:
    try:
        content = json.loads(state.read_text())
        return {"run": dict(content["run"]), "stages": list(content["stages"])}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{state} is damaged or from an earlier version ({error}); remove it to start again"
        ) from error
