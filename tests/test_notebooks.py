"""Lessons are committed executed, whole and small; that their numbers still hold is nbval's part of `make test`."""

import copy
import re
import subprocess
import symtable
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from tools import notebooks as normalize_notebooks
from tools.notebooks import executed

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")
BYTES = 300_000
FETCHES = ("urlopen", "requests.", "pip install", "%pip", "wget", "download=True")
lesson = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_lessons():
    assert NOTEBOOKS


@lesson
def test_structure(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(faults(notebook)) == []
    assert path.stat().st_size < BYTES


@lesson
def test_numbers_hold(path):
    told = nbval(path)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-1000:]


@lesson
def test_map_and_plan_agree_with_the_lesson(path):
    """Both tables name every lesson with its title and its minutes."""
    first = nbformat.read(path, as_version=4).cells[0].source
    number, title = re.match(r"# (\d\d) · (.*)", first).groups()
    minutes = re.search(r"\*\*Time:\*\* (\d+) minutes", first)[1]
    assert f"| {number} {title} | {minutes} |" in (ROOT / "notebooks" / "INSTRUCTOR.md").read_text()
    if number != "00":
        start = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
        assert f"| {number} · {title} | {minutes} |" in start.cells[0].source


def test_figures_of_the_results_are_quoted_as_they_stand_there():
    def figures(text):
        return set(re.findall(r"(?<![\d.])[+-]?\d+\.\d(?![\d.])", text))

    results = (ROOT / "RESULTS.md").read_text()
    texts = [(ROOT / "notebooks" / "INSTRUCTOR.md").read_text()]
    for path in NOTEBOOKS:
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    quoting = [part for text in texts for part in text.split("\n\n") if "`RESULTS.md`" in part and figures(part)]
    assert len(quoting) > 2
    for paragraph in quoting:
        named = re.findall(r"`(cifar10-[\w-]+)`", paragraph)
        rows = [line for line in results.splitlines() if any(line.startswith(f"| {name} ") for name in named)]
        assert figures(paragraph) <= figures("\n".join(rows) if named else results)


def faults(notebook):
    """Everything in a notebook that is not as a lesson should be."""
    yield from faults_of_text(notebook)
    yield from faults_of_outputs(notebook)
    yield from faults_of_exercises(notebook)


def faults_of_markdown(notebook):
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    levels = [len(mark) for source in text for mark in re.findall(r"^(#+) ", without_code(source), flags=re.MULTILINE)]
    if levels[:1] != [1] or levels.count(1) != 1 or len(levels) < 3:
        yield "there must be one title and at least two headings below it"
    if any(below > above + 1 for above, below in pairwise(levels)):
        yield "a level of headings is left out"
    for source in text:
        if any(len(words) < 40 for words in re.findall(r"!\[([^\]]*)\]", source)):
            yield "a picture in the text has no alternative text"


def faults_of_text(notebook):
    first, code = notebook.cells[0].source, code_cells(notebook)
    for key, form in {
        "title": r"\A# \d\d · \S",
        "objectives": r"\*\*You will\*\* \S",
        "prerequisites": r"\*\*Before:\*\* \S",
        "minutes": r"\*\*Time:\*\* \d+ minutes",
    }.items():
        if not re.search(form, first):
            yield f"the first cell does not state the {key}"
    yield from faults_of_markdown(notebook)
    if len({cell.id for cell in notebook.cells}) != len(notebook.cells):
        yield "two cells have one name"
    if 'DATA = "digits"' not in code[0].source:
        yield "the first code cell does not name the data set"
    for cell in code:
        if any(word in cell.source for word in FETCHES):
            yield f"{cell.id} fetches something"


def faults_of_outputs(notebook):
    code = code_cells(notebook)
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "it was not executed once, top to bottom"
    if "widgets" in notebook.metadata:
        yield "the state of widgets is in the file"
    for cell in code:
        if "execution" in cell.metadata:
            yield f"{cell.id} has times"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{cell.id} complains"
            words = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in output.get("data", {}) and len(words) < 40:
                yield f"{cell.id} shows a picture without alternative text"


