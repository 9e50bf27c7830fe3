"""What a command measures: a trained network, test images and a threat; options that several commands share."""

import re
import shlex
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from cyclopts import CycloptsError, Parameter

from robustviz import checkpoints as stored
from robustviz.cli.app import Count, Radius, app, say
from robustviz.cli.defense import defenses
from robustviz.cli.own import is_own, own_model, permit
from robustviz.data import DOWNLOADS, TORCHVISION_SETS, ImageSet, Part, load
from robustviz.models import Classifier
from robustviz.presets import usual_device, usual_threat
from robustviz.records import RunRecord, describe
from robustviz.tensors import norms
from robustviz.types import Norm, Threat

RETRAINED = Path("runs/retrained")
"""Folder of networks that are trained again."""

OWN = ("weights", "head", "normalize", "output", "class_map")
"""Options for networks of the user's own."""


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """Options that say what is measured; a command that takes a `Target` has them all.

    Attributes:
        checkpoint: A name that `robustviz checkpoints` lists, a run folder, a .safetensors file; or a network of your
            own: my_networks.py:build, package.module:function, torchvision:resnet18?num_classes=6, or
            timm:NAME?num_classes=6. Arguments of the function follow a question mark.
        data: A name or folder that `robustviz train --data` takes, set.npz or labels.csv; default: what the network was
            trained on.
        resize: Length of the short side of the images in pixels; without --crop a square is cut out of the middle.
        crop: Side of the square that is cut out of the middle, at most --resize.
        pictures: Folder of the pictures that labels.csv names; default: the folder of that file.
        norm: linf or l2; default: what the record of the network says, or linf.
        epsilon: How far the attacker may go, such as 8/255; default: what the record of the network says, or what is
            usual for the data.
        images: How many test images, drawn evenly from the classes, or all if there are fewer; default: 1000 with
            evaluate, 500 with attack-suite, 200 with diagnose and features, 100 with certify.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        retrain: First train the network again, by the command in its record, into runs/retrained.
        defense: FILE.py:NAME, a record of your own that the network needs; give the option once for each.
        trust: Run the code of such a file, or of a network of your own, without asking. Read it first.
        weights: Weights of a network of your own: a .safetensors file, or a state dict that `torch.save` wrote.
            Without them they are random.
        head: Name of its head, such as fc; default: the last linear layer.
        normalize: imagenet, or MEAN/STD such as 0.5/0.25, if the network does not normalize by itself.
        output: Key or number of the logits, if the network returns a dictionary or tuple.
        class_map: NAME=OUTPUT, such as cat=281, which output means which class of the data, if it has more outputs or
            another order; give the option once for each class.
    """

    checkpoint: str
    _: KW_ONLY
    data: str | None = None
    resize: Count | None = None
    crop: Count | None = None
    pictures: Path | None = None
    norm: Norm | None = None
    epsilon: Radius = None
    images: Count | None = None
    device: str = "auto"
    root: Path = DOWNLOADS
    retrain: bool = False
    defense: tuple[str, ...] = ()
    trust: bool = False
    weights: Path | None = None
    head: str | None = None
    normalize: str | None = None
    output: str | None = None
    class_map: tuple[str, ...] = ()

    def opened(self, usual_images: int) -> "Opened":
        """Load the network, the test images to measure it on and the threat its record names.

        Args:
            usual_images: How many test images unless the user says how many.

        Raises:
            FileNotFoundError: If there is no such network or data set.
            ValueError: If the record is not from `robustviz train`, the images do not suit the network, or epsilon is
                out of range.
        """
        wanted = self.images or usual_images
        return self._own(wanted) if is_own(self.checkpoint) else self._trained(wanted)

    def load(self, data: str, part: Part, limit: int | None = None) -> ImageSet:
        """Load a part of the data in the size that the options say."""
        size: dict[str, Any] = {"resize": self.resize, "crop": self.crop, "pictures": self.pictures}
        return load(data, part, root=self.root, limit=limit, **size)

    def beside(self, name: str, data: str) -> "Target":
        """Return the target of another network on the same images."""
        nothing: dict[str, Any] = {"weights": None, "head": None, "normalize": None, "output": None, "class_map": ()}
        return replace(self, checkpoint=name, data=data, retrain=False, images=1, **nothing)

    def _own(self, wanted: int) -> "Opened":
        """Open a network of the user's own."""
        name = self.checkpoint
        if self.retrain:
            raise ValueError(f"--retrain: {name} is not from `robustviz train`, so no command is known that trains it")
        permit(name, self.trust)
        if self.data is None:
            raise ValueError(f"--data must be given for {name}, because no record says what it was trained on")
        test_set = self.load(self.data, "test", wanted)
        threat = usual_threat(self.data, self.norm or "linf", self.epsilon)
        check_radius(threat, test_set)
        device = usual_device(self.device)
        settings = {word: getattr(self, word) for word in OWN}
        model = own_model(name, test_set, **settings)
        record = RunRecord("own network", {"source": describe(model.source)}, {})
        return Opened(name, self.data, record, model.to(device), test_set.to(device), threat)

    def _trained(self, wanted: int) -> "Opened":
        """Open a network that `robustviz train` wrote."""
        if given := [f"--{word.replace('_', '-')}" for word in OWN if getattr(self, word)]:
            raise ValueError(f"{self.checkpoint} is a checkpoint, which needs no {', '.join(given)}; leave that out")
        name = retrained(self.checkpoint, self.data, self.root) if self.retrain else self.checkpoint
        classifier, record = stored.load(name)
        known, classes = _trained_with(name, record)
        data = data_name(record, self.data)
        radius = known.epsilon if self.epsilon is None and self.norm in (None, known.norm) else self.epsilon
        threat = usual_threat(data, self.norm or known.norm, radius)
        test_set = self.load(data, "test", wanted)
        if test_set.classes != classes:
            raise ValueError(
                f"--data {data} has the classes {test_set.classes}, but the network was trained on {classes}"
            )
        shape, made_for = list(test_set[:1].images.shape[1:]), shape_of(record)
        if made_for not in (shape, [shape[0], "any", "any"]):
            raise ValueError(f"--data {data} has images of shape {shape}, but the network was made for {made_for}")
        check_radius(threat, test_set)
        device = usual_device(self.device)
        return Opened(name, data, record, classifier.to(device), test_set.to(device), threat)


