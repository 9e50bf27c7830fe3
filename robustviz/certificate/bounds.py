"""Both bounds of one smoothed network: certified accuracy below, accuracy under attack above."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, nn
from tqdm.auto import tqdm

from robustviz.attacks import pgd
from robustviz.certificate.smoothing import Certificate, Smoothed, votes
from robustviz.checks import check_images
from robustviz.evaluation.shares import wilson
from robustviz.tensors import draw_seed, evaluating, seeded
from robustviz.types import Images, Labels, Threat


@dataclass(frozen=True)
class Bounds:
    """Accuracy of a smoothed network against the L2 radius of the attacker; every entry is a share from 0 to 1.

    Attributes:
        radii: L2 radii in pixel units of [0, 1], growing, the first 0.
        certified: Certified accuracy at each radius: no attack can push accuracy below it, but for the error alpha.
        attacked: Accuracy under the strongest attack tried at each radius: the truth lies at or below it.
        ceiling: The largest radius that the draws can certify.
        images: Number of images.
        forward_passes: Images that passed through the network for the certificate, and for the attacks.
    """

    radii: tuple[float, ...]
    certified: tuple[float, ...]
    attacked: tuple[float, ...]
    ceiling: float
    images: int
    forward_passes: tuple[int, int]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of the table: percent, with 95 % Wilson intervals over the images."""
        rows = []
        for radius, *shares in zip(self.radii, self.certified, self.attacked, strict=True):
            cells = []
            for share in shares:
                low, high = wilson(share, self.images)
                cells.append(f"{share:.1%} ({low:.1%} to {high:.1%})")
            rows.append([f"{radius:.3g}", *cells])
        return ["L2 radius", "certified (lower bound)", "under attack (upper bound)"], rows


def both_bounds(
    model: nn.Module,
    images: Images,
    labels: Labels,
    certificate: Certificate,
    *,
    radii: Sequence[float],
    steps: int = 20,
    draws: int = 20,
    on_radius: Callable[[int, int], Any] | None = None,
    generator: Generator | None = None,
) -> Bounds:
    """Attack the smoothed network that a certificate is about, at several radii, and set both bounds side by side.

    The attack is PGD in L2 on `Smoothed`, its gradient averaged over `draws` (EOT). The attacked images are judged by
    g: `n` fresh votes of each. An image that g misclassifies at one radius counts as wrong at every larger one.

    Args:
        model: The network f of the certificate.
        images: The images of the certificate, in [0, 1].
        labels: True classes.
        certificate: What `certify` gave for them.
        radii: L2 radii in pixel units, growing; 0 is put in front if it is missing.
        steps: Steps of PGD.
        draws: Noisy copies in each step.
        on_radius: Called after every radius with (done, total); None shows a progress bar.
        generator: Source of the seed; None is a fresh one seeded 0.

    Raises:
        ValueError: If images and certificate differ in number, or radii do not grow from 0 or more.

    Source: Salman et al., arXiv 1906.04584 (attacks on smoothed networks); Cohen et al., arXiv 1902.02918, figure 6.
    """
    check_images(images, labels)
    if len(certificate.decisions) != len(images):
        raise ValueError(f"certificate must be of the {len(images)} images, got one of {len(certificate.decisions)}")
    radii = tuple(radii) if radii and radii[0] == 0 else (0.0, *radii)
    if any(after <= before for before, after in pairwise(radii)):
        raise ValueError(f"radii must grow from 0, got {list(radii)}")
    sigma, n = certificate.settings["sigma"], certificate.settings["n"]
    seed, smoothed = draw_seed(generator), Smoothed(model, sigma=sigma, draws=draws)
    right, attacked = torch.ones(len(images), dtype=torch.bool), []
    bar = tqdm(total=len(radii), desc="attack", unit="radius", leave=False, disable=on_radius is not None or None)
    with evaluating(model), bar:
        for number, radius in enumerate(radii):
            moved = images
            if radius > 0:
                threat, noise = Threat("l2", radius), seeded(seed, number)
                moved = pgd(smoothed, images, labels, threat=threat, steps=steps, generator=noise)
            with torch.no_grad():
                counted = votes(model, moved, sigma=sigma, draws=n, generator=seeded(seed, number, 1))
            right &= counted.argmax(1) == labels.cpu()
            attacked.append(right.double().mean().item())
            bar.update()
            if on_radius is not None:
                on_radius(number + 1, len(radii))
    passes = len(images) * (sum(radius > 0 for radius in radii) * steps * draws + len(radii) * n)
    certified = tuple(certificate.accuracy(labels, radius) for radius in radii)
    spent = (int(certificate.settings["forward_passes"]), passes)
    return Bounds(radii, certified, tuple(attacked), certificate.ceiling, len(images), spent)
