"""environment.yml and pyproject.toml name the same packages with the same bounds."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())

CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
NOT_ON_CONDA_FORGE = {"foolbox", "graphlearning", "pyautoattack"}  # or not in the version that is needed


def bounds(requirements):
    """{name: lower bound} of requirements, all of the form `name>=version`."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in requirements]
    assert all(found), f"each is name>=version: {requirements}"
    return {match[1].lower(): match[2] for match in found}


def test_same_packages_and_bounds():
    extras = PROJECT["optional-dependencies"]
    pip = bounds([*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)])
    expected = {CONDA_NAMES.get(name, name): bound for name, bound in pip.items() if name not in NOT_ON_CONDA_FORGE}
    conda = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str) and entry != "pip"]
    assert bounds(conda) == expected | {"python": PROJECT["requires-python"].removeprefix(">=")}


def test_packages_left_out_are_named():
    text = (ROOT / "environment.yml").read_text()
    pip = {entry for extra in PROJECT["optional-dependencies"].values() for entry in extra} | {*PROJECT["dependencies"]}
    for name in NOT_ON_CONDA_FORGE:
        assert f'"{next(entry for entry in pip if entry.startswith(name))}"' in text


def test_ends_with_the_library_itself():
    assert ENVIRONMENT["dependencies"][-1] == {"pip": ["-e ."]}
    assert "pip" in ENVIRONMENT["dependencies"]
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
