"""What `robustviz compare` runs: every defense as published and under the worst case of adaptive attacks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from robustviz.attacks import against, surrogate_head
from robustviz.defenses.cas import CASBlock
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.evaluation.comparison import Contest, with_threat
from robustviz.models import Classifier
from robustviz.records import describe
from robustviz.studies.cas import ADAPTIVE
from robustviz.studies.tvm import bpda_contests, combined, unpurified
from robustviz.studies.wnll import wnll_contests
from robustviz.types import Attack, Threat


def measured_with(
    model: Classifier, attacks: Mapping[str, Attack], threat: Threat, *, adaptive: bool = True
) -> dict[str, Attack]:
    """Choose what a network is measured with: attacks as papers make them, and those made for its own defense.

    Args:
        model: Its modules tell the defenses.
        attacks: By name; behind TVM and on WNLL they are made on `published_view`, and their names say so.
        threat: Norm and radius of the attacks made for the defenses.
        adaptive: Whether there are such.
    """
    if view := published_view(model):
        attacks = {
            f"{name}, as published": partial(against, view=view, attack=attack) for name, attack in attacks.items()
        }
    known = [describe(attack) for attack in attacks.values()]
    made = attacks_on_defenses(model, threat) if adaptive else {}
    return {**attacks, **{name: attack for name, attack in made.items() if describe(attack) not in known}}


def published_view(model: nn.Module) -> Callable[[Any], nn.Module] | None:
    """Choose what the papers attacked: the network without its purifier, and the linear head beside WNLL.

    Args:
        model: Its modules tell the defenses.

    Returns:
        A view for `attacks.against`; None is the network itself.
    """
    views: list[Callable[[Any], Any]] = [unpurified] if _has(model, TVM) else []
    views += [surrogate_head] if _has(model, WNLLHead) else []
    return partial(combined, views=views) if len(views) > 1 else views[0] if views else None


def attacks_on_defenses(model: nn.Module, threat: Threat) -> dict[str, Attack]:
    """Attacks made for the defenses that a model has; none for a model without.

    Args:
        model: Its modules tell the defenses. Behind TVM the attacks answer the purifier, and WNLL with it.
        threat: Norm and radius of every attack.
    """
    contests: dict[str, Contest] = {}
    if _has(model, TVM):
        contests |= bpda_contests(draws=10, wnll=_has(model, WNLLHead))
    elif _has(model, WNLLHead):
        contests |= wnll_contests(wide=(60,))
    if _has(model, CASBlock):
        contests |= ADAPTIVE
    return {name: with_threat(contest.attack, threat) for name, contest in contests.items()}


def _has(model: nn.Module, defense: type[nn.Module]) -> bool:
    return any(isinstance(module, defense) for module in model.modules())
