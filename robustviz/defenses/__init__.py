"""Defenses: parts that fill a slot of `Classifier`, each after its paper."""

from robustviz.defenses.cas import CASBlock, CASOutput, auxiliary, cas_outputs, joint, with_cas
from robustviz.defenses.wnll import (
    Weights,
    WNLLHead,
    affinity,
    buffered,
    interpolate,
    only_buffer_trains,
    refresh_template,
    wnll_classifier,
    wnll_objective,
)

__all__ = [
    "CASBlock",
    "CASOutput",
    "WNLLHead",
    "Weights",
    "affinity",
    "auxiliary",
    "buffered",
    "cas_outputs",
    "interpolate",
    "joint",
    "only_buffer_trains",
    "refresh_template",
    "with_cas",
    "wnll_classifier",
    "wnll_objective",
]
