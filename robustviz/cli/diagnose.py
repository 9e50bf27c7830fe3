"""The command `diagnose`."""

from pathlib import Path

from robustviz import diagnostics
from robustviz.cli.app import Count, Seed, command_line, say, writable
from robustviz.cli.target import Opened, Target, knows_defenses
from robustviz.evaluation.suites import adaptive_attacks
from robustviz.models import Classifier
from robustviz.pages.diagnosis import diagnosis_page
from robustviz.records import write_atomic
from robustviz.tensors import seeded


@knows_defenses
def diagnose(
    target: Target,
    *,
    undefended: str | None = None,
    adaptive: bool = True,
    steps: Count = 20,
    queries: Count = 1000,
    seed: Seed = 0,
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Ask whether the robustness of a trained network is real: fifteen checks, each with reason and source.

    Looks for what makes a network seem more robust than it is: masked gradients, randomness, attacks that are too
    weak. A check that passes is no proof; robust accuracy stays an upper bound.

    Args:
        target: What is measured; the images are one batch.
        undefended: A network of the same task without the defense, such as digits-standard; two checks need one.
        adaptive: Also run the attacks made for the network's defense, if it has one.
        steps: Steps of the iterated attacks.
        queries: Proposals of each black-box attack.
        seed: Seed of everything random.
        out: Folder for the report: index.html, diagnosis.txt and diagnosis.json.
        force: Replace these files if they exist.
    """
    names = ("index.html", "diagnosis.txt", "diagnosis.json")
    if out is not None:
        writable("--out", out)
    if out is not None and not force and (existing := [out / name for name in names if (out / name).exists()]):
        raise FileExistsError(f"--out holds {existing[0]}; choose another folder or add --force")
    opened = target.opened(200)
    model, test_set, threat = opened.model, opened.images, opened.threat
    plain = None if undefended is None else _comparable(undefended, opened, target)
    say(str(opened))
    found = diagnostics.diagnose(
        model,
        test_set.images,
        test_set.labels,
        threat=threat,
        attacks=adaptive_attacks(model, threat) if adaptive else None,
        undefended=plain,
        steps=steps,
        queries=queries,
        generator=seeded(seed),
    )
    say(found.to_text())
    if out is not None:
        write_atomic(out / "diagnosis.txt", found.to_text())
        found.save(out / "diagnosis.json")
        title = f"Is the robustness of {opened.name} real?"
        diagnosis_page(found, out / "index.html", title=title, command=command_line())
        say(f"open {out / 'index.html'}")


def _comparable(name: str, opened: Opened, target: Target) -> Classifier:
    """Load the network to compare with, made for the classes and the shape of these images.

    Raises:
        ValueError: If it was made for others.
    """
    try:
        return target.beside(name, opened.data).opened(1).model
    except ValueError as error:
        raise ValueError(f"--undefended {name} does not suit {opened.name}: {error}") from error
