"""TVM as a defense: training that has seen purified images, what a naive attacker does, and the attacks made for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from robustviz.attacks import (
    against,
    combined,
    eot,
    exact_head,
    identity_backward,
    linear_head,
    pgd,
    probability_margin,
    surrogate_head,
)
from robustviz.defenses.defense import Contest, Defense, Stage, Training, at
from robustviz.defenses.tvm.layer import TVM, Version, augment
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy
from robustviz.tensors import seeded
from robustviz.types import Threat

_STEPS = 20
_AVERAGED_STEPS = 10
"""Steps of an attack that averages over masks."""
_DRAWS = 30
"""Masks that an attack of the comparison averages over; the adaptive set takes fewer, for time."""
FEWER_DRAWS = 10


@dataclass(frozen=True)
class TVMOptions:
    """How a network is trained for TVM.

    Attributes:
        augment: tvm trains on the images together with their TVM versions, which are made once and kept in
            $ROBUSTVIZ_CACHE or the user's cache: as large as the images, four bytes for each number.
        in_front: Put the purifier in front of the trained network. With it in place every update, and every step of an
            attack, would wait for it, so it is not there during training; the epoch is chosen on purified images.
    """

    augment: Literal["none", "tvm"] = "none"
    in_front: bool = True

    def __post_init__(self) -> None:
        if self.augment not in ("none", "tvm"):
            raise ValueError(f"augment must be none or tvm, got {self.augment!r}")


def has_tvm(network: nn.Module) -> bool:
    """Tell whether a network purifies its images by TVM."""
    return any(isinstance(module, TVM) for module in network.modules())


def purified(classifier: Classifier, **settings: Any) -> Classifier:
    """Put TVM in front of a network; everything else is shared. Settings are those of `TVM`."""
    return classifier.replace(purify=TVM(**settings).eval())


def unpurified(model: Classifier) -> Classifier:
    """View: the network without its purifier, which the naive attack does not know of."""
    return model.replace(purify=None)


def tvm_settings(classifier: Classifier) -> dict[str, Any]:
    """Give the settings of the purifier."""
    purifier: Any = classifier.purify
    return dict(purifier.settings)


def tvm_stages(training: Training, options: TVMOptions) -> Iterator[Stage]:
    """Train without the purifier, on versions of the images, and put it in front at the end.

    Another defense that is trained behind the purifier learns from purified images alone. Each part's versions are made
    from its own images, so no image is in both parts.
    """
    model = training.model
    purifier = model.purify if isinstance(model.purify, TVM) else TVM()
    model.purify = nn.Identity()
    if options.augment == "tvm":
        kinds: list[Version] = ["clean", "tvm"]
    else:
        kinds = ["tvm"] if training.behind else ["clean"]
    yield from _on_versions(training, purifier.eval(), kinds, ["tvm"] if options.in_front else ["clean"]).stages()
    if options.in_front:
        model.purify = purifier


def _on_versions(training: Training, purifier: TVM, learned: list[Version], judged: list[Version]) -> Training:
    """Replace the images of the training part and those of the held-out part by some of their versions."""
    if learned == judged == ["clean"]:
        return training
    parts = zip((training.kept, training.held), (learned, judged), strict=True)
    made = [
        augment(
            training.image_set[rows].to(training.device),
            purifier,
            parts=kinds,
            folder=training.cache,
            generator=seeded(training.config.seed, number),
        )
        for number, (rows, kinds) in enumerate(parts)
        if len(rows)
    ]
    images, labels = (torch.cat([getattr(part, name).cpu() for part in made]) for name in ("images", "labels"))
    return replace(
        training,
        image_set=replace(training.image_set, images=images, labels=labels),
        held=torch.arange(len(made[0]), len(images)),
        versions=training.versions * len(learned),
    )


def bpda_contests(
    steps: int = _STEPS, averaged_steps: int = _AVERAGED_STEPS, draws: int = _DRAWS, *, exact: bool = False
) -> dict[str, Contest]:
    """Make attacks that go around the purifier: the gradient passes as if it were not there, under fresh masks.

    Args:
        steps: Steps of each attack with one mask for each step.
        averaged_steps: Steps of each attack that averages over masks.
        draws: Masks to average over.
        exact: Whether the head may borrow its gradient from a linear head beside it, as an interpolating one does; then
            they follow its exact gradient, and one more transfers from the linear head.
    """
    head, objective = ([exact_head], probability_margin) if exact else ([], cross_entropy)
    averaged: dict[str, Any] = {"steps": averaged_steps, "objective": eot(objective, draws)}
    contests = {
        "BPDA": _through(identity_backward, *head, steps=steps, objective=eot(objective, 1)),
        "BPDA + EOT": _through(identity_backward, *head, **averaged),
    }
    if exact:
        transferred = averaged | {"objective": eot(cross_entropy, draws)}
        contests["BPDA + EOT, from the linear head"] = _through(identity_backward, linear_head, **transferred)
    return contests


def tvm_contests(
    steps: int = _STEPS, averaged_steps: int = _AVERAGED_STEPS, draws: int = _DRAWS, *, exact: bool = False
) -> dict[str, Contest]:
    """Make attacks on a network behind TVM: one that ignores the purifier, and those that know of it.

    Args:
        steps: Steps of each attack with one mask for each step.
        averaged_steps: Steps of each attack that averages over masks.
        draws: Masks to average over.
        exact: Passed to `bpda_contests`; the naive attack then follows the published gradient of the linear head.
    """
    naive, head = ([surrogate_head], [exact_head]) if exact else ([], [])
    objective = probability_margin if exact else cross_entropy
    contests = {
        "naive": _through(unpurified, *naive, kind="published", steps=steps),
        **bpda_contests(steps, averaged_steps, draws, exact=exact),
        "unrolled gradient": _through(*head, steps=steps, objective=eot(objective, 1)),
    }
    if exact:
        transferred: dict[str, Any] = {"steps": steps, "objective": eot(cross_entropy, 1)}
        contests["unrolled gradient, from the linear head"] = _through(linear_head, **transferred)
    return contests


def _through(*views: Callable[[Any], Any], kind: Any = "adaptive", **settings: Any) -> Contest:
    """PGD on a view of the network."""
    return Contest(partial(against, view=partial(combined, views=views), attack=partial(pgd, **settings)), kind)


def _attacks(classifier: Classifier, threat: Threat) -> dict[str, Contest]:
    exact = isinstance(getattr(classifier.head, "linear", None), nn.Module)
    return at(bpda_contests(draws=FEWER_DRAWS, exact=exact), threat)


TVM_DEFENSE = Defense(
    name="tvm",
    title="TVM purifier",
    source="Guo et al., arXiv 1711.00117, section 3; Wang et al., arXiv 1809.08516",
    present=has_tvm,
    build=purified,
    settings=tvm_settings,
    options=TVMOptions,
    stages=tvm_stages,
    published=unpurified,
    attacks=_attacks,
    without=unpurified,
)
"""Images purified by total variation minimization. (The layer itself is called TVM.)"""
