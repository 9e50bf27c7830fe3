"""The recipes for heirs name files that are there, and say truly what else knows of an attack or a defense."""

import re
import subprocess
from inspect import signature
from pathlib import Path

import pytest

from robustviz import attacks, defenses
from robustviz.defenses import DEFENSES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(zip(*[iter(re.split(r"^## (Add .*)$", TEXT, flags=re.MULTILINE)[1:])] * 2, strict=True))


def files(recipe):
    """Paths in the first column of a recipe's table."""
    rows = [line.split("|")[1] for line in RECIPES[recipe].splitlines() if line.startswith("| `")]
    return [path for row in rows for path in re.findall(r"`([^`]+)`", row)]


def test_there_is_a_recipe_for_each_kind_of_heir():
    assert set(RECIPES) == {"Add an attack", "Add a defense", "Add an explorer", "Add a lesson"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_file_of_a_recipe_is_there(recipe):
    assert files(recipe)
    assert [path for path in files(recipe) if not (ROOT / path).exists()] == []


def test_paths_in_the_text_are_there():
    paths = set(re.findall(r"`((?:tests|robustviz|notebooks|tools)/[\w./]+)`", TEXT))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("record", DEFENSES, ids=lambda record: record.name)
def test_only_its_own_file_and_the_list_know_a_defense(record):
    """What the recipe promises: outside its file, the list, studies and prose, no module of the package names it."""
    symbol = next(name for name, value in vars(defenses).items() if value is record)
    found = subprocess.run(
        ["git", "grep", "-lw", symbol, "--", "robustviz"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    known = [path for path in found if not path.startswith(("robustviz/defenses/", "robustviz/studies/"))]
    assert known == []


def test_every_attack_is_in_the_table_of_properties():
    table = (ROOT / "tests/attacks/test_properties.py").read_text()
    made = [
        name
        for name in attacks.__all__
        if [*signature(getattr(attacks, name)).parameters][:3] == ["model", "images", "labels"]
        and {"threat", "norm", "steps"} & set(signature(getattr(attacks, name)).parameters)
        and "attack" not in signature(getattr(attacks, name)).parameters
    ]
    assert {"pgd", "apgd", "fmn", "carlini_wagner", "square"} <= set(made)
    assert [name for name in made if not re.search(rf"\b{name}\b", table)] == []


def test_methods_of_the_readme_name_every_attack_and_defense():
    methods = (ROOT / "README.md").read_text().partition("## Methods")[2]
    assert [record.source for record in DEFENSES if record.source.rpartition("arXiv ")[2] not in methods] == []
