"""How often a model is right, clean and under attack: one row of answers for each condition, image by image."""

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from torch import Generator, nn

from robustviz.checks import check_images
from robustviz.distributed import processes
from robustviz.evaluation.answers import usual_draws
from robustviz.evaluation.run import Run
from robustviz.evaluation.state import Tally
from robustviz.evaluation.table import CLEAN, RobustnessTable
from robustviz.fingerprint import fingerprint
from robustviz.networks.folding import CopyPrecision, folded
from robustviz.records import describe
from robustviz.tensors import batch_dependent, check_model, draw_seed
from robustviz.types import Attack, Images, Labels


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    repeats: int = 1,
    draws: int | None = None,
    survivors_only: bool = False,
    fast: bool | Literal["bf16"] = False,
    resume: Path | str | None = None,
    generator: Generator | None = None,
    on_batch: Callable[[str, int, int], Any] | None = None,
) -> RobustnessTable:
    """Measure a model on clean images and under each attack.

    The noise of a batch depends on the seed, the repeat and the number of the batch alone, so the table does not
    depend on which conditions are asked for or who computes them; with `survivors_only` a condition depends on those
    before it. What a random model draws to answer does not depend on what the attack has drawn.

    Args:
        model: Evaluated in evaluation mode and left as it was.
        images: Test images in [0, 1].
        labels: Their classes.
        attacks: Name of each condition and the attack that makes it, settings fixed with `functools.partial`.
        batch_size: Images at a time. A batch-dependent model answers by these batches, the last one smaller.
        repeats: How often the attacks are made, with other noise.
        draws: How often the model answers the attacked images. A random model draws again each time; one that answers
            jointly is given the images in other batches, of any order, and also the set in which each image is
            attacked by what the other half of the draws chose for it. None is 1 for a deterministic model and 16 for
            others. With 1, a random model answers once and a joint one by the batches that were attacked: the worst
            case of several attacks then counts bad luck.
        survivors_only: Attack only images that every earlier condition left right; the others keep their wrong
            decision and its distance. The worst case is the same and much faster, but a single condition then means
            "up to here".
        fast: Make the attacks on a `folded` copy of the model, with `"bf16"` in bfloat16. Every decision is the
            model's own: an image that fools the copy alone is attacked again on the model. The settings of the table
            hold for each condition on how many images copy and model differed.
        resume: File to keep every finished batch in. If it exists, the evaluation goes on where it stopped, and the
            table has the same bits as without a stop. A closure among the attacks is known by its name alone. Beside
            it, attacked images that are still to be answered are kept, until the evaluation is done.
        generator: Source of the seed; None is a fresh one seeded 0.
        on_batch: Called after every batch with (condition, done, total): images so far and in the end, counted over
            all conditions and repeats.

    Raises:
        TypeError: If the model is not a module, or images or attacked images are not tensors of numbers.
        ValueError: If images, labels, logits or a setting are out of range, a condition is called `clean`, an attack is
            targeted or leaves [0, 1] or its threat, `survivors_only` or `fast` is used with a model whose answers
            depend on the whole batch, `survivors_only` with several draws, or `resume` is a file of another evaluation.
    """
    check_model(model)
    check_images(images, labels)
    # Whether it depends on the batch without saying so is asked only where a wrong answer would make figures wrong.
    joint = batch_dependent(model, images if survivors_only or fast else None)
    if draws is None:
        draws = usual_draws(model)
    _check(attacks, batch_size=batch_size, repeats=repeats, draws=draws)
    _check_alone(joint, draws, survivors_only=survivors_only, fast=bool(fast))
    settings: dict[str, Any] = {
        "attacks": describe(dict(attacks)),
        "batch_size": batch_size,
        "repeats": repeats,
        "draws": draws,
        "survivors_only": survivors_only,
        "fast": fast,
        "seed": draw_seed(generator),
    }
    known = settings | {"order of attacks": [CLEAN, *attacks], "attacks": dict(attacks)}
    if resume is not None:
        known |= {
            "model": fingerprint(model, dict(attacks)),
            "images": fingerprint(images),
            "labels": fingerprint(labels),
        }
    precision: CopyPrecision = "bf16" if fast == "bf16" else "fp32"
    copy = folded(model, precision=precision, images=images[:batch_size]) if fast else None
    shape = (1 + len(attacks), repeats, draws, len(labels))
    tally = Tally(shape, known, resume)
    run = Run(model, copy, images, labels, attacks, batch_size, draws, joint, survivors_only, settings["seed"], tally)
    turns = run.turns(repeats)
    total, done = sum(turn.images for turn in turns), sum(turn.images for turn in turns[: tally.done])
    if tally.done < len(turns):
        run.take_up(turns[: tally.done])
    for _, group in groupby(turns[tally.done :], lambda turn: (turn.kind, turn.condition)):
        for turn, found in processes().work(group, run.take):
            run.note(turn, found)
            done += turn.images
            if on_batch is not None:
                on_batch(turn.condition, done, total)
    tally.forget_images(turn.place for turn in turns if turn.kind == "attack")
    if fast:
        settings["differing"] = dict(zip((CLEAN, *attacks), tally.differing, strict=True))
    predictions = tally.predictions.flatten(1, 2)
    assembled = tally.assembled if run.assembles else None
    return RobustnessTable((CLEAN, *attacks), labels.cpu(), predictions, tally.distances, settings, draws, assembled)


def _check(attacks: Mapping[str, Attack], **least: int) -> None:
    """Refuse settings and attacks that no evaluation can use."""
    for name, number in least.items():
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")
    if CLEAN in attacks:
        raise ValueError(f"attacks must not be called {CLEAN!r}, which names the condition without attack")
    for name, attack in attacks.items():
        if _targeted(attack):
            raise ValueError(
                f"attack {name!r} is targeted at the labels it gets, which are the true ones here and would be helped; "
                "leave targeted out, or use apgd_targeted, which aims at the other classes"
            )


def _check_alone(joint: bool, draws: int, *, survivors_only: bool, fast: bool) -> None:
    """Refuse what needs one answer for each image of a model that has others."""
    for name, wanted in {"survivors_only": survivors_only, "fast": fast}.items():
        if wanted and joint:
            raise ValueError(f"{name} must be False for a model whose answers depend on the whole batch")
    if survivors_only and draws > 1:
        raise ValueError(
            f"survivors_only must be False with draws={draws}: one unlucky draw would drop an image; use draws=1 for a "
            "deterministic model"
        )


def _targeted(attack: Any) -> bool:
    """Whether an attack, or the one it is made of, has the setting `targeted`."""
    settings = getattr(attack, "keywords", {})
    return bool(settings.get("targeted")) or ("attack" in settings and _targeted(settings["attack"]))
