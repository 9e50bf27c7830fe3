"""What the geometry of an attack is computed from: two networks, their attacks, and where these carry the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, Tensor

from robustviz.data import ImageSet
from robustviz.defenses.wnll import wnll_classifier
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.defenses.wnll.record import linear_beside
from robustviz.evaluation import CLEAN
from robustviz.evaluation.suites import contests, published_name
from robustviz.features import FeatureSnapshot, snapshot
from robustviz.geometry import (
    Curves,
    Embedding,
    Method,
    Trajectory,
    curves,
    decisions_differ,
    embed,
    margins,
    template_source,
    trace_strengths,
)
from robustviz.geometry.trajectories import attack_batches
from robustviz.models import Classifier
from robustviz.tensors import draw_seed, seeded
from robustviz.types import Images, Labels, PerImage, Threat

SOFTMAX, WNLL = "softmax", "WNLL"
PUBLISHED_ATTACK, STRONGEST = "published attack", "adaptive attack"
"""Names of conditions; the adaptive attack is the strongest of all that answer the defense."""

_Say = Callable[[str], Any]


@dataclass(frozen=True)
class ConditionFeatures:
    """Test images in one condition.

    Attributes:
        attack: Name of the attack; empty for the clean images.
        images: In [0, 1].
        snapshot: Their features and the decisions of the network.
        margin: Probability of the true class minus the best other.
    """

    attack: str
    images: Images
    snapshot: FeatureSnapshot
    margin: PerImage


@dataclass(frozen=True)
class Studied:
    """A network under its published attack and under the strongest of its adaptive ones.

    Attributes:
        name: Name of the network.
        model: The network.
        reference: Features of the clean training images.
        ground: Features of the template of a WNLL head, None for another head.
        conditions: By name: clean, published attack, adaptive attack.
        ways: The same attacks over their strength, by name.
        curves: The numbers along each way.
    """

    name: str
    model: Classifier
    reference: FeatureSnapshot
    ground: FeatureSnapshot | None
    conditions: Mapping[str, ConditionFeatures]
    ways: Mapping[str, Trajectory]
    curves: Mapping[str, Curves]

    def mapped(self, method: Method, seed: int) -> Embedding:
        """Fit a map on the reference and put conditions, template and ways on it, in one pass.

        UMAP, which is slow, gets only the clean images, the adaptive attack and its way.
        """
        names = (STRONGEST,) if method == "umap" else (PUBLISHED_ATTACK, STRONGEST)
        grounds = [] if method == "umap" or self.ground is None else [self.ground]
        taken = [self.conditions[name].snapshot for name in (CLEAN, *names)]
        return embed(self.reference, [*grounds, *taken, *(self.ways[name] for name in names)], method=method, seed=seed)


@dataclass(frozen=True)
class Pair:
    """A network with a WNLL head and one with a softmax, and what they make of the same test images.

    Attributes:
        softmax: Studied under its own attacks.
        wnll: Studied under its own attacks.
        source: Image set that the template was drawn from; behind TVM the template is of their purified versions.
        test_set: The test images.
        threat: Threat of both networks' attacks.
        differ: By "network, condition": share of these images that the two networks decide differently.
    """

    softmax: Studied
    wnll: Studied
    source: ImageSet
    test_set: ImageSet
    threat: Threat
    differ: Mapping[str, float]

    @property
    def networks(self) -> tuple[Studied, Studied]:
        """Both networks, the one with the softmax first."""
        return self.softmax, self.wnll


def pool_of(model: Classifier, checkpoint: str, training_set: ImageSet) -> ImageSet:
    """Choose what the template of a network was drawn from, or, without a WNLL head, what one may be drawn from.

    Args:
        model: The network.
        checkpoint: Its name or path.
        training_set: All training images of its data set.
    """
    return template_source(checkpoint, training_set) if isinstance(model.head, WNLLHead) else training_set


def both_heads(model: Classifier, source: ImageSet) -> tuple[Classifier, Classifier]:
    """Return a network with its linear head and with a WNLL head.

    Args:
        model: A WNLL head that is there stays; else one is made.
        source: What the template of that head was drawn from, as `geometry.template_source` finds it; else what up
            to 1,000 images are drawn from.

    Raises:
        ValueError: If the template that is there was drawn from other images.
    """
    softmax = linear_beside(model)
    if not isinstance(model.head, WNLLHead):
        return softmax, wnll_classifier(softmax, source, size=min(1000, len(source)))
    if not model.head.drawn_from(source.labels):
        raise ValueError(
            f"source must be what the template was drawn from, but {source.name} with {len(source)} images does not "
            "fit it; `geometry.template_source` finds it"
        )
    return softmax, model


def study(
    name: str,
    model: Classifier,
    training_set: ImageSet,
    test_set: ImageSet,
    threat: Threat,
    epsilons: Sequence[float],
    *,
    source: ImageSet | None = None,
    layer: str = "body",
    steps: int = 10,
    seed: int = 0,
) -> Studied:
    """Attack a network, and follow its attacks over their strength.

    Args:
        name: Name of the network.
        model: With a linear or a WNLL head.
        training_set: Clean images that the map is fitted on.
        test_set: Images that are attacked.
        threat: At which the conditions are compared.
        epsilons: Strengths of the ways.
        source: What a WNLL template was drawn from; its features are then shown too.
        layer: Whose features are looked at.
        steps: Steps of the gradient attacks.
        seed: Seed of random starts.
    """
    images, labels = test_set.images, test_set.labels
    reference = snapshot(model, training_set.images, training_set.labels, layer=layer, condition="training")
    ground = None
    if source is not None:
        template = source[_indices(model)]
        ground = snapshot(model, template.images, template.labels, layer=layer, condition="template")
    every = contests(model, threat, steps=steps)
    first = published_name(every)
    noise = draw_seed(seeded(seed))  # that of the paths
    made = {label: attack_batches(model, images, labels, c.attack, seed=noise) for label, c in every.items()}
    others = [label for label, contest in every.items() if contest.kind != "published"]
    hardest = min(others, key=lambda label: _accuracy(model, made[label], labels))
    conditions = {
        condition: ConditionFeatures(
            attack,
            attacked,
            snapshot(model, attacked, labels, layer=layer, condition=condition),
            margins(model, attacked, labels),
        )
        for condition, attack, attacked in (
            (CLEAN, "", images),
            (PUBLISHED_ATTACK, first, made[first]),
            (STRONGEST, hardest, made[hardest]),
        )
    }
    ways = {
        condition: trace_strengths(
            model,
            images,
            labels,
            partial(_at, name=conditions[condition].attack, steps=steps),
            epsilons,
            layer=layer,
            condition=f"{condition} over epsilon",
            norm=threat.norm,
            generator=seeded(seed),
        )
        for condition in (PUBLISHED_ATTACK, STRONGEST)
    }
    along = {condition: curves(reference, way, model) for condition, way in ways.items()}
    return Studied(name, model, reference, ground, conditions, ways, along)


def study_pair(
    model: Classifier,
    training_set: ImageSet,
    test_set: ImageSet,
    threat: Threat,
    epsilons: Sequence[float],
    *,
    pool: ImageSet | None = None,
    beside: Classifier | None = None,
    say: _Say = lambda message: None,
    **settings: Any,
) -> Pair:
    """Study a network with a softmax and with a WNLL head; arguments are those of `study`.

    Args:
        model: With a WNLL head, or one is put on it.
        training_set: Clean images that the map is fitted on.
        test_set: Images that are attacked.
        threat: Threat at which the conditions are compared.
        epsilons: Strengths of the paths.
        pool: What the template was drawn from, or is: the `source` of `both_heads`; None is `training_set`.
        beside: Another network whose softmax is shown; None takes the linear head of the same network.
        say: Called with a line of text when a network is done.
        **settings: `layer`, `steps` and `seed`, as in `study`.

    Raises:
        ValueError: If the pool does not fit the template.
    """
    source = training_set if pool is None else pool
    softmax, interpolating = both_heads(model, source)
    softmax = softmax if beside is None else linear_beside(beside)
    given = (training_set, test_set, threat, epsilons)
    first = study(SOFTMAX, softmax, *given, **settings)
    say(f"attacked the network with a softmax at {len(epsilons)} strengths")
    second = study(WNLL, interpolating, *given, source=source, **settings)
    say(f"attacked the network with a WNLL head at {len(epsilons)} strengths")
    differ = {}
    for studied in (first, second):
        for name, condition in studied.conditions.items():
            decided = [
                snapshot(network, condition.images, test_set.labels, layer="head", condition=name)
                for network in (softmax, interpolating)
            ]
            differ[f"{studied.name}, {name}"] = decisions_differ(*decided)
    return Pair(first, second, source, test_set, threat, differ)


def _at(
    model: Classifier,
    images: Images,
    labels: Labels,
    /,
    *,
    name: str,
    steps: int,
    threat: Threat,
    generator: Generator | None,
) -> Images:
    """Run one of the attacks on the network at a threat."""
    attack = contests(model, threat, steps=steps)[name].attack
    return attack(model, images, labels, generator=generator)


def _accuracy(model: Classifier, images: Images, labels: Labels) -> float:
    """Share of images that are decided rightly."""
    return (margins(model, images, labels) > 0).double().mean().item()


def _indices(model: Classifier) -> Tensor:
    head: Any = model.head
    return head.template_indices