Command = TypeVar("Command", bound=Callable[..., Any])


def knows_defenses(command: Command) -> Command:
    """Decorate a command on a `Target`: while it runs, the defenses that `--defense` brings are known."""

    @wraps(command)
    def run(target: Target, *others: Any, **options: Any) -> Any:
        with defenses(target.defense, target.trust):
            return command(target, *others, **options)

    return run  # type: ignore[return-value]


@dataclass(frozen=True)
class Opened:
    """A target, loaded.

    Attributes:
        name: The checkpoint, or the run folder of the network that was trained again.
        data: Name of the data set, as `load` takes it.
        record: How the network was trained, or where it comes from.
        model: The network, on the device.
        images: The test images, on the device.
        threat: What the attacker may do.
    """

    name: str
    data: str
    record: RunRecord
    model: Classifier
    images: ImageSet
    threat: Threat

    def __str__(self) -> str:
        count, threat = len(self.images), self.threat
        return f"{self.name} on {count} test images of {self.images.name}, {threat.norm}, epsilon {threat.epsilon:.4g}"


def _trained_with(name: str, record: RunRecord) -> tuple[Threat, tuple[str, ...]]:
    """Return the threat and the classes that a record of `robustviz train` names.

    Raises:
        ValueError: If it does not name them.
    """
    if missing := {"data", "threat", "classes"} - record.settings.keys():
        raise ValueError(f"{name} is not from `robustviz train`: its record lacks {', '.join(sorted(missing))}")
    try:
        threat = Threat(record.settings["threat"]["norm"], record.settings["threat"]["epsilon"])
        return threat, tuple(record.settings["classes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record of {name} is damaged ({error!r}); train the network again") from error


def shape_of(record: RunRecord) -> list[int | str]:
    """Return the shape (channels, height, width) of the images a network was made for; old records know no size."""
    return record.settings.get("image_shape", [record.settings["architecture"]["channels"], "any", "any"])


def check_radius(threat: Threat, image_set: ImageSet) -> None:
    """Refuse a radius that reaches beyond every image: it is a mistake, such as gray levels.

    Raises:
        ValueError: If epsilon is larger than the distance from black to white.
    """
    farthest = norms(torch.ones_like(image_set[:1].images), threat.norm).item()
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
    """Name a network for a file: the run folder's name if it lies in one, else its own, without arguments."""
    if is_own(checkpoint):
        return re.sub(r"[^\w.-]+", "-", Path(checkpoint.partition("?")[0]).name)
    path = stored.find(checkpoint)
    return path.parent.name if path.stem == "model" else path.stem


def retrained(checkpoint: str, data: str | None, root: Path = DOWNLOADS) -> str:
    """Train a network again by the command in its record, and before it the one that it began with.

    An interrupted training goes on; a network that is in `RETRAINED` already is not trained again.

    Args:
        checkpoint: A run folder, a .safetensors file, or the name of a shipped network.
        data: What `robustviz train --data` takes; None is what the network was trained on.
        root: Folder of downloaded data sets.

    Returns:
        The run folder of the new network.

    Raises:
        ValueError: If the record names no command of `robustviz train`.
    """
    from robustviz.cli.train import train

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
    try:
        _, bound, _ = app.parse_args(kept[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ValueError(f"--retrain: the command in the record of {checkpoint} cannot be run: {error}") from error
    train(*bound.args, **bound.kwargs, command=shlex.join(kept))  # the new record names what reproduces it
    return str(out)
