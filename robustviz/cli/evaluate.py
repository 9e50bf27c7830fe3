"""The command `evaluate`, and measuring with a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from robustviz.cli.app import Radius, Seed, app, say, writable
from robustviz.cli.target import opened, retrained
from robustviz.data import DOWNLOADS
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.presets import EvaluationAttack, evaluation_attacks
from robustviz.studies import attacks_on_defenses, measured_with
from robustviz.tensors import seeded
from robustviz.types import Norm


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
    retrain: bool = False,
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
        retrain: First train the network anew, by the command in its record, into runs/retrained.
        out: Also write the decision on every image to this JSON file.
        force: Replace that file if it exists.
    """
    if out is not None:
        writable("--out", out.parent)
    if out is not None and out.exists() and not force:
        raise FileExistsError(f"--out {out} exists; choose another name or add --force")
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a JSON file")
    checkpoint = retrained(checkpoint, data, root) if retrain else checkpoint
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
    if not adaptive and attacks_on_defenses(model, threat):
        say("attacks made for its defense are left out: the worst case says nothing about that defense")
    if out is not None:
        if processes().first:
            measured.to_json(out)
        say(f"wrote {out}")
    say_luck(model, test_set, measured, seed)


def measure(model: Any, test_set: Any, attacks: Any, generator: torch.Generator, **settings: Any) -> RobustnessTable:
    """Evaluate with a progress bar."""
    images, labels = test_set.images, test_set.labels
    with progress() as advance:
        return evaluate(model, images, labels, attacks, generator=generator, on_batch=advance, **settings)


def say_luck(model: Any, test_set: Any, measured: RobustnessTable, seed: int) -> None:
    """Say of a network that draws at random how many clean images survive as many draws as the worst case holds."""
    if not any(getattr(module, "stochastic", False) for module in model.modules()):
        return
    draws = len(measured.conditions)
    batch_size = measured.settings["batch_size"]
    luck = measure(model, test_set, {}, seeded(seed, 2), repeats=draws, batch_size=batch_size).worst_case()
    say(
        f"The network draws at random, anew for every condition: of the clean images, {luck:.1%} are right in all of "
        f"{draws} draws." + (" A part of the worst case is luck." if luck < measured.accuracy("clean") else "")
    )


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; what is yielded is the `on_batch` of `evaluate`."""
    with tqdm(unit="image", leave=False, disable=processes().silent) as bar:

        def advance(condition: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(condition)

        yield advance
