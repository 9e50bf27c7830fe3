"""No module but a defense's own names a defense: the rest of the package walks the records."""

import ast
import re
from pathlib import Path

import pytest

import robustviz
from robustviz.defenses import DEFENSES

PACKAGE = Path(robustviz.__file__).parent

MAY = (
    "defenses/",
    "studies/",
    "pages/",
    "widgets/",
    "explorers/",
    "cli/explore.py",
    "lessons",
    "benchmark/claims.py",
    "benchmark/page.py",
)
MAY += ("geometry/votes.py", "cli/anatomy.py")
"""Who may name defenses: their own files, and what is written about some of them."""

WORDS = [rf"(?<![a-zA-Z]){defense.name}(?![a-z])|{defense.name.upper()}" for defense in DEFENSES]
WORDS += [rf"(?i:{defense.name})" for defense in DEFENSES if len(defense.name) > 3]
NAMED = re.compile("|".join(WORDS))


def code_of(tree):
    """Identifiers and strings of a module, docstrings left out: of modules, classes, functions and values."""
    told = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            told |= {id(each.value) for each in body if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        else:
            yield getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) or ""


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not str(path.relative_to(PACKAGE)).startswith(MAY)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_defense_is_named(file):
    found = {word for word in code_of(ast.parse(file.read_text())) if isinstance(word, str) and NAMED.search(word)}
    assert not found, f"{file.relative_to(PACKAGE)} must walk `defenses.known()` and name none, but has {found}"


def test_the_search_finds_names_and_passes_other_words():
    code = (
        '"""About TVM."""\nfrom a.tvm import b\nclass WNLLHead: ...\nx.with_cas("the worst case", cas=1, CASBlock=2)\n'
    )
    found = [word for word in code_of(ast.parse(code)) if isinstance(word, str) and NAMED.search(word)]
    assert sorted(found) == ["WNLLHead", "a.tvm", "with_cas"]
    assert not NAMED.search("a cascade of cases")
