"""The command `attack-suite`: the worst case over several attacks, each made on the images the others left right."""

from pathlib import Path
from typing import Literal

from robustviz.cli.app import Count, Seed, say
from robustviz.cli.measure import measure
from robustviz.cli.output import check_results, write_results
from robustviz.cli.target import Target, called, knows_defenses
from robustviz.distributed import processes
from robustviz.evaluation import usual_draws
from robustviz.evaluation.suites import STANDARD_NAMES, SuiteAttack, ensemble, suite
from robustviz.tensors import batch_dependent, seeded


@knows_defenses
def attack_suite(
    target: Target,
    *,
    attacks: tuple[Literal["standard"] | SuiteAttack, ...] = ("standard",),
    steps: Count = 100,
    queries: Count = 5000,
    adaptive: bool = True,
    batch_size: Count = 256,
    fast: bool = False,
    seed: Seed = 0,
    out: tuple[Path, ...] = (),
    resume: bool = False,
    force: bool = False,
) -> None:
    """Measure the worst case of a trained network over a suite of attacks, image by image.

    Every attack sees only the images that those before it left right, so a row of the table means "up to here" and the
    last one is the worst case: an upper bound of robust accuracy. A network that answers at random is attacked on all
    images by every attack, because one unlucky draw is no reason to drop one. Every finished batch is kept on disk:
    after Ctrl-C or a crash the same command with --resume goes on, to the same figures.

    Args:
        target: What is measured.
        attacks: standard (apgd-ce, apgd-t, fmn, square), or apgd-ce, apgd-dlr, apgd-t, pgd, fmn, cw (l2 only),
            deepfool, square, noise: give the option once for each, in the order in which they shall run.
        steps: Steps of the attacks that follow a gradient.
        queries: Queries of square and noise, which see only outputs.
        adaptive: Also run the attacks made for the network's defense, if it has one.
        batch_size: Images at a time.
        fast: Make the attacks on a copy with batch norm folded into the convolutions; the network itself decides.
        seed: Seed of the random starts.
        out: File for the results: .json is the whole record with the decision on every image; .csv, .tex and .md are
            the table. Give the option once for each file; default runs/CHECKPOINT-attack-suite.json.
        resume: Go on with the interrupted suite that is there.
        force: Start over although a result or an interrupted suite is there.
    """
    out = out or (Path("runs") / f"{called(target.checkpoint)}-attack-suite.json",)
    state = _claim(out, resume, force)
    opened = target.opened(500)
    model, test_set, threat = opened.model, opened.images, opened.threat
    if batch_dependent(model):
        raise ValueError(
            f"{opened.name} answers by whole batches, from which no image can be left out; use `robustviz evaluate`"
        )
    names = [name for given in attacks for name in (STANDARD_NAMES if given == "standard" else (given,))]
    made = ensemble(names, threat, len(test_set.classes), steps=steps, queries=queries)
    say(str(opened))
    if resume and not state.exists():
        say("no interrupted suite there: starting from the beginning")
    if not resume and processes().first:
        state.unlink(missing_ok=True)
    processes().wait()
    measured = measure(
        model,
        test_set,
        suite(model, made, threat, for_defense=adaptive),
        seeded(seed),
        batch_size=batch_size,
        survivors_only=usual_draws(model) == 1,
        fast=fast,
        resume=state,
    )
    say(measured.to_markdown())
    if fast:
        say(
            f"the fast copy decided otherwise than the network on {sum(measured.settings['differing'].values())} images"
        )
    processes().wait()
    write_results(out, "attack-suite", opened, measured)
    if processes().first:
        state.unlink(missing_ok=True)


def _claim(out: tuple[Path, ...], resume: bool, force: bool) -> Path:
    """Return where the finished batches are kept, next to the first file, or refuse to touch what is there."""
    check_results(out, force)
    state = out[0].with_name(f"{out[0].name}.unfinished")
    if state.exists() and not (resume or force):
        raise FileExistsError(f"{state} is an interrupted suite; add --resume to go on, or --force to start over")
    return state
