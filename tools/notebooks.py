"""Execute lessons so that their bytes depend on their content alone: `python tools/notebooks.py [FILE ...]`.

With `--data cifar10 --out FOLDER` copies are executed on other images. Cells that take more than five seconds are
listed; each must state its time in a comment.
"""

import argparse
from datetime import datetime
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
DATA = 'DATA = "digits"'


def executed(path: Path, data: str = "digits") -> tuple[nbformat.NotebookNode, dict[str, float]]:
    """Run a lesson from a clean kernel, top to bottom, in its own folder.

    Args:
        path: Of the lesson.
        data: What the first code cell of the copy that is run chooses.

    Returns:
        The lesson without times and widget state, and the seconds that each code cell took, by the cell's name.
    """
    notebook = lesson(path, data)
    timeout = 300 if data == "digits" else 3600
    runner = ExecutePreprocessor(timeout=timeout, kernel_name="python3", coalesce_streams=True)  # however they came in
    runner.preprocess(notebook, {"metadata": {"path": path.parent}})
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    seconds = {}
    for cell in notebook.cells:
        times = cell.metadata.pop("execution", None)
        if times:
            started, ended = (
                datetime.fromisoformat(times[key].replace("Z", "+00:00"))
                for key in ("iopub.execute_input", "shell.execute_reply")
            )
            seconds[cell.id] = (ended - started).total_seconds()
        for output in cell.get("outputs", ()):
            # Its id is drawn at random and names a widget that is gone; what stays of a panel is its state as text.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook, seconds


def lesson(path: Path, data: str) -> nbformat.NotebookNode:
    """Read a lesson and let its first code cell choose the images.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no notebook, or other images are wanted and its first code cell does not choose.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is no notebook ({error!r})") from error
    if data != "digits":
        first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
        if first is None or DATA not in first.source:
            raise ValueError(f"the first code cell of {path} must hold {DATA}")
        first.source = first.source.replace(DATA, f"DATA = {data!r}")
    return notebook


def main(words: list[str] | None = None) -> None:
    """Execute the lessons that the command line names."""
    parser = argparse.ArgumentParser(description="Execute lessons, in place unless --out names a folder.")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb")))
    parser.add_argument("--data", default="digits", choices=("digits", "cifar10"), help="images to execute them on")
    parser.add_argument("--out", type=Path, help="folder for the executed copies")
    chosen = parser.parse_args(words)
    targets = {path: path if chosen.out is None else chosen.out / path.name for path in chosen.files}
    sources = {path.resolve() for path in (*chosen.files, *NOTEBOOKS.glob("*.ipynb"))}
    if chosen.data != "digits" and any(target.resolve() in sources for target in targets.values()):
        parser.error("--data needs --out, another folder for copies: the lessons themselves show digits")
    try:
        for path in targets:
            lesson(path, chosen.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for path, target in targets.items():
        notebook, seconds = executed(path, chosen.data)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        slow = ", ".join(f"{cell} {time:.0f} s" for cell, time in seconds.items() if time > 5)
        print(f"{target}: {sum(seconds.values()):.0f} s; above 5 s: {slow or 'none'}", flush=True)


if __name__ == "__main__":
    main()
