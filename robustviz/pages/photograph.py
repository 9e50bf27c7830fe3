"""A photograph, attacked and purified: what total variation minimization does, where one can see it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.defenses.tvm import TVStep, draw_kept, minimize_tv
from robustviz.plots import Purified
from robustviz.tensors import seeded
from robustviz.types import Images, Threat

READER = "cifar10-standard"
"""Network that is asked about photographs; it knows none of what they show, so no answer is right."""


def photographs(seed: int, size: int = 128) -> list[Purified]:
    """Purify a piece of a photograph, clean and under attack at two strengths, all under the same mask.

    The attack (PGD, L-infinity 8/255 and 16/255) leads the shipped CIFAR-10 network away from its first answer.

    Args:
        seed: Seed of the attack's start and of the mask.
        size: Width and height in pixels, at most 213.
    """
    clean, (network, _) = sample_photograph(size), checkpoints.load(READER)
    answer = network(clean).argmax(1)
    rows = []
    for name, epsilon in (("clean", 0.0), ("8/255", 8 / 255), ("16/255", 16 / 255)):
        threat = Threat("linf", epsilon)
        images = pgd(network, clean, answer, threat=threat, generator=seeded(seed)) if epsilon else clean
        energies: list[TVStep] = []
        found = minimize_tv(images, on_step=energies.append, generator=seeded(seed, 1))
        kept = draw_kept(images, 0.5, generator=seeded(seed, 1))
        before, after = (step.energy.item() for step in (energies[0], energies[-1]))
        rows.append(Purified(name, images[0], kept[0], found[0], before, after))
    return rows


def sample_photograph(size: int) -> Images:
    """Return the middle of one of scikit-learn's photographs at half its resolution, (1, 3, size, size) in [0, 1].

    Args:
        size: Width and height in pixels, at most 213.

    Raises:
        ValueError: If the photograph is smaller.
    """
    from sklearn.datasets import load_sample_image

    photo = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None] / 255
    photo = F.avg_pool2d(photo, 2)
    if not 1 <= size <= min(photo.shape[2:]):
        raise ValueError(f"size must be from 1 to {min(photo.shape[2:])}, the photograph's height, got {size}")
    top, left = ((side - size) // 2 for side in photo.shape[2:])
    return photo[:, :, top : top + size, left : left + size]


def picture_sentence(rows: Sequence[Purified]) -> str:
    """Say what happens to the energies, to the distances between pictures, and to what a network calls them."""
    first, *attacked = rows
    network, record = checkpoints.load(READER)
    energies = ", ".join(f"{row.before:.1f} to {row.after:.1f} ({row.name})" for row in rows)

    def apart(one: Tensor, other: Tensor) -> float:
        return (one - other).square().mean().sqrt().item()

    def called(side: str) -> str:
        decided = network(torch.stack([getattr(row, side) for row in rows])).argmax(1).tolist()
        return ", ".join(record.settings["classes"][label] for label in decided)

    before, after = (
        [apart(getattr(row, side), getattr(first, side)) for row in attacked] for side in ("image", "result")
    )
    shares = " and ".join(f"{new / old:.0%}" for old, new in zip(before, after, strict=True))
    return (
        f"The steps lower the energy from {energies}. Between the purified pictures of the attacked and of the clean "
        f"photograph {shares} of the distance before is left ({' and '.join(row.name for row in attacked)}); the purified clean "
        f"picture itself is {apart(first.image, first.result) / before[-1]:.1f} times as far from the photograph as the "
        f"attack of {attacked[-1].name}. The attacked network calls the three pictures {called('image')}, and purified "
        f"{called('result')}."
    )
