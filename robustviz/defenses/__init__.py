"""Defenses, each after its paper: parts of a network, and the record that tells the rest of the program of them."""

from robustviz.defenses.cas import CAS_DEFENSE, CASBlock, CASOutput, auxiliary, cas_outputs, joint, with_cas
from robustviz.defenses.defense import Contest, Defense, Stage, Training, known, named, present, registered
from robustviz.defenses.enresnet import ENRESNET_DEFENSE
from robustviz.defenses.meansparse import MEANSPARSE_DEFENSE, Sparsifier, sparsified
from robustviz.defenses.pssilu import PSSILU_DEFENSE, PSSiLU
from robustviz.defenses.tvm import TVM, TVStep, augment, minimize_tv, total_variation, tv_energy
from robustviz.defenses.tvm.record import TVM_DEFENSE
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
from robustviz.defenses.wnll.record import WNLL_DEFENSE

DEFENSES: tuple[Defense, ...] = (
    PSSILU_DEFENSE,
    ENRESNET_DEFENSE,
    MEANSPARSE_DEFENSE,
    CAS_DEFENSE,
    WNLL_DEFENSE,
    TVM_DEFENSE,
)
"""The defenses of the library, in the order in which they are put on a network: from the inside to the front."""

__all__ = [
    "CAS_DEFENSE",
    "DEFENSES",
    "ENRESNET_DEFENSE",
    "MEANSPARSE_DEFENSE",
    "PSSILU_DEFENSE",
    "TVM",
    "TVM_DEFENSE",
    "WNLL_DEFENSE",
    "CASBlock",
    "CASOutput",
    "Contest",
    "Defense",
    "PSSiLU",
    "Sparsifier",
    "Stage",
    "TVStep",
    "Training",
    "WNLLHead",
    "Weights",
    "affinity",
    "augment",
    "auxiliary",
    "buffered",
    "cas_outputs",
    "interpolate",
    "joint",
    "known",
    "minimize_tv",
    "named",
    "only_buffer_trains",
    "present",
    "refresh_template",
    "registered",
    "sparsified",
    "total_variation",
    "tv_energy",
    "with_cas",
    "wnll_classifier",
    "wnll_objective",
]
