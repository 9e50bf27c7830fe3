"""Execute lessons so that their bytes depend on their content alone: `python tests/normalize_notebooks.py [FILE ...]`.

Cells that take more than five seconds are listed; each must state its time in a comment.
"""

import sys
from datetime import datetime
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def executed(path: Path) -> tuple[nbformat.NotebookNode, dict[str, float]]:
    """Run a lesson from a clean kernel, top to bottom, in its own folder.

    Returns:
        The lesson without times and widget state, and the seconds that each code cell took, by the cell's name.
    """
    notebook = nbformat.read(path, as_version=4)
    runner = ExecutePreprocessor(timeout=300, kernel_name="python3", coalesce_streams=True)  # however they came in
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


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook, seconds = executed(Path(name))
        nbformat.write(notebook, name)
        slow = ", ".join(f"{cell} {time:.0f} s" for cell, time in seconds.items() if time > 5)
        print(f"{name}: {sum(seconds.values()):.0f} s; above 5 s: {slow or 'none'}")
