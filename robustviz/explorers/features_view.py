"""The feature explorer: frames of features on maps become rows, words and controls."""

from collections.abc import Sequence
from functools import partial

import torch

from robustviz.data import ImageSet, load
from robustviz.explorers.control import Control, in_levels, strength_control, strength_presets
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.features import MAPS, feature_frames
from robustviz.explorers.features_chart import FEATURE_PICTURES, draw_features, name_places
from robustviz.explorers.frames import BUDGET, Frames
from robustviz.explorers.networks import single, usual_images, usual_set
from robustviz.explorers.pictures import Album, rounded
from robustviz.models import Classifier


def features_explorer(
    network: Classifier | None = None,
    training: ImageSet | None = None,
    images: ImageSet | None = None,
    *,
    maps: Sequence[str] = MAPS,
    strengths: Sequence[float] | None = None,
    budget: int = BUDGET,
) -> Explorer:
    """Measure where an attack carries images in feature space and return the explorer that shows it.

    Args:
        network: None takes the shipped standard network.
        training: Clean images that the maps are fitted on; None takes 1,000 of its training images.
        images: Attacked and followed; None takes 100 test images of digits, or 40 of signs.
        maps: "PCA", "UMAP" or both.
        strengths: Radii in L-infinity, growing from 0; None goes to twice the usual radius of the data set.
        budget: Most frames: maps x strengths x images.

    Raises:
        TypeError: If the network is something else, such as several networks.
        ValueError: If a map is unknown, images are given without a network, or the grid exceeds its budget.
    """
    if network is not None and (training is None or images is None):
        raise ValueError("training and images must be given with a network, because they must be what it knows")
    network, data = single(network), usual_set()
    training = load(data, "train").subset(1000) if training is None else training
    images = usual_images(None, data) if images is None else images
    return show_features(feature_frames(network, training, images, maps=maps, strengths=strengths, budget=budget))


def show_features(frames: Frames) -> Explorer:
    """Make the feature explorer of frames that were measured, or loaded."""
    strengths, unit = in_levels(frames.grid["strength"], "linf")
    frames = Frames(frames.kind, {**frames.grid, "strength": strengths}, frames.arrays, frames.about)
    classes, maps = frames.about["classes"], frames.grid["map"]
    truths = [classes[label] for label in frames.arrays["labels"].tolist()]
    words = tuple(f"{image}, class {truth}" for image, truth in enumerate(truths))
    controls = (
        Control("map", "Map", maps, maps[0]),
        strength_control(strengths, unit),
        Control("image", "Image", frames.grid["image"], 0, words, field="i"),
    )
    album, rows = _album(frames), _rows(frames)
    return Explorer(
        title=f"Features of {frames.about['data']}",
        lead="Where does an attack carry images? Drag the strength; click a mark, or choose an image.",
        frames=frames,
        controls=controls,
        presets=strength_presets(strengths) | {str(name): {"map": name} for name in maps[1:]},
        captions=_captions(frames, rows, unit),
        tables={"rows": rows, "points": _points(frames), "strips": _strips(frames, album), **_grounds(frames)},
        draw=partial(draw_features, frames, unit),
        album=album,
        signals={"stage": controls[1].place, "spot": f"{controls[1].place} * {len(truths)} + image"},
        shown=partial(_shown, frames, album),
    )


def _album(frames: Frames) -> Album:
    """Test images come first, then the training images that are neighbors."""
    clean = torch.cat([frames.arrays["pictures"], frames.arrays["training_pictures"]])
    changes = frames.arrays["changes"].transpose(0, 1)
    return Album(clean, changes.contiguous(), torch.arange(len(changes)))


def _strips(frames: Frames, album: Album) -> list[Row]:
    numbers = [(i, album.attacked(i), album.magnified(i)) for i in range(len(frames.grid["image"]))]
    return [
        {"i": i, "what": what, "z": z}
        for i, three in enumerate(numbers)
        for what, z in zip(FEATURE_PICTURES, three, strict=True)
    ]


def _shown(frames: Frames, album: Album, frame: int) -> tuple[list[int], int]:
    """Numbers of the pictures of one frame, and the place of its strength; tooltips need none."""
    spot = frame % (len(frames.grid["strength"]) * len(frames.grid["image"]))
    stage, image = divmod(spot, len(frames.grid["image"]))
    near = [len(frames.arrays["pictures"]) + n for n in frames.arrays["neighbors"][stage, image].tolist()]
    return [image, album.attacked(image), album.magnified(image), *sorted(set(near))], stage


