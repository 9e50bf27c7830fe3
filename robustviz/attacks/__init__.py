"""Attacks: `(model, images, labels, /, *, generator=None) -> images`, settings fixed with `functools.partial`."""

from robustviz.attacks.apgd import apgd, apgd_targeted
from robustviz.attacks.blackbox import random_noise, square, transfer
from robustviz.attacks.carlini_wagner import carlini_wagner
from robustviz.attacks.common import Step
from robustviz.attacks.eot import eot
from robustviz.attacks.gradient import fgsm, ifgsm, mifgsm, pgd
from robustviz.attacks.minimal import bounded, deepfool, fmn
from robustviz.attacks.rounding import EightBit, round_to_8bit
from robustviz.attacks.views import (
    against,
    alone_head,
    combined,
    exact_head,
    identity_backward,
    linear_head,
    probability_margin,
    soft_mask,
    surrogate_head,
    wide_graph,
)

__all__ = [
    "EightBit",
    "Step",
    "against",
    "alone_head",
    "apgd",
    "apgd_targeted",
    "bounded",
    "carlini_wagner",
    "combined",
    "deepfool",
    "eot",
    "exact_head",
    "fgsm",
    "fmn",
    "identity_backward",
    "ifgsm",
    "linear_head",
    "mifgsm",
    "pgd",
    "probability_margin",
    "random_noise",
    "round_to_8bit",
    "soft_mask",
    "square",
    "surrogate_head",
    "transfer",
    "wide_graph",
]