def faults_of_exercises(notebook):
    code = code_cells(notebook)
    asked = [i for i, cell in enumerate(code) if "predict(" in cell.source and "choice=None" in cell.source]
    if not asked or not any(".explain(" in cell.source for cell in code[asked[0] + 1 :]):
        yield "no prediction comes before its explanation"
    exercises = [i for i, cell in enumerate(code) if "exercise" in tags(cell)]
    if not exercises:
        yield "there is no exercise"
    for i in exercises:
        cell, answer = code[i], code[i + 1] if i + 1 < len(code) else None
        if printed(cell) != "not done yet":
            yield f"{cell.id} has no stub and check that say it is not done"
        if answer is None or "solution" not in tags(answer) or printed(answer) != "right":
            yield f"{cell.id} is not followed by a solution that passes its check"
        elif not answer.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"{answer.id} can be read at once"
    solutions = [cell for cell in code if "solution" in tags(cell)]
    others = [cell for cell in code if "solution" not in tags(cell)]
    alone = set().union(*map(given, solutions)) - set().union(*map(given, others))
    for cell in others:
        if missing := alone & used(cell):
            yield f"{cell.id} needs {', '.join(sorted(missing))} from a solution, which students' copies do not have"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def without_code(source):
    return re.sub(r"^```.*?^```", "", source, flags=re.MULTILINE | re.DOTALL)


def tags(cell):
    return cell.metadata.get("tags", [])


def printed(cell):
    """The last line that a cell prints."""
    lines = "".join(output.get("text", "") for output in cell.outputs).splitlines()
    return lines[-1] if lines else ""


def scope(cell):
    return symtable.symtable(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE), cell.id, "exec")


def given(cell):
    """Names that a cell leaves behind for others."""
    return {symbol.get_name() for symbol in scope(cell).get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def used(cell):
    """Names that a cell takes from outside its functions."""
    outside = {symbol.get_name() for symbol in scope(cell).get_symbols() if symbol.is_referenced()}
    inner = list(scope(cell).get_children())
    while inner:
        table = inner.pop()
        inner += table.get_children()
        outside |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return outside


# That the tests above can fail: every fault is planted into a copy.


@pytest.fixture(scope="module")
def good():
    return nbformat.read(NOTEBOOKS[0], as_version=4)


def first_code(notebook, tag=None):
    return next(cell for cell in code_cells(notebook) if tag is None or tag in tags(cell))


def pictures(notebook):
    return [o for c in code_cells(notebook) for o in c.outputs if "image/png" in o.get("data", {})]


def with_picture(notebook):
    return pictures(notebook)[0]


def rewrite(notebook, old, new):
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)


PLANTED = {
    "does not state the minutes": lambda n: rewrite(n, " minutes", " hours"),
    "does not state the objectives": lambda n: rewrite(n, "**You will**", "You will"),
    "one title": lambda n: rewrite(n, "\n## ", "\n# "),
    "level of headings": lambda n: n.cells.append(nbformat.v4.new_markdown_cell("#### Deep")),
    "in the text": lambda n: n.cells.append(nbformat.v4.new_markdown_cell("![plot](plot.png)")),
    "one name": lambda n: n.cells.append(n.cells[0]),
    "does not name the data set": lambda n: rewrite(n, "DATA =", "data ="),
    "fetches something": lambda n: n.cells.append(nbformat.v4.new_code_cell("%pip install x")),
    "executed once": lambda n: first_code(n).update(execution_count=None),
    "state of widgets": lambda n: n.metadata.update(widgets={}),
    "has times": lambda n: first_code(n).metadata.update(execution={}),
    "complains": lambda n: first_code(n).outputs.append(nbformat.v4.new_output("stream", name="stderr", text="!")),
    "without alternative text": lambda n: with_picture(n).metadata["image/png"].clear(),
    "no prediction": lambda n: rewrite(n, ".explain(", ".answer("),
    "no exercise": lambda n: [cell.metadata.clear() for cell in n.cells],
    "no stub": lambda n: first_code(n, "exercise").outputs.clear(),
    "passes its check": lambda n: first_code(n, "solution").outputs.clear(),
    "read at once": lambda n: first_code(n, "solution").metadata.pop("jupyter"),
    "students' copies": lambda n: n.cells.append(nbformat.v4.new_code_cell(*given(first_code(n, "solution")))),
}


@pytest.mark.parametrize("told", PLANTED)
def test_a_planted_fault_is_found(good, told):
    notebook = copy.deepcopy(good)
    PLANTED[told](notebook)
    assert any(told in fault for fault in faults(notebook)), list(faults(notebook))


