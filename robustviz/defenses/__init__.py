"""Defenses: parts that fill a slot of `Classifier`, each after its paper."""

from robustviz.defenses.cas import CASBlock, CASOutput, auxiliary, cas_outputs, joint, with_cas
from robustviz.defenses.tvm import TVM, TVStep, augment, minimize_tv, total_variation, tv_energy
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
    "TVM",
    "CASBlock",
    "CASOutput",
    "TVStep",
    "WNLLHead",
    "Weights",
    "affinity",
    "augment",
    "auxiliary",
    "buffered",
    "cas_outputs",
    "interpolate",
    "joint",
    "minimize_tv",
    "only_buffer_trains",
    "refresh_template",
    "total_variation",
    "tv_energy",
    "with_cas",
    "wnll_classifier",
    "wnll_objective",
]
