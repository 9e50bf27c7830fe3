"""Is the robustness real? Fifteen checks that look for what makes a network seem more robust than it is.

`diagnose` runs them all; each is a function from `Evidence`, which measures everything once, to a `Finding`. A pass is
no proof, and robust accuracy stays an upper bound.
"""

from robustviz.diagnostics.evidence import Evidence
from robustviz.diagnostics.findings import Diagnosis, Finding
from robustviz.diagnostics.suite import CHECKS, diagnose

__all__ = ["CHECKS", "Diagnosis", "Evidence", "Finding", "diagnose"]
