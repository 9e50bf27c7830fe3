"""Every option of every command refuses what it cannot take: at once, in one line that names it, without a trace.

The options and their types are read off the commands, so that a new option is in the table at once.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest

from robustviz import cli
from robustviz.cli.app import COMMANDS, app

USUAL = {
    "anatomy": ("digits-pgd-wnll", "--images", "5", "--cw-images", "2", "--cw-steps", "1", "--steps", "1"),
    "evaluate": ("digits-pgd", "--images", "10", "--attacks", "fgsm"),
    "attack-suite": ("digits-pgd", "--images", "10", "--attacks", "noise", "--queries", "1"),
    "diagnose": ("digits-pgd", "--images", "10", "--steps", "1", "--queries", "1"),
    "features": ("digits-pgd", "--images", "20", "--no-umap", "--strengths", "2", "--steps", "1"),
    "certify": (
        "digits-pgd",
        "--images",
        "3",
        "--n0",
        "2",
        "--n",
        "3",
        "--draws",
        "1",
        "--steps",
        "1",
        "--radii",
        "0.1",
    ),
    "explore": ("attack", "digits-pgd", "--images", "5", "--shown", "2"),
    "train": ("--epochs", "1", "--images", "50"),
    "compare": ("wnll",),
    "results": ("digits-pgd", "--data", "digits"),
    "fetch": ("mnist",),
}
"""What is typed besides, small enough to end soon if a bad value is taken; the last word of an option counts."""

NO_NUMBER = ("", " ", "nan", "inf", "-inf", "abc", "1_0x")
TABLE = {
    int: (*NO_NUMBER, "1.5", "1e3", "-1", str(10**30)),
    float: (*NO_NUMBER, "-1", "1e999"),
    str: ("", " ", "no-such-thing", "n" * 300, "afile", "afolder", "afile/within"),
    Path: ("", " ", "afile/within"),
    "choice": ("", "nope"),
}
ZERO = {"--seed", "--epsilon", "--step-size", "--weight-decay", "--validation"}
"""Options whose smallest value is 0; the others count something, and 0 is refused."""


def kind(argument):
    """What is written for an option: the key of its row in the table; None for a switch."""
    types = [argument.hint, *get_args(argument.hint)]
    return next((type_ for type_ in (bool, int, float, Path, str) if type_ in types), "choice")


def options(command):
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    return [argument for argument in arguments if argument.name.startswith("--") and argument.parse]


def said(monkeypatch, capsys, words):
    """What the program says when it ends with an error; None if it does what it was told."""
    monkeypatch.setattr(sys, "argv", ["robustviz", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return end.value.code if isinstance(end.value.code, str) else None


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "afolder").mkdir()
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path.parent / "cache"))
    return tmp_path


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "checkpoints"])
def test_every_option_refuses_what_it_cannot_take(command, monkeypatch, capsys, elsewhere):
    faults = []
    for argument in options(command):
        for value in (*TABLE.get(kind(argument), ()), *(["0"] if kind(argument) in (int, float) else [])):
            option = argument.name
            if (value == "0" and option in ZERO) or (option == "--root" and "/" in value):
                continue  # a root is only looked into when a data set is not there
            words = [command, *USUAL.get(command, ()), f"{option}={value}"]
            if option == "--checkpoint":
                del words[1]
            line = said(monkeypatch, capsys, words)
            named = option[2:].replace("-", "[-_ ]?")
            if line is None:
                faults.append(f"{option} {value!r} was taken")
            elif "\n" in line or not line.startswith("robustviz: ") or len(line) > 1500:
                faults.append(f"{option} {value!r} is answered by {line!r}")
            elif not re.search(named, line) and repr(value) not in line and (not value.strip() or value not in line):
                faults.append(f"{option} {value!r}: {line!r} names neither the option nor the value")
            for left in {path.name for path in elsewhere.iterdir()} - {"afile", "afolder"}:
                faults.append(f"{option} {value!r} left {left}")
                shutil.rmtree(elsewhere / left)
    assert not faults, "\n".join(faults)
