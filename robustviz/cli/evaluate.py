"""The command `evaluate`."""

from pathlib import Path

from robustviz.cli.app import Count, Seed, say
from robustviz.cli.measure import measure
from robustviz.cli.output import check_results, check_saved, save_images, write_results
from robustviz.cli.target import Target, knows_defenses
from robustviz.evaluation.suites import adaptive_attacks, suite
from robustviz.presets import EvaluationAttack, evaluation_attacks
from robustviz.tensors import seeded


@knows_defenses
def evaluate(
    target: Target,
    *,
    attacks: tuple[EvaluationAttack, ...] = ("fgsm", "ifgsm", "pgd"),
    steps: Count = 20,
    restarts: Count = 1,
    adaptive: bool = True,
    batch_size: Count = 256,
    survivors_only: bool = False,
    seed: Seed = 0,
    out: tuple[Path, ...] = (),
    save_attacked: Path | None = None,
    force: bool = False,
) -> None:
    """Measure a trained network on clean and on attacked test images.

    Prints accuracy with its 95 % interval for each attack, and the worst case: the share of images that withstand all
    of them. Robust accuracy is an upper bound; a stronger attack may find more.

    Args:
        target: What is measured.
        attacks: fgsm, ifgsm, pgd, mifgsm: give the option once for each.
        steps: Steps of the iterated attacks.
        restarts: Random starts of PGD.
        adaptive: Also run the attacks made for the network's defense, if it has one; without them a defense that
            only hides its gradient looks robust.
        batch_size: Images at a time.
        survivors_only: Attack only the images that every earlier attack left right: the same worst case, faster.
        seed: Seed of the random starts.
        out: Also write the results to this file: .json is the whole record with the decision on every image; .csv, .tex
            and .md are the table. Give the option once for each file.
        save_attacked: Also write the attacked images, rounded to 8 bits and measured again, to this .npz file, or as
            PNG files to this folder. The attacks are made a second time.
        force: Replace files that exist.
    """
    check_results(out, force)
    if save_attacked is not None:
        check_saved(save_attacked, force)
    opened = target.opened(1000)
    model, threat = opened.model, opened.threat
    say(str(opened))
    made = suite(model, evaluation_attacks(attacks, threat, steps, restarts), threat, for_defense=adaptive)
    measured = measure(model, opened.images, made, seeded(seed), batch_size=batch_size, survivors_only=survivors_only)
    say(measured.to_markdown())
    if not adaptive and adaptive_attacks(model, threat):
        say("attacks made for its defense are left out: the worst case says nothing about that defense")
    write_results(out, "evaluate", opened, measured)
    if save_attacked is not None:
        save_images(save_attacked, opened, made, measured)
