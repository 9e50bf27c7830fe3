"""Lessons are committed executed, whole and small; that their numbers still hold is nbval's part of `make test`."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")
lesson = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_lessons():
    assert NOTEBOOKS


@lesson
def test_structure(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, top to bottom"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 300_000
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert re.search(r"\*\*Time:\*\* \d+ minutes", first)
    for cell in code:
        assert "execution" not in cell.metadata, "no times in the file"
        assert not any(word in cell.source for word in ("urlopen", "requests.", "!pip", "%pip", "download=True"))
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


@lesson
def test_numbers_hold(path):
    run_nbval(path)


def test_a_changed_number_is_caught(tmp_path):
    notebook = nbformat.v4.new_notebook(metadata=nbformat.read(NOTEBOOKS[0], as_version=4).metadata)
    cell = nbformat.v4.new_code_cell("print(1 + 1)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="3\n")]
    notebook.cells = [cell]
    copy = tmp_path / "changed.ipynb"
    nbformat.write(notebook, copy)
    with pytest.raises(AssertionError, match="mismatch"):
        run_nbval(copy)


def run_nbval(path):
    """Execute a lesson in a kernel of its own and compare every text output with the committed one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    command += ["--nbval-cell-timeout=120", f"--nbval-sanitize-with={SANITIZE}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
