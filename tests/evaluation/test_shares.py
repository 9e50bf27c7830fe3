"""Shares of draws: the estimate has the expectation of its closed form, and its intervals hold what they should."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from robustviz.evaluation import RobustnessTable, bootstrap, wilson
from robustviz.evaluation.shares import cross_fitted, lowest_set
from robustviz.tensors import seeded


@settings(deadline=None)
@given(st.integers(1, 3000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_that_of_scipy(numbers):
    right, count = numbers
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(right / count, count)
    assert low == pytest.approx(expected.low, rel=1e-5, abs=1e-9)
    assert high == pytest.approx(expected.high, rel=1e-5, abs=1e-9)


def expected(probabilities, half):
    """Closed form: for each image the sum over attacks of P(it is chosen) times its probability.

    An attack is chosen if its number of right answers is the lowest; of equals the first one.
    """
    counts = np.arange(half + 1)
    mass = binom.pmf(counts[:, None, None], half, probabilities)  # (half + 1, attacks, images)
    above = 1 - binom.cdf(counts[:, None, None], half, probabilities)
    total = 0
    for attack in range(len(probabilities)):
        earlier, later = above[:, :attack].prod(1), (above + mass)[:, attack + 1 :].prod(1)
        total += (mass[:, attack] * earlier * later).sum(0) * probabilities[attack]
    return total


def coins(probabilities, draws, generator):
    """A table of a network that is right under attack a on image n with the given probability."""
    thrown = torch.rand(len(probabilities), draws, probabilities.shape[1], generator=generator)
    right = thrown < torch.from_numpy(probabilities)[:, None]
    conditions = ("clean", *(f"attack {number}" for number in range(len(probabilities) - 1)))
    labels = torch.zeros(right.shape[2], dtype=torch.long)
    return RobustnessTable(conditions, labels, (~right).long(), torch.zeros(len(conditions), len(labels)), {}, draws)


def test_the_closed_form_of_ten_equally_spaced_attacks():
    """16 and 64 draws, and so many that the lowest probability, 0.2, is found."""
    probabilities = np.linspace(0.5, 0.2, 10)[:, None]
    assert [round(expected(probabilities, half).item(), 3) for half in (8, 32, 2000)] == [0.305, 0.243, 0.2]


@pytest.mark.parametrize("draws", [4, 16])
def test_the_estimate_has_the_expectation_of_its_closed_form(draws):
    """Coins of unequal probabilities for every image and attack, 200 repetitions; the clean images are the last."""
    probabilities = np.random.default_rng(0).uniform(0, 1, (6, 30))
    probabilities[0] = 1.0
    found = [coins(probabilities, draws, seeded(draws, repetition)).worst_case() for repetition in range(200)]
    closed = expected(np.roll(probabilities, -1, 0), draws // 2).mean()
    assert np.mean(found) == pytest.approx(closed, abs=4 * np.std(found) / np.sqrt(200))
    naive = (coins(probabilities, draws, seeded(9)).correct.all(1).all(0)).double().mean().item()
    assert naive < probabilities.min(0).mean() < closed


def test_the_estimate_tends_to_the_lowest_probability():
    probabilities = np.random.default_rng(1).uniform(0, 1, (6, 30))
    lowest = probabilities.min(0).mean()
    distances = [abs(coins(probabilities, draws, seeded(draws)).worst_case() - lowest) for draws in (4, 64, 2048)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.01


def test_by_hand():
    """Three candidates, four draws, two images."""
    right = torch.tensor(
        [
            [[1, 1], [1, 1], [1, 1], [1, 1]],
            [[0, 1], [0, 0], [1, 1], [1, 1]],
            [[1, 1], [1, 1], [0, 0], [0, 1]],
        ]
    ).bool()
    # Image 0: candidate 1 on the first half, 2 on the second; image 1: likewise.
    assert cross_fitted(right).int().tolist() == [[1, 1], [1, 1], [1, 1], [1, 1]]
    # Over both images candidate 1 has 1 of 4 on the first half; on the second candidate 2 has 1 of 4.
    assert lowest_set(right).int().tolist() == [[1, 1], [1, 1], [1, 1], [1, 1]]
    same = right[[1, 1, 0]]
    assert cross_fitted(same).int().tolist() == [[0, 1], [0, 0], [1, 1], [1, 1]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_laws_of_the_worst_case(candidates, draws, count, seed):
    right = torch.rand(candidates, draws, count, generator=seeded(seed)) < 0.6
    for worst in (cross_fitted(right), lowest_set(right)):
        assert worst.shape == (draws, count)
        assert (worst | ~right.all(0)).all()  # what is right under every candidate is right
        assert (~worst | right.any(0)).all()
    # A candidate more, equal to one that is there, changes nothing.
    assert torch.equal(cross_fitted(torch.cat([right, right[:1]])), cross_fitted(right))
    assert torch.equal(cross_fitted(right[:1]), right[0])
    assert torch.equal(lowest_set(right[:1]), right[0])
    # An attack that always succeeds leaves nothing; of equals the first one counts.
    assert not cross_fitted(torch.cat([torch.zeros_like(right[:1]), right])).any()


@pytest.mark.parametrize(("draws", "count"), [(8, 40), (16, 100)])
def test_the_bootstrap_covers_images_and_draws(draws, count):
    """Images of unequal difficulty, sampled with their draws: the interval holds the true share about as often as said.

    An error that all images share in a draw is included, as a reshuffling or a mask may make it.
    """
    truth, held, widths = 0.5, 0, []
    for repetition in range(200):
        generator = seeded(repetition)
        easy = torch.rand(count, generator=generator)
        common = 0.1 * torch.randn(draws, 1, generator=generator)
        low, high = bootstrap(torch.rand(draws, count, generator=generator) < easy + common)
        held += low <= truth <= high
        widths.append(high - low)
    assert 0.92 <= held / 200 <= 1
    assert np.mean(widths) < 0.35


def test_where_all_answers_agree_the_images_alone_are_a_sample():
    for share in (0.0, 1.0):
        assert bootstrap(torch.full((16, 50), bool(share))) == wilson(share, 50)
