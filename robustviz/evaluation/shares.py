"""Accuracy of networks that do not always answer alike: shares of draws instead of the luck of one.

A draw is one answer of the network to the same images: with other noise, or, for a head that answers jointly, in other
batches. Let p[a, n] be the probability that image n is classified correctly under attack a. Taking the lowest of
several observed answers counts luck: it falls with every attack, also with one that does nothing. So the attack of each
image is chosen on one half of the draws and scored on the other:

    a(n) = argmin_a share of half A (a, n),    worst case = mean over n of share of half B (a(n), n)

and both directions are averaged. In expectation that is sum_a P(a is chosen) p[a, n]: at least the lowest p, and near
it once the draws tell the attacks apart. Like every robust accuracy it is an upper bound.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustviz.tensors import seeded

RESAMPLES = 1000


def halves(draws: int) -> tuple[slice, slice]:
    """Split the draws in two; of an odd number the second half has one more."""
    return slice(0, draws // 2), slice(draws // 2, draws)


def choices(right: Bool[Tensor, "c d n"]) -> tuple[Tensor, Tensor]:
    """For each half of the draws, the candidate with the lowest share of right answers on it, image by image.

    Args:
        right: Whether each answer is right, for candidate c, draw d and image n.

    Returns:
        Two vectors (n,) of candidates, chosen on the first and on the second half. Of equals the first one is chosen.
    """
    first, second = (right[:, half].sum(1).argmin(0) for half in halves(right.shape[1]))
    return first, second


def cross_fitted(right: Bool[Tensor, "c d n"]) -> Bool[Tensor, "d n"]:
    """Whether each answer is right under the attack that the other half of the draws chose for the image."""
    first, second = halves(right.shape[1])
    images = torch.arange(right.shape[2])
    under_first, under_second = (right[chosen, :, images].T for chosen in choices(right))
    return torch.cat([under_second[first], under_first[second]])


def lowest_set(right: Bool[Tensor, "c d n"]) -> Bool[Tensor, "d n"]:
    """Whether each answer is right under the candidate that is lowest, over all images, on the other half."""
    first, second = halves(right.shape[1])
    on_first, on_second = (right[:, half].sum((1, 2)).argmin() for half in (first, second))
    return torch.cat([right[on_second, first], right[on_first, second]])


def bootstrap(right: Bool[Tensor, "d n"], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the share of right answers, when both the draws and the images are a sample.

    Both are drawn again with replacement, a thousand times; the interval holds the middle 95 % of the shares. Where
    every answer is right, or none, resampling finds no spread, and the interval is Wilson's over the images.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979; both factors resampled as in Owen, "The
    pigeonhole bootstrap", arXiv 0712.1111.
    """
    draws, count = right.shape
    share = right.double().mean().item()
    if share in (0.0, 1.0):
        return wilson(share, count)
    generator = seeded(seed)
    weights = [_counts(size, generator) / size for size in (draws, count)]
    shares = ((weights[0] @ right.double()) * weights[1]).sum(1)
    low, high = torch.quantile(shares, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _counts(size: int, generator: torch.Generator) -> Float[Tensor, "resamples size"]:
    """How often each of `size` things is drawn, when as many are drawn with replacement; one row for each resample."""
    drawn = torch.randint(size, (RESAMPLES, size), generator=generator)
    return torch.zeros(RESAMPLES, size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a probability, given the share of successes among `count` trials.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, center - half), min(1.0, center + half)
