"""What `robustviz compare` runs: every defense as published and under the worst case of adaptive attacks."""

from collections.abc import Mapping
from functools import partial

from torch import nn

from robustviz.attacks import against
from robustviz.comparison import Contest, with_threat
from robustviz.defenses.cas import CASBlock
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll_head import WNLLHead
from robustviz.experiments.cas import ADAPTIVE
from robustviz.experiments.tvm import bpda_contests, unpurified
from robustviz.experiments.wnll import wnll_contests
from robustviz.models import Classifier
from robustviz.types import Attack, Threat


def measured_with(
    model: Classifier, attacks: Mapping[str, Attack], threat: Threat, *, adaptive: bool = True
) -> dict[str, Attack]:
    """Choose what a network is measured with: attacks that know of no defense, and those made for its own.

    Args:
        model: Its modules tell the defenses.
        attacks: By name; if images are purified, they are made without the purifier, and called naive.
        threat: Norm and radius of the attacks made for the defenses.
        adaptive: Whether there are such.
    """
    if _has(model, TVM):
        attacks = {
            f"{name}, naive": partial(against, view=unpurified, attack=attack) for name, attack in attacks.items()
        }
    return {**attacks, **(attacks_on_defenses(model, threat) if adaptive else {})}


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
