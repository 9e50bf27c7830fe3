"""The WNLL explorer's measurement: which template images decide about an image, and what each attack on them does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from robustviz.data import ImageSet
from robustviz.defenses.defense import Contest
from robustviz.defenses.wnll import WNLLHead
from robustviz.defenses.wnll.record import wnll_contests
from robustviz.explorers.frames import BUDGET, Frames, Value, check_budget
from robustviz.explorers.pictures import in_bytes
from robustviz.explorers.training import grids_around
from robustviz.models import Classifier
from robustviz.presets import usual_threat
from robustviz.tensors import evaluating, seeded
from robustviz.types import Threat

VOTERS = 8
"""Template images that are shown for each version of an image."""

GRAPH_NEIGHBORS = (2, 5, 15, 30)
"""K, how many neighbors a point has in the graph."""


def usual_contests() -> dict[str, Contest]:
    """Return the published attack, and three made for the defense: without, with the exact and with a wider graph."""
    every = wnll_contests(steps=10, wide=(60,))
    names = ("surrogate gradient", "transfer, margin", "exact, margin", "wide graph, K = 60")
    return {name: every[name] for name in names}


def wnll_frames(
    network: Classifier,
    source: ImageSet,
    images: ImageSet,
    *,
    neighbors: Sequence[int] | None = None,
    strengths: Sequence[float] | None = None,
    shown: int = 20,
    seed: int = 0,
    budget: int = BUDGET,
) -> Frames:
    """Attack images on a WNLL head in several ways and keep who votes about them.

    Every image is asked about alone, so that the votes are its own. M, the neighbor whose distance is a point's unit of
    length, is that of the head, or K where K is less.

    Args:
        network: With a WNLL head and the linear head beside it; left as it was.
        source: What its template was drawn from, as `geometry.template_source` finds it.
        images: Attacked; the accuracies are those of all of them.
        neighbors: Values of K, growing; None takes `GRAPH_NEIGHBORS` and that of the head, as far as the template
            reaches.
        strengths: Radii in L-infinity; 0 is added. None takes nine, up to twice the usual radius.
        shown: How many images have pictures and voters, the first ones.
        seed: Seed of the attacks.
        budget: Most frames: attacks x neighbors x strengths x images shown.

    Returns:
        Frames over attack, neighbors, strength and image, with `shares` (of every class), `voters` and their `weights`
        (heaviest first, weight 0 where there are no more) and `changes` in gray levels; `accuracy` has no place for the
        image. Voters are numbers among `voter_pictures` and `voter_labels`.

    Raises:
        ValueError: If the head is another one or was drawn from other images, K is out of range, or the grid exceeds
            its budget.
    """
    head = network.head
    if not isinstance(head, WNLLHead):
        raise ValueError(f"network must have a WNLLHead, got {type(head).__name__}; `wnll_classifier` puts one there")
    if not head.drawn_from(source.labels):
        raise ValueError(f"source must be what the template was drawn from, but {source.name} does not fit it")
    most = len(head.template) // head.templates - 1
    if neighbors is None:
        neighbors = sorted({head.neighbors, *(k for k in GRAPH_NEIGHBORS if k <= most)})
    if wrong := [k for k in neighbors if not 1 <= k <= most]:
        raise ValueError(f"neighbors must be from 1 to {most}, got {wrong[0]}")
    usual = grids_around(usual_threat(images.name).epsilon)[1]
    radii = sorted({0.0, *map(float, usual if strengths is None else strengths)})
    shown, contests = min(shown, len(images)), usual_contests()
    counts = {"attacks": len(contests), "neighbors": len(neighbors), "strengths": len(radii), "images": shown}
    check_budget(counts, budget)
    jobs = [(contest, k, radius) for contest in contests.values() for k in neighbors for radius in radii]
    found = [
        _asked(_with_graph(network, k), images, contest, radius, shown, seed)
        for contest, k, radius in tqdm(jobs, desc="WNLL frames", unit="attack", leave=False)
    ]
    shape = tuple(counts.values())[:3]
    arrays = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    arrays = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    known, numbers = torch.unique(arrays["voters"], return_inverse=True)
    voters = source[known.to(source.labels.device)]
    arrays |= {
        "voters": numbers,
        "voter_pictures": in_bytes(voters.images),
        "voter_labels": voters.labels.cpu(),
        "pictures": in_bytes(images.images[:shown]),
        "labels": images.labels[:shown].cpu(),
    }
    grid: dict[str, tuple[Value, ...]] = {
        "attack": tuple(contests),
        "neighbors": tuple(neighbors),
        "strength": tuple(radii),
        "image": tuple(range(shown)),
    }
    about = {"classes": list(images.classes), "data": images.name, "seed": seed, "images": len(images)}
    return Frames("wnll", grid, arrays, about | {"own": head.neighbors, "scale": head.scale_neighbor})


def _with_graph(network: Classifier, neighbors: int) -> Classifier:
    """Return the network as it answers one image at a time over a graph with K neighbors."""
    head: Any = network.head
    graph = {"neighbors": neighbors, "scale_neighbor": min(head.scale_neighbor, neighbors)}
    return network.replace(head=head.with_settings(joint=False, gradient="exact", **graph))


def _asked(
    network: Classifier, images: ImageSet, contest: Contest, radius: float, shown: int, seed: int
) -> dict[str, Tensor]:
    """Attack all images at one strength; return the votes about the first ones."""
    attack, head = contest.at(Threat("linf", radius)).attack, network.head
    assert isinstance(head, WNLLHead)
    attacked = attack(network, images.images, images.labels, generator=seeded(seed)) if radius else images.images
    with evaluating(network), torch.no_grad():
        features = network.features(attacked)
        shares = head.probabilities(features)
        voters, weights = head.votes(features[:shown], count=VOTERS)
    missing = VOTERS - voters.shape[1]
    weights = torch.nn.functional.pad(weights, (0, missing)).cpu()
    voters = torch.nn.functional.pad(voters, (0, missing)).cpu()
    return {
        "shares": shares[:shown].float().cpu(),
        "voters": torch.where(weights > 0, voters, voters[:, :1]),
        "weights": weights.float(),
        "changes": in_bytes(attacked[:shown]).short() - in_bytes(images.images[:shown]).short(),
        "accuracy": (shares.argmax(1) == images.labels).double().mean().cpu(),
    }
