"""What the attack explorer computes: a state in, the attempts on every network out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.attacks import (
    Step,
    apgd,
    carlini_wagner,
    deepfool,
    fmn,
    ifgsm,
    mifgsm,
    pgd,
    random_noise,
    square,
)
from robustviz.data import ImageSet
from robustviz.tensors import evaluating, norms
from robustviz.types import Attack, Images, Progress, Threat
from robustviz.widgets.upload import unpack


@dataclass(frozen=True)
class AttackState:
    """A setting of the attack explorer.

    Attributes:
        image: Which of the images, from 0.
        attack: A name of `ATTACKS`.
        epsilon: Largest change of a pixel, 0 to 1; attacks of `NEAREST` know no radius.
        steps: Updates of the attack; FGSM makes one whatever stands here.
        target: Class that the attacker wants to see; None for any wrong one.
        own: A picture of one's own instead, as the text that `own_picture.shrink` makes; empty for none.
    """

    image: int = 0
    attack: str = "PGD"
    epsilon: float = 0.15
    steps: int = 10
    target: int | None = None
    own: str = ""


@dataclass(frozen=True)
class Attempt:
    """What the attack reached on one network.

    Attributes:
        model: Name of the network.
        label: True class; for a picture of one's own, what the network says of it before the attack.
        attacked: The one attacked image.
        clean_confidence: Probability of each class before.
        attacked_confidence: The same after.
        trace: What the attack follows, at its start and after each step.
        distance: Largest change of a pixel.
    """

    model: str
    label: int
    attacked: Images
    clean_confidence: Float[Tensor, "k"]
    attacked_confidence: Float[Tensor, "k"]
    trace: tuple[float, ...]
    distance: float


@dataclass(frozen=True)
class AttackRecord:
    """One image under one attack on several networks; the state says which."""

    state: AttackState
    image: Images
    classes: tuple[str, ...]
    attempts: tuple[Attempt, ...]

    @property
    def nearest(self) -> bool:
        """Whether the attack looks for the nearest adversarial image and has no radius."""
        return self.state.attack in NEAREST

    @property
    def followed(self) -> str:
        """What the attack follows from step to step."""
        return MARGIN if self.state.attack in (*NEAREST, "Square", "random noise") else "cross-entropy"


def _bounded(attack: Callable[..., Images]) -> Callable[[AttackState], Attack]:
    return lambda state: partial(
        attack, threat=Threat("linf", state.epsilon), steps=state.steps, targeted=state.target is not None
    )


def _fgsm(state: AttackState) -> Attack:
    """FGSM as the one step of IFGSM that it is, because that one can be watched."""
    threat = Threat("linf", state.epsilon)
    return partial(ifgsm, threat=threat, steps=1, step_size=threat.epsilon, targeted=state.target is not None)


def _carlini_wagner(state: AttackState) -> Attack:
    return partial(carlini_wagner, steps=state.steps, search_steps=5, lr=0.05, targeted=state.target is not None)


def _deepfool(state: AttackState) -> Attack:
    if state.target is not None:
        raise ValueError("DeepFool takes no target, because it goes to the nearest class; choose another attack")
    return partial(deepfool, norm="linf", steps=state.steps)


def _fmn(state: AttackState) -> Attack:
    return partial(fmn, norm="linf", steps=state.steps, targeted=state.target is not None)


ATTACKS: dict[str, Callable[[AttackState], Attack]] = {
    "FGSM": _fgsm,
    "IFGSM": _bounded(ifgsm),
    "PGD": _bounded(pgd),
    "MI-FGSM": _bounded(mifgsm),
    "APGD": _bounded(apgd),
    "Square": _bounded(square),
    "random noise": _bounded(random_noise),
    "Carlini-Wagner": _carlini_wagner,
    "DeepFool": _deepfool,
    "FMN": _fmn,
}
"""Attacks by the names of the list, made from a state."""

MARGIN = "margin"

NEAREST = ("Carlini-Wagner", "DeepFool", "FMN")
"""Attacks that look for the nearest adversarial image and know no radius."""


def attack_image(
    networks: Mapping[str, nn.Module], images: ImageSet, state: AttackState, progress: Progress
) -> AttackRecord:
    """Attack the image that the state names, on each network by itself.

    Raises:
        ValueError: If the state names an image, class or attack that does not exist, or a target that is no change.
    """
    if state.attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {state.attack!r}")
    if not 0 <= state.image < len(images):
        raise ValueError(f"image must be from 0 to {len(images) - 1}, got {state.image}")
    if state.target is not None and not 0 <= state.target < len(images.classes):
        raise ValueError(f"target must be a class from 0 to {len(images.classes) - 1}, got {state.target}")
    image = images.images[state.image : state.image + 1]
    label = None if state.own else int(images.labels[state.image])
    if state.own:
        image = unpack(state.own, tuple(image.shape[1:])).to(image.device)
    attempts = []
    for done, (name, network) in enumerate(networks.items()):
        progress(done, len(networks))
        attempts.append(_attempt(name, network, image, label, state))
    return AttackRecord(state, image.cpu(), images.classes, tuple(attempts))


def _attempt(name: str, network: nn.Module, image: Images, label: int | None, state: AttackState) -> Attempt:
    with evaluating(network), torch.no_grad():
        clean = network(image).softmax(1)[0]
    truth = int(clean.argmax()) if label is None else label
    if state.target == truth:
        raise ValueError(f"target must differ from class {truth}, which the image has already; choose another target")
    trace: list[Step] = []
    wanted = torch.tensor([truth if state.target is None else state.target], device=image.device)
    attack: Any = ATTACKS[state.attack](state)
    attacked = attack(network, image, wanted, on_step=trace.append)
    with evaluating(network), torch.no_grad():
        after = network(attacked).softmax(1)[0]
    values = tuple(step.objective.item() for step in trace)
    distance = norms(attacked - image, "linf").item()
    return Attempt(name, truth, attacked.cpu(), clean.cpu(), after.cpu(), values, distance)
