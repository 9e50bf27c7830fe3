"""Commands about what is there: `fetch` for data sets and `checkpoints` for trained networks."""

from pathlib import Path
from typing import Literal

from robustviz import checkpoints as stored
from robustviz.cli.app import app, say
from robustviz.data import DOWNLOADS, torchvision_set
from robustviz.evaluation import CLEAN
from robustviz.records import RunRecord, table


@app.command
def fetch(name: Literal["cifar10", "svhn", "mnist"], /, *, root: Path = DOWNLOADS) -> None:
    """Download a data set with torchvision, which shows the progress and checks the sums.

    Args:
        name: cifar10 (170 MB), svhn (250 MB) or mnist (12 MB).
        root: Where to put it; default data/downloads.
    """
    image_set = torchvision_set(name, root, part="all", download=True)
    say(f"{name}: {len(image_set)} images of {len(image_set.classes)} classes in {root}")


@app.command
def checkpoints() -> None:
    """List the trained networks that come with robustviz, what they reach, and the commands that give them again."""
    rows, commands = [], []
    for name, path in stored.shipped().items():
        record = RunRecord.load(path.with_suffix(".json"))
        settings, accuracy = record.settings, record.results["accuracy"]
        attacks = [condition for condition in accuracy if condition != CLEAN]
        under = attacks[0] if len(attacks) == 1 else f"worst of {len(attacks)} attacks"
        figures = f"clean {accuracy[CLEAN]:.1%}, {under} {record.results['worst_case']:.1%}"
        epsilon = f"{settings['threat']['norm']} {settings['threat']['epsilon']:.4g}"
        made = settings["architecture"]
        rows.append([name, str(settings["data"]), made.get("network", made["function"]), epsilon, figures])
        commands.append(f"{name}\n    {record.command}")
    say(table(["name", "data", "network", "epsilon", "accuracy on test images"], rows))
    say("\nGiven again by:\n" + "\n".join(commands))
