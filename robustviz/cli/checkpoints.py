"""The command `checkpoints`."""

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
        commands.append(f"{name}\n    {record.command}")
    say(table(["name", "data", "network", "epsilon", "accuracy on test images"], rows))
    say("\nReproduce with:\n" + "\n".join(commands))
