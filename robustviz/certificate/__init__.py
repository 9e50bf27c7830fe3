"""Certificates: lower bounds of robust accuracy, beside the upper bounds that attacks give."""

from robustviz.certificate.bounds import Bounds, both_bounds
from robustviz.certificate.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothed,
    certify,
    largest_radius,
    lower_bound,
    votes,
    with_noise,
)

__all__ = [
    "ABSTAIN",
    "Bounds",
    "Certificate",
    "Smoothed",
    "both_bounds",
    "certify",
    "largest_radius",
    "lower_bound",
    "votes",
    "with_noise",
]
