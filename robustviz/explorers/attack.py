"""The attack explorer's measurement: images under attacks of growing strength, on several networks side by side."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from tqdm.auto import tqdm

from robustviz.attacks import Step, fgsm, pgd, random_noise
from robustviz.data import ImageSet
from robustviz.explorers.frames import BUDGET, Frames, Value, check_budget
from robustviz.explorers.pictures import in_bytes
from robustviz.objectives import cross_entropy
from robustviz.presets import usual_threat
from robustviz.tensors import evaluating, seeded
from robustviz.types import Images, Labels, Norm, Threat

ATTACKS: dict[str, Callable[..., Images]] = {
    "PGD": pgd,
    "FGSM": fgsm,
    "random noise": partial(random_noise, steps=10),
}
"""Attacks that the explorer compares: ten steps along the gradient, one, and ten blind tries."""

STEPS = 21
"""Strengths of the slider, 0 included; the middle one is the data set's usual radius."""

BATCH = 256


def strengths_around(threat: Threat) -> tuple[float, ...]:
    """Return evenly spaced strengths from 0 to twice a radius; whole gray levels where it is a few of them."""
    levels = round(255 * threat.epsilon)
    if threat.norm == "linf" and 4 <= levels <= 10 and abs(levels - 255 * threat.epsilon) < 1e-6:
        return tuple(level / 255 for level in range(2 * levels + 1))
    return tuple(round(2 * threat.epsilon * step / (STEPS - 1), 6) for step in range(STEPS))


def attack_frames(
    networks: Mapping[str, nn.Module],
    images: ImageSet,
    *,
    attacks: Mapping[str, Callable[..., Images]] | None = None,
    strengths: Sequence[float] | None = None,
    norm: Norm = "linf",
    shown: int = 30,
    seed: int = 0,
    budget: int = BUDGET,
) -> Frames:
    """Attack images at every strength and keep what each network sees and says.

    All images are attacked together, in batches of 256; a batch has the same noise at every strength and on every
    network, so that a picture does not flicker while the slider moves.

    Args:
        networks: By the names on the screen; left as they were.
        images: Attacked; the accuracies are those of all of them.
        attacks: By the names on the screen, each taking `threat`; with `on_step`, the loss is kept over its steps.
            None takes `ATTACKS`.
        strengths: Radii in pixel units of [0, 1], growing from 0; None takes `strengths_around` the usual radius.
        norm: Norm of the radii.
        shown: How many images have pictures, the first ones.
        seed: Seed of the random starts.
        budget: Most frames: images shown x attacks x strengths x networks.

    Returns:
        Frames over attack, strength and image. Arrays have the networks first, then the grid: `probabilities` (of all
        classes), `decisions`, `losses` (cross-entropy at the start and after each step; NaN where there are fewer
        steps), `changes` (gray levels); `accuracies` and `clean_probabilities` have no place for what they do not
        depend on. `pictures` are the clean images, `labels` their classes.

    Raises:
        ValueError: If there is no network, attack or strength, strengths do not grow from 0, or the grid exceeds its
            budget.
    """
    attacks = ATTACKS if attacks is None else attacks
    radii = strengths_around(usual_threat(images.name, norm)) if strengths is None else tuple(map(float, strengths))
    shown = min(shown, len(images))
    counts = {"images": shown, "attacks": len(attacks), "strengths": len(radii), "networks": len(networks)}
    check_budget(counts, budget)
    if any(after <= before for before, after in pairwise(radii)) or radii[0] < 0:
        raise ValueError(f"strengths must be >= 0 and grow, got {', '.join(f'{radius:g}' for radius in radii)}")
    jobs = [
        (network, attack, radius) for network in networks.values() for attack in attacks.values() for radius in radii
    ]
    found = [
        _attacked(network, images, partial(attack, threat=Threat(norm, radius)), shown, seed)
        for network, attack, radius in tqdm(jobs, desc="attack frames", unit="attack", leave=False)
    ]
    longest = max(one["losses"].shape[-1] for one in found)
    for one in found:
        missing = longest - one["losses"].shape[-1]
        one["losses"] = pad(one["losses"], (0, missing), value=torch.nan)
    shape = (len(networks), len(attacks), len(radii))
    arrays = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    arrays = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    arrays["clean_probabilities"] = torch.stack(
        [_probabilities(network, images.images[:shown]) for network in networks.values()]
    )
    arrays |= {"pictures": in_bytes(images.images[:shown]), "labels": images.labels[:shown].cpu()}
    grid: dict[str, tuple[Value, ...]] = {"attack": tuple(attacks), "strength": radii, "image": tuple(range(shown))}
    about = {"networks": list(networks), "classes": list(images.classes), "data": images.name, "norm": norm}
    return Frames("attack", grid, arrays, about | {"seed": seed, "images": len(images)})


def _attacked(
    network: nn.Module, images: ImageSet, attack: Callable[..., Images], shown: int, seed: int
) -> dict[str, Tensor]:
    """Run one attack at one strength: everything about it that a frame holds, for the first `shown` images."""
    found, losses = [], []
    for number, (clean, labels) in enumerate(images.batches(BATCH)):
        attacked, way = _watched(network, clean, labels, attack, seeded(seed, number))
        found.append(attacked)
        losses.append(way)
    attacked = torch.cat(found)
    probabilities = torch.cat([_probabilities(network, part) for part in torch.split(attacked, BATCH)])
    right = probabilities.argmax(1) == images.labels.cpu()
    return {
        "probabilities": probabilities[:shown],
        "decisions": probabilities[:shown].argmax(1),
        "losses": torch.cat(losses)[:shown],
        "changes": in_bytes(attacked[:shown]).short() - in_bytes(images.images[:shown]).short(),
        "accuracies": right.double().mean(),
    }


def _watched(
    network: nn.Module, clean: Images, labels: Labels, attack: Callable[..., Images], generator: torch.Generator
) -> tuple[Images, Tensor]:
    """Attack a batch; return the images, and the cross-entropy (n, steps + 1) where the attack stood."""
    known, losses = signature(attack).parameters, []
    follows = "objective" in known and known["objective"].default is cross_entropy

    def loss(points: Images) -> Tensor:
        with evaluating(network), torch.no_grad():
            return cross_entropy(network, points, labels).cpu()

    def look(step: Step) -> None:
        losses.append(step.objective.detach().cpu() if follows else loss(step.images))

    if "on_step" in known:
        attacked = attack(network, clean, labels, generator=generator, on_step=look)
    else:
        attacked = attack(network, clean, labels, generator=generator)
        losses += [loss(clean), loss(attacked)]
    return attacked, torch.stack(losses, 1)


def _probabilities(network: nn.Module, images: Images) -> Tensor:
    with evaluating(network), torch.no_grad():
        return network(images).softmax(1).cpu()
