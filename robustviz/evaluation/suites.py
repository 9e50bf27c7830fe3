"""Which attacks a network is measured with: the one answer for commands, comparisons, diagnoses and maps.

Attacks of papers are made as the papers made them, on the published view of the network; attacks made for its defenses
come from their records; and the standard ensemble knows of no defense.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import nn

from robustviz.attacks import (
    against,
    apgd,
    apgd_targeted,
    bounded,
    carlini_wagner,
    combined,
    deepfool,
    fmn,
    ifgsm,
    pgd,
    random_noise,
    square,
)
from robustviz.defenses.defense import Contest, at, itself, present
from robustviz.models import Classifier
from robustviz.objectives import dlr, margin
from robustviz.records import describe
from robustviz.types import Attack, Threat

SuiteAttack = Literal["apgd-ce", "apgd-dlr", "apgd-t", "pgd", "fmn", "cw", "deepfool", "square", "noise"]

STANDARD_NAMES: tuple[SuiteAttack, ...] = ("apgd-ce", "apgd-t", "fmn", "square")
"""The ensemble that robust accuracy is usually reported for."""

PUBLISHED_STEPS = 20
"""Steps of the attacks on a network without a defense."""


def published_view(model: nn.Module) -> Callable[[Any], nn.Module] | None:
    """Choose what the papers of a network's defenses attacked.

    Returns:
        A view for `attacks.against`; None is the network itself.
    """
    views = [defense.published for defense in reversed(present(model)) if defense.published is not itself]
    return partial(combined, views=views) if len(views) > 1 else views[0] if views else None


def adaptive(model: Any, threat: Threat) -> dict[str, Contest]:
    """Make the attacks for the defenses that a network has, by name; none for a network without."""
    return {name: c for defense in present(model) for name, c in defense.attacks(model, threat).items()}


def adaptive_attacks(model: nn.Module, threat: Threat) -> dict[str, Attack]:
    """Make the attacks of `adaptive`, without what is said of them."""
    return {name: contest.attack for name, contest in adaptive(model, threat).items()}


def suite(
    model: nn.Module, attacks: Mapping[str, Attack], threat: Threat, *, for_defense: bool = True
) -> dict[str, Attack]:
    """Choose what a network is measured with: attacks as papers make them, and those made for its own defenses.

    Args:
        model: The network; its defenses are recognized.
        attacks: Attacks of papers by name; where a paper attacked another view of the network they are made on that
            view, and their names say so.
        threat: Norm and radius of the attacks made for the defenses.
        for_defense: Whether there are such.
    """
    view = published_view(model)
    made_as_published = [_as_published(name, Contest(attack), view) for name, attack in attacks.items()]
    attacks = {name: contest.attack for each in made_as_published for name, contest in each.items()}
    done = [describe(attack) for attack in attacks.values()]
    made = adaptive_attacks(model, threat) if for_defense else {}
    return {**attacks, **{name: attack for name, attack in made.items() if describe(attack) not in done}}


def baseline(steps: int = PUBLISHED_STEPS) -> dict[str, Contest]:
    """Make what a network without a defense is measured with; a threat is not fixed yet (`Contest.at`)."""
    return {
        "IFGSM": Contest(partial(ifgsm, steps=steps), "published"),
        "PGD": Contest(partial(pgd, steps=steps)),
        "PGD, margin": Contest(partial(pgd, steps=steps, objective=margin)),
    }


def contests(model: Classifier, threat: Threat, *, steps: int | None = None) -> dict[str, Contest]:
    """Make the published and the adaptive attacks on a network, told apart by their kind; each kind has one or more.

    Args:
        model: The network; its defenses are recognized.
        threat: Norm and radius.
        steps: Steps of the attacks that fix a number of steps; None leaves it to them.
    """
    made, view = adaptive(model, threat), published_view(model)
    kinds = {contest.kind for contest in made.values()}
    usual: dict[str, Contest] = {}
    for name, contest in at(baseline(PUBLISHED_STEPS if steps is None else steps), threat).items():
        if contest.kind == "published" and "published" not in kinds:
            usual |= _as_published(name, contest, view)
        elif contest.kind != "published" and (view is None or "adaptive" not in kinds):
            usual[name] = contest
    every = usual | made
    return every if steps is None else {name: contest.with_steps(steps) for name, contest in every.items()}


def _as_published(name: str, contest: Contest, view: Callable[[Any], nn.Module] | None) -> dict[str, Contest]:
    """Make a contest on the published view of a network, where there is one; its name then says so."""
    if view is None:
        return {name: contest}
    return {f"{name}, as published": replace(contest, attack=partial(against, view=view, attack=contest.attack))}


def published_name(every: Mapping[str, Contest]) -> str:
    """Name the first contest of the published kind.

    Raises:
        ValueError: If there is none.
    """
    for name, contest in every.items():
        if contest.kind == "published":
            return name
    raise ValueError(f"contests must hold one of the kind published, got {', '.join(every) or 'none'}")


def ensemble(
    names: Iterable[SuiteAttack],
    threat: Threat,
    classes: int,
    *,
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    early_exit: bool = True,
) -> dict[str, Attack]:
    """Make attacks for a cascade, `evaluate(survivors_only=True)`: each leaves an image alone as soon as it fools.

    Those that look for the nearest image count only what they find within the threat.

    Args:
        names: Names in the order in which the attacks run.
        threat: Norm and radius.
        classes: Number of classes that the model knows.
        steps: Steps of the attacks that follow a gradient.
        queries: Queries of those that see only outputs.
        targets: Most classes that Auto-PGD on DLR aims at.
        early_exit: Whether Auto-PGD and PGD stop at the first image that fools.

    Raises:
        ValueError: If there are fewer than two classes, a name is unknown, or Carlini & Wagner is used with L-infinity.
    """
    if classes < 2:
        raise ValueError(f"classes must be >= 2, got {classes}")
    names, nearest = list(names), partial(bounded, threat=threat)
    climb: dict[str, Any] = {"threat": threat, "steps": steps, "early_exit": early_exit}
    if "cw" in names and threat.norm != "l2":
        raise ValueError(f"cw looks for the nearest image in l2, but the threat is {threat.norm}; use fmn")
    known: dict[SuiteAttack, tuple[str, Attack]] = {
        "apgd-ce": (f"APGD-CE-{steps}", partial(apgd, **climb)),
        "apgd-dlr": (f"APGD-DLR-{steps}", partial(apgd, objective=dlr, **climb)),
        "apgd-t": (f"APGD-T-{steps}", partial(apgd_targeted, targets=min(targets, classes - 1), **climb)),
        "pgd": (f"PGD-{steps}", partial(pgd, **climb)),
        "fmn": (f"FMN-{steps}", partial(nearest, attack=partial(fmn, norm=threat.norm, steps=steps))),
        "cw": (f"CW-{steps}", partial(nearest, attack=partial(carlini_wagner, steps=steps))),
        "deepfool": (f"DeepFool-{steps}", partial(nearest, attack=partial(deepfool, norm=threat.norm, steps=steps))),
        "square": (f"Square-{queries}", partial(square, threat=threat, steps=queries)),
        "noise": (f"noise-{queries}", partial(random_noise, threat=threat, steps=queries)),
    }
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names must be of {', '.join(known)}, got {unknown[0]!r}")
    return dict(known[name] for name in names)


def standard_ensemble(threat: Threat, classes: int, *, steps: int = 100, queries: int = 5000) -> dict[str, Attack]:
    """Make four attacks of different kinds, whose worst case is the standard; arguments are those of `ensemble`.

    Auto-PGD on cross-entropy, Auto-PGD towards other classes on DLR, fast minimum norm, and Square, which sees no
    gradient.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", arXiv 2003.01690; their FAB is replaced
    with FMN (Pintor et al., arXiv 2102.12827).
    """
    return ensemble(STANDARD_NAMES, threat, classes, steps=steps, queries=queries)
