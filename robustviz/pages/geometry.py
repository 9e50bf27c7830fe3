"""The geometry of an attack, written about: figures, numbers and what they say, for `features` and for the demo."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from robustviz import checkpoints
from robustviz.data import digits, stratified
from robustviz.evaluation import CLEAN
from robustviz.features import FeatureSnapshot
from robustviz.geometry import (
    Curves,
    Embedding,
    Separation,
    Trajectory,
    boundary_distance,
    faithfulness,
    map_regions,
    separation,
    separation_rows,
    template_source,
)
from robustviz.pages.closeup import votes_section
from robustviz.pages.report import Grid, Picture, Section
from robustviz.plots import MapView, plot_curves, plot_map, plot_maps, plot_trajectories
from robustviz.presets import usual_threat
from robustviz.studies.geometry import PUBLISHED_ATTACK, SOFTMAX, STRONGEST, WNLL, Pair, Studied, study_pair
from robustviz.tensors import seeded

_SHOWN, CLOUD = 12, 60
"""Images on a map with arrows or ways, of which more cannot be told apart, and on one without."""


def heads_section(pair: Pair, maps: Mapping[str, Embedding]) -> Section:
    """Show the figure of the paper: both networks, clean and attacked, on the PCA map of their features."""
    rows = [_views(studied, maps[studied.name], pair) for studied in (pair.softmax, pair.wnll)]
    faithful = {
        studied.name: faithfulness(studied.model.head, maps[studied.name], studied.conditions[CLEAN].snapshot)
        for studied in (pair.softmax, pair.wnll)
        if studied.reference.layer == "body"
    }
    names = {s.name: [s.conditions[c].attack for c in (PUBLISHED_ATTACK, STRONGEST)] for s in (pair.softmax, pair.wnll)}
    caption = (
        f"{min(_SHOWN, len(pair.test_set))} test images at epsilon = {pair.threat.epsilon:.3g}. Softmax: {' and '.join(names[SOFTMAX])}; WNLL: "
        f"{' and '.join(names[WNLL])}. Colors and small names are true classes; small dots are training images, for WNLL the template. "
        "The pale background is the decision at that place, lifted to the features of the training images around it."
    )
    if faithful:
        shares = " and ".join(f"{share:.0%} ({name})" for name, share in faithful.items())
        caption += f" A plane cannot show all boundaries: the background is the image's own decision for {shares}."
    return Section(
        "Where the attack carries an image",
        [
            "A network turns an image into features, and its head decides by where these lie. The maps are the first two "
            "principal components of the clean training features; everything else is projected on the same two axes "
            "(after Wang et al., arXiv 1809.08516).",
            "Each network is attacked in its own way: as published, and by the strongest of the attacks that answer its "
            f"head. {_heads_sentence(pair)}",
        ],
        [Picture.of("heads", plot_maps(rows, pair.test_set.classes), _heads_sentence(pair), caption)],
    )


def _heads_sentence(pair: Pair) -> str:
    parts = []
    for studied in (pair.softmax, pair.wnll):
        right = [_accuracy(studied.conditions[name].snapshot) for name in (CLEAN, PUBLISHED_ATTACK, STRONGEST)]
        parts.append(f"the {studied.name} is right on {right[0]:.1%}, {right[1]:.1%} and {right[2]:.1%}")
    return f"Clean, under the published and under the adaptive attack, {' and '.join(parts)} of the images."


def _views(studied: Studied, embedding: Embedding, pair: Pair) -> list[MapView]:
    """One map for each condition, with decisions below where the layer is what the head sees."""
    regions = map_regions(studied.model.head, embedding) if studied.reference.layer == "body" else None
    chosen = _some(pair, _SHOWN)
    few = {name: _part(condition.snapshot, chosen) for name, condition in studied.conditions.items()}
    held = _holding(embedding, few)
    views = []
    for name, condition in studied.conditions.items():
        shown = [few[CLEAN]] if name == CLEAN else [few[CLEAN], few[name]]
        title = f"{studied.name}, {name} ({_accuracy(condition.snapshot):.1%} right)"
        views.append(MapView(title, held, shown, regions, studied.ground))
    return views


def map_section(pair: Pair, embedding: Embedding) -> Section:
    """Show the UMAP map of the WNLL network with its attacked images, and warn of it."""
    studied, chosen = pair.wnll, _some(pair, CLOUD)
    few = {name: _part(studied.conditions[name].snapshot, chosen) for name in (CLEAN, STRONGEST)}
    view = MapView("", _holding(embedding, few), list(few.values()))
    attack = studied.conditions[STRONGEST].attack
    sentence = (
        f"UMAP of the {studied.name} network's features with {len(chosen)} test images, clean and under the adaptive attack "
        f"({attack}) at epsilon = {pair.threat.epsilon:.3g}."
    )
    return Section(
        "The same on a UMAP map",
        [
            "UMAP keeps who is a neighbor of whom and gives up distances: a point far from all training images still "
            "lands among them. So read the distance to the data below beside it. The map was fitted on clean training "
            "features alone; all other points were placed on it in one pass.",
        ],
        [Picture.of("map-umap", plot_map(view, pair.test_set.classes).figure, sentence, sentence)],
    )


def ways_section(pair: Pair, maps: Mapping[str, Embedding]) -> Section:
    """Show the way of single images and the numbers of all of them while the attack grows."""
    studied, chosen = pair.wnll, _some(pair, _SHOWN)
    way = studied.ways[STRONGEST].select(chosen)
    pictures = []
    for name, embedding in maps.items():
        figure = plot_trajectories(_holding(embedding, {name: way}), way, pair.test_set.classes).figure
        sentence = (
            f"The way of {len(chosen)} test images under the adaptive attack on {studied.name} "
            f"({studied.conditions[STRONGEST].attack}), epsilon from 0 to {way.stages[-1]:.3g}, on the {name} map."
        )
        pictures.append(Picture.of(f"ways-{name.lower()}", figure, sentence, sentence))
    return Section(
        "The way of an image while the attack grows",
        ["Each line follows one image; it is solid as long as the decision is right."],
        pictures,
    )


def numbers_section(pair: Pair, numbers: Mapping[str, Any]) -> Section:
    """Show the numbers beside the maps: against strength, and as a table at the threat."""
    curves = [relabelled for studied in (pair.softmax, pair.wnll) for relabelled in _named_curves(studied)]
    sentence = (
        f"Right decisions, distance to the data and margin against attack strength, {len(pair.test_set)} test images."
    )
    differ = [[name, f"{share:.1%}"] for name, share in pair.differ.items()]
    return Section(
        "Numbers that do not depend on a map",
        [
            "Distance to the data: to the 15th nearest training image in feature space, as a multiple of what is usual "
            "among training images. Same-class neighbors: share of the 15 nearest training images that are of the true class. Margin: "
            "probability of the true class minus that of the best other one. Between / within: scatter of the class means over "
            "scatter inside the classes. Silhouette: from -1 to 1, near 0 classes touch. Centroid shift: how far the attack carries the class "
            "means, in units of the classes' own spread. Distance and margin are medians, the shift and the neighbors means.",
        ],
        [Picture.of("curves", plot_curves(curves), sentence, f"{sentence} Bands hold the middle half of the images.")],
        [
            Grid(*separation_rows([Separation(**row) for row in numbers["conditions"]])),
            Grid(["images", "decided differently by the two networks"], differ),
        ],
    )


def _named_curves(studied: Studied) -> list[Curves]:
    """The curves of a network under its name, for a legend."""
    return [replace(c, condition=f"{studied.name}, {name}") for name, c in studied.curves.items()]


def numbers_of(pair: Pair, maps: Mapping[str, Embedding]) -> dict[str, Any]:
    """Collect every number, for a JSON file.

    Args:
        pair: Both networks.
        maps: PCA map of each network, by its name.
    """
    conditions, boundary, faithful = [], {}, {}
    for studied in (pair.softmax, pair.wnll):
        clean = studied.conditions[CLEAN].snapshot
        for name, condition in studied.conditions.items():
            found = separation(studied.reference, clean, condition.snapshot, condition.margin)
            conditions.append(asdict(found) | {"condition": f"{studied.name}, {name}"})
            head: Any = studied.model.head
            if studied is pair.softmax and clean.layer == "body":
                boundary[name] = boundary_distance(head, condition.snapshot).median().item()
        if clean.layer == "body":
            faithful[studied.name] = faithfulness(studied.model.head, maps[studied.name], clean)
    return {
        "conditions": conditions,
        "attacks": {
            studied.name: {name: condition.attack for name, condition in studied.conditions.items() if condition.attack}
            for studied in (pair.softmax, pair.wnll)
        },
        "decided differently": dict(pair.differ),
        "median distance to the nearest boundary of the linear head": boundary,
        "variance on the PCA map": {name: list(embedding.explained or ()) for name, embedding in maps.items()},
        "faithfulness of the decision regions": faithful,
    }


def geometry_section(seed: int) -> Section:
    """Write about the shipped WNLL network of the digits: heads, numbers and votes, with PCA maps."""
    threat, test_set = usual_threat("digits"), digits("test").subset(100)
    model, _record = checkpoints.load("digits-wnll")
    beside, _record = checkpoints.load("digits-standard")
    epsilons = [threat.epsilon * i / 3 for i in range(7)]
    training_set = digits("train")
    source = template_source("digits-wnll", training_set)
    pair = study_pair(model, training_set, test_set, threat, epsilons, pool=source, beside=beside, seed=seed)
    maps = {studied.name: studied.mapped("pca", seed) for studied in (pair.softmax, pair.wnll)}
    parts = [heads_section(pair, maps), numbers_section(pair, numbers_of(pair, maps)), votes_section(pair)]
    return Section(
        parts[0].title,
        [text for part in parts for text in part.paragraphs],
        [picture for part in parts for picture in part.pictures],
        parts[1].tables,
    )


def _some(pair: Pair, size: int) -> torch.Tensor:
    return stratified(pair.test_set.labels, min(size, len(pair.test_set)), seeded(0))


def _part(snapshot: FeatureSnapshot, rows: torch.Tensor) -> FeatureSnapshot:
    """Some images of a snapshot."""
    indexed = (getattr(snapshot, name)[rows] for name in ("values", "labels", "predictions", "indices"))
    return FeatureSnapshot(snapshot.layer, snapshot.condition, *indexed)


def _holding(embedding: Embedding, few: Mapping[str, FeatureSnapshot | Trajectory]) -> Embedding:
    """A map whose positions of these records are only those of the images that they hold."""
    kept = {part.condition: embedding.positions[part.condition][..., part.indices, :] for part in few.values()}
    return replace(embedding, positions={**embedding.positions, **kept})


def _accuracy(snapshot: FeatureSnapshot) -> float:
    return (snapshot.predictions == snapshot.labels).double().mean().item()
