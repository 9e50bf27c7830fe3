"""The command `diagnose`."""

import shlex
import sys
from pathlib import Path

from robustviz import checkpoints as stored
from robustviz.cli.app import Count, Radius, Seed, app, say, writable
from robustviz.cli.target import opened, retrained
from robustviz.data import DOWNLOADS, ImageSet
from robustviz.diagnostics import diagnose
from robustviz.models import Classifier
from robustviz.pages.diagnosis import diagnosis_page
from robustviz.records import write_atomic
from robustviz.studies import attacks_on_defenses
from robustviz.tensors import seeded
from robustviz.types import Norm


@app.command(name="diagnose")
def diagnose_command(
    checkpoint: str,
    *,
    data: str | None = None,
    epsilon: Radius = None,
    norm: Norm | None = None,
    images: Count = 200,
    undefended: str | None = None,
    adaptive: bool = True,
    steps: Count = 20,
    queries: Count = 1000,
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    retrain: bool = False,
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Ask whether the robustness of a trained network is real: fifteen checks with number, reason and source.

    Looks for what makes a network seem more robust than it is: masked gradients, randomness, attacks that are too
    weak. A check that passes is no proof; robust accuracy stays an upper bound.

    Args:
        checkpoint: A run folder, a .safetensors file, or a name that `robustviz checkpoints` lists.
        data: As in `robustviz train`; default: what the network was trained on.
        epsilon: How far the attacker may go, such as 8/255; default: what the record of the network says.
        norm: linf or l2; default: what the record says.
        images: How many test images, drawn evenly from the classes, all if there are fewer; they are one batch.
        undefended: A network of the same task without the defense, such as digits-standard; two checks need one.
        adaptive: Also run the attacks made for the network's defense, if it has one.
        steps: Steps of the iterated attacks.
        queries: Proposals of each black-box attack.
        seed: Of everything random.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        retrain: First train the network anew, by the command in its record, into runs/retrained.
        out: Folder for the report: index.html, diagnosis.txt and diagnosis.json.
        force: Replace these files if they exist.
    """
    names = ("index.html", "diagnosis.txt", "diagnosis.json")
    if out is not None:
        writable("--out", out)
    if out is not None and not force and (existing := [out / name for name in names if (out / name).exists()]):
        raise FileExistsError(f"--out holds {existing[0]}; choose another folder or add --force")
    checkpoint = retrained(checkpoint, data, root) if retrain else checkpoint
    model, test_set, threat = opened(checkpoint, data, norm, epsilon, images, device, root)
    plain = None if undefended is None else _comparable(undefended, test_set).to(test_set.images.device)
    say(f"{checkpoint} on {len(test_set)} test images of {test_set.name}, {threat.norm}, epsilon {threat.epsilon:.4g}")
    found = diagnose(
        model,
        test_set.images,
        test_set.labels,
        threat=threat,
        attacks=attacks_on_defenses(model, threat) if adaptive else None,
        undefended=plain,
        steps=steps,
        queries=queries,
        generator=seeded(seed),
    )
    say(found.to_text())
    if out is not None:
        write_atomic(out / "diagnosis.txt", found.to_text())
        found.save(out / "diagnosis.json")
        command = shlex.join(["robustviz", *sys.argv[1:]])
        diagnosis_page(found, out / "index.html", title=f"Is the robustness of {checkpoint} real?", command=command)
        say(f"open {out / 'index.html'}")


def _comparable(name: str, test_set: ImageSet) -> Classifier:
    """Load the network to compare with, made for the classes and the shape of these images.

    Raises:
        ValueError: If its record says that it was made for others.
    """
    model, record = stored.load(name)
    shape = list(test_set.images.shape[1:])
    made_for = record.settings.get("image_shape", [record.settings["architecture"]["channels"], *shape[1:]])
    if made_for != shape:
        raise ValueError(f"--undefended {name} was made for images of shape {made_for}, but these have shape {shape}")
    if (classes := tuple(record.settings.get("classes", ()))) != test_set.classes:
        raise ValueError(f"--undefended {name} was trained on the classes {classes}, but these are {test_set.classes}")
    return model
