"""A network whose last layer is WNLL, and the pieces that its training needs.

    body -> buffer block (Linear + ReLU, part of `body`) -> { linear head | WNLL head }

Training alternates: everything through the linear head (A), then the buffer alone through WNLL (B:
`only_buffer_trains` with `wnll_objective`). B moves the features of the head's own template, so `refresh_template`
follows every epoch, before anything is measured. `training.stages` puts all of it together.

Source: Wang, Lin, Yin, Zhu, Bertozzi & Osher, "Adversarial defense via data dependent activation function and total
variation minimization", arXiv 1809.08516; Wang et al., "Deep neural nets with interpolating function as output
activation", arXiv 1802.00168.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from robustviz.data import ImageSet
from robustviz.defenses.wnll.graph import Weights, affinity
from robustviz.defenses.wnll.head import Gradient, WNLLHead, expected_size
from robustviz.defenses.wnll.interpolation import interpolate
from robustviz.models import Classifier
from robustviz.tensors import evaluating, seeded
from robustviz.types import Images, Labels, Objective, PerImage

__all__ = [
    "WNLLHead",
    "Weights",
    "affinity",
    "balanced",
    "buffered",
    "interpolate",
    "only_buffer_trains",
    "refresh_template",
    "wnll_classifier",
    "wnll_objective",
]


TEMPLATES, TEMPLATE_SIZE = 3, 5000
"""Templates of a head, where there are images enough, and points of each. On CIFAR-10 a single template of 1,000 points
costs accuracy against the linear head, several of 5,000 do not."""


def template_sizes(images: int) -> tuple[int, int]:
    """Return points of one template, and the number of templates, for a set of labelled images.

    At most 3 templates of 5,000 points; fewer images than for one of them become one template together.
    """
    return min(TEMPLATE_SIZE, images), max(1, min(TEMPLATES, images // TEMPLATE_SIZE))


def balanced(labels: Labels, size: int, classes: int, generator: Generator | None = None) -> Int[Tensor, "size"]:
    """Draw the indices of a class-balanced sample: every class equally often, as far as there are enough images.

    Args:
        labels: Classes of the images to draw from.
        size: Number of images.
        classes: Number of classes.
        generator: Source of the draw; None is a fresh one seeded 0.

    Returns:
        Indices in rounds: one image of each class, then the next of each, so that every part of them is balanced too.

    Raises:
        ValueError: If size is below the number of classes or above the number of labels.
    """
    if not classes <= size <= len(labels):
        raise ValueError(
            f"size must be from {classes}, the number of classes, to {len(labels)}, the number of images, got {size}; "
            f"random points hold all classes after {expected_size(classes):.1f} on average"
        )
    generator = seeded(0) if generator is None else generator
    order = torch.randperm(len(labels), generator=generator, device=generator.device).cpu()
    shuffled = labels.cpu()[order]
    # The round of an image is its place among those of its class; rounds are taken one after the other.
    by_class, counts = shuffled.argsort(stable=True), shuffled.bincount(minlength=classes)
    first = counts.cumsum(0) - counts
    rounds = torch.empty_like(shuffled)
    rounds[by_class] = torch.arange(len(shuffled)) - first[shuffled[by_class]]
    return order[torch.argsort(rounds * classes + shuffled)[:size]]


def wnll_classifier(
    classifier: Classifier,
    image_set: ImageSet,
    *,
    size: int | None = None,
    templates: int | None = None,
    neighbors: int = 15,
    scale_neighbor: int = 8,
    joint: bool = True,
    gradient: Gradient = "exact",
    generator: Generator | None = None,
) -> Classifier:
    """Put a WNLL head on a trained network: a class-balanced template is drawn and its features are computed.

    Args:
        classifier: Network with a linear head, which stays beside the new one; every other module is shared.
        image_set: Labelled images to draw from, usually those of the training.
        size: Points of one template; None is up to 5,000.
        templates: Number of disjoint templates, whose answers are averaged; None is 1 if a size is given, else up to 3
            (see `template_sizes`).
        neighbors: K, see `WNLLHead`.
        scale_neighbor: M, see `WNLLHead`.
        joint: One graph for a whole batch, or one for each image; see `WNLLHead`.
        gradient: What the head returns, and its gradient; see `WNLLHead`.
        generator: Source of the draw; None is a fresh one seeded 0.

    Returns:
        A new classifier.

    Raises:
        ValueError: If a template would be too small to hold every class, or larger than the image set.
    """
    classes = len(image_set.classes)
    if templates is None:
        templates = template_sizes(len(image_set))[1] if size is None else 1
    size = min(TEMPLATE_SIZE, len(image_set) // max(1, templates)) if size is None else size
    if templates < 1 or size < classes:
        raise ValueError(
            f"size must be at least {classes}, one point for each class, and templates at least 1, got size={size} and "
            f"templates={templates}; random points hold all classes after {expected_size(classes):.1f} on average"
        )
    chosen = balanced(image_set.labels, size * templates, classes, generator)
    template = features_of(classifier, image_set[chosen].images)
    head = WNLLHead(
        template,
        image_set.labels[chosen].to(template.device),
        classes,
        linear=classifier.head.linear if isinstance(classifier.head, WNLLHead) else classifier.head,
        template_indices=chosen.to(template.device),
        neighbors=neighbors,
        scale_neighbor=scale_neighbor,
        joint=joint,
        gradient=gradient,
        templates=templates,
    )
    head.train(classifier.training)
    return classifier.replace(head=head)


def refresh_template(classifier: Classifier, image_set: ImageSet) -> None:
    """Compute the template's features again, after training, from the image set that it was drawn from."""
    head: Any = classifier.head
    chosen = head.template_indices.to(image_set.labels.device)
    head.refresh(features_of(classifier, image_set[chosen].images), head.template_labels)


