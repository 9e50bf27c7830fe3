"""The command `train`."""

import re
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from robustviz import checkpoints as stored
from robustviz.cli.app import Radius, Seed, command_line, say, writable
from robustviz.cli.measure import measure, say_luck
from robustviz.cli.target import check_radius
from robustviz.data import DOWNLOADS, ImageSet, load
from robustviz.data.cache import cache_folder
from robustviz.defenses.assembly import has_buffer, has_cas
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll.head import Gradient
from robustviz.distributed import processes
from robustviz.models import MODELS, Classifier
from robustviz.presets import (
    TrainingAttack,
    evaluation_attacks,
    stem,
    usual_augmentation,
    usual_device,
    usual_threat,
)
from robustviz.records import RunRecord, describe
from robustviz.studies import measured_with
from robustviz.tensors import seeded
from robustviz.training import Precision, Schedule, TrainConfig, hold_out
from robustviz.training.stages import Augmentation, Defense, harden, players
from robustviz.training.state import EpochLog
from robustviz.types import Norm


def train(
    *,
    data: str = "digits",
    model: str = "small_cnn",
    defense: Defense = "none",
    augment: Augmentation = "none",
    gradient: Gradient = "exact",
    rounds: int = 2,
    start: str | None = None,
    attack: TrainingAttack = "none",
    epsilon: Radius = None,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: Radius = None,
    epochs: int = 15,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    schedule: Schedule = "one-cycle",
    weight_decay: float = 5e-4,
    precision: Precision = "auto",
    validation: float = 0.1,
    images: int | None = None,
    test_images: int = 1000,
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    command: Annotated[str | None, Parameter(parse=False)] = None,
) -> None:
    """Train a network, naturally or against an attack, and write it to a folder.

    A part of the training images is held out and chooses the epoch; at the end the network is measured on test
    images, clean, under PGD-20 and under the attacks made for its defense. Ctrl-C
    is safe: `--resume` goes on from the last whole epoch and ends with the same weights.

    Args:
        data: digits or signs (embedded), cifar10, svhn, mnist (fetch them first), or a folder of pictures: one
            subfolder for each class, in subfolders train and test or split by robustviz.
        model: small_cnn, resnet20, resnet56, resnet110, resnet18 or vgg16.
        defense: none; wnll decides by interpolation from labelled templates; cas suppresses channels; tvm purifies the
            images by total variation minimization, which is put in front once the network is trained.
        augment: tvm trains on the images together with their TVM versions, which are made once and kept in
            $ROBUSTVIZ_CACHE or the user's cache: as large as the images, four bytes for each number.
        gradient: With wnll, the gradient through the activation: exact, or surrogate as published.
        rounds: With wnll, how often all weights are trained through the linear head and then the buffer through WNLL.
        start: A trained network to begin with, as `robustviz evaluate` takes it: the same model, classes and channels.
            What its defense lacks is added; a TVM purifier stays in front. A few epochs at a low rate are enough.
        attack: none trains on clean images; pgd on images attacked anew in every step (Madry et al.); fgsm-rs does so
            with one step from a random start (Wong et al.), five times faster, while PGD watches whether it collapses;
            trades and mart weigh clean against attacked images in their objectives, and attack with PGD.
        epsilon: How far the attacker may go, such as 8/255, on pixels in [0, 1]. Default: 0.15 for digits, 0.3 for
            mnist, 8/255 otherwise; in l2 1.0, 2.0 and 0.5.
        norm: linf bounds every pixel, l2 the Euclidean length of the change.
        steps: Steps of PGD.
        step_size: Length of a step; default 2.5 * epsilon / steps.
        epochs: Passes through the training images.
        batch_size: Images in one update.
        learning_rate: The largest learning rate.
        schedule: How the learning rate changes.
        weight_decay: L2 penalty on the weights.
        precision: bf16 computes faster on processors made for it; fp32 switches that off; auto decides.
        validation: Share of the training images that is held out.
        images: Train on only so many images, drawn evenly from the classes; on all if there are fewer.
        test_images: Measure the result on so many test images, or on all if there are fewer; behind TVM on at most 250.
        seed: Decides weights, order and random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Folder for the result, or a file name ending in .safetensors; default runs/DATA-MODEL-DEFENSE-ATTACK,
            with `augmented` before ATTACK if they are.
        resume: Go on with the interrupted run that is there.
        force: Start anew although a run is there.
        command: What the record names as the command that reproduces it; default: what the user typed.
    """
    for name, number in {"test-images": test_images, "images": images, "steps": steps, "rounds": rounds}.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be >= 1, got {number}")
    if learning_rate == 0:
        raise ValueError("--learning-rate must be > 0, got 0: nothing would be learned")
    if model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model!r}")
    begun, before = (None, None) if start is None else stored.load(start)
    origin = None if before is None else {"name": start, "sha256": before.results["sha256"]}
    threat = usual_threat(data, norm, epsilon)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        weight_decay=weight_decay,
        precision=precision,
        seed=seed,
        **usual_augmentation(data),
    )
    defenses = [*([defense] if defense != "none" else []), *(["augmented"] if augment != "none" else [])]
    out = out or Path("runs") / "-".join([stem(data), model, *defenses, attack])
    weights, state = claim(out, resume, force, staged=defense == "wnll")
    image_set, test_set = (load(data, part, root=root) for part in ("train", "test"))
    if image_set.images.shape[1:] != test_set.images.shape[1:]:
        shapes = [tuple(part.images.shape[1:]) for part in (image_set, test_set)]
        raise ValueError(f"--data {data} has training images of shape {shapes[0]} and test images of shape {shapes[1]}")
    check_radius(threat, image_set)
    if begun is not None and before is not None:
        check_start(f"--start {start}", begun, before, model, defense, image_set)
    image_set = image_set if images is None else image_set.subset(min(images, len(image_set)))
    hold_out(image_set.labels, validation)  # refuses a share that is out of range before anything is deleted
    if resume and not state_files(state):
        say(f"no interrupted run in {out}: starting anew")
    if force and not resume:
        for file in state_files(state):
            file.unlink(missing_ok=True)  # of several processes another one may be faster
    say(f"training {model} on {len(image_set)} images of {image_set.name}, attack: {attack}, into {out}")
    hardened = harden(
        image_set,
        network=model,
        config=config,
        threat=threat,
        attack=attack,
        defense=defense,
        augment=augment,
        gradient=gradient,
        rounds=rounds,
        start=begun,
        origin=None if origin is None else f"the network with checksum {origin['sha256'][:8]}",
        steps=steps,
        step_size=step_size,
        validation=validation,
        device=usual_device(device),
        cache=cache_folder(),
        state=state,
        on_epoch=lambda log, total: say(epoch_line(log, total)),
        say=say,
    )
    test_set = test_set.subset(
        min(test_images, 250 if isinstance(hardened.model.purify, TVM) else test_images, len(test_set))
    )
    attacks = measured_with(hardened.model, evaluation_attacks(["pgd"], threat, 20), threat)
    measured = measure(hardened.model, test_set.to(usual_device(device)), attacks, seeded(seed))
    objective, opponent, _ = players(attack, defense, threat, steps, step_size)
    settings = {
        "data": data,
        "classes": list(image_set.classes),
        "image_shape": list(image_set.images.shape[1:]),
        "training_images": len(image_set),
        "test_images": len(test_set),
        "threat": describe(threat),
        "defense": defense,
        "augment": augment,
        "rounds": rounds,
        "start": origin,
        "objective": describe(objective),
        "attack": describe(opponent),
        "training": describe(config),
        "validation": validation,
    }
    results = {"accuracy": measured.accuracy(), "worst_case": measured.worst_case(), "epochs": describe(hardened.logs)}
    record = RunRecord("train", settings, results, command=command or command_line())
    if processes().first:
        stored.save(weights, hardened.model, hardened.build, record, force=True)
        for file in state_files(state):
            file.unlink(missing_ok=True)
    say(f"\n{measured.to_markdown()}")
    say_luck(hardened.model, test_set, measured, seed)
    say(f"\nwrote {weights}; attack it with: {shlex.join(['robustviz', 'evaluate', str(out)])}")


