"""The command `train`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from robustviz import checkpoints as stored
from robustviz.cli.app import command_line, say, writable
from robustviz.cli.defense import defenses, defenses_help, options_help, options_of
from robustviz.cli.measure import measure
from robustviz.cli.options import USUAL_COURSE, USUAL_OPPONENT, Course, Opponent
from robustviz.cli.target import check_radius
from robustviz.data import DOWNLOADS, ImageSet, load
from robustviz.data.cache import cache_folder
from robustviz.defenses import Defense, present
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable
from robustviz.evaluation.suites import suite
from robustviz.models import MODELS
from robustviz.presets import (
    evaluation_attacks,
    stem,
    usual_augmentation,
    usual_device,
    usual_threat,
)
from robustviz.records import RunRecord, describe
from robustviz.tensors import seeded, stochastic
from robustviz.training import TrainConfig, hold_out
from robustviz.training.stages import Hardened, harden, state_files
from robustviz.training.state import EpochLog
from robustviz.types import Threat


def train(
    *,
    data: str = "digits",
    model: str = "small_cnn",
    defense: Annotated[tuple[str, ...], Parameter(help=defenses_help())] = (),
    trust: bool = False,
    start: str | None = None,
    opponent: Opponent = USUAL_OPPONENT,
    course: Course = USUAL_COURSE,
    validation: float = 0.1,
    images: int | None = None,
    test_images: int = 1000,
    device: str = "auto",
    root: Path = DOWNLOADS,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    command: Annotated[str | None, Parameter(parse=False)] = None,
    **options: Annotated[str, Parameter(help=f"Options of the defenses. {options_help()}")],
) -> None:
    """Train a network, naturally or against an attack, and write it to a folder.

    A part of the training images is held out and chooses the epoch; at the end the network is measured on test
    images, clean, under PGD-20 and under the attacks made for its defense. Ctrl-C
    is safe: `--resume` goes on from the last whole epoch and ends with the same weights.

    Args:
        data: digits or signs (embedded), cifar10, cifar100, svhn, mnist, fashionmnist (fetch them first), a folder of
            pictures (one subfolder for each class, in subfolders train and test or split by robustviz), a .npz file or
            a .csv table.
        model: small_cnn, resnet20, resnet56, resnet110, resnet18 or vgg16.
        defense: Names of defenses.
        trust: Run the code of such a file without asking.
        start: A trained network to begin with, as `robustviz evaluate` takes it: the same model, classes and channels.
            Its defenses stay and are trained too. A few epochs at a low rate are enough.
        opponent: The attacker during training.
        course: How long and how fast to learn.
        validation: Share of the training images that is held out.
        images: Train on this many images, drawn evenly from the classes; on all if there are fewer.
        test_images: Measure the result on this many test images, or on all if there are fewer; a network that draws at
            random on at most 250.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Folder for the result, or a file name ending in .safetensors; default runs/DATA-MODEL-DEFENSE-ATTACK.
        resume: Go on with the interrupted run that is there.
        force: Start again although a run is there.
        command: What the record names as the command that reproduces it; default: what the user typed.
        **options: Options of the defenses.
    """
    with defenses(defense, trust) as chosen:
        read = options_of(chosen, options)
        threat, config = _checked(data, model, opponent, course, images, test_images)
        begun, before = (None, None) if start is None else stored.load(start)
        named = [each.name for each in chosen]
        out = out or Path("runs") / "-".join([stem(data), model, *named, opponent.attack])
        weights, state = claim(out, resume, force)
        image_set, test_set = _loaded(data, root)
        check_radius(threat, image_set)
        if begun is not None and before is not None:
            check_start(f"--start {start}", before, model, image_set)
        image_set = image_set if images is None else image_set.subset(min(images, len(image_set)))
        hold_out(image_set.labels, validation)  # refuses a share that is out of range before anything is deleted
        _begin(state, out, resume, force)
        subject = f"{model} on {len(image_set)} images of {image_set.name}"
        say(f"training {subject}, defense: {' + '.join(named) or 'none'}, attack: {opponent.attack}, into {out}")
        origin = None if before is None else {"name": start, "sha256": before.results["sha256"]}
        hardened = harden(
            image_set,
            network=model,
            config=config,
            threat=threat,
            attack=opponent.attack,
            defenses=chosen,
            options=read,
            start=begun,
            origin=None if origin is None else f"the network with checksum {origin['sha256'][:8]}",
            steps=opponent.steps,
            step_size=opponent.step_size,
            validation=validation,
            device=usual_device(device),
            cache=cache_folder(),
            state=state,
            on_epoch=lambda log, total: say(epoch_line(log, total)),
            say=say,
        )
        test_set = test_set.subset(min(test_images, 250 if stochastic(hardened.model) else test_images, len(test_set)))
        attacks = suite(hardened.model, evaluation_attacks(["pgd"], threat, 20), threat)
        test_set = test_set.to(usual_device(device))
        measured = measure(hardened.model, test_set, attacks, seeded(config.seed))
        settings = {
            "data": data,
            **_settings(image_set, test_set, threat, config, validation),
            "start": origin,
            **_trained(hardened, chosen, read),
        }
        if processes().first:
            _save(weights, hardened, settings, measured, command or command_line())
            for file in state_files(state):
                file.unlink(missing_ok=True)
        say(f"\n{measured.to_markdown()}")
        say(f"\nwrote {weights}; attack it with: {shlex.join(['robustviz', 'evaluate', str(out)])}")


def _checked(
    data: str, model: str, opponent: Opponent, course: Course, images: int | None, test_images: int
) -> tuple[Threat, TrainConfig]:
    """Read threat and settings of the training, and refuse what is out of range."""
    for name, number in {"test-images": test_images, "images": images, "steps": opponent.steps}.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be >= 1, got {number}")
    if course.learning_rate == 0:
        raise ValueError("--learning-rate must be > 0, got 0: nothing would be learned")
    if model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model!r}")
    threat = usual_threat(data, opponent.norm, opponent.epsilon)
    return threat, TrainConfig(**vars(course), **usual_augmentation(data))


def _loaded(data: str, root: Path) -> tuple[ImageSet, ImageSet]:
    """Load training and test images."""
    image_set, test_set = (load(data, part, root=root) for part in ("train", "test"))
    if image_set.images.shape[1:] != test_set.images.shape[1:]:
        shapes = [tuple(part.images.shape[1:]) for part in (image_set, test_set)]
        raise ValueError(f"--data {data} has training images of shape {shapes[0]} and test images of shape {shapes[1]}")
    return image_set, test_set


def _begin(state: Path, out: Path, resume: bool, force: bool) -> None:
    """Say that there is nothing to go on with, or remove what is not to be gone on with."""
    if resume and not state_files(state):
        say(f"no interrupted run in {out}: starting from the beginning")
    if force and not resume:
        for file in state_files(state):
            file.unlink(missing_ok=True)  # of several processes another one may be faster


def _settings(
    image_set: ImageSet, test_set: ImageSet, threat: Threat, config: TrainConfig, validation: float
) -> dict[str, Any]:
    """What the record says of images and training."""
    return {
        "classes": list(image_set.classes),
        "image_shape": list(image_set.images.shape[1:]),
        "training_images": len(image_set),
        "test_images": len(test_set),
        "threat": describe(threat),
        "training": describe(config),
        "validation": validation,
    }


def _trained(hardened: Hardened, chosen: list[Defense], read: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of defenses, their options, and the players of the first stage that trained."""
    names = [each.name for each in present(hardened.model)]
    options = {each.name: describe(each.configured(read, hardened.model)) for each in chosen}
    flat = {name: value for each in options.values() for name, value in each.items() if name != "type"}
    first: dict[str, Any] = next((stage for stage in hardened.stages if "objective" in stage), {})
    return {
        "defense": "+".join(names) or "none",
        **flat,
        "objective": first.get("objective"),
        "attack": first.get("attack"),
        "stages": hardened.stages,
    }


