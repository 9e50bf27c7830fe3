"""The command `checkpoints`."""

import shlex

from robustviz import checkpoints as stored
from robustviz.cli.app import say
from robustviz.evaluation import CLEAN
from robustviz.records import RunRecord, table


def checkpoints() -> None:
    """List the trained networks that come with robustviz, their accuracy, and how each was trained."""
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
        commands.append(f"{name}\n    {safe(record.command, name)}")
    say(table(["name", "data", "network", "epsilon", "accuracy on test images"], rows))
    say("\nReproduce with:\n" + "\n".join(commands))


def safe(command: str, name: str) -> str:
    """Return a recorded command that writes to a run folder, so that pasting it replaces no shipped network."""
    words = [word for word in shlex.split(command) if word != "--force"]
    if "--out" in words:
        words[words.index("--out") + 1] = f"runs/{name}"
    return shlex.join(words)
