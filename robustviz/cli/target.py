"""What a command does first that measures a trained network: open it, with test images, or train it anew."""

import shlex
import sys
from pathlib import Path

import torch

from robustviz import checkpoints as stored
from robustviz.cli.app import app, say
from robustviz.data import DOWNLOADS, TORCHVISION_SETS, ImageSet, load
from robustviz.models import Classifier
from robustviz.presets import usual_device, usual_threat
from robustviz.records import RunRecord
from robustviz.tensors import norms
from robustviz.types import Norm, Threat

RETRAINED = Path("runs/retrained")
"""Folder of networks that are trained anew."""


def opened(
    checkpoint: str,
    data: str | None,
    norm: Norm | None,
    epsilon: float | None,
    images: int,
    device: str,
    root: Path,
) -> tuple[Classifier, ImageSet, Threat]:
    """Load a trained network, the test images to measure it on and the threat its record names.

    Args:
        checkpoint: A run folder, a .safetensors file, or the name of a shipped network.
        data: As in `robustviz train`; None is what the network was trained on.
        norm: Of the threat; None is what the record says.
        epsilon: Of the threat; None is what the record says, or the usual one for another norm.
        images: How many test images, drawn evenly from the classes; all if there are fewer.
        device: As in `robustviz train`.
        root: Folder of downloaded data sets.

    Raises:
        ValueError: If the record is not from `robustviz train`, the images do not suit the network, or epsilon is
            out of range.
    """
    if images < 1:
        raise ValueError(f"--images must be >= 1, got {images}")
    classifier, record = stored.load(checkpoint)
    if missing := {"data", "threat", "classes"} - record.settings.keys():
        raise ValueError(f"{checkpoint} is not from `robustviz train`: its record lacks {', '.join(sorted(missing))}")
    data = data_name(record, data)
    try:
        known = Threat(record.settings["threat"]["norm"], record.settings["threat"]["epsilon"])
        names = tuple(record.settings["classes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record of {checkpoint} is damaged ({error!r}); train the network again") from error
    radius = known.epsilon if epsilon is None and norm in (None, known.norm) else epsilon
    threat = usual_threat(data, norm or known.norm, radius)
    test_set = load(data, "test", root=root)
    if test_set.classes != names:
        raise ValueError(f"--data {data} has the classes {test_set.classes}, but the network was trained on {names}")
    shape = list(test_set.images.shape[1:])
    if record.settings.get("image_shape", shape) != shape or record.settings["architecture"]["channels"] != shape[0]:
        known = record.settings.get("image_shape", [record.settings["architecture"]["channels"], "any", "any"])
        raise ValueError(f"--data {data} has images of shape {shape}, but the network was made for {known}")
    check_radius(threat, test_set)
    where = usual_device(device)
    return classifier.to(where), test_set.subset(min(images, len(test_set))).to(where), threat


def check_radius(threat: Threat, image_set: ImageSet) -> None:
    """Refuse a radius that reaches beyond every image: it is a mistake, such as gray levels.

    Raises:
        ValueError: If epsilon is larger than the distance from black to white.
    """
    farthest = norms(torch.ones_like(image_set.images[:1]), threat.norm).item()
    if threat.epsilon > farthest:
        raise ValueError(
            f"--epsilon must be from 0 to {farthest:.4g}, the {threat.norm} distance from black to white on the [0, 1] "
            f"pixel scale, got {threat.epsilon:.4g}; give gray levels as a fraction, such as 8/255"
        )


def data_name(record: RunRecord, data: str | None) -> str:
    """Return `--data`, or what a network was trained on; a folder that is not here goes by the name of its set."""
    if data is not None:
        return data
    trained = Path(str(record.settings["data"]))
    return trained.name if trained.name in TORCHVISION_SETS and not trained.is_dir() else str(record.settings["data"])


def called(checkpoint: str) -> str:
    """Name a checkpoint for a file: the run folder's name if it lies in one, else its own."""
    path = stored.find(checkpoint)
    return path.parent.name if path.stem == "model" else path.stem


def retrained(checkpoint: str, data: str | None, root: Path = DOWNLOADS) -> str:
    """Train a network anew by the command in its record, and before it the one that it began with.

    An interrupted training goes on; a network that is in `RETRAINED` already is not trained again.

    Args:
        checkpoint: A run folder, a .safetensors file, or the name of a shipped network.
        data: As in `robustviz train`; None is what the network was trained on.
        root: Folder of downloaded data sets.

    Returns:
        The run folder of the new network.

    Raises:
        ValueError: If the record names no command of `robustviz train`.
    """
    record = stored.load(checkpoint)[1]
    words = shlex.split(record.command or "")
    if words[:2] != ["robustviz", "train"] or "&&" in words:
        raise ValueError(f"--retrain: the record of {checkpoint} names no command of robustviz train")
    out = RETRAINED / called(checkpoint)
    if (out / "model.safetensors").exists():
        say(f"--retrain: {out} is there already; remove it to train it once more")
        return str(out)
    data = data_name(record, data)
    given = {"--data": data, "--out": str(out), "--root": str(root)}
    if "--start" in words:
        start = Path(words[words.index("--start") + 1])  # a run folder here, or the shipped network of its name
        given["--start"] = retrained(str(start) if start.exists() else start.name, data, root)
    kept = [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & {*given, "--force"}]
    kept += [word for pair in given.items() for word in pair]
    kept += ["--resume"] if any(out.glob("model.state*")) else []
    typed, sys.argv = sys.argv, kept  # the new record names what gives it again
    try:
        command, bound, _ = app.parse_args(kept[1:])
        command(*bound.args, **bound.kwargs)
    finally:
        sys.argv = typed
    return str(out)
