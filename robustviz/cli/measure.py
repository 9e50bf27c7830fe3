"""The command `evaluate`, and what every command that measures a trained network does first."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from robustviz import checkpoints as stored
from robustviz.cli.app import Radius, Seed, app, say, writable
from robustviz.data import DOWNLOADS, TORCHVISION_SETS, ImageSet, load
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.experiments import measured_with
from robustviz.models import Classifier
from robustviz.recipes import EvaluationAttack, evaluation_attacks, usual_device, usual_threat
from robustviz.records import RunRecord
from robustviz.tensors import norms, seeded
from robustviz.types import Norm, Threat


@app.command(name="evaluate")
def evaluate_command(
    checkpoint: str,
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
        images: How many test images, drawn evenly from the classes; all if there are fewer.
        batch_size: Images at a time.
        survivors_only: Attack only what every attack before has left right: the same worst case, faster.
        seed: Of the random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Also write the decision on every image to this JSON file.
        force: Replace that file if it exists.
    """
    if out is not None:
        writable("--out", out.parent)
    if out is not None and out.exists() and not force:
        raise FileExistsError(f"--out {out} exists; choose another name or add --force")
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a JSON file")
    model, test_set, threat = opened(checkpoint, data, norm, epsilon, images, device, root)
    say(f"{checkpoint} on {len(test_set)} test images of {test_set.name}, {threat.norm}, epsilon {threat.epsilon:.4g}")
    measured = measure(
        model,
        test_set,
        measured_with(model, evaluation_attacks(attacks, threat, steps, restarts), threat, adaptive=adaptive),
        seeded(seed),
        batch_size=batch_size,
        survivors_only=survivors_only,
    )
    say(measured.to_markdown())
    if out is not None:
        measured.to_json(out)
        say(f"wrote {out}")


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


def measure(model: Any, test_set: Any, attacks: Any, generator: torch.Generator, **settings: Any) -> RobustnessTable:
    """Evaluate with a progress bar."""
    with tqdm(unit="image", leave=False, disable=processes().silent) as bar:

        def advance(condition: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(condition)

        return evaluate(
            model, test_set.images, test_set.labels, attacks, generator=generator, on_batch=advance, **settings
        )
