"""The interpolating output activation: graph, system, head, and the network around it."""

from robustviz.defenses.wnll.graph import Weights, affinity
from robustviz.defenses.wnll.head import Gradient, WNLLHead, expected_size
from robustviz.defenses.wnll.interpolation import interpolate
from robustviz.defenses.wnll.network import (
    balanced,
    buffered,
    features_of,
    only_buffer_trains,
    refresh_template,
    wnll_classifier,
    wnll_objective,
)

__all__ = [
    "Gradient",
    "WNLLHead",
    "Weights",
    "affinity",
    "balanced",
    "buffered",
    "expected_size",
    "features_of",
    "interpolate",
    "only_buffer_trains",
    "refresh_template",
    "wnll_classifier",
    "wnll_objective",
]
