"""The geometry of an attack around a single image: a slice of pixel space, and the training images that vote."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustviz.attacks import alone_head
from robustviz.defenses.tvm import TVM
from robustviz.evaluation import CLEAN
from robustviz.geometry import Ballot, DecisionPlane, ballot, image_plane, margins
from robustviz.pages.report import Picture, Section
from robustviz.plots import plot_plane, plot_votes
from robustviz.studies.geometry import PUBLISHED_ATTACK, STRONGEST, Pair, Studied

OTHER = "image of another class"


def plane_section(pair: Pair) -> Section:
    """Show what both networks decide between a clean image and its two attacked versions."""
    index, pictures = chosen_image(pair), []
    paragraphs = [
        "Not a map but a slice of pixel space: every point is a picture, clipped to [0, 1], and the color is what the "
        "network says about it. How near the border runs to the clean image is what the attack exploits."
    ]
    for studied in (pair.softmax, pair.wnll):
        plane = _plane(studied, pair.test_set.images[_other_class(pair, index)], index)
        if plane is None:
            paragraphs.append(f"There is none for the {studied.name} network: no attack moves the chosen image.")
            continue
        sentence = (
            f"Decisions of the {studied.name} network in the plane through three images ({', '.join(plane.names)}): "
            f"{len(torch.unique(plane.decisions))} classes meet there."
        )
        figure = plot_plane(plane, pair.test_set.classes).figure
        pictures.append(Picture.of(f"plane-{studied.name.lower()}", figure, sentence, sentence))
    return Section("A plane through three images", paragraphs, pictures)


def _plane(studied: Studied, other: Float[Tensor, "c h w"], index: int) -> DecisionPlane | None:
    """The plane through an image and its attacked versions; another image stands in for one that is no third point."""
    points = {name: condition.images[index] for name, condition in studied.conditions.items()} | {OTHER: other}
    for names in ((CLEAN, PUBLISHED_ATTACK, STRONGEST), (CLEAN, PUBLISHED_ATTACK, OTHER), (CLEAN, STRONGEST, OTHER)):
        images = torch.stack([points[name] for name in names])
        directions = (images[1:] - images[0]).flatten(1).double()
        if torch.linalg.matrix_rank(directions, atol=1e-5, rtol=0) == 2:
            return image_plane(studied.model, images, names)
    return None


def votes_section(pair: Pair) -> Section:
    """Show which template images decide about one image, clean and attacked."""
    index, studied = chosen_image(pair), pair.wnll
    label = int(pair.test_set.labels[index])
    ballots = [
        ballot(studied.model, pair.source, condition.images[index], label, condition=name)
        for name, condition in studied.conditions.items()
    ]
    classes = pair.test_set.classes
    paragraphs = [
        "A WNLL head decides by the training images of its template that lie nearest: each one votes for its own class "
        "with a weight. The attack need not leave the data; it is enough that other images become the neighbors."
    ]
    if isinstance(studied.model.purify, TVM):
        paragraphs.append("The template holds purified versions of these images; they are shown as they were before.")
    sentence = _votes_sentence(ballots, classes)
    return Section("Who votes", paragraphs, [Picture.of("votes", plot_votes(ballots, classes), sentence, sentence)])


def _votes_sentence(ballots: list[Ballot], classes: tuple[str, ...]) -> str:
    parts = [
        f"{b.condition}: {b.shares[b.label]:.0%} for {classes[b.label]}, decision {classes[b.decision]}"
        for b in ballots
    ]
    return f"The heaviest votes about one test image that is classified on its own. {'; '.join(parts)}."


def chosen_image(pair: Pair) -> int:
    """Choose a test image that WNLL, asked about it alone, decides rightly when clean and wrongly under attack.

    Of these, preferably one that withstands the published attack and not the adaptive one.
    """
    asked, labels = alone_head(pair.wnll.model), pair.test_set.labels
    conditions = pair.wnll.conditions
    right = {name: margins(asked, condition.images, labels) > 0 for name, condition in conditions.items()}
    rank = 4 * right[CLEAN].long() + 2 * (~right[STRONGEST]).long() + right[PUBLISHED_ATTACK].long()
    return int(rank.argmax())


def _other_class(pair: Pair, index: int) -> int:
    labels = pair.test_set.labels
    return int((labels != labels[index]).long().argmax())
