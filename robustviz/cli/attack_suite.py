"""The command `attack-suite`: the worst case over several attacks, each made on what the others left right."""

from pathlib import Path
from typing import Literal

from robustviz.cli.app import Radius, Seed, app, say, writable
from robustviz.cli.evaluate import measure, say_luck
from robustviz.cli.target import called, opened, retrained
from robustviz.data import DOWNLOADS
from robustviz.distributed import processes
from robustviz.presets import STANDARD, SuiteAttack, suite_attacks
from robustviz.studies import measured_with
from robustviz.tensors import batch_dependent, seeded
from robustviz.types import Norm


@app.command(name="attack-suite")
def attack_suite(
    checkpoint: str,
    *,
    data: str | None = None,
    attacks: tuple[Literal["standard"] | SuiteAttack, ...] = ("standard",),
    epsilon: Radius = None,
    norm: Norm | None = None,
    steps: int = 100,
    queries: int = 5000,
    adaptive: bool = True,
    images: int = 500,
    batch_size: int = 256,
    fast: bool = False,
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    retrain: bool = False,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Measure the worst case of a trained network over a suite of attacks, image by image.

    Every attack sees only the images that those before it left right, so a row of the table means "up to here" and the
    last one is the worst case: an upper bound of robust accuracy. Every finished batch is kept on disk: after Ctrl-C
    or a crash the same command with --resume goes on, to the same figures.

    Args:
        checkpoint: A run folder, a .safetensors file, or a name that `robustviz checkpoints` lists.
        data: As in `robustviz train`; default: what the network was trained on.
        attacks: standard (apgd-ce, apgd-t, fmn, square), or apgd-ce, apgd-dlr, apgd-t, pgd, fmn, cw (l2 only),
            deepfool, square, noise: give the option once for each, in the order in which they shall run.
        epsilon: How far the attacker may go, such as 8/255; default: what the record of the network says.
        norm: linf or l2; default: what the record says.
        steps: Steps of the attacks that follow a gradient.
        queries: Queries of square and noise, which see only outputs.
        adaptive: Also run the attacks made for the network's defense, if it has one.
        images: How many test images, drawn evenly from the classes; all if there are fewer.
        batch_size: Images at a time.
        fast: Make the attacks on a copy with batch norm folded into the convolutions; the network itself decides.
        seed: Of the random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        retrain: First train the network anew, by the command in its record, into runs/retrained.
        out: JSON file for the decision on every image; default runs/CHECKPOINT-attack-suite.json.
        resume: Go on with the interrupted suite that is there.
        force: Start anew although a result or an interrupted suite is there.
    """
    out = out or Path("runs") / f"{called(checkpoint)}-attack-suite.json"
    state = _claim(out, resume, force)
    checkpoint = retrained(checkpoint, data, root) if retrain else checkpoint
    model, test_set, threat = opened(checkpoint, data, norm, epsilon, images, device, root)
    if batch_dependent(model):
        raise ValueError(
            f"{checkpoint} answers by whole batches, from which no image can be left out; use `robustviz evaluate`"
        )
    if min(steps, queries, batch_size) < 1:
        raise ValueError(f"--steps, --queries and --batch-size must be >= 1, got {steps}, {queries} and {batch_size}")
    names = [name for given in attacks for name in (STANDARD if given == "standard" else (given,))]
    made = suite_attacks(names, threat, len(test_set.classes), steps=steps, queries=queries)
    say(f"{checkpoint} on {len(test_set)} test images of {test_set.name}, {threat.norm}, epsilon {threat.epsilon:.4g}")
    if resume and not state.exists():
        say("no interrupted suite there: starting anew")
    if not resume and processes().first:
        state.unlink(missing_ok=True)
    processes().wait()
    measured = measure(
        model,
        test_set,
        measured_with(model, made, threat, adaptive=adaptive),
        seeded(seed),
        batch_size=batch_size,
        survivors_only=True,
        fast=fast,
        resume=state,
    )
    say(measured.to_markdown())
    if fast:
        say(
            f"the fast copy decided otherwise than the network on {sum(measured.settings['differing'].values())} images"
        )
    processes().wait()
    if processes().first:
        measured.to_json(out)
        state.unlink(missing_ok=True)
    say(f"wrote {out}")
    say_luck(model, test_set, measured, seed)


def _claim(out: Path, resume: bool, force: bool) -> Path:
    """Return where the finished batches are kept, or refuse to touch what is there."""
    state = out.with_name(f"{out.name}.unfinished")
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a JSON file")
    writable("--out", out.parent)
    if out.exists() and not force:
        raise FileExistsError(f"--out {out} exists; choose another name or add --force")
    if state.exists() and not (resume or force):
        raise FileExistsError(f"{state} is an interrupted suite; add --resume to go on, or --force to start anew")
    return state