@torch.no_grad()
def features_of(classifier: Classifier, images: Images, *, batch_size: int = 256) -> Float[Tensor, "n d"]:
    """Return features in evaluation mode, without gradient, on the classifier's device."""
    with evaluating(classifier):
        return torch.cat(
            [classifier.features(_like_weights(part, classifier)) for part in torch.split(images, batch_size)]
        )


def buffered(classifier: Classifier, width: int = 64, *, generator: Generator | None = None) -> Classifier:
    """Put the buffer block, Linear + ReLU, at the end of the body, and a new linear head behind it; both untrained.

    Args:
        classifier: With a linear head; its other modules are shared.
        width: Features that the buffer makes.
        generator: Source of the first weights; None is a fresh one seeded 0.

    Raises:
        ValueError: If the head is not linear, or width is below 1.
    """
    head: Any = classifier.head
    if not isinstance(getattr(head, "in_features", None), int) or width < 1:
        raise ValueError(f"head must be linear and width >= 1, got {type(head).__name__} and width={width}")
    generator = seeded(0) if generator is None else generator
    layers, like = [], next(head.parameters())
    for inputs, outputs in ((head.in_features, width), (width, head.out_features)):
        layer = nn.Linear(inputs, outputs, device="meta", dtype=like.dtype).to_empty(device=like.device)
        with torch.no_grad():
            start = torch.randn(outputs, inputs, generator=generator, device=generator.device)
            layer.weight.copy_(start * (2 / inputs) ** 0.5)
            layer.bias.zero_()
        layers.append(layer)
    buffer = nn.Sequential(layers[0], nn.ReLU())
    body = nn.Sequential(OrderedDict(network=classifier.body, buffer=buffer))
    return classifier.replace(body=body, head=layers[1])


@contextmanager
def only_buffer_trains(classifier: Classifier) -> Iterator[None]:
    """Freeze everything but the buffer block inside the block of code: stage B of the training.

    Raises:
        ValueError: If the body has no buffer block.
    """
    buffer = getattr(classifier.body, "buffer", None)
    if not isinstance(buffer, nn.Module):
        raise ValueError("body must end in a buffer block; `buffered` puts one there")
    kept = set(buffer.parameters())
    frozen = [weight for weight in classifier.parameters() if weight.requires_grad and weight not in kept]
    try:
        for weight in frozen:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


def wnll_objective(template_set: ImageSet, size: int) -> Objective:
    """Make the objective of stage B: -log u of the label, interpolated from a template drawn at random for each batch.

    The features of batch and template are made with gradient and form one graph with the settings of the model's WNLL
    head; with a surrogate gradient there, cross-entropy has the linear head's gradient, as published.

    Args:
        template_set: Labelled images to draw from.
        size: Points of the template.

    Source: Wang et al., arXiv 1802.00168, algorithm 1.
    """
    return partial(interpolated_cross_entropy, template_set=template_set, size=size)


def interpolated_cross_entropy(
    model: Classifier,
    images: Images,
    labels: Labels,
    /,
    *,
    template_set: ImageSet,
    size: int,
    generator: Generator | None = None,
) -> PerImage:
    """Evaluate the objective that `wnll_objective` makes, in nats."""
    head = model.head
    if not isinstance(head, WNLLHead):
        raise ValueError(f"head must be a WNLLHead, got {type(head).__name__}; `wnll_classifier` puts one there")
    chosen = balanced(template_set.labels, size, head.classes, generator)
    template_labels = template_set.labels[chosen].to(labels.device)
    template = model.features(template_set[chosen].images.to(images))
    features = model.features(images)
    points = torch.cat([features, template])
    weights = affinity(points, neighbors=head.neighbors, scale_neighbor=head.scale_neighbor)
    scores = head.scores(interpolate(weights, template_labels, head.classes), features)
    return F.cross_entropy(scores, labels, reduction="none")


def _like_weights(images: Images, classifier: nn.Module) -> Images:
    """Move images to the device and dtype of the weights, if there are any."""
    weight = next(classifier.parameters(), None)
    return images if weight is None else images.to(weight)
