import json
import os
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustviz import records
from robustviz.attacks import fgsm, pgd
from robustviz.objectives import cross_entropy, margin
from robustviz.records import RunRecord, describe, table, versions, write_atomic
from robustviz.types import Threat

PGD = describe(pgd)
KNOWN = {
    "function": "pgd",
    "threat": {"type": "Threat", "norm": "linf", "epsilon": 8 / 255},
    "steps": 10,
    "step_size": None,
    "restarts": 1,
    "random_start": True,
    "targeted": False,
    "objective": {"function": "cross_entropy"},
    "early_exit": False,
}


def test_describe_holds_every_default_and_no_argument_of_the_call():
    """A keyword more may be there one day; those of today are, with their values."""
    assert {name: setting for name, setting in PGD.items() if name in KNOWN} == KNOWN
    keywords = {
        name for name, parameter in signature(pgd).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert PGD.keys() - {"function", "revision"} == keywords - {"generator", "on_step"}
    assert describe(partial(pgd)) == PGD
    assert describe(fgsm).keys() == {"function", "threat", "objective", "targeted"}


def test_describe_names_positional_settings():
    def power(base, exponent, *, scale=1):
        return scale * base**exponent

    assert describe(partial(power, 2)) == {"function": "power", "scale": 1, "base": 2}
    assert describe(partial(partial(power, 2), 3, scale=4)) == {
        "function": "power",
        "scale": 4,
        "base": 2,
        "exponent": 3,
    }


def test_describe_of_nested_partials():
    threat = Threat("l2", 0.5)
    inner = partial(partial(pgd, steps=3, restarts=2), steps=7, threat=threat)
    described = PGD | {"steps": 7, "restarts": 2, "threat": {"type": "Threat", "norm": "l2", "epsilon": 0.5}}
    assert describe(inner) == described

    def wrapper(model, images, labels, /, *, attack, times=2, needed, generator=None, on_batch=None):
        raise AssertionError("is only described")

    assert describe(partial(wrapper, attack=inner)) == {"function": "wrapper", "attack": described, "times": 2}
    assert describe(partial(pgd, objective=margin))["objective"] == {"function": "margin"}


@dataclass(frozen=True)
class Setting:
    size: int
    inner: object


class Callback:
    def __call__(self):
        raise AssertionError("is only described")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.25, 0.25),
        ("word", "word"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({1: cross_entropy}, {"1": {"function": "cross_entropy"}}),
        (Setting(1, Path("a/b")), {"type": "Setting", "size": 1, "inner": "a/b"}),
        (torch.tensor(2.5), 2.5),
        (torch.zeros(2, 3), {"type": "Tensor", "shape": [2, 3]}),
        (nn.Linear(2, 3), "Linear"),
        (torch.Generator(), "Generator"),
        (torch.float32, "torch.float32"),
        (Callback(), "Callback"),  # and no address, which the next process would not have
        (Callback().__call__, "Callback.__call__"),
    ],
)
def test_describe_of_values(value, expected):
    described = describe(value)
    assert described == expected
    assert type(described) is type(expected)
    assert json.loads(json.dumps(described)) == expected


def test_versions_name_what_is_installed():
    assert torch.__version__.startswith(versions()["torch"])
    assert set(versions()) == {"python", "machine", "robustviz", "torch", "numpy"}


def test_write_atomic(tmp_path):
    path = tmp_path / "new" / "file"
    assert write_atomic(path, "Größe") == path
    assert path.read_bytes() == "Größe".encode()
    write_atomic(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, when, error):
    def fail(*_):
        raise error

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(*((os, "fsync") if when == "fsync" else (records.Path, "replace")), fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new" * 1000)
    with pytest.raises(type(error)):
        write_atomic(tmp_path / "absent", "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_comes_back(tmp_path):
    record = RunRecord("train", {"attack": describe(pgd)}, {"accuracy": {"clean": 0.5}}, "robustviz train")
    path = record.save(tmp_path / "record.json")
    assert RunRecord.load(path) == record
    assert record.versions == versions()
    assert json.loads(path.read_text())["settings"]["attack"] == PGD


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"kind": "train"}', b"\xff\xfe", b'{"kind":1,"other":2}']
)
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign.json is not a record of robustviz: ."):
        RunRecord.load(path)


def test_a_missing_record(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunRecord.load(tmp_path / "absent.json")


words = st.text(st.characters(codec="ascii", exclude_categories=("C", "Z"), exclude_characters="|"), max_size=9)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(words, min_size=width, max_size=width), min_size=1)))
def test_tables_line_up(rows):
    headers, *body = rows
    lines = table(headers, body).split("\n")
    assert len(lines) == len(rows) + 1
    bars = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
    assert all(found == bars[0] for found in bars)
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:1] + lines[2:]] == rows
    rule = lines[1].split("|")[1:-1]
    assert [cell.endswith(":") for cell in rule] == [False] + [True] * (len(headers) - 1)
    assert set(lines[1]) <= set("|-:")


def test_a_table_by_hand():
    text = table(["name", "share"], [["a", 1], ["longer", 22.5]])
    assert text == "| name   | share |\n|--------|------:|\n| a      |     1 |\n| longer |  22.5 |"
