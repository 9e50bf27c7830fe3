"""The command line: `robustviz demo`, `train`, `evaluate`, `compare`, `fetch` and `checkpoints`.

Every command is a typed function; cyclopts turns its signature and docstring into options and help.
"""

import shlex
import sys
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter, validators
from tqdm.auto import tqdm

from robustviz import checkpoints as stored
from robustviz.attacks import against, identity_backward
from robustviz.comparison import RESULTS
from robustviz.data import DOWNLOADS, load, torchvision_set
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll_head import Gradient
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.experiments import attacks_on_defenses
from robustviz.models import MODELS
from robustviz.pictures import cache_folder
from robustviz.pipelines import Augmentation, Defense, harden, players
from robustviz.recipes import (
    EvaluationAttack,
    TrainingAttack,
    evaluation_attacks,
    stem,
    usual_augmentation,
    usual_device,
    usual_threat,
)
from robustviz.records import RunRecord, describe, table
from robustviz.resume import EpochLog
from robustviz.tensors import seeded
from robustviz.training import Precision, Schedule, TrainConfig
from robustviz.types import Norm, Threat

app = App(
    name="robustviz",
    help="See, attack and harden image classifiers. Start with `robustviz demo`.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() says how to go on
)


def _number(type_: Any, tokens: Sequence[Any]) -> float:
    """Read 0.03 as well as 8/255."""
    text = tokens[0].value
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"must be a number or a fraction such as 8/255, got {text!r}") from error


Radius = Annotated[float | None, Parameter(converter=_number)]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))]


@app.command
def demo(*, out: Path = Path("runs/demo"), seed: Seed = 0, force: bool = False) -> None:
    """Train a standard and an adversarially trained network on digits, attack both, and write a page about it.

    Takes about a minute on two processor cores. The page is one file that needs no network.

    Args:
        out: Folder for the page and the tables.
        seed: Decides weights, order and random starts.
        force: Replace the page if there is one.
    """
    from robustviz.demo import run_demo

    if out.exists() and not (force and out.is_dir()) and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            f"--out {out} is there and not empty; choose another folder, or add --force to write into it"
        )
    page, grid = run_demo(out, seed=seed, say=_say)
    _say(f"\n{grid}\n\nopen {page}")


