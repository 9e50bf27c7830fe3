"""Total variation minimization: the energy, its minimizer, and the layer in front of a network."""

from robustviz.defenses.tvm.energy import TVStep, draw_kept, minimize_tv, total_variation, tv_energy
from robustviz.defenses.tvm.layer import TVM, augment

__all__ = ["TVM", "TVStep", "augment", "draw_kept", "minimize_tv", "total_variation", "tv_energy"]
