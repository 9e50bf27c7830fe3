"""The command `diagnose`."""

from pathlib import Path

from robustviz import checkpoints as stored
from robustviz import diagnostics
from robustviz.cli.app import Count, Seed, command_line, say, writable
from robustviz.cli.target import Target, knows_defenses, shape_of
from robustviz.data import ImageSet
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
    plain = None if undefended is None else _comparable(undefended, test_set).to(test_set.images.device)
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


def _comparable(name: str, test_set: ImageSet) -> Classifier:
    """Load the network to compare with, made for the classes and the shape of these images.

    Raises:
        ValueError: If its record says that it was made for others.
    """
    model, record = stored.load(name)
    shape = list(test_set.images.shape[1:])
    made_for = shape_of(record)
    if made_for not in (shape, [shape[0], "any", "any"]):
        raise ValueError(f"--undefended {name} was made for images of shape {made_for}, but these have shape {shape}")
    if (classes := tuple(record.settings.get("classes", ()))) != test_set.classes:
        raise ValueError(f"--undefended {name} was trained on the classes {classes}, but these are {test_set.classes}")
    return model
