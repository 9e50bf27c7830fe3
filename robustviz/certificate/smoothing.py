"""Randomized smoothing: a certificate, where attacks can only give an upper bound.

    g(x) = argmax_c P(f(x + eta) = c),   eta ~ N(0, sigma^2 I)                       the smoothed network
    R    = sigma * Phi^-1(p)             p <= P(f(x + eta) = g(x)), p > 1/2          certified L2 radius

No image closer than R to x, in the Euclidean norm, gets another decision from g. The bound p is that of Clopper and
Pearson: it holds with probability 1 - alpha over the draws, so at most a share alpha of the certificates is wrong. A
certificate is about g and not about f: an attack that fools f refutes nothing.

| symbol | name in the code |
|---|---|
| f | `model` |
| g | `Smoothed`, and the decisions of a `Certificate` |
| n0, n | `n0` draws choose the class, `n` other draws bound its probability |
| p (lower bound) | `lower_bound` |

Source: Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", arXiv 1902.02918.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import betaincinv, ndtri
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from robustviz.checks import check_images, check_logits
from robustviz.fingerprint import check_same, fingerprint
from robustviz.objectives import cross_entropy
from robustviz.records import RunRecord, describe, write_atomic
from robustviz.tensors import batch_dependent, draw_seed, drawing, evaluating, seeded
from robustviz.types import Images, Labels, Logits, Objective, PerImage

ABSTAIN = -1
"""The decision of g where the draws do not settle it."""


@dataclass(frozen=True)
class Certificate:
    """What a smoothed network decides, and how far around each image that is certain; one entry per image.

    Attributes:
        decisions: Classes, int64; `ABSTAIN` where the draws do not settle it.
        radii: Certified L2 radii in pixel units of [0, 1], float64; 0 where it abstains.
        abstained: Whether it abstains.
        settings: sigma, n0, n, alpha, seed, and `forward_passes`, the images that passed through the network.
    """

    decisions: Int[Tensor, "n"]
    radii: Float[Tensor, "n"]
    abstained: Bool[Tensor, "n"]
    settings: dict[str, Any]

    def accuracy(self, labels: Labels, radius: float = 0.0) -> float:
        """Certified accuracy: the share of images that are right and certified to a radius, from 0 to 1.

        Args:
            labels: True classes.
            radius: L2 radius in pixel units; 0 asks only for the decision.
        """
        return float(((self.decisions == labels.cpu()) & (self.radii >= radius)).double().mean())

    @property
    def ceiling(self) -> float:
        """The largest radius that n draws can certify: all of them agree, sigma * Phi^-1(alpha^(1/n))."""
        sigma, n, alpha = (self.settings[name] for name in ("sigma", "n", "alpha"))
        return largest_radius(sigma, n, alpha)

    def save(self, path: Path | str) -> Path:
        """Write the certificate as JSON, whole or not at all."""
        results = {"decisions": self.decisions.tolist(), "radii": self.radii.tolist()}
        return RunRecord("certify", self.settings, results).save(path)

    @classmethod
    def load(cls, path: Path | str) -> "Certificate":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        record = RunRecord.load(path)
        try:
            decisions = torch.tensor(record.results["decisions"], dtype=torch.int64)
            radii = torch.tensor(record.results["radii"], dtype=torch.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a certificate: {error!r}") from error
        return cls(decisions, radii, decisions == ABSTAIN, record.settings)


def certify(
    model: nn.Module,
    images: Images,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 256,
    resume: Path | str | None = None,
    on_batch: Callable[[int, int], Any] | None = None,
    generator: Generator | None = None,
) -> Certificate:
    """Decide with the smoothed network and certify an L2 radius around every image.

    For each image n0 draws of noise choose the class and n fresh ones bound its probability: n0 + n forward passes. The
    noise of an image depends on the seed and its place alone.

    Args:
        model: The network f, from images to logits; in evaluation mode, left as it was. It sees images outside [0, 1].
        images: Images in [0, 1].
        sigma: Standard deviation of the noise, in pixel units.
        n0: Draws that choose the class.
        n: Draws that bound its probability.
        alpha: Probability with which a certificate may be wrong, between 0 and 1.
        batch_size: Noisy copies in one forward pass.
        resume: File that keeps every finished image; if it exists, the work goes on where it stopped.
        on_batch: Called after every image with (done, total); None shows a progress bar.
        generator: Source of the seed; None is a fresh one seeded 0.

    Returns:
        Decisions, radii and abstentions.

    Raises:
        ValueError: If images or a setting are out of range, the model does not return logits or answers an image by
            its batch, or `resume` belongs to another certificate.

    Source: Cohen et al., arXiv 1902.02918, section 3.2.2, CERTIFY.
    """
    check_images(images)
    _check(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size)
    with evaluating(model), torch.no_grad():
        votes(model, images[:1], sigma=sigma, draws=1, generator=seeded(0))  # refuses what is no logits
    if batch_dependent(model, images):
        raise ValueError("model must answer each image by itself: votes that depend on one another certify nothing")
    settings: dict[str, Any] = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "seed": draw_seed(generator)}
    known = settings | {"batch_size": batch_size, "model": fingerprint(model), "images": fingerprint(images)}
    path = None if resume is None else Path(resume)
    rows = [] if path is None or not path.exists() else _restored(path, known)
    quiet = True if on_batch is not None else None  # None shows the bar at a terminal alone
    bar = tqdm(total=len(images), initial=len(rows), desc="certify", unit="image", leave=False, disable=quiet)
    with evaluating(model), torch.no_grad(), bar:
        for index in range(len(rows), len(images)):
            noise = seeded(settings["seed"], index)
            vote = partial(votes, model, images[index : index + 1], sigma=sigma, batch_size=batch_size, generator=noise)
            chosen = int(vote(draws=n0).argmax())
            p = lower_bound(int(vote(draws=n)[0, chosen]), n, alpha)
            rows.append([chosen, float(sigma * ndtri(p))] if p > 0.5 else [ABSTAIN, 0.0])
            if path is not None:
                write_atomic(path, json.dumps({"settings": describe(known), "rows": rows}))
            bar.update()
            if on_batch is not None:
                on_batch(index + 1, len(images))
    decisions = torch.tensor([decision for decision, _ in rows], dtype=torch.int64)
    radii = torch.tensor([radius for _, radius in rows], dtype=torch.float64)
    settings["forward_passes"] = (n0 + n) * len(images)
    return Certificate(decisions, radii, decisions == ABSTAIN, settings)


def votes(
    model: nn.Module, images: Images, *, sigma: float, draws: int, batch_size: int = 256, generator: Generator
) -> Int[Tensor, "n classes"]:
    """Count how often the model decides for each class under noise; call it in evaluation mode without gradient.

    Args:
        model: Maps images to logits.
        images: Images in [0, 1].
        sigma: Standard deviation of the noise, in pixel units.
        draws: Noisy copies of each image.
        batch_size: Noisy copies in one forward pass.
        generator: Source of the noise.
    """
    counts = None
    for image in range(len(images)):
        for start in range(0, draws, batch_size):
            copies = images[image].expand(min(batch_size, draws - start), *images.shape[1:])
            with drawing(model, generator):
                logits = check_logits(model(copies + _noise(copies, sigma, generator)), len(copies))
            if counts is None:
                counts = torch.zeros(len(images), logits.shape[1], dtype=torch.int64)
            counts[image] += torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()
    assert counts is not None
    return counts


def lower_bound(successes: int, draws: int, alpha: float) -> float:
    """Bound a probability from below after `successes` of `draws`: it is smaller with probability at most alpha.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934), one-sided.
    """
    return float(betaincinv(successes, draws - successes + 1, alpha)) if successes else 0.0


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """L2 radius that n draws certify if all of them agree, in the units of sigma."""
    return float(sigma * ndtri(alpha ** (1 / n)))


class Smoothed(nn.Module):
    """The smoothed network with a gradient, for attacks on it: log of the mean probability over noisy copies.

    It draws from the block `tensors.drawing`; outside one, every forward pass draws the same noise. Raised by PGD in
    L2, its gradient is averaged over the draws, which is the attack of Salman et al. What it decides is close to g, but
    attacked images are judged by the votes of g itself.

    Args:
        model: The network f.
        sigma: Standard deviation of the noise, in pixel units.
        draws: Noisy copies that one forward pass averages over.

    Raises:
        ValueError: If sigma is not positive and finite, or draws is below 1.

    Source: Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers", arXiv
    1906.04584, section 2.2.
    """

    stochastic = True

    def __init__(self, model: nn.Module, *, sigma: float, draws: int = 20):
        super().__init__()
        _check(sigma=sigma, draws=draws)
        self.model, self.sigma, self.draws = model, sigma, draws
        self.generator: Generator | None = None

    def forward(self, images: Images) -> Logits:
        """Return log mean probabilities (n, classes)."""
        generator = seeded(0) if self.generator is None else self.generator
        copies = images.repeat(self.draws, 1, 1, 1)
        shares = self.model(copies + _noise(copies, self.sigma, generator)).log_softmax(1)
        return shares.unflatten(0, (self.draws, len(images))).logsumexp(0) - log(self.draws)


def with_noise(objective: Objective = cross_entropy, *, sigma: float) -> Objective:
    """Make the objective of training for smoothing: another one, on images with Gaussian noise.

    Args:
        objective: What is measured on the noisy images.
        sigma: Standard deviation of the noise, in pixel units; that of the certificate.

    Raises:
        ValueError: If sigma is not positive and finite.

    Source: Cohen et al., arXiv 1902.02918, section 4.
    """
    _check(sigma=sigma)
    return partial(noisy, objective=objective, sigma=sigma)


def noisy(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    objective: Objective,
    sigma: float,
    generator: Generator | None = None,
) -> PerImage:
    """Evaluate the objective that `with_noise` makes."""
    generator = seeded(0) if generator is None else generator
    return objective(model, images + _noise(images, sigma, generator), labels, generator=generator)


def _noise(like: Images, sigma: float, generator: Generator) -> Images:
    """Draw Gaussian noise on the generator's device and move it to the images'."""
    drawn = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return sigma * drawn.to(like.device)


def _restored(path: Path, known: dict[str, Any]) -> list[list[Any]]:
    """Read the images that an interrupted run has finished."""
    try:
        content = json.loads(path.read_text())
        rows, settings = content["rows"], content["settings"]
        if not all(len(row) == 2 for row in rows):
            raise ValueError("rows must be pairs of decision and radius")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an unfinished certificate ({error!r}); remove it to start again") from error
    check_same(path, settings, known, "a certificate")
    return list(rows)


def _check(*, sigma: float, alpha: float = 0.5, **counts: int) -> None:
    """Refuse settings out of range."""
    if not (isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be finite and > 0, in pixel units of [0, 1], got {sigma}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
