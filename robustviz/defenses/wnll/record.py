"""WNLL as a defense: how it is trained, what its papers attacked, and the attacks made for it.

Training alternates (arXiv 1802.00168, algorithm 1): everything learns through the linear head (stage A), then the
buffer alone through WNLL (stage B). Stage B moves the features of the head's own template, so they are computed again
after every epoch, before anything is measured. At the end the final template is drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from robustviz.attacks import (
    against,
    alone_head,
    exact_head,
    ifgsm,
    linear_head,
    pgd,
    probability_margin,
    surrogate_head,
    wide_graph,
)
from robustviz.data import ImageSet
from robustviz.defenses.defense import Contest, Defense, Stage, Training, at
from robustviz.defenses.wnll.head import Gradient, WNLLHead, expected_size
from robustviz.defenses.wnll.network import (
    buffered,
    only_buffer_trains,
    refresh_template,
    wnll_classifier,
    wnll_objective,
)
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, margin
from robustviz.tensors import seeded
from robustviz.types import Threat

_STEPS = 20
"""Steps of each gradient attack."""

_TEMPLATE = 1000
"""Most points of the templates that stage B draws; the finished head has those of `template_sizes`."""

BUFFER: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01, "schedule": "constant"}
"""How stage B trains the buffer; the papers take 2 to 5 epochs at rates from 0.0005 to 0.05."""

LEARNERS = 1000
"""Most images that learn in one update of stage B, where every update also needs the features of a whole template."""


@dataclass(frozen=True)
class WNLLOptions:
    """How a network is trained with WNLL.

    Attributes:
        gradient: Gradient that stage B and attacks during training follow, and that the finished head has: exact, or
            surrogate as published.
        rounds: How often all weights are trained through the linear head and then the buffer through WNLL (N of arXiv
            1802.00168, algorithm 1).

    Raises:
        ValueError: If rounds is below 1.
    """

    gradient: Gradient = "exact"
    rounds: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")


def has_wnll(network: nn.Module) -> bool:
    """Tell whether a network decides through a WNLL head."""
    return any(isinstance(module, WNLLHead) for module in network.modules())


def has_buffer(classifier: Classifier) -> bool:
    """Tell whether the body ends in a buffer block."""
    return isinstance(getattr(classifier.body, "buffer", None), nn.Module)


def linear_beside(classifier: Classifier) -> Classifier:
    """Return the network with the linear head beside its WNLL head, or as it is; all modules are shared."""
    head = classifier.head
    if not isinstance(head, WNLLHead):
        return classifier
    if head.linear is None:
        raise ValueError("head must have a linear head beside it, got none")
    return classifier.replace(head=head.linear)


def build_wnll(classifier: Classifier, *, buffer: bool = False, size: int | None = None, **settings: Any) -> Classifier:
    """Put a buffer block and a WNLL head on a network; points of the template are zero until weights are loaded.

    Args:
        classifier: With a linear head.
        buffer: End the body in a buffer block.
        size: Points of the template; None keeps the linear head.
        **settings: Settings of `WNLLHead`.
    """
    if buffer:
        classifier = buffered(classifier)
    if size is None:
        return classifier
    linear: Any = classifier.head
    classes, template = linear.out_features, torch.zeros(size, linear.in_features)
    return classifier.replace(head=WNLLHead(template, torch.arange(size) % classes, classes, linear=linear, **settings))


def wnll_settings(classifier: Classifier) -> dict[str, Any]:
    """Give the settings with which `build_wnll` makes a network again."""
    head: Any = classifier.head
    names = ("gradient", "neighbors", "scale_neighbor", "joint", "templates")
    return {
        "buffer": has_buffer(classifier),
        "size": len(head.template),
        **{name: getattr(head, name) for name in names},
    }


def wnll_stages(training: Training, options: WNLLOptions) -> Iterator[Stage]:
    """Alternate: everything through the linear head (A), the buffer through WNLL (B); then draw the final template.

    Later rounds start A at a fifth of the learning rate. B learns from clean images, or from images that the attack
    makes through the WNLL head; half of the training images serve there as the pool that templates are drawn from, the
    other half learns, and the held-out part chooses the epoch. For the attack and for the choice the head has a fixed
    template, whose features are computed again after every epoch. The final template is drawn from all training images.

    Raises:
        ValueError: If the training has an objective of its own, as TRADES and MART have; if it has several versions of
            an image, which could be on both sides of an interpolation; or if there are too few images.

    Source: Wang et al., arXiv 1802.00168, algorithm 1.
    """
    if training.objective is not cross_entropy:
        raise ValueError(
            "attack must be none, fgsm-rs or pgd with WNLL, whose objective is its own, got "
            f"{getattr(training.objective, 'func', training.objective).__name__}"
        )
    if training.versions > 1:
        raise ValueError(
            f"augment must be none with WNLL, got {training.versions} versions of every image, which could be on both "
            "sides of an interpolation; train with them first, then start WNLL from that network"
        )
    source = training.image_set[training.kept]
    # An image must not be in the template that its own label is interpolated from.
    learners, pool = _halves(source, training.config.seed)
    size, model = min(_TEMPLATE, len(pool)), training.model
    _add_buffer(model, training.pretrained)
    for number in range(1, options.rounds + 1):
        said = f"round {number} of {options.rounds}, stage"
        rate = training.config.learning_rate / (1 if number == 1 else 5)
        for stage in training.configured(learning_rate=rate).stages():
            title = stage.title or f"{said} A: everything learns through the linear head"
            yield replace(stage, name=f"round-{number}-{stage.name}", title=title)
        title = f"{said} B: the buffer learns through WNLL, {BUFFER['epochs']} epochs"
        interpolating = wnll_classifier(model, pool, size=size, gradient=options.gradient)
        through = _through_wnll(training, interpolating, learners, pool)
        yield Stage(f"round-{number}-buffer", title, through)
    final = partial(wnll_classifier, gradient=options.gradient)
    model.head = final(model, source, generator=seeded(training.config.seed)).head


def _through_wnll(training: Training, interpolating: Classifier, learners: ImageSet, pool: ImageSet) -> Training:
    """Make the training of stage B."""
    held = training.image_set[training.held]
    images, labels = (torch.cat([getattr(part, name) for part in (learners, held)]) for name in ("images", "labels"))
    head: Any = interpolating.head
    return replace(
        training,
        model=interpolating,
        image_set=replace(learners, images=images, labels=labels),
        held=torch.arange(len(learners), len(labels)),
        objective=wnll_objective(pool, len(head.template)),
        within=only_buffer_trains,
        before_validation=partial(refresh_template, interpolating, pool),
    ).configured(batch_size=max(training.config.batch_size, min(LEARNERS, len(learners) // 10)), **BUFFER)


def _add_buffer(model: Classifier, pretrained: bool) -> None:
    """Leave a linear head and put a buffer block before it.

    A buffer as wide as the features, which are never negative, starts as the identity behind a trained network: all
    decisions stay as they are. Any other starts untrained, with a new linear head.
    """
    model.head = linear_beside(model).head
    if has_buffer(model):
        return
    linear: Any = model.head
    wider = buffered(model)
    model.body, model.head = wider.body, wider.head
    buffer: Any = wider.body.buffer
    if pretrained and buffer[0].weight.shape == (linear.in_features, linear.in_features):
        nn.init.eye_(buffer[0].weight)
        model.head = linear


def _halves(source: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split the training part into images that learn and a pool for templates, which must hold every class."""
    classes = len(source.classes)
    learners, pool = source.split(seeded(seed), share=0.5)
    if lacking := classes - len(set(pool.labels.tolist())):
        raise ValueError(
            f"image_set must be larger for WNLL (--images on the command line): the {len(pool)} of its images that "
            f"templates are drawn from lack {lacking} of {classes} classes; random points hold all classes after "
            f"{expected_size(classes):.1f} on average"
        )
    return learners, pool