def _rows(frames: Frames) -> list[Row]:
    """Return a row for every strength and image: what stands beside the map."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    offset, near = len(labels), frames.arrays["neighbors"]
    known = [classes[label] for label in frames.arrays["training_labels"].tolist()]
    largest = frames.arrays["changes"].abs().flatten(2).amax(2)
    rows = []
    for s, strength in enumerate(frames.grid["strength"]):
        for i, label in enumerate(labels):
            before, after = (int(frames.arrays["decisions"][stage, i]) for stage in (0, s))
            row: Row = {"g": s * len(labels) + i, "i": i, "x": strength}
            for what, decision in (("clean", before), ("attacked", after)):
                row[what] = f"{'✓' if decision == label else '✗'} {classes[decision]}"
            row["change"] = f"× {127 / int(largest[s, i]):.3g}" if largest[s, i] else "none"
            row["margin"] = rounded(frames.arrays["margins"][s, i].item())
            row["distance"] = rounded(frames.arrays["distances"][s, i].item())
            row["z"] = [offset + n for n in near[s, i].tolist()]
            row["near"] = [known[n] for n in near[s, i].tolist()]
            rows.append(row)
    return rows


def _points(frames: Frames) -> list[Row]:
    """Return a row for every map, strength and image: where its mark lies."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    rows = []
    for m, name in enumerate(frames.grid["map"]):
        for s in range(len(frames.grid["strength"])):
            for i, label in enumerate(labels):
                x, y = rounded(frames.arrays["places"][m, s, i], 4)
                decision = int(frames.arrays["decisions"][s, i])
                right = "right" if decision == label else "wrong"
                row: Row = {
                    "m": name,
                    "s": s,
                    "i": i,
                    "x": x,
                    "y": y,
                    "c": classes[label],
                    "d": classes[decision],
                    "r": right,
                }
                row["mar"] = rounded(frames.arrays["margins"][s, i].item())
                row["dis"] = rounded(frames.arrays["distances"][s, i].item())
                rows.append(row)
    return rows


def _grounds(frames: Frames) -> dict[str, list[Row]]:
    """Return what stands still on the maps: training images, names of classes, regions of decisions."""
    classes, labels = frames.about["classes"], frames.arrays["ground_labels"]
    ground: list[Row] = []
    names: list[Row] = []
    regions: list[Row] = []
    for m, name in enumerate(frames.grid["map"]):
        places = frames.arrays["ground"][m]
        for (x, y), label in zip(rounded(places, 4), labels.tolist(), strict=True):
            ground.append({"m": name, "x": x, "y": y, "c": classes[label]})
        for word, (x, y) in name_places(frames, m).items():
            names.append({"m": name, "x": rounded(x, 4), "y": rounded(y, 4), "c": word})
        left, low, right, high = frames.arrays["extent"][m].tolist()
        decided = frames.arrays["regions"][m]
        wide, tall = (right - left) / (decided.shape[1] - 1), (high - low) / (decided.shape[0] - 1)
        for r, line in enumerate(decided.tolist()):
            row: Row = {"m": name, "y": rounded(low + (r - 0.5) * tall, 4), "y2": rounded(low + (r + 0.5) * tall, 4)}
            regions += [row | run for run in _runs(line, classes, left, wide)]
    return {"ground": ground, "names": names, "regions": regions}


def _runs(line: Sequence[int], classes: Sequence[str], left: float, wide: float) -> list[Row]:
    """Join neighboring points of one line that are decided alike into one rectangle."""
    runs: list[Row] = []
    start = 0
    for place in range(1, len(line) + 1):
        if place == len(line) or line[place] != line[start]:
            x, x2 = (rounded(left + (end - 0.5) * wide, 4) for end in (start, place))
            runs.append({"x": x, "x2": x2, "c": classes[line[start]]})
            start = place
    return runs


def _captions(frames: Frames, rows: list[Row], unit: str) -> list[str]:
    labels = frames.arrays["labels"]
    wrong = (frames.arrays["decisions"] != labels).sum(1).tolist()
    captions = []
    for k in range(len(frames)):
        state = frames.state(k)
        row = rows[k % len(rows)]
        truth = frames.about["classes"][int(labels[row["i"]])]
        captions.append(
            f"Image {row['i']}, class {truth}, PGD-10, strength {state['strength']}{unit}: clean {row['clean']}, "
            f"attacked {row['attacked']}, margin {row['margin']:.2f}, {row['distance']:.2g} times as far from the data "
            f"as training images; nearest {', '.join(row['near'])}. {wrong[row['g'] // len(labels)]} of {len(labels)} "
            f"images are decided wrongly. Map: {state['map']}."
        )
    return captions
