"""The WNLL explorer: frames of votes become rows, words and controls."""

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from robustviz import checkpoints
from robustviz.data import ImageSet, load
from robustviz.evaluation import wilson
from robustviz.explorers.control import Control, State, in_levels, strength_control, strength_presets
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.frames import BUDGET, Frames
from robustviz.explorers.networks import single, usual_images
from robustviz.explorers.pictures import Album, rounded
from robustviz.explorers.wnll import wnll_frames
from robustviz.explorers.wnll_chart import draw_wnll
from robustviz.geometry import template_source
from robustviz.models import Classifier

USUAL = "digits-pgd-wnll"
"""The shipped network that is shown unless another one is given."""


def wnll_explorer(
    network: Classifier | None = None,
    source: ImageSet | None = None,
    images: ImageSet | None = None,
    *,
    neighbors: Sequence[int] | None = None,
    strengths: Sequence[float] | None = None,
    shown: int = 20,
    budget: int = BUDGET,
) -> Explorer:
    """Measure who votes about images in a network with a WNLL head and return the explorer that shows it.

    Args:
        network: With a WNLL head; None takes the shipped one of digits.
        source: What its template was drawn from; must be given with a network.
        images: To ask about; None takes 100 test images of digits.
        neighbors: Values of K, growing; None takes 2, 5, 15, 30 and that of the head.
        strengths: Radii in L-infinity; None takes nine, up to twice the usual radius.
        shown: How many images have pictures and voters.
        budget: Most frames: attacks x neighbors x strengths x images shown.

    Raises:
        TypeError: If the network is something else, such as several networks.
        ValueError: If source or images are missing beside a network, or `wnll_frames` refuses a setting.
    """
    if network is None:
        network, source = checkpoints.load(USUAL)[0], template_source(USUAL, load("digits", "train"))
        images = usual_images(100, "digits") if images is None else images
    if source is None or images is None:
        raise ValueError("source and images must be given with a network, because they must be what it knows")
    settings = {"strengths": strengths, "shown": shown, "budget": budget}
    return show_wnll(wnll_frames(single(network), source, images, neighbors=neighbors, **settings))  # type: ignore[arg-type]


def show_wnll(frames: Frames) -> Explorer:
    """Make the WNLL explorer of frames that were measured, or loaded."""
    strengths, unit = in_levels(frames.grid["strength"], "linf")
    frames = Frames(frames.kind, {**frames.grid, "strength": strengths}, frames.arrays, frames.about)
    classes, attacks, graphs = frames.about["classes"], frames.grid["attack"], frames.grid["neighbors"]
    truths = [classes[label] for label in frames.arrays["labels"].tolist()]
    words = tuple(f"{image}, class {truth}" for image, truth in enumerate(truths))
    own = frames.about["own"] if frames.about["own"] in graphs else graphs[0]
    controls = (
        Control("attack", "Attack", attacks, attacks[0]),
        Control("neighbors", "Neighbors K", graphs, own),
        strength_control(strengths, unit),
        Control("image", "Image", frames.grid["image"], 0, words),
    )
    chosen: dict[str, State] = {str(name): {"attack": name} for name in attacks}
    rows = _rows(frames)
    album, count = _album(frames), len(truths)
    return Explorer(
        title=f"Votes on {frames.about['data']}",
        lead="Which training images decide about this one? Drag the strength, and choose what the attack follows.",
        frames=frames,
        controls=controls,
        presets=strength_presets(strengths) | chosen,
        captions=_captions(frames, rows, unit),
        tables={"rows": rows, "strips": _strips(frames, album), "curves": _curves(frames)},
        draw=partial(draw_wnll, frames, unit),
        album=album,
        signals={
            "truth": f"{json.dumps(truths)}[image]",
            "stage": controls[2].place,
            "before": f"frame - ({controls[2].place}) * {count}",
            "graph": controls[1].place,
            "strip": f"(({controls[0].place}) * {len(graphs)} + {controls[1].place}) * {count} + image",
        },
        shown=partial(_shown, frames, album),
    )