def _save(weights: Path, hardened: Hardened, settings: dict[str, Any], measured: RobustnessTable, command: str) -> None:
    """Write weights and record."""
    results = {
        "accuracy": measured.accuracies(),
        "worst_case": measured.worst_case(),
        "epochs": describe(hardened.logs),
    }
    record = RunRecord("train", settings, results, command=command)
    stored.save(weights, hardened.model, hardened.build, record, force=True)


def claim(out: Path, resume: bool, force: bool) -> tuple[Path, Path]:
    """Return where a run writes its weights and its state, or refuse to touch what is there.

    Args:
        out: Folder or file of the run.
        resume: Go on with what is there.
        force: Start again.
    """
    weights = out if out.suffix == ".safetensors" else out / "model.safetensors"
    state = weights.with_suffix(".state")
    if out.is_file() and out != weights:
        raise FileExistsError(f"--out {out} is a file; name a folder, or a file that ends in .safetensors")
    writable("--out", weights.parent)
    if (weights.exists() or weights.with_suffix(".json").exists()) and not force:
        raise FileExistsError(f"--out {out} holds a finished run; choose another name or add --force")
    if state_files(state) and not (resume or force):
        raise FileExistsError(f"--out {out} holds an interrupted run; add --resume to go on, or --force to start again")
    return weights, state


def check_start(start: str, before: RunRecord, network: str, image_set: ImageSet) -> None:
    """Refuse to start from another network than the one to train.

    Args:
        start: What the user typed.
        before: Record of the network to start from.
        network: Name of the network to train.
        image_set: What it is trained on.

    Raises:
        ValueError: If they differ.
    """
    made, other = before.settings["architecture"], "give --data of its kind"
    kind, classes, channels = made.get("network", made["function"]), made["classes"], made["channels"]
    wanted = len(image_set.classes), image_set.images.shape[1]
    known = [
        (kind != network, f"is a {kind}, not a {network}", f"use --model {kind}"),
        (classes != wanted[0], f"has {classes} classes, not {wanted[0]}", other),
        (channels != wanted[1], f"reads images of {channels} channels, not {wanted[1]}", other),
    ]
    if found := [(difference, remedy) for differs, difference, remedy in known if differs]:
        differences, remedies = (" and ".join(dict.fromkeys(words)) for words in zip(*found, strict=True))
        raise ValueError(
            f"{start} must be the network to train, but it {differences}; {remedies}, or start from another"
        )


def epoch_line(log: EpochLog, epochs: int) -> str:
    """Say in one line what an epoch reached."""
    parts = [f"epoch {log.epoch:>{len(str(epochs))}}/{epochs}", f"loss {log.loss:.3f}"]
    parts += [f"clean {log.clean_accuracy:.1%}"] if log.clean_accuracy is not None else []
    parts += [f"robust {log.robust_accuracy:.1%}"] if log.robust_accuracy is not None else []
    return "   ".join([*parts, f"{log.seconds:.1f} s", "best so far" if log.chosen else ""]).rstrip()