def claim(out: Path, resume: bool, force: bool, *, staged: bool = False) -> tuple[Path, Path]:
    """Return where a run writes its weights and its state, or refuse to touch what is there.

    Args:
        out: Folder or file of the run.
        resume: Go on with what is there.
        force: Start anew.
        staged: Whether the run has a state for each stage, as with WNLL.
    """
    weights = out if out.suffix == ".safetensors" else out / "model.safetensors"
    state = weights.with_suffix(".state")
    interrupted = state_files(state)
    if out.is_file() and out != weights:
        raise FileExistsError(f"--out {out} is a file; name a folder, or a file that ends in .safetensors")
    writable("--out", weights.parent)
    if (weights.exists() or weights.with_suffix(".json").exists()) and not force:
        raise FileExistsError(f"--out {out} holds a finished run; choose another name or add --force")
    if interrupted and not (resume or force):
        raise FileExistsError(f"--out {out} holds an interrupted run; add --resume to go on, or --force to start anew")
    if resume and any((file == state) == staged for file in interrupted):
        kind = "without --defense wnll" if staged else "with --defense wnll"
        raise ValueError(f"--resume: the interrupted run in {out} is one {kind}; use its settings, or another --out")
    return weights, state


def check_start(
    start: str, begun: Classifier, before: RunRecord, network: str, defense: Defense, image_set: ImageSet
) -> None:
    """Refuse to start from another network than the one to train, unless training adds what differs.

    Args:
        start: What the person typed.
        begun: The network to start from.
        before: Its record.
        network: Name of the network to train.
        defense: Of the network to train.
        image_set: What it is trained on.

    Raises:
        ValueError: If they differ otherwise.
    """
    made, other = before.settings["architecture"], "give --data of its kind"
    kind, classes, channels = made.get("network", made["function"]), made["classes"], made["channels"]
    wanted = len(image_set.classes), image_set.images.shape[1]
    known = [
        (kind != network, f"is a {kind}, not a {network}", f"use --model {kind}"),
        (classes != wanted[0], f"has {classes} classes, not {wanted[0]}", other),
        (channels != wanted[1], f"reads images of {channels} channels, not {wanted[1]}", other),
        (has_cas(begun) and defense != "cas", "suppresses channels", "use --defense cas"),
        (has_buffer(begun) and defense != "wnll", "ends in the buffer of WNLL", "use --defense wnll"),
    ]
    if found := [(difference, remedy) for differs, difference, remedy in known if differs]:
        differences, remedies = (" and ".join(dict.fromkeys(words)) for words in zip(*found, strict=True))
        raise ValueError(
            f"{start} must be the network to train, but it {differences}; {remedies}, or start from another"
        )


def state_files(state: Path) -> list[Path]:
    """Find what an interrupted run left; a defense that is trained in stages has a file for each."""
    stages = [
        file
        for file in state.parent.glob(f"{state.name}-*")
        if re.fullmatch(r"\d+[ab]", file.name[len(state.name) + 1 :])
    ]
    return [*([state] if state.exists() else []), *stages]


def epoch_line(log: EpochLog, epochs: int) -> str:
    """Say in one line what an epoch reached."""
    parts = [f"epoch {log.epoch:>{len(str(epochs))}}/{epochs}", f"loss {log.loss:.3f}"]
    parts += [f"clean {log.clean_accuracy:.1%}"] if log.clean_accuracy is not None else []
    parts += [f"robust {log.robust_accuracy:.1%}"] if log.robust_accuracy is not None else []
    return "   ".join([*parts, f"{log.seconds:.1f} s", "best so far" if log.chosen else ""]).rstrip()
