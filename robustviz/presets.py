"""The usual settings by their names, for the command line and for experiments: threats, attacks, augmentation."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from robustviz.attacks import fgsm, ifgsm, mifgsm, pgd
from robustviz.objectives import cross_entropy, mart, trades
from robustviz.types import Attack, Norm, Objective, Threat

TrainingAttack = Literal["none", "fgsm-rs", "pgd", "trades", "mart"]
EvaluationAttack = Literal["fgsm", "ifgsm", "pgd", "mifgsm"]

EPSILONS: dict[Norm, dict[str, float]] = {
    "linf": {"digits": 0.15, "mnist": 0.3, "fashionmnist": 0.1},
    "l2": {"digits": 1.0, "mnist": 2.0, "fashionmnist": 1.0},
}
"""Radii of gray data sets; others have 8 / 255 in L-infinity and 0.5 in L2. A person reads 8x8 digits past 0.15."""


def usual_threat(data: str, norm: Norm = "linf", epsilon: float | None = None) -> Threat:
    """Threat of a data set by its usual radius, unless one is given."""
    return Threat(norm, EPSILONS[norm].get(data, 8 / 255 if norm == "linf" else 0.5) if epsilon is None else epsilon)


def usual_augmentation(data: str) -> dict[str, Any]:
    """Settings of `TrainConfig` for a data set: shifts for 28 pixels and more, mirroring where it keeps the meaning."""
    return {
        "padding": {"digits": 0, "mnist": 2, "fashionmnist": 2, "signs": 2}.get(data, 4),
        "flip": data not in ("digits", "mnist", "svhn", "signs"),
    }


def training_attack(
    name: TrainingAttack, threat: Threat, steps: int = 10, step_size: float | None = None
) -> Attack | None:
    """Attack to train against.

    `"pgd"` is Madry et al. (arXiv 1706.06083). `"fgsm-rs"` is one step of 1.25 epsilon from a random start (Wong, Rice
    & Kolter, "Fast is better than free", arXiv 2001.03994), which may collapse: watch it with PGD. `"trades"` and
    `"mart"` train on clean images with a `training_objective` that holds PGD.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in get_args(TrainingAttack):
        raise ValueError(f"name must be one of {', '.join(get_args(TrainingAttack))}, got {name!r}")
    if name in ("none", *OWN_ATTACK):
        return None
    if name == "fgsm-rs":
        return partial(pgd, threat=threat, steps=1, step_size=1.25 * threat.epsilon if step_size is None else step_size)
    return partial(pgd, threat=threat, steps=steps, step_size=step_size)


OWN_ATTACK = {"trades": trades, "mart": mart}
"""Objectives that hold their own attack, by the names that training knows them by."""


def training_objective(
    name: TrainingAttack, threat: Threat, steps: int = 10, step_size: float | None = None
) -> Objective:
    """Objective to train with: `trades` or `mart` with PGD inside, with their usual factors; else cross-entropy."""
    if name not in OWN_ATTACK:
        return cross_entropy
    attack: Any = training_attack("pgd", threat, steps, step_size)
    return partial(OWN_ATTACK[name], attack=attack)


def evaluation_attacks(
    names: Iterable[EvaluationAttack], threat: Threat, steps: int = 20, restarts: int = 1
) -> dict[str, Attack]:
    """Attacks to measure with, by the names their columns have.

    Raises:
        ValueError: If a name is unknown.
    """
    names = list(names)
    known: dict[EvaluationAttack, tuple[str, Attack]] = {
        "fgsm": ("FGSM", partial(fgsm, threat=threat)),
        "ifgsm": (f"IFGSM-{steps}", partial(ifgsm, threat=threat, steps=steps)),
        "pgd": (f"PGD-{steps}", partial(pgd, threat=threat, steps=steps, restarts=restarts)),
        "mifgsm": (f"MI-FGSM-{steps}", partial(mifgsm, threat=threat, steps=steps)),
    }
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names must be of {', '.join(known)}, got {unknown[0]!r}")
    return dict(known[name] for name in names)


def usual_device(name: str) -> torch.device:
    """Turn `auto` into the best device there is, and any other name into that device.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not there ({str(error).splitlines()[0]}); use auto or cpu") from error
    return device


def stem(data: str) -> str:
    """Short name of a data set for a folder: itself, or the last part of a path."""
    return Path(data).resolve().name if Path(data).is_dir() else data
