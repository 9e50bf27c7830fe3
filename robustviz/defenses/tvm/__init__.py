"""TVM: total variation minimization, a purifier in front of a network.

Of a picture x a random part of the pixels is kept, and the picture z of least energy replaces it:

    E(z) = 1/2 sum over kept pixels of (z - x)^2 + lambda sum over channels and pixels of sqrt(d_v z^2 + d_h z^2)
    kept ~ Bernoulli(keep), one draw for each pixel

d_v, d_h are forward differences, downwards and to the right, 0 beyond the edge. Small perturbations cost variation and
vanish; edges stay. At test time z is what the network sees; it is trained on pictures and their purified versions.

    symbol      in the code
    x, z        images, result of `minimize_tv`
    kept        kept, drawn by `draw_kept` with probability `keep`
    lambda      weight
    E           `tv_energy`; its second sum is `total_variation`

Reading order: `energy.py` (E and its minimum), `primal_dual.py` (the steps), `layer.py` (the layer `TVM` and the
training set `augment`).

Source: Guo, Rana, Cisse & van der Maaten, "Countering adversarial images using input transformations", arXiv
1711.00117, section 3; with augmented training Wang et al., "Adversarial defense via data dependent activation function
and total variation minimization", arXiv 1809.08516.
"""

from robustviz.defenses.tvm.energy import TVStep, draw_kept, minimize_tv, total_variation, tv_energy
from robustviz.defenses.tvm.layer import TVM, augment

__all__ = ["TVM", "TVStep", "augment", "draw_kept", "minimize_tv", "total_variation", "tv_energy"]
