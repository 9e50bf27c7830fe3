"""Measuring a trained network for the table of results: each condition is stored when it is finished."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustviz.attacks import against, alone_head, carlini_wagner, identity_backward, linear_head
from robustviz.benchmark.record import ASSEMBLED, CARLINI_WAGNER, Condition, NetworkResults, Suite, share
from robustviz.data import ImageSet
from robustviz.distributed import processes
from robustviz.evaluation import CLEAN, evaluate, usual_draws
from robustviz.evaluation.suites import SuiteAttack, adaptive_attacks, ensemble, published_view
from robustviz.fingerprint import differing, fingerprint, revisions_of
from robustviz.models import Classifier
from robustviz.presets import evaluation_attacks
from robustviz.records import describe
from robustviz.tensors import batch_dependent, seeded, stochastic
from robustviz.types import Attack, Threat


@dataclass(frozen=True)
class Effort:
    """How much to spend on a network.

    Attributes:
        images: Test images, drawn evenly from the classes.
        few: The first of them, for Carlini & Wagner and for adaptive attacks through a purifier, which are slow.
        batch_size: Images at a time; WNLL answers jointly by these batches.
        steps: Steps of IFGSM and PGD.
        ensemble_steps: Steps of Auto-PGD and of the fast minimum norm attack.
        targets: Classes that targeted Auto-PGD tries.
        square_steps: Queries of Square.
        cw_steps: Steps of Carlini & Wagner, in each of `cw_search` rounds.
        cw_search: Rounds in which the constant is searched.
        seed: Seed of all random starts.
        draws: How often a network answers that draws at random or answers jointly; 1 counts luck.
    """

    images: int = 500
    few: int = 200
    batch_size: int = 256
    steps: int = 20
    ensemble_steps: int = 50
    targets: int = 4
    square_steps: int = 500
    cw_steps: int = 50
    cw_search: int = 5
    seed: int = 0
    draws: int = 16


@dataclass(frozen=True)
class Plan:
    """One condition to measure.

    Attributes:
        suite: Where it belongs.
        attack: None for clean images.
        few: On the first `Effort.few` images alone.
        after: Attack only the images that these conditions have left right.
        view: Turns the network into the one that is measured; None is the network itself.
    """

    suite: Suite
    attack: Attack | None
    few: bool = False
    after: Sequence[str] = ()
    view: Callable[[Any], nn.Module] | None = None


ENSEMBLE: dict[str, SuiteAttack] = {
    "APGD": "apgd-ce",
    "APGD, targeted": "apgd-t",
    "FMN": "fmn",
    "Square": "square",
}
"""Attacks of the ensemble by the names that their conditions have."""


def plans(model: Classifier, threat: Threat, effort: Effort, suites: Sequence[Suite]) -> dict[str, Plan]:
    """What to measure on a network, by the names of the conditions; clean images always come first."""
    view = published_view(model)
    made: dict[str, Plan] = {CLEAN: Plan("common", None)}
    common = evaluation_attacks(["fgsm", "ifgsm", "pgd"], threat, effort.steps)
    common[CARLINI_WAGNER] = partial(carlini_wagner, steps=effort.cw_steps, search_steps=effort.cw_search)
    for name, attack in common.items():
        published = attack if view is None else partial(against, view=view, attack=attack)
        made[name] = Plan("common", published, few=name == CARLINI_WAGNER)
    done = [describe(plan.attack) for plan in made.values()]
    slow = stochastic(model)
    for name, attack in adaptive_attacks(model, threat).items():
        if describe(attack) not in done:
            made[name] = Plan("adaptive", attack, few=slow)
    made |= _ensemble(model, threat, effort, slow, draws_of(model, effort))
    if isinstance(getattr(model.head, "linear", None), nn.Module):
        made["clean, one at a time"] = Plan("heads", None, view=alone_head)
        made["clean, linear head beside"] = Plan("heads", None, view=linear_head)
    return {name: plan for name, plan in made.items() if plan.suite in suites or name == CLEAN}


def draws_of(model: nn.Module, effort: Effort) -> int:
    """How often a network answers: once if it is deterministic."""
    return effort.draws if usual_draws(model) > 1 else 1


def _ensemble(model: Classifier, threat: Threat, effort: Effort, slow: bool, draws: int) -> dict[str, Plan]:
    """Four strong attacks, each on what those before left right, unless a network answers jointly or several times.

    A purifier is passed as the identity (BPDA).
    """
    attacks = ensemble(
        ENSEMBLE.values(),
        threat,
        effort.targets + 1,
        steps=effort.ensemble_steps,
        queries=effort.square_steps,
        targets=effort.targets,
        early_exit=False,
    )
    purified, made = not isinstance(model.purify, nn.Identity), dict[str, Plan]()
    for name, attack in zip(ENSEMBLE, attacks.values(), strict=True):
        through = partial(against, view=identity_backward, attack=attack) if purified else attack
        before = () if batch_dependent(model) or draws > 1 else (CLEAN, *made)
        made[name] = Plan("ensemble", through, few=slow, after=before)
    return made


def measure_network(
    model: Classifier,
    results: NetworkResults,
    test_set: ImageSet,
    todo: Mapping[str, Plan],
    effort: Effort,
    *,
    store: Callable[[NetworkResults], Any],
    unfinished: Path | None = None,
    say: Callable[[str], Any] = lambda message: None,
    on_batch: Callable[[str, int, int], Any] | None = None,
) -> NetworkResults:
    """Measure what is not yet in the results, or was measured with other settings.

    Args:
        model: The network, on the device of the test images.
        results: What is known of it.
        test_set: `Effort.images` test images.
        todo: What to measure.
        effort: Number of images, batch size and seed.
        store: Called with the results whenever conditions are finished.
        unfinished: File from which conditions that are measured together go on after a stop; removed when they are done.
        say: Called with a line of text for every condition.
        on_batch: Called after every batch; see `evaluate`.

    Returns:
        The results, complete.
    """
    for group in _groups(model, todo, effort):
        (first, plan), *_ = group.items()
        part = test_set[: min(effort.few if plan.few else effort.images, len(test_set))]
        attacked = survivors(results, plan, len(part))
        seen = model if plan.view is None else plan.view(model)
        settings = {name: setting_of(each, seen, attacked, effort) for name, each in group.items()}
        known = {name: results.conditions[name].setting for name in group if name in results.conditions}
        if all(name in known and not differing(known[name], setting) for name, setting in settings.items()):
            continue
        started = time.perf_counter()
        resume = unfinished if len(group) > 1 else None
        found = _decide(group, seen, part, attacked, effort, on_batch, resume)
        seconds = (time.perf_counter() - started) / len(group)
        for name, (right, distances) in found.items():
            suite = group[name].suite if name in group else "heads"
            setting = settings.get(name, settings[first] | {"attack": None, "chosen from": list(group)})
            keeps = distances if name == CARLINI_WAGNER else []
            results.conditions[name] = Condition(suite, describe(setting), right, keeps, seconds)
        store(results)
        if resume is not None and processes().first:
            resume.unlink(missing_ok=True)
        for name in found:
            accuracy, (low, high) = share(results.right(name))
            say(f"{results.name}, {name}: {accuracy:.1%} ({low:.1%} to {high:.1%}) of {len(part)}, {seconds:.0f} s")
    return results


def _groups(model: nn.Module, todo: Mapping[str, Plan], effort: Effort) -> list[dict[str, Plan]]:
    """Conditions that are evaluated together: each alone, or all on the same images where draws choose between them."""
    if draws_of(model, effort) == 1:
        return [{name: plan} for name, plan in todo.items()]
    groups: dict[Any, dict[str, Plan]] = {}
    for name, plan in todo.items():
        groups.setdefault((plan.few, plan.view, name == CARLINI_WAGNER), {})[name] = plan
    return list(groups.values())


def survivors(results: NetworkResults, plan: Plan, count: int) -> Tensor:
    """Which of the first `count` images a plan attacks: all, or those that the conditions before it left right."""
    attacked = torch.ones(count, dtype=torch.bool)
    for before in plan.after:
        attacked &= results.conditions[before].correct[:count]
    return attacked


def setting_of(plan: Plan, seen: nn.Module, attacked: Tensor, effort: Effort) -> dict[str, Any]:
    """What must mean the same for a recorded condition to count; see `robustviz.fingerprint`.

    Args:
        plan: The condition.
        seen: The network as it is measured; revisions of its modules count, if they are not 1.
        attacked: Which images are attacked, from `survivors`.
        effort: Batch size and seed.
    """
    before = {"conditions": list(plan.after), "checksum": fingerprint(attacked)[:16]} if plan.after else None
    setting = {"attack": plan.attack, "images": len(attacked), "survivors of": before}
    setting |= {"batch_size": effort.batch_size, "seed": effort.seed}
    if (draws := draws_of(seen, effort)) > 1:
        setting |= {"draws": draws, "jointly": batch_dependent(seen)}
    numbers = revisions_of(seen)
    return setting | ({"revisions": numbers} if numbers else {})


def _decide(
    group: Mapping[str, Plan],
    model: nn.Module,
    part: ImageSet,
    attacked: Tensor,
    effort: Effort,
    on_batch: Callable[[str, int, int], Any] | None,
    resume: Path | None,
) -> dict[str, tuple[str, list[float]]]:
    """Attack some of the images; the others count as wrong, because an earlier attack was enough for them.

    Returns:
        Right answers and distances by condition; also of the assembled set, if there is one within the threat.
    """
    draws = draws_of(model, effort)
    right, rows = torch.zeros(len(group) + 1, draws, len(part), dtype=torch.bool), attacked.nonzero().squeeze(1)
    distances = torch.zeros(len(group) + 1, len(part))
    names = list(group)
    if len(rows):
        attacks = {name: plan.attack for name, plan in group.items() if plan.attack is not None}
        settings: dict[str, Any] = {"batch_size": effort.batch_size, "draws": draws, "on_batch": on_batch}
        settings |= {"generator": seeded(effort.seed), "resume": resume}
        measured = evaluate(model, part.images[rows], part.labels[rows], attacks, **settings)
        for number, name in enumerate(names):
            row = measured.conditions.index(name) if name in attacks else 0
            right[number][:, rows], distances[number, rows] = measured.correct[row], measured.distances[row]
        if measured.assembled is not None and CARLINI_WAGNER not in group:
            right[-1][:, rows] = measured.assembled == measured.labels
            names.append(ASSEMBLED)
    return {
        name: (
            " ".join("".join("1" if decision else "0" for decision in draw) for draw in right[number].tolist()),
            [round(distance, 5) for distance in distances[number].tolist()],
        )
        for number, name in enumerate(names)
    }
