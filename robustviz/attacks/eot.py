"""Expectation over transformations (EOT): an attack on a random network follows the mean of its objective over draws.

    grad E_t[J(f_t(x), y)]  is estimated by  grad (1/D) sum_d J(f_t_d(x), y)      t_d: one draw of the random parts

Source: Athalye et al., "Synthesizing robust adversarial examples", arXiv 1707.07397, section 2.
"""

from functools import partial

import torch
from torch import Generator, nn

from robustviz.objectives import cross_entropy
from robustviz.tensors import drawing, seeded
from robustviz.types import Images, Labels, Objective, PerImage


def eot(objective: Objective = cross_entropy, draws: int = 10) -> Objective:
    """Make an objective: the mean of another over several draws of the model's stochastic parts.

    Its gradient is that of the expectation (EOT), in any attack.

    Args:
        objective: What is averaged.
        draws: How many times.

    Raises:
        ValueError: If draws is below 1.

    Source: Athalye et al., "Synthesizing robust adversarial examples", arXiv 1707.07397, section 2.
    """
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    return partial(expectation, objective=objective, draws=draws)


def expectation(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    objective: Objective,
    draws: int,
    generator: Generator | None = None,
) -> PerImage:
    """Evaluate the objective that `eot` makes."""
    generator = seeded(0) if generator is None else generator
    with drawing(model, generator):
        values = [objective(model, images, labels, generator=generator) for _ in range(draws)]
    return torch.stack(values).mean(0)
