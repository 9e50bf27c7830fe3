"""A complete defense in one file outside the package goes through everything with nothing but its record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustviz import checkpoints, cli
from robustviz.data import digits
from robustviz.defenses import DEFENSES, known, registered
from robustviz.defenses.foreign import read_record
from robustviz.evaluation import RobustnessTable
from robustviz.evaluation.comparison import Comparison

FILE = Path(__file__).with_name("clipped.py")
MINE = ("--defense", f"{FILE}:CLIPPED", "--trust")
ATTACKS = ["clipped, naive", "clipped, own gradient", "clipped, gradient passed"]
SHORT = ("--epochs", "4", "--images", "600", "--precision", "fp32")


def run(*words):
    try:
        cli.run([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"exit code {end.code}") from end


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["robustviz"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a network with clipped channels."""
    out = tmp_path_factory.mktemp("runs") / "clipped"
    run("train", *SHORT, *MINE, "--quantile", "0.9", "--test-images", 50, "--out", out)
    return out


def test_it_is_trained_with_its_own_stage_and_its_checkpoint_loads(trained):
    with pytest.raises(ValueError, match=r"defense must be one of .*, got 'clipped'; one of your own needs"):
        checkpoints.load(trained)
    with registered(read_record(f"{FILE}:CLIPPED")) as record:
        network, written = checkpoints.load(trained)
        assert record.present(network)
        images = digits("train").subset(300).images
        with torch.no_grad():
            clipped, plain = network(images), record.without(network)(images)
    assert not torch.equal(clipped, plain)
    bounds = {name: value for name, value in network.state_dict().items() if name.endswith("bounds")}
    assert len(bounds) == 4
    assert all(value.isfinite().all() for value in bounds.values())
    assert (written.settings["defense"], written.settings["quantile"]) == ("clipped", 0.9)
    assert [stage["name"] for stage in written.settings["stages"]] == ["training", "bounds"]
    assert written.settings["architecture"]["clipped"] == {}
    assert list(written.results["accuracy"])[1:] == ["PGD-20, as published", *ATTACKS[1:]], (
        "the naive attack is the first"
    )
    assert known() == DEFENSES


def test_evaluate_measures_it_with_the_attacks_made_for_it(trained):
    run("evaluate", trained, *MINE, "--images", 40, "--attacks", "fgsm", "--out", "table.json")
    assert list(RobustnessTable.load("table.json").conditions)[1:] == [
        "FGSM, as published",
        *ATTACKS,
    ]


def test_attack_suite_measures_what_is_left(trained, capsys):
    few = ("--attacks", "apgd-ce", "--steps", 3, "--images", 30, "--out", "suite.json")
    run("attack-suite", trained, *MINE, *few)
    text = capsys.readouterr().out
    assert all(f"| {name} " in text for name in ["APGD-CE-3, as published", *ATTACKS])


def test_diagnose_asks_it_and_takes_it_out(trained, capsys):
    few = ("--images", 30, "--steps", 3, "--queries", 20, "--undefended", "digits-standard", "--out", "report")
    run("diagnose", trained, *MINE, *few)
    text = " ".join(capsys.readouterr().out.split())
    assert "without clipped channels keeps" in text
    assert set(ATTACKS) <= json.loads(Path("report/diagnosis.json").read_text())["accuracy"].keys()


def test_features_follow_its_published_and_its_strongest_attack(trained):
    few = ["--no-umap", "--strengths", 2, "--images", 30, "--training-images", 150, "--steps", 2]
    run("features", trained, *MINE, *few, "--out", "page")
    page = Path("page/index.html").read_text()
    assert "clipped" in page


def test_compare_sets_it_beside_the_networks_without_it(capsys):
    few = ("--epochs", 1, "--training-images", 200, "--images", 20, "--seeds", 1, "--quantile", "0.9")
    run("compare", f"{FILE}:CLIPPED", "--trust", *few, "--out", "results")
    found = Comparison.load("results/clipped.json")
    assert found.networks == ["standard", "standard + clipped", "adversarial", "adversarial + clipped"]
    assert found.attacks("standard + clipped") == ATTACKS
    assert found.attacks("standard") == ["IFGSM", "PGD", "PGD, margin"]
    assert {name: found.kinds[name] for name in ATTACKS} == dict(
        zip(ATTACKS, ["published", "adaptive", "adaptive"], strict=True)
    )
    assert found.settings["defense"] == {"name": "clipped", "options": {"type": "ClipOptions", "quantile": 0.9}}
    with pytest.raises(FileExistsError, match=r"holds clipped.json already"):
        run("compare", f"{FILE}:CLIPPED", "--trust", "--out", "results")


# Foreign code.

KNOWN = "from robustviz.defenses import WNLL_DEFENSE as MINE"


@pytest.mark.parametrize(
    ("content", "word", "error", "said"),
    [
        ("MINE = 3", "MINE", ValueError, "must have a Defense named 'MINE'; it has none"),
        ("raise KeyError('x')", "MINE", ValueError, "cannot be run: KeyError"),
        ("from robustviz.defenses import WNLL_DEFENSE as MINE", "OTHER", ValueError, "named 'OTHER'; it has MINE"),
        (
            "from robustviz.defenses import WNLL_DEFENSE as MINE",
            "MINE",
            ValueError,
            "there is a defense 'wnll' already",
        ),
    ],
)
def test_a_file_without_a_usable_record_is_refused(tmp_path, content, word, error, said):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(error, match=said):
        run("train", "--defense", f"mine.py:{word}", "--trust")
    assert known() == DEFENSES


def test_the_code_runs_only_when_it_is_trusted(tmp_path):
    (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    command = [sys.executable, "-m", "robustviz.cli", "train", "--defense", "mine.py:MINE"]
    answer = subprocess.run(command, capture_output=True, text=True, input="y\n", cwd=tmp_path)
    assert answer.returncode == 1
    assert "add --trust if you trust it" in answer.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("answer", "runs"), [("y", True), ("n", False), ("", False)])
def test_a_person_at_a_terminal_is_asked(tmp_path, monkeypatch, answer, runs):
    (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: answer)
    with pytest.raises(ValueError, match="must have a Defense" if runs else "add --trust"):
        run("train", "--defense", "mine.py:MINE")
    assert Path("ran").exists() == runs
