"""The house rules that can be counted: short files, short functions, plain words, names with one meaning."""

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robustviz"
FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))

LINES, BODY = 300, 60
"""Most lines of a file, and of a function body without signature and docstring."""

ODD = [
    r"\banew\b",
    r"\bmeets\b",
    r"\bmet with\b",
    r"\bprocessors?\b",
    r"\bso many\b",
    r"\basked alone\b",
    r"\bdear\b",
    r"\bgives? it again\b",
    r"\bgiven again\b",
    r"^\s+\w+: (Of|As in|Likewise)\b",
    r"\bLikewise\b",
]
"""Words and phrases that no native speaker would write here."""

ALLOWED_WORDS = {"studies/cas.py": "the name of a remark in data/results/cas.json"}
"""Files that may hold such a word, and why."""

SAID_WITH_MODULE = {"load"}
"""Names that are always said with their module: `checkpoints.load` reads a network, `data.load` a data set."""

OLD = {"widgets"}
"""Panels that the explorers replace one by one; they keep their names until they go."""


def bodies(tree):
    """Every function with the lines of its body: statements after the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (statements[-1].end_lineno - statements[0].lineno + 1) if statements else 0


def top_level_names(tree):
    """Public names that a module defines itself."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@every_file
def test_files_and_functions_fit_in_a_head(file):
    text = file.read_text()
    assert len(text.splitlines()) <= LINES
    long = {name: count for name, count in bodies(ast.parse(text)) if count > BODY}
    assert not long


@every_file
def test_words_are_plain(file):
    if str(file.relative_to(PACKAGE)) in ALLOWED_WORDS:
        return
    lines = file.read_text().splitlines()
    odd = {f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) for rule in ODD if re.search(rule, line)}
    assert not odd


def test_a_public_name_has_one_meaning():
    homes = defaultdict(set)
    for file in FILES:
        for name in top_level_names(ast.parse(file.read_text())):
            place = file.relative_to(PACKAGE)
            command = place.parts[0] == "cli" and name == place.stem  # a command has the name of what it calls
            if not name.startswith("_") and not command and place.parts[0] not in OLD:
                homes[name].add(str(place))
    twice = {name: sorted(files) for name, files in homes.items() if len(files) > 1 and name not in SAID_WITH_MODULE}
    assert not twice


def test_the_rules_see_what_they_should():
    tree = ast.parse('def f():\n    """Doc.\n    """\n    a = 1\n    return a\n\nX = 1\nY: int = 2\n')
    assert dict(bodies(tree)) == {"f": 2}
    assert list(top_level_names(tree)) == ["f", "X", "Y"]
    assert any(re.search(rule, "        steps: Of PGD.") for rule in ODD)


def test_hooks_and_hosted_checks_run_what_the_makefile_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy", "architecture"}
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["everything"]["steps"]
    assert steps[-1]["run"] == "bash .ci/run"
    assert (ROOT / ".ci/run").is_file()


def test_complexity_is_bounded():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "C901" in ruff["select"]
    assert ruff["mccabe"]["max-complexity"] == 10
