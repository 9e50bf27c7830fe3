"""The attack explorer: frames of attacked images become rows, words and controls."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustviz.data import ImageSet
from robustviz.evaluation import wilson
from robustviz.explorers.attack import attack_frames
from robustviz.explorers.attack_chart import PICTURES, draw_attack
from robustviz.explorers.control import Control, in_levels, strength_control, strength_presets
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.frames import BUDGET, Frames
from robustviz.explorers.networks import compared, usual_images
from robustviz.explorers.pictures import Album, rounded
from robustviz.types import Images, Norm

_BARS = 10
"""Classes with bars: all of them, or those that the networks find likeliest."""


def attack_explorer(
    networks: Mapping[str, nn.Module] | None = None,
    images: ImageSet | None = None,
    *,
    attacks: Mapping[str, Callable[..., Images]] | None = None,
    strengths: Sequence[float] | None = None,
    norm: Norm = "linf",
    shown: int = 30,
    budget: int = BUDGET,
) -> Explorer:
    """Measure images under attacks of growing strength and return the explorer that shows them.

    Args:
        networks: By the names on the screen; None takes the shipped standard and adversarially trained ones.
        images: None takes test images that suit the shipped networks, 100 of digits or 40 of signs.
        attacks: By the names on the screen; None takes PGD, FGSM and random noise.
        strengths: Radii in pixel units, growing from 0; None goes to twice the usual radius of the data set.
        norm: Norm of the radii.
        shown: How many images have pictures; the accuracies are those of all images.
        budget: Most frames: images shown x attacks x strengths x networks.

    Raises:
        TypeError: If the networks are no dict of networks.
        ValueError: If there is no network, attack or strength, or the grid exceeds its budget.
    """
    networks = compared(networks)
    images = usual_images() if images is None else images
    settings: dict[str, Any] = {"attacks": attacks, "strengths": strengths, "norm": norm}
    return show_attack(attack_frames(networks, images, **settings, shown=shown, budget=budget))


def show_attack(frames: Frames) -> Explorer:
    """Make the attack explorer of frames that were measured, or loaded."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    attacks, radii = frames.grid["attack"], frames.grid["strength"]
    strengths, unit = in_levels(radii, frames.about["norm"])
    frames = Frames(frames.kind, {**frames.grid, "strength": strengths}, frames.arrays, frames.about)
    truths = [classes[label] for label in labels]
    words = [f"{image}, class {truth}" for image, truth in enumerate(truths)]
    controls = (
        Control("attack", "Attack", attacks, attacks[0]),
        strength_control(strengths, unit),
        Control("image", "Image", frames.grid["image"], 0, tuple(words)),
    )
    presets = strength_presets(strengths) | {str(attack): {"attack": attack} for attack in attacks[1:]}
    album = _album(frames)
    rows = _rows(frames, album)
    return Explorer(
        title=f"Attacks on {frames.about['data']}",
        lead="Drag the strength: what does the attack change, and what does each network then see?",
        frames=frames,
        controls=controls,
        presets=presets,
        captions=_captions(frames, rows, unit),
        tables={"rows": rows, "strips": _strips(frames, album), "curves": _curves(frames)},
        draw=partial(draw_attack, frames, unit),
        album=album,
        signals={
            "truth": f"{json.dumps(truths)}[image]",
            "stage": controls[1].place,
            "group": f"{controls[0].place} * {len(truths)} + image",
        },
        shown=partial(_shown, frames, album),
    )


def _album(frames: Frames) -> Album:
    changes = frames.arrays["changes"].transpose(2, 3).flatten(0, 2)
    clean = frames.arrays["pictures"]
    return Album(clean, changes.contiguous(), torch.arange(len(clean)).repeat(len(changes) // len(clean)))


def _strips(frames: Frames, album: Album) -> list[Row]:
    """Return a row for every picture of every network, attack and image; it serves all strengths."""
    rows, size = [], len(album.clean)
    each = len(frames.grid["attack"]) * size
    for strip in range(len(album.changes)):
        name, group = frames.about["networks"][strip // each], strip % each
        numbers = (strip % size, album.attacked(strip), album.magnified(strip))
        rows += [{"g": group, "n": name, "what": what, "z": z} for what, z in zip(PICTURES, numbers, strict=True)]
    return rows


def _shown(frames: Frames, album: Album, frame: int) -> tuple[list[int], int]:
    """Numbers of the pictures of one frame, and the place of its strength."""
    attack, strength, image = map(int, np.unravel_index(frame, [len(values) for values in frames.grid.values()]))
    size = len(album.clean)
    strips = range(attack * size + image, len(album.changes), len(frames.grid["attack"]) * size)
    return [image, *(n for strip in strips for n in (album.attacked(strip), album.magnified(strip)))], strength


def _rows(frames: Frames, album: Album) -> list[Row]:
    """Return a row for every network and frame, networks first."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    clean, probabilities = frames.arrays["clean_probabilities"], frames.arrays["probabilities"].flatten(1, 3)
    losses, largest = (
        frames.arrays["losses"].flatten(1, 3),
        frames.arrays["changes"].abs().flatten(4).amax(4).flatten(1),
    )
    bars = torch.maximum(probabilities.amax(0), clean.amax(0).repeat(len(frames) // len(labels), 1))
    bars = bars.topk(min(_BARS, len(classes))).indices.sort().values
    rows = []
    for n, name in enumerate(frames.about["networks"]):
        before = [_verdict(one, label, classes) for one, label in zip(clean[n], labels, strict=True)]
        for k in range(len(frames)):
            i, most = k % len(labels), int(largest[n, k])
            row: Row = {"k": k, "n": name, "clean": before[i]}
            row["attacked"] = _verdict(probabilities[n, k], labels[i], classes)
            row["change"] = f"× {127 / most:.3g}" if most else "none"
            row["d"] = [classes[place] for place in bars[k].tolist()]
            row["q"], row["p"] = rounded(clean[n, i, bars[k]]), rounded(probabilities[n, k, bars[k]])
            row["t"] = [value for value in rounded(losses[n, k]) if value is not None]
            rows.append(row)
    return rows


def _captions(frames: Frames, rows: list[Row], unit: str) -> list[str]:
    """Say what each frame shows."""
    classes, labels = frames.about["classes"], frames.arrays["labels"].tolist()
    captions = []
    for k in range(len(frames)):
        state = frames.state(k)
        told = "; ".join(f"{row['n']} {row['clean']}, attacked {row['attacked']}" for row in rows[k :: len(frames)])
        truth = classes[labels[k % len(labels)]]
        captions.append(
            f"Image {state['image']}, class {truth}, {state['attack']}, strength {state['strength']}{unit}: {told}."
        )
    return captions


def _verdict(probabilities: Tensor, label: int, classes: Sequence[str]) -> str:
    decision = int(probabilities.argmax())
    return f"{'✓' if decision == label else '✗'} {classes[decision]} ({probabilities[decision]:.0%})"


def _curves(frames: Frames) -> list[Row]:
    """Return accuracy in percent over strength, with Wilson's 95 % interval."""
    rows: list[Row] = []
    for n, name in enumerate(frames.about["networks"]):
        for a, attack in enumerate(frames.grid["attack"]):
            for s, strength in enumerate(frames.grid["strength"]):
                share = frames.arrays["accuracies"][n, a, s].item()
                low, high = wilson(share, frames.about["images"])
                y = {"y": rounded(100 * share), "low": rounded(100 * low), "high": rounded(100 * high)}
                rows.append({"a": attack, "n": name, "x": strength, **y})
    return rows
