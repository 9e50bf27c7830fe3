"""Any defense against the same networks without it: trained naturally and adversarially, over seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustviz.data import ImageSet
from robustviz.defenses import Defense
from robustviz.evaluation.comparison import Comparison, Entry, compare
from robustviz.evaluation.suites import contests
from robustviz.presets import TrainingAttack
from robustviz.records import describe
from robustviz.training import TrainConfig
from robustviz.training.stages import harden
from robustviz.types import Threat

TRAININGS: Mapping[str, TrainingAttack] = {"standard": "none", "adversarial": "pgd"}
"""How the networks are trained, each without and with the defense."""


@dataclass(frozen=True)
class Setting:
    """What the networks of a comparison have in common.

    Attributes:
        training_set: Images to train on.
        test_set: Images to attack.
        threat: Threat of the training; the networks are attacked at half of its radius and at all of it.
        network: Name of a network of `robustviz.models`.
        config: Training; the seed is replaced.
        options: Options of the defense.
        device: Where to train and attack.
        cache: Folder that keeps what takes long to compute; None keeps nothing.
    """

    training_set: ImageSet
    test_set: ImageSet
    threat: Threat
    network: str = "small_cnn"
    config: TrainConfig = field(default_factory=TrainConfig)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    cache: Path | None = None


def compare_defense(
    defense: Defense, setting: Setting, seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None
) -> Comparison:
    """Compare networks without and with a defense, under published and adaptive attacks.

    Args:
        defense: The record; `evaluation.suites.contests` gives the attacks.
        setting: What the networks have in common.
        seeds: Each trains all networks again.
        say: Called with a line of text at every step.

    Returns:
        A comparison with the name of the defense.
    """
    radius = setting.threat.epsilon
    recorded = {
        "data": setting.training_set.name,
        "training_images": len(setting.training_set),
        "network": setting.network,
        "defense": {"name": defense.name, "options": describe(defense.configured(setting.options))},
        "training": describe(setting.config),
        "threat": describe(setting.threat),
    }
    entries = partial(_entries, defense, setting)
    test_set = setting.test_set.to(setting.device)
    strengths: dict[str, Any] = {"epsilons": (radius / 2, radius), "norm": setting.threat.norm}
    return compare(defense.name, entries, test_set, seeds=seeds, settings=recorded, say=say, **strengths)


def _entries(defense: Defense, setting: Setting, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks of each training, without and with the defense."""
    for name, attack in TRAININGS.items():
        train = partial(
            harden,
            setting.training_set,
            network=setting.network,
            config=replace(setting.config, seed=seed),
            threat=setting.threat,
            attack=attack,
            device=setting.device,
            cache=setting.cache,
        )
        plain = train().model
        yield name, Entry(plain, partial(contests, plain))
        with_it = train(defenses=[defense], options=setting.options).model
        yield f"{name} + {defense.name}", Entry(with_it, partial(contests, with_it))