def test_what_nbval_catches(tmp_path):
    """A changed number, a broken cell and an unknown magic fail; a good cell does not."""
    notebook = nbformat.v4.new_notebook()
    sources = {"print(1 + 1)": "2\n", "print(2 + 1)": "4\n", "1 / 0": "", "%nosuchmagic": "", "print(5)": "5\n"}
    for count, (source, text) in enumerate(sources.items(), 1):
        cell = nbformat.v4.new_code_cell(source, execution_count=count)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        notebook.cells.append(cell)
    words = "UsageError: Line magic function `%nosuchmagic` not found.\n"
    complaint = nbformat.v4.new_output("stream", name="stderr", text=words)
    notebook.cells[3].outputs = [complaint]  # even where it is expected
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    told = nbval(tmp_path / "changed.ipynb").stdout
    assert "mismatch 'stdout'" in told
    assert "ZeroDivisionError" in told
    assert "the cell ended with UsageError" in told
    assert "3 failed, 2 passed" in told


def test_executing_a_lesson_again_gives_the_same_bytes():
    path = NOTEBOOKS[0]
    first, _ = executed(path)
    again, _ = executed(path)
    assert nbformat.writes(first) == nbformat.writes(again)
    committed = nbformat.read(path, as_version=4)
    for picture in (*pictures(first), *pictures(committed)):  # another version of matplotlib draws other ones
        picture.data.pop("image/png")
    assert nbformat.writes(first) == nbformat.writes(committed)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """What `make student` and `make handouts` write of one lesson."""
    folder = tmp_path_factory.mktemp("copies")
    recipes = (ROOT / "Makefile").read_text().replace("$(BIN)", str(Path(sys.executable).parent))
    for target in ("student", "handouts"):
        command = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", recipes, flags=re.MULTILINE)[1]
        command = command.replace(f"runs/{target}", str(folder)).replace("notebooks/*.ipynb", str(NOTEBOOKS[0]))
        subprocess.run(command, shell=True, check=True, cwd=ROOT, capture_output=True)
    return folder


def test_students_copies_have_no_solutions(copies):
    notebook = nbformat.read(copies / NOTEBOOKS[0].name, as_version=4)
    lesson = nbformat.read(NOTEBOOKS[0], as_version=4)
    assert [cell.source for cell in notebook.cells] == [c.source for c in lesson.cells if "solution" not in tags(c)]
    assert not any(cell.outputs for cell in code_cells(notebook))


def test_handouts_have_pictures_that_are_described_and_no_solutions(copies):
    page = (copies / NOTEBOOKS[0].with_suffix(".html").name).read_text()
    lesson = nbformat.read(NOTEBOOKS[0], as_version=4)
    assert with_picture(lesson).metadata["image/png"]["alt"] in re.sub(r"\s+", " ", page)
    assert "not done yet" in page
    assert "def solution" not in page


def nbval(path):
    """Execute a lesson in a kernel of its own and compare every text output with the committed one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.nbval_strict"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"]
    command += [f"--nbval-sanitize-with={SANITIZE}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_what_cannot_be_executed_is_told_before_anything_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(normalize_notebooks, "executed", lambda *words: pytest.fail("a lesson was executed"))
    lesson, bare, other = tmp_path / "lesson.ipynb", tmp_path / "bare.ipynb", tmp_path / "other.ipynb"
    lesson.write_bytes(NOTEBOOKS[0].read_bytes())
    nbformat.write(nbformat.v4.new_notebook(), bare)
    other.write_text("{}")
    for words, told in (
        ((lesson, "--data", "cifar10"), "--data needs --out"),
        ((lesson, "--data", "cifar10", "--out", tmp_path / "x" / ".."), "--data needs --out"),
        ((NOTEBOOKS[0], "--data", "cifar10", "--out", NOTEBOOKS[0].parent), "--data needs --out"),
        ((lesson, "--data", "imagenet", "--out", tmp_path / "new"), "choose from"),
        ((tmp_path / "none.ipynb",), "No such file"),
        ((bare, "--data", "cifar10", "--out", tmp_path / "new"), "the first code cell of"),
        ((lesson, other), "other.ipynb is no notebook"),
    ):
        with pytest.raises(SystemExit) as end:
            normalize_notebooks.main([str(word) for word in words])
        assert end.value.code == 2
        assert told in capsys.readouterr().err
