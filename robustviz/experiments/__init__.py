"""What `robustviz compare` runs: every defense as published and under the worst case of adaptive attacks."""

from torch import nn

from robustviz.comparison import with_threat
from robustviz.defenses.cas import CASBlock
from robustviz.defenses.wnll_head import WNLLHead
from robustviz.experiments.cas import ADAPTIVE
from robustviz.experiments.wnll import wnll_contests
from robustviz.types import Attack, Threat


def attacks_on_defenses(model: nn.Module, threat: Threat) -> dict[str, Attack]:
    """Attacks made for the defenses that a model has; none for a model without.

    Args:
        model: Its modules tell the defenses.
        threat: Norm and radius of every attack.
    """
    contests = wnll_contests(wide=(60,)) if any(isinstance(m, WNLLHead) for m in model.modules()) else {}
    if any(isinstance(m, CASBlock) for m in model.modules()):
        contests |= ADAPTIVE
    return {name: with_threat(contest.attack, threat) for name, contest in contests.items()}
