"""How strong the attacks are beside those of foolbox and pyautoattack, on shipped networks and the same images.

Robust accuracy may be at most half a point above theirs at equal steps, and the median distance of Carlini & Wagner at
most 1.02 times theirs. PGD sees all 1,797 digits; what takes longer sees the first of them. CIFAR-10 comes last, where
its pictures are in `data/downloads`, and takes half an hour.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from robustviz import checkpoints
from robustviz.attacks import apgd, apgd_targeted, carlini_wagner, pgd
from robustviz.attacks.common import random_perturbation
from robustviz.data import digits, load
from robustviz.evaluation import evaluate
from robustviz.evaluation.suites import standard_ensemble
from robustviz.tensors import evaluating, project, seeded
from robustviz.types import LINF_8, Threat

THREATS = {
    "digits-pgd": (Threat("linf", 0.15), Threat("l2", 1.0)),
    "digits-standard": (Threat("linf", 0.05), Threat("l2", 0.4)),
}
PGD_STEPS, APGD_STEPS, ENSEMBLE_STEPS, QUERIES = 20, 50, 20, 300
APGD_IMAGES, ENSEMBLE_IMAGES, CW_IMAGES = 1000, 500, 200


@dataclass(frozen=True)
class Strength:
    """What ours and theirs reach on the same images: robust accuracy in percent, or a median distance."""

    name: str
    against: str
    ours: float
    theirs: float
    distance: bool = False

    @property
    def row(self) -> str:
        excess, target = (self.ours / self.theirs, 1.02) if self.distance else (self.ours - self.theirs, 0.5)
        both = f"{self.ours:.4g} / {self.theirs:.4g}"
        return f"{self.name:<39}{self.against:<16}{both:<18}{excess:>7.3f}{target:>8.2f}   {met(excess <= target)}"


def met(yes: bool) -> str:
    return "yes" if yes else "NO"


def main() -> Iterator[Strength]:
    warnings.simplefilter("ignore")
    everything = digits()
    for name, threats in THREATS.items():
        model = checkpoints.load(name)[0].requires_grad_(False)
        for threat in threats:
            label = f"{name} {threat.norm} {threat.epsilon:g}"
            yield from one_attack(f"pgd-{PGD_STEPS}", label, model, everything, threat)
            yield from one_attack(f"apgd-{APGD_STEPS}", label, model, everything.subset(APGD_IMAGES), threat)
        few = everything.subset(CW_IMAGES)
        yield nearest(f"cw-5x100 {name}", model, few.images, few.labels)
    model, few = checkpoints.load("digits-pgd")[0].requires_grad_(False), everything.subset(ENSEMBLE_IMAGES)
    for threat in THREATS["digits-pgd"]:
        yield ensemble("digits-pgd", model, few.images, few.labels, threat)
    yield from cifar10()


def cifar10() -> Iterator[Strength]:
    """PGD and the ensemble on the adversarially trained ResNet20."""
    try:
        everything = load("cifar10", "test")
    except FileNotFoundError as error:
        print(f"the network of CIFAR-10 is left out: {error}")
        return
    model, threat = checkpoints.load("cifar10-pgd")[0].requires_grad_(False), LINF_8
    label = f"cifar10-pgd {threat.norm} {threat.epsilon:.4g}"
    yield from one_attack(f"pgd-{PGD_STEPS}", label, model, everything.subset(APGD_IMAGES), threat)
    few = everything.subset(ENSEMBLE_IMAGES)
    yield ensemble("cifar10-pgd", model, few.images, few.labels, threat)


def one_attack(kind: str, label: str, model, image_set, threat: Threat) -> Iterator[Strength]:
    """PGD beside foolbox, Auto-PGD beside its authors, with the same steps."""
    images, labels = image_set.images, image_set.labels
    if kind.startswith("pgd"):
        import eagerpy as ep
        import foolbox

        classes = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
        peer = classes[threat.norm](rel_stepsize=2.5 / PGD_STEPS, steps=PGD_STEPS, random_start=True)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        # Both begin at the same random points, because another start alone moves robust accuracy by half a point.
        start = images + random_perturbation(images, threat, seeded(0))
        peer.get_random_start = lambda clean, epsilon: ep.astensor(project(images, start, threat))
        theirs = peer.run(wrapped, images, foolbox.criteria.Misclassification(labels), epsilon=threat.epsilon)
        ours = pgd(model, images, labels, threat=threat, steps=PGD_STEPS, generator=seeded(0))
        yield Strength(f"{kind} {label}", "foolbox", right(model, ours, labels), right(model, theirs, labels))
        return
    package = autoattack(model, threat, APGD_STEPS)
    for name, attack, peer in (
        ("ce", partial(apgd, early_exit=True), package.apgd),
        ("targeted", partial(apgd_targeted, targets=3, early_exit=True), package.apgd_targeted),
    ):
        peer.n_target_classes = 3
        theirs = torch.cat([peer.perturb(*part) for part in zip(images.split(250), labels.split(250), strict=True)])
        ours = partial(attack, threat=threat, steps=APGD_STEPS)
        values = share(model, images, labels, ours), right(model, theirs, labels)
        yield Strength(f"{kind}-{name} {label}", "pyautoattack", *values)


def ensemble(name: str, model, images, labels, threat: Threat) -> Strength:
    """The standard ensemble beside AutoAttack, with fewer steps and queries on both sides."""
    attacks = standard_ensemble(threat, 10, steps=ENSEMBLE_STEPS, queries=QUERIES)
    table = evaluate(model, images, labels, attacks, survivors_only=True, fast=True)
    package = autoattack(model, threat, ENSEMBLE_STEPS)
    package.square.n_queries = QUERIES
    theirs = package.run_standard_evaluation(images, labels)[0]
    values = 100 * table.worst_case(), right(model, theirs, labels)
    return Strength(f"ensemble {name} {threat.norm} {threat.epsilon:.4g}", "pyautoattack", *values)


def nearest(label: str, model, images, labels) -> Strength:
    """The median distance of Carlini & Wagner beside foolbox; an image that is not fooled is infinitely far."""
    import foolbox

    settings = {"steps": 100, "initial_const": 1.0}  # with steps as long as these, both come to the boundary
    peer = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, stepsize=0.05, **settings)
    theirs = peer(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilons=None)[1]
    ours = carlini_wagner(model, images, labels, search_steps=5, lr=0.05, **settings)
    medians = []
    for attacked in (ours, theirs):
        distance = (attacked - images).flatten(1).norm(dim=1)
        distance[decisions(model, attacked) == labels] = torch.inf
        medians.append(distance.median().item())
    return Strength(label, "foolbox", *medians, distance=True)


def autoattack(model, threat: Threat, steps: int):
    """Every part of the authors' package with as many steps."""
    import pyautoattack

    package = pyautoattack.AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.epsilon, seed=0)
    package.apgd.loss, package.verbose = "ce", False
    for part in (package.apgd, package.apgd_targeted, package.fab):
        part.n_iter = steps
    return package


def share(model, images, labels, attack: Callable) -> float:
    """Robust accuracy in percent."""
    return 100 * evaluate(model, images, labels, {"attack": attack}).accuracy("attack")


def right(model, images, labels) -> float:
    """Share of images, in percent, that the model gets right."""
    return 100 * (decisions(model, images) == labels).double().mean().item()


def decisions(model, images):
    with evaluating(model), torch.no_grad():
        return model(images).argmax(1)
