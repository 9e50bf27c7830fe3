"""Files that measuring commands write: a whole record, or the table alone, by the ending of the file's name."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from robustviz.cli.app import command_line, new_file, say, unused
from robustviz.cli.target import Opened
from robustviz.distributed import processes
from robustviz.evaluation import RobustnessTable
from robustviz.evaluation.attacked import attacked_images
from robustviz.records import RunRecord, describe, write_atomic
from robustviz.types import Attack

TABLES: dict[str, Callable[[RobustnessTable], str]] = {
    ".csv": RobustnessTable.to_csv,
    ".tex": RobustnessTable.to_latex,
    ".md": RobustnessTable.to_markdown,
}
"""What a file with another ending than .json holds."""


def check_results(paths: Sequence[Path], force: bool) -> None:
    """Refuse names of result files that cannot be written, before anything is measured.

    Raises:
        ValueError: If the ending says nothing, two names are equal, or a folder cannot be written to.
        FileExistsError: If a file exists, unless `force`.
    """
    for path in paths:
        new_file("--out", path, force)
        if path.suffix not in (".json", *TABLES):
            raise ValueError(f"--out must end in .json, {', '.join(TABLES)}, which says what is written, got {path}")
    if len(set(paths)) < len(paths):
        raise ValueError(f"--out must name each file once, got {', '.join(map(str, paths))}")


def write_results(paths: Sequence[Path], command: str, opened: Opened, measured: RobustnessTable) -> None:
    """Write what was measured; of several processes that work together, only the first one writes.

    Args:
        paths: Files; .json is the whole record, and .csv, .tex and .md are the table.
        command: Name of the command.
        opened: What was measured.
        measured: The decisions.
    """
    for path in paths if processes().first else ():
        if path.suffix == ".json":
            record_of(command, opened, measured).save(path)
        else:
            write_atomic(path, TABLES[path.suffix](measured).rstrip("\n") + "\n")
    for path in paths:
        say(f"wrote {path}")


def check_saved(path: Path, force: bool) -> None:
    """Refuse a place for attacked images that is neither an .npz file nor a folder that can be written to.

    Raises:
        ValueError: If it cannot be written to, or another file is meant.
        FileExistsError: If the file exists or the folder is not empty, unless `force`.
    """
    if path.suffix == ".npz":
        new_file("--save-attacked", path, force, kind="file that ends in .npz")
    elif path.suffix:
        raise ValueError(f"--save-attacked must be a folder or a file that ends in .npz, got {path}")
    else:
        unused("--save-attacked", path, force)


def save_images(path: Path, opened: Opened, attacks: Mapping[str, Attack], measured: RobustnessTable) -> None:
    """Write the attacked images of a table and say how many still fool the network after rounding."""
    if not processes().first:
        return
    images = opened.images
    found = attacked_images(opened.model, images.images, images.labels, attacks, measured, threat=opened.threat)
    say(f"{found.summary()}\nwrote {found.save(path)}")


def record_of(command: str, opened: Opened, measured: RobustnessTable) -> RunRecord:
    """Say of a measurement what was measured and how, what came out, and how to reproduce it."""
    trained = opened.record
    settings = {
        "checkpoint": opened.name,
        "sha256": trained.results.get("sha256"),
        "architecture": trained.settings.get("architecture"),
        "source": trained.settings.get("source"),
        "trained_by": trained.command,
        "data": opened.data,
        "classes": list(opened.images.classes),
        "images": len(opened.images),
        "threat": describe(opened.threat),
    }
    results = {
        "accuracy": measured.accuracies(),
        "worst_case": measured.worst_case(),
        "table": json.loads(measured.to_json()),
    }
    return RunRecord(command, settings, results, command=command_line())
