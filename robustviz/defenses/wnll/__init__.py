"""WNLL: a network's last layer that interpolates labels over a graph of features (weighted nonlocal Laplacian).

The points X are features: those of the batch, U, whose labels are wanted, and those of a template L of labelled
training images. (The papers write X_te for the template, and "non-template" for U.) With n points in all, m of them in
the template, the answer u (a share of every class for each point) solves

    w_xy = exp(-|x - y|^2 / sigma_x^2)                                               for the K nearest neighbors y of x
    sum_{y in X} (w_xy + w_yx) (u_x - u_y) + mu sum_{y in L} w_yx (u_x - u_y) = 0    for x in U,  mu = n/m - 1
    u_y = g_y                                                                        for y in L

sigma_x is the distance from x to its M-th nearest neighbor, and g_y the one-hot label of y. The first sum alone
(mu = 0) is the graph Laplacian; the second lets the few labelled points count more. The prediction is argmax_c u_xc.

    symbol          in the code
    X = U, L        points: features first, then the template      `affinity`, `WNLLHead.template`
    w_xy            weights, sparse and not symmetric              `Weights` (source x, target y), made by `affinity`
    K, M            neighbors, scale_neighbor                      settings of `affinity` and `WNLLHead`
    sigma_x^2       scale                                          `graph.py`
    mu              multiplier                                     `interpolate`
    g               template_labels, as one-hot rows
    u               shares of the classes                          `interpolate`, `WNLLHead.probabilities`
    log u           what a network with this head returns          `WNLLHead.forward`

Reading order: `graph.py` (weights), `interpolation.py` (the system; `dense_interpolation` is the ten-line solution that
the fast one is tested against), `head.py` (both as a layer), `network.py` (a network with the layer, and its training).

Source: Wang, Lin, Yin, Zhu, Bertozzi & Osher, "Adversarial defense via data dependent activation function and total
variation minimization", arXiv 1809.08516, section 3; Wang et al., "Deep neural nets with interpolating function as
output activation", arXiv 1802.00168, section 2; Shi, Osher & Zhu, "Weighted nonlocal Laplacian on interpolation from
sparse data", 2017.
"""

from robustviz.defenses.wnll.graph import Weights, affinity
from robustviz.defenses.wnll.head import Gradient, WNLLHead, expected_size
from robustviz.defenses.wnll.interpolation import dense_interpolation, interpolate
from robustviz.defenses.wnll.network import (
    balanced,
    buffered,
    features_of,
    only_buffer_trains,
    refresh_template,
    template_sizes,
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
    "dense_interpolation",
    "expected_size",
    "features_of",
    "interpolate",
    "only_buffer_trains",
    "refresh_template",
    "template_sizes",
    "wnll_classifier",
    "wnll_objective",
]