def _album(frames: Frames) -> Album:
    """Test images come first, then those that vote."""
    clean = torch.cat([frames.arrays["pictures"], frames.arrays["voter_pictures"]])
    changes = frames.arrays["changes"].transpose(2, 3).flatten(0, 2)
    size = len(frames.arrays["pictures"])
    return Album(clean, changes.contiguous(), torch.arange(size).repeat(len(changes) // size))


def _strips(frames: Frames, album: Album) -> list[Row]:
    size = len(frames.arrays["pictures"])
    return [{"g": g, "i": g % size, "z": album.attacked(g)} for g in range(len(album.changes))]


def _shown(frames: Frames, album: Album, frame: int) -> tuple[list[int], int]:
    """Numbers of the pictures of one frame, and the place of its strength."""
    attack, graph, stage, image = map(int, np.unravel_index(frame, [len(values) for values in frames.grid.values()]))
    size = len(frames.arrays["pictures"])
    strip = (attack * len(frames.grid["neighbors"]) + graph) * size + image
    near = set(frames.arrays["voters"][attack, graph, [0, stage], image].flatten().tolist())
    return [image, *(size + n for n in sorted(near)), album.attacked(strip)], stage


def _rows(frames: Frames) -> list[Row]:
    """Return a row for every frame: what is decided, by whom, and the share of every class."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    shares, weights = frames.arrays["shares"].flatten(0, 3), frames.arrays["weights"].flatten(0, 3)
    voters, size = frames.arrays["voters"].flatten(0, 3), len(labels)
    known = frames.arrays["voter_labels"]
    rows: list[Row] = []
    for k in range(len(frames)):
        label, decision = labels[k % size], int(shares[k].argmax())
        voting = [place for place, weight in enumerate(weights[k].tolist()) if weight > 0]
        of = known[voters[k]].tolist()
        attack, graph, stage, image = np.unravel_index(k, [len(values) for values in frames.grid.values()])
        row: Row = {"k": k, "i": int(image), "a": frames.grid["attack"][attack], "g": int(graph), "s": int(stage)}
        row["x"] = frames.grid["strength"][stage]
        row["said"] = f"{'✓' if decision == label else '✗'} {classes[decision]} ({shares[k, decision]:.0%})"
        row["p"], row["true"] = rounded(shares[k]), rounded(shares[k, label].item())
        row["z"] = [size + int(voters[k, place]) for place in voting]
        row["c"] = [f"{'✓' if of[place] == label else '✗'} {classes[of[place]]}" for place in voting]
        row["w"] = [f"{weights[k, place]:.0%}" for place in voting]
        rows.append(row)
    return rows


def _curves(frames: Frames) -> list[Row]:
    """Return accuracy in percent over strength for every attack and K, with Wilson's 95 % interval."""
    rows: list[Row] = []
    for a, attack in enumerate(frames.grid["attack"]):
        for g in range(len(frames.grid["neighbors"])):
            for s, strength in enumerate(frames.grid["strength"]):
                share = frames.arrays["accuracy"][a, g, s].item()
                low, high = (rounded(100 * end) for end in wilson(share, frames.about["images"]))
                row: Row = {"a": attack, "g": g, "s": s, "x": strength, "y": rounded(100 * share)}
                rows.append(row | {"low": low, "high": high})
    return rows


def _captions(frames: Frames, rows: list[Row], unit: str) -> list[str]:
    labels, size = frames.arrays["labels"].tolist(), len(frames.arrays["labels"])
    weights, known = frames.arrays["weights"].flatten(0, 3), frames.arrays["voter_labels"]
    voters, accuracy = frames.arrays["voters"].flatten(0, 3), frames.arrays["accuracy"].flatten()
    captions = []
    for k, row in enumerate(rows):
        state, label = frames.state(k), labels[k % size]
        against = float(weights[k][known[voters[k]] != label].sum())
        before = rows[k - row["s"] * size]
        captions.append(
            f"Image {state['image']}, class {frames.about['classes'][label]}, K = {state['neighbors']}, attack by "
            f"{state['attack']}, strength {state['strength']}{unit}: clean {before['said']}, attacked {row['said']}; "
            f"the {len(row['z'])} heaviest voters give {against:.0%} to other classes. {accuracy[k // size]:.0%} of "
            f"{frames.about['images']} images are right."
        )
    return captions
