"""Certificates against what is known exactly: linear classifiers, SciPy, and attacks that must not succeed."""

from functools import partial
from math import inf, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaincinv, ndtri
from scipy.stats import binom, binomtest, norm
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.certificate import (
    ABSTAIN,
    Certificate,
    Smoothed,
    both_bounds,
    certify,
    largest_radius,
    lower_bound,
    smoothing,
    votes,
    with_noise,
)
from robustviz.data import digits
from robustviz.objectives import cross_entropy
from robustviz.tensors import drawing, seeded
from robustviz.types import Threat

SIGMA = 0.25


class Plane(nn.Module):
    """Two classes on both sides of a plane: g decides as f does, and the true radius is the distance to the plane."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.normal = nn.Parameter(torch.randn(size, generator=seeded(3)))

    def forward(self, images):
        side = (images.flatten(1) - 0.5) @ self.normal
        return torch.stack([torch.zeros_like(side), side], 1)

    def distance(self, images):
        return ((images.flatten(1) - 0.5) @ self.normal / self.normal.norm()).abs().detach()


def near_the_plane(count, farthest):
    """Images at distances from 0 to `farthest` on both sides of the plane, so that many certificates are close."""
    model = Plane()
    along = torch.linspace(-farthest, farthest, count)[:, None] * model.normal / model.normal.norm()
    return model, (0.5 + along.detach()).clamp(0, 1).reshape(count, 1, 2, 2)


def test_certificates_of_a_plane_are_right_as_often_as_promised():
    model, images = near_the_plane(2000, 0.02)
    found = certify(model, images, sigma=SIGMA, n0=20, n=100, alpha=0.05, on_batch=lambda done, total: None)
    wrong = int((found.radii > model.distance(images).double()).sum())
    assert wrong <= binom.ppf(0.999, 2000, 0.05)
    assert wrong > 0  # the images are chosen so that the bound is tested at all


@pytest.mark.parametrize("mutant", ["the point estimate", "the same draws twice"])
def test_the_promise_catches_a_wrong_certificate(mutant, monkeypatch):
    model, images = near_the_plane(2000, 0.0 if mutant == "the same draws twice" else 0.02)
    n0 = 100
    if mutant == "the point estimate":
        monkeypatch.setattr(smoothing, "lower_bound", lambda successes, draws, alpha: successes / draws)
    else:
        monkeypatch.setattr(
            smoothing,
            "votes",
            lambda *words, draws, generator, **more: votes(
                *words, draws=draws, generator=seeded(int(generator.initial_seed() % 2**31)), **more
            ),
        )
    found = certify(model, images, sigma=SIGMA, n0=n0, n=100, alpha=0.05, on_batch=lambda done, total: None)
    wrong = int((found.radii > model.distance(images).double()).sum())
    assert wrong > binom.ppf(0.999, 2000, 0.05)


def test_far_from_the_plane_the_radius_is_the_distance_or_the_ceiling():
    model, images = near_the_plane(9, 0.4)
    found = certify(model, images, sigma=SIGMA, n0=50, n=4000, alpha=0.01)
    true = model.distance(images).double()
    settled = ~found.abstained
    assert found.decisions[settled].equal(model(images).argmax(1)[settled])
    assert (found.radii <= found.ceiling + 1e-12).all()
    p = torch.from_numpy(norm.cdf(true / SIGMA))
    expected = SIGMA * torch.from_numpy(norm.ppf(p - 5.5 * (p * (1 - p) / 4000).sqrt() - 0.002))
    assert (found.radii[settled] >= expected[settled].clamp_min(0)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.001, 0.01, 0.05, 0.5]))
def test_the_bound_is_that_of_scipy(draws, data, alpha):
    successes = data.draw(st.integers(0, draws))
    exact = binomtest(successes, draws, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    assert lower_bound(successes, draws, alpha) == pytest.approx(exact, abs=1e-9)


def test_the_ceiling_is_what_agreeing_draws_give():
    assert largest_radius(1.0, 1000, 0.001) == pytest.approx(2.46, abs=0.005)  # the figure of the literature
    assert largest_radius(0.5, 77, 0.01) == pytest.approx(0.5 * ndtri(lower_bound(77, 77, 0.01)))
    assert lower_bound(77, 77, 0.01) == pytest.approx(betaincinv(77, 1, 0.01))


@pytest.fixture(scope="module")
def hardened():
    return checkpoints.load("digits-pgd")[0]


def test_no_attack_within_the_radius_changes_a_settled_decision(hardened):
    """The radius is attacked with EOT; a violation is another class that a fresh certificate does not abstain from."""
    images, alpha = digits("test").subset(40).images, 0.01
    quiet = {"sigma": SIGMA, "n0": 30, "n": 200, "alpha": alpha, "on_batch": lambda done, total: None}
    found = certify(hardened, images, **quiet)
    rows = (~found.abstained).nonzero().squeeze(1)
    assert len(rows) >= 20
    smoothed, violations = Smoothed(hardened, sigma=SIGMA, draws=4), 0
    for row in rows.tolist():
        threat = Threat("l2", found.radii[row].item())
        attacked = pgd(smoothed, images[row : row + 1], found.decisions[row : row + 1], threat=threat, steps=5)
        fresh = certify(hardened, attacked, generator=seeded(row), **quiet)
        violations += int(fresh.decisions[0]) not in (ABSTAIN, int(found.decisions[row]))
    assert violations <= binom.ppf(0.999, len(rows), 2 * alpha)


def test_a_run_goes_on_where_it_stopped(hardened, tmp_path):
    images = digits("test").subset(10).images
    work = partial(certify, hardened, images, sigma=SIGMA, n0=10, n=50, alpha=0.01)
    whole = work()

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(resume=tmp_path / "state.json", on_batch=stop)
    seen = []
    again = work(resume=tmp_path / "state.json", on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(5, 11)]
    assert again.decisions.equal(whole.decisions)
    assert again.radii.equal(whole.radii)
    with pytest.raises(ValueError, match="another sigma"):
        certify(hardened, images, sigma=0.5, n0=10, n=50, alpha=0.01, resume=tmp_path / "state.json")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="not an unfinished certificate"):
        work(resume=tmp_path / "state.json")


def test_a_certificate_is_saved_and_read_back(hardened, tmp_path):
    images, labels = digits("test").subset(10).images, digits("test").subset(10).labels
    found = certify(hardened, images, sigma=SIGMA, n0=10, n=50, alpha=0.01)
    read = Certificate.load(found.save(tmp_path / "certificate.json"))
    assert read.decisions.equal(found.decisions)
    assert read.radii.equal(found.radii)
    assert read.abstained.equal(found.abstained)
    assert read.settings == found.settings
    assert found.settings["forward_passes"] == 10 * 60
    assert (
        read.accuracy(labels, 0.1)
        == sum(
            int(d) == int(y) and float(r) >= 0.1 for d, y, r in zip(found.decisions, labels, found.radii, strict=True)
        )
        / 10
    )
    (tmp_path / "other.json").write_text('{"kind": "certify", "settings": {}, "results": {}}')
    with pytest.raises(ValueError, match="not a certificate"):
        Certificate.load(tmp_path / "other.json")


def test_a_certificate_leaves_no_trace(hardened):
    images = digits("test").subset(3).images
    before, state = images.clone(), torch.get_rng_state()
    hardened.train()
    try:
        certify(hardened, images, sigma=SIGMA, n0=5, n=5)
        assert all(module.training for module in hardened.modules())
        assert all(parameter.requires_grad for parameter in hardened.parameters())
    finally:
        hardened.eval()
    assert images.equal(before)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma": 0.0}, "sigma must be finite and > 0"),
        ({"sigma": inf}, "sigma must be finite and > 0"),
        ({"alpha": 0.0}, "alpha must lie between 0 and 1"),
        ({"alpha": 1.0}, "alpha must lie between 0 and 1"),
        ({"n0": 0}, "n0 must be >= 1"),
        ({"n": 0}, "n must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        certify(Plane(), torch.rand(2, 1, 2, 2), **{"sigma": SIGMA, "n": 5, "n0": 5} | wrong)


class Jointly(nn.Linear):
    """A linear layer that answers an image by its batch."""

    def forward(self, images):
        values = images.flatten(1)
        return super().forward(values - values.mean(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), "at least two classes"),
        (Jointly(16, 3), "each image by itself"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 3)), "by itself"),
    ],
)
def test_what_cannot_be_certified_is_refused(model, message):
    images = torch.rand(2, 1, 4, 4, generator=seeded(0))
    with pytest.raises(ValueError, match=message):
        certify(model, images, sigma=SIGMA, n0=5, n=5, on_batch=lambda *_: None)


class Coin(nn.Module):
    """Decides for one of two classes by the toss of a coin, the same for a whole batch."""

    stochastic = True
    generator = None

    def forward(self, images):
        generator = seeded(0) if self.generator is None else self.generator
        return torch.rand(2, generator=generator).expand(len(images), 2)


def test_votes_of_a_random_network_are_independent():
    images = torch.rand(1, 1, 4, 4, generator=seeded(0))
    counted = votes(Coin(), images, sigma=SIGMA, draws=100, batch_size=1, generator=seeded(1))
    assert counted.min() > 30


def test_smoothing_averages_probabilities_and_has_their_gradient():
    model, images = Plane(), torch.rand(3, 1, 2, 2, generator=seeded(1)).requires_grad_()
    smoothed = Smoothed(model, sigma=SIGMA, draws=7)
    with drawing(smoothed, seeded(5)):
        found = smoothed(images)
    noise = torch.randn(21, 1, 2, 2, generator=seeded(5)).reshape(7, 3, 1, 2, 2)
    expected = torch.stack([model(images + SIGMA * part).softmax(1) for part in noise]).mean(0).log()
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(out[:, 1].sum(), images, retain_graph=True)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_noise_in_training_is_the_objective_on_noisy_images():
    model, images, labels = Plane(), torch.rand(3, 1, 2, 2, generator=seeded(1)), torch.tensor([0, 1, 1])
    noise = SIGMA * torch.randn(images.shape, generator=seeded(9))
    found = with_noise(cross_entropy, sigma=SIGMA)(model, images, labels, generator=seeded(9))
    torch.testing.assert_close(found, cross_entropy(model, images + noise, labels))
    with pytest.raises(ValueError, match="sigma"):
        with_noise(sigma=-1.0)


def test_both_bounds_of_a_plane_enclose_the_truth():
    model, images = near_the_plane(40, 0.3)
    labels, radii = model(images).argmax(1), [0.05, 0.1, 0.2, 0.3]
    certificate = certify(model, images, sigma=SIGMA, n0=50, n=2000, alpha=0.01)
    found = both_bounds(model, images, labels, certificate, radii=radii, steps=5, draws=10)
    assert found.radii == (0.0, *radii)
    slack = 2 / sqrt(2000)  # images this close to the plane are settled by luck
    for radius, certified, attacked in zip(found.radii, found.certified, found.attacked, strict=True):
        truth = (model.distance(images) >= radius).double().mean().item()
        close = ((model.distance(images) - radius).abs() < slack).double().mean().item()
        assert certified <= truth + 0.05
        assert attacked >= truth - close - 0.05
        assert certified <= attacked + 0.05
    assert list(found.attacked) == sorted(found.attacked, reverse=True)
    assert found.attacked[-1] < 0.1  # the attack reaches the plane
    assert found.forward_passes == (40 * 2050, 40 * (4 * 5 * 10 + 5 * 2000))
    headers, rows = found.rows()
    assert len(rows) == 5
    assert len(rows[0]) == len(headers)
    with pytest.raises(ValueError, match="radii must grow"):
        both_bounds(model, images, labels, certificate, radii=[0.2, 0.1])
    with pytest.raises(ValueError, match="certificate must be of the 3 images"):
        both_bounds(model, images[:3], labels[:3], certificate, radii=radii)