def wnll_contests(steps: int = _STEPS, *, wide: Sequence[int] = (60, 150, 200)) -> dict[str, Contest]:
    """Make attacks on a WNLL head: the published one and those made for it, all scored on the head.

    Args:
        steps: Steps of each gradient attack.
        wide: Neighbors of the wider graphs to attack through.
    """

    def through(view: Callable[[Any], Any], **settings: Any) -> Contest:
        return Contest(partial(against, view=view, attack=partial(pgd, steps=steps, random_start=False, **settings)))

    log_surrogate = partial(surrogate_head, logarithm=True)
    published = partial(against, view=surrogate_head, attack=partial(ifgsm, steps=steps))
    return {
        "surrogate gradient": Contest(published, "published"),
        "surrogate on log u": through(log_surrogate),
        "transfer from the linear head": through(linear_head),
        "transfer, margin": through(linear_head, objective=margin),
        "exact, -log u": through(exact_head),
        "exact, margin": through(exact_head, objective=probability_margin),
        "one at a time, margin": through(alone_head, objective=probability_margin),
        **{f"wide graph, K = {k}": through(wide_graph(k), objective=probability_margin) for k in wide},
    }


def _attacks(classifier: Classifier, threat: Threat) -> dict[str, Contest]:
    """Make the adaptive attacks; behind a purifier that draws at random, those on the purifier follow this head."""
    if getattr(classifier.purify, "stochastic", False):
        return {}
    return at(wnll_contests(wide=(60,)), threat)


WNLL_DEFENSE = Defense(
    name="wnll",
    title="WNLL activation",
    source="Wang et al., arXiv 1809.08516, section 3; arXiv 1802.00168",
    present=has_wnll,
    build=build_wnll,
    settings=wnll_settings,
    options=WNLLOptions,
    stages=wnll_stages,
    published=surrogate_head,
    attacks=_attacks,
    without=linear_beside,
)
"""Interpolation from labelled templates instead of the linear layer and its softmax."""
