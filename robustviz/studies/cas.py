"""CAS against the same networks without it: what stock attacks see, what attacks made for it find, what channels do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from robustviz.attacks import square, transfer
from robustviz.data import ImageSet, digits
from robustviz.defenses import CAS_DEFENSE
from robustviz.defenses.cas import cas_contests, cas_outputs, fine_pgd, has_cas, joint
from robustviz.defenses.defense import Contest, at
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import Comparison, Entry, compare, describe_contests
from robustviz.features import ChannelStats, channel_stats, last_stage, snapshot
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, margin
from robustviz.presets import TrainingAttack, usual_threat
from robustviz.records import describe
from robustviz.tensors import evaluating, seeded
from robustviz.training import TrainConfig
from robustviz.training.stages import harden

_EPSILONS = (0.1, 0.15)
CAS_BATCH = 512

TRAINING: Mapping[str, TrainingAttack] = {"standard": "none", "AT": "pgd", "TRADES": "trades", "MART": "mart"}
"""How the networks are trained, each without and with CAS; AT is adversarial training (Madry et al.)."""


COMMON: Mapping[str, Contest] = {
    "final logits only": Contest(fine_pgd, "published"),
    "final logits only, margin": Contest(partial(fine_pgd, objective=margin)),
    "Square": Contest(partial(square, steps=300)),
}
"""What every network is measured with: attacks that know nothing of CAS. The first is what stock tools do."""

AGREES = "final decision is the auxiliary one, attacked"
SAME = f"worst of the {len(COMMON)} attacks that every network meets, epsilon {usual_threat('digits').epsilon}"
"""Names of remarks."""


def compare_cas(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare networks on digits without and with CAS: natural training, adversarial training, TRADES and MART.

    The remarks are shares: how often final and auxiliary decision agree, what the attacks on every network
    leave together, and the channel statistics, where the magnitude, which has the unit of its layer, is given as its
    change under attack relative to the clean one.

    Args:
        seeds: Each trains all networks again.
        say: Called with a line of text at every step.

    Returns:
        One comparison, named `cas`.
    """
    training_set, test_set = digits("train"), digits("test")
    settings = {
        "data": "digits",
        "contests": describe_contests({**COMMON, **cas_contests()}),
        "training": describe(TrainConfig()),
        "threat": describe(usual_threat("digits")),
    }
    entries = partial(_trained_entries, training_set, test_set)
    strengths: dict[str, Any] = {"seeds": seeds, "epsilons": _EPSILONS, "batch_size": CAS_BATCH}
    return [compare("cas", entries, test_set, settings=settings, say=say, **strengths)]


def _trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks of every kind of training, without and with CAS."""
    for name, attack in TRAINING.items():
        train = partial(
            harden,
            training_set,
            network="small_cnn",
            config=TrainConfig(seed=seed),
            threat=usual_threat("digits"),
            attack=attack,
        )
        yield from pair(name, train().model, train(defenses=[CAS_DEFENSE]).model, test_set, seed)


def pair(
    name: str, plain: Classifier, masked: Classifier, test_set: ImageSet, seed: int
) -> Iterator[tuple[str, Entry]]:
    """Two networks trained alike, without and with CAS; images are transferred from the first to the second."""
    transferred = Contest(partial(transfer, source=plain, attack=fine_pgd))
    contests = {**COMMON, **cas_contests(), "transfer from the network without CAS": transferred}
    for network, model, met in ((name, plain, COMMON), (f"{name} + CAS", masked, contests)):
        found = remarks(model, test_set, seed)
        yield network, Entry(model, partial(at, met), {f"{network}: {key}": share for key, share in found.items()})


def remarks(model: Classifier, test_set: ImageSet, seed: int) -> dict[str, float]:
    """Channel statistics; with CAS also how often both decisions agree and what the common attacks leave together."""
    attacked = under_attack(model, test_set, seed)
    clean, moved = (statistics(model, images) for images in (test_set, attacked))
    found = {
        "mean magnitude, attacked / clean - 1": moved.mean_magnitude / clean.mean_magnitude - 1,
        "largest magnitude, attacked / clean - 1": (moved.magnitude.max() / clean.magnitude.max() - 1).item(),
    }
    for condition, stats in (("clean", clean), ("attacked", moved)):
        found |= {
            f"mean frequency, {condition}": stats.mean_frequency,
            f"channels above one half, {condition}": stats.above_half / len(stats.frequency),
            f"uniformity, {condition}": stats.uniformity,
        }
    if has_cas(model):
        with evaluating(model), torch.no_grad():
            found[AGREES] = cas_outputs(model, attacked.images).agrees.double().mean().item()
        attacks = {label: contest.attack for label, contest in at(COMMON, usual_threat("digits")).items()}
        settings: dict[str, Any] = {"batch_size": CAS_BATCH, "generator": seeded(seed)}
        found[SAME] = evaluate(model, test_set.images, test_set.labels, attacks, **settings).worst_case()
    return found


def under_attack(model: Classifier, test_set: ImageSet, seed: int) -> ImageSet:
    """Attack with PGD-20, on the joint objective where there is one: the images of the channel statistics."""
    objective = joint() if has_cas(model) else cross_entropy
    attack = partial(fine_pgd, threat=usual_threat("digits"), steps=20, objective=objective)
    images = attack(model, test_set.images, test_set.labels, generator=seeded(seed))
    return ImageSet(images, test_set.labels, test_set.classes, test_set.name)


def statistics(model: Classifier, image_set: ImageSet) -> ChannelStats:
    """Channel statistics of the last stage, before the last mask, over all images."""
    layer, condition = last_stage(model), image_set.name
    return channel_stats(snapshot(model, image_set.images, image_set.labels, layer=layer, condition=condition))