@app.command(name="train")
def train_command(
    *,
    data: str = "digits",
    model: str = "small_cnn",
    defense: Defense = "none",
    augment: Augmentation = "none",
    gradient: Gradient = "exact",
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
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train a network, naturally or against an attack, and write it to a folder.

    A part of the training images is held out and chooses the epoch; at the end the network is measured on up to 1,000
    test images (250 with TVM, which is slow), clean and under PGD-20, past a purifier with BPDA. Ctrl-C is safe:
    `--resume` goes on from the last whole epoch and ends with the same weights.

    Args:
        data: digits (embedded), cifar10, svhn, mnist (fetch them first), or a folder of pictures: one subfolder for
            each class, in subfolders train and test or split by robustviz.
        model: small_cnn, resnet20, resnet56, resnet110, resnet18 or vgg16.
        defense: none; wnll decides by interpolation from labelled templates; cas suppresses channels; tvm purifies the
            images by total variation minimization, which is put in front once the network is trained.
        augment: tvm trains on the images together with their TVM versions, which are made once and kept in
            $ROBUSTVIZ_CACHE or the user's cache: as large as the images, four bytes for each number.
        gradient: With wnll, the gradient through the activation: exact, or surrogate as published.
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
        images: Train on only so many images, drawn evenly from the classes.
        seed: Decides weights, order and random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Folder for the result, or a file name ending in .safetensors; default runs/DATA-MODEL-DEFENSE-ATTACK,
            with `augmented` before ATTACK if they are.
        resume: Go on with the interrupted run that is there.
        force: Start anew although a run is there.
    """
    if model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model!r}")
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
    weights, state = _claim(out, resume, force)
    image_set, test_set = (load(data, part, root=root) for part in ("train", "test"))
    if image_set.images.shape[1:] != test_set.images.shape[1:]:
        shapes = [tuple(part.images.shape[1:]) for part in (image_set, test_set)]
        raise ValueError(f"--data {data} has training images of shape {shapes[0]} and test images of shape {shapes[1]}")
    image_set = image_set if images is None else image_set.subset(images)
    _say(f"training {model} on {len(image_set)} images of {image_set.name}, attack: {attack}, into {out}")
    hardened = harden(
        image_set,
        network=model,
        config=config,
        threat=threat,
        attack=attack,
        defense=defense,
        augment=augment,
        gradient=gradient,
        steps=steps,
        step_size=step_size,
        validation=validation,
        device=usual_device(device),
        cache=cache_folder(),
        state=state,
        on_epoch=lambda log: _say(_epoch_line(log, epochs)),
    )
    test_set = test_set.subset(min(250 if defense == "tvm" else 1000, len(test_set)))
    attacks = evaluation_attacks(["pgd"], threat, 20) | attacks_on_defenses(hardened.model, threat)
    measured = _measure(hardened.model, test_set.to(usual_device(device)), attacks, seeded(seed))
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
        "objective": describe(objective),
        "attack": describe(opponent),
        "training": describe(config),
        "validation": validation,
    }
    results = {"accuracy": measured.accuracy(), "worst_case": measured.worst_case(), "epochs": describe(hardened.logs)}
    record = RunRecord("train", settings, results, command=shlex.join(["robustviz", *sys.argv[1:]]))
    stored.save(weights, hardened.model, hardened.build, record, force=True)
    for file in (state, *state.parent.glob(f"{state.name}-*")):
        file.unlink(missing_ok=True)
    _say(f"\n{measured.to_markdown()}\n\nwrote {weights}; attack it with: robustviz evaluate {out}")


@app.command(name="evaluate")
def evaluate_command(
    checkpoint: str,
    /,
    *,
    data: str | None = None,
    attacks: tuple[EvaluationAttack, ...] = ("fgsm", "ifgsm", "pgd"),
    epsilon: Radius = None,
    norm: Norm | None = None,
    steps: int = 20,
    restarts: int = 1,
    adaptive: bool = True,
    images: int = 1000,
    batch_size: int = 256,
    survivors_only: bool = False,
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Measure a trained network on clean and on attacked test images.

    Prints accuracy with its 95 % interval for each attack, and the worst case: the share of images that withstand all
    of them. Robust accuracy is an upper bound; a stronger attack may find more.

    Args:
        checkpoint: A run folder, a .safetensors file, or a name that `robustviz checkpoints` lists.
        data: As in `robustviz train`; default: what the network was trained on.
        attacks: fgsm, ifgsm, pgd, mifgsm: give the option once for each.
        epsilon: How far the attacker may go, such as 8/255; default: what the record of the network says.
        norm: linf or l2; default: what the record says.
        steps: Steps of the iterated attacks.
        restarts: Random starts of PGD.
        adaptive: Also run the attacks made for the network's defense, if it has one; without them a defense that
            only hides its gradient looks robust.
        images: How many test images, drawn evenly from the classes.
        batch_size: Images at a time.
        survivors_only: Attack only what every attack before has left right: the same worst case, faster.
        seed: Of the random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Also write the decision on every image to this JSON file.
        force: Replace that file if it exists.
    """
    if out is not None and out.exists() and not force:
        raise FileExistsError(f"--out {out} exists; choose another name or add --force")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    classifier, record = stored.load(checkpoint)
    if missing := {"data", "threat", "classes"} - record.settings.keys():
        raise ValueError(f"{checkpoint} is not from `robustviz train`: its record lacks {', '.join(sorted(missing))}")
    data = data or str(record.settings["data"])
    known = Threat(record.settings["threat"]["norm"], record.settings["threat"]["epsilon"])
    radius = known.epsilon if epsilon is None and norm in (None, known.norm) else epsilon
    threat = usual_threat(data, norm or known.norm, radius)
    test_set = load(data, "test", root=root)
    if test_set.classes != (names := tuple(record.settings["classes"])):
        raise ValueError(f"--data {data} has the classes {test_set.classes}, but the network was trained on {names}")
    shape = list(test_set.images.shape[1:])
    if record.settings.get("image_shape", shape) != shape or record.settings["architecture"]["channels"] != shape[0]:
        known = record.settings.get("image_shape", [record.settings["architecture"]["channels"], "any", "any"])
        raise ValueError(f"--data {data} has images of shape {shape}, but the network was made for {known}")
    test_set = test_set.subset(min(images, len(test_set))).to(usual_device(device))
    _say(f"{checkpoint} on {len(test_set)} test images of {test_set.name}, {threat.norm}, epsilon {threat.epsilon:.4g}")
    measured = _measure(
        classifier.to(usual_device(device)),
        test_set,
        evaluation_attacks(attacks, threat, steps, restarts)
        | (attacks_on_defenses(classifier, threat) if adaptive else {}),
        seeded(seed),
        batch_size=batch_size,
        survivors_only=survivors_only,
    )
    _say(measured.to_markdown())
    if out is not None:
        measured.to_json(out)
        _say(f"wrote {out}")


@app.command
def compare(
    name: Literal["wnll", "cas", "tvm"],
    /,
    *,
    seeds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 3,
    out: Path = RESULTS,
    force: bool = False,
) -> None:
    """Set a defense beside the undefended network, under its published attack and under adaptive ones, over seeds.

    Trains the networks of every seed and takes many minutes. Writes the figures as JSON and prints them as tables: mean
    and standard deviation in percent, and how many attacks stand behind each worst case.

    Args:
        name: wnll: the interpolating activation against the softmax; cas: suppressing channels against not doing so;
            tvm: purified images, and training that has seen them, against neither.
        seeds: How many seeds, from 0.
        out: Folder for the JSON files.
        force: Replace files that exist.
    """
    from robustviz.experiments.cas import compare_cas
    from robustviz.experiments.tvm import compare_tvm
    from robustviz.experiments.wnll import compare_wnll

    run = {"wnll": compare_wnll, "cas": compare_cas, "tvm": compare_tvm}[name]
    out.mkdir(parents=True, exist_ok=True)
    if existing := [file for file in out.glob(f"{name}*.json") if not force]:
        raise FileExistsError(f"--out {out} holds {existing[0].name} already; choose another folder or add --force")
    for comparison in run(range(seeds), _say):
        comparison.save(out / f"{comparison.name}.json")
        _say(f"\n{comparison.to_markdown()}\n\nwrote {out / comparison.name}.json")


@app.command
def fetch(name: Literal["cifar10", "svhn", "mnist"], /, *, root: Path = DOWNLOADS) -> None:
    """Download a data set with torchvision, which shows the progress and checks the sums.

    Args:
        name: cifar10 (170 MB), svhn (250 MB) or mnist (12 MB).
        root: Where to put it; default data/downloads.
    """
    image_set = torchvision_set(name, root, part="all", download=True)
    _say(f"{name}: {len(image_set)} images of {len(image_set.classes)} classes in {root}")


@app.command
def checkpoints() -> None:
    """List the trained networks that come with robustviz, what they reach, and the commands that give them again."""
    rows, commands = [], []
    for name, path in stored.shipped().items():
        record = RunRecord.load(path.with_suffix(".json"))
        settings, accuracy = record.settings, record.results["accuracy"]
        figures = ", ".join(f"{condition} {share:.1%}" for condition, share in list(accuracy.items())[:2])
        figures += f", worst of {len(accuracy) - 1} attacks {record.results['worst_case']:.1%}"
        epsilon = f"{settings['threat']['norm']} {settings['threat']['epsilon']:.4g}"
        made = settings["architecture"]
        rows.append([name, str(settings["data"]), made.get("network", made["function"]), epsilon, figures])
        commands.append(f"{name}\n    {record.command}")
    _say(table(["name", "data", "network", "epsilon", "accuracy on test images"], rows))
    _say("\nGiven again by:\n" + "\n".join(commands))


def main() -> None:
    """Run the command line; errors a user can mend are one line, without a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"robustviz: {error}")
    except KeyboardInterrupt:
        print("\nrobustviz: interrupted; a training run goes on with the same command and --resume", file=sys.stderr)
        sys.exit(130)


def _measure(model: Any, test_set: Any, attacks: Any, generator: torch.Generator, **settings: Any) -> RobustnessTable:
    """Evaluate with a progress bar; the gradient passes a TVM purifier as the identity (BPDA)."""
    if isinstance(model.purify, TVM):
        attacks = {
            f"{name}, BPDA": partial(against, view=identity_backward, attack=attack) for name, attack in attacks.items()
        }
    with tqdm(unit="image", leave=False, disable=None) as bar:

        def advance(condition: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(condition)

        return evaluate(
            model, test_set.images, test_set.labels, attacks, generator=generator, on_batch=advance, **settings
        )


def _claim(out: Path, resume: bool, force: bool) -> tuple[Path, Path]:
    """Return where a run writes its weights and its state, or refuse to touch what is there."""
    weights = out if out.suffix == ".safetensors" else out / "model.safetensors"
    state = weights.with_suffix(".state")
    interrupted = list(state.parent.glob(f"{state.name}*"))  # a defense trained in stages has a file for each
    if out.is_file() and out != weights:
        raise FileExistsError(f"--out {out} is a file; name a folder, or a file that ends in .safetensors")
    if (weights.exists() or weights.with_suffix(".json").exists()) and not force:
        raise FileExistsError(f"--out {out} holds a finished run; choose another name or add --force")
    if interrupted and not (resume or force):
        raise FileExistsError(f"--out {out} holds an interrupted run; add --resume to go on, or --force to start anew")
    if force and not resume:
        for file in interrupted:
            file.unlink()
    return weights, state


def _epoch_line(log: EpochLog, epochs: int) -> str:
    parts = [f"epoch {log.epoch:>{len(str(epochs))}}/{epochs}", f"loss {log.loss:.3f}"]
    parts += [f"clean {log.clean_accuracy:.1%}"] if log.clean_accuracy is not None else []
    parts += [f"robust {log.robust_accuracy:.1%}"] if log.robust_accuracy is not None else []
    return "   ".join([*parts, f"{log.seconds:.1f} s", "best so far" if log.chosen else ""]).rstrip()


def _say(message: str) -> None:
    """Print above a progress bar, at once."""
    tqdm.write(message)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
