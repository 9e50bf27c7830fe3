"""The command `attack-suite`: its table, its files, and that it goes on after a stop."""

import json

import pytest

from robustviz import cli
from robustviz.cli import measure
from robustviz.evaluation import RobustnessTable

SMALL = ("--images", "30", "--steps", "4", "--queries", "10", "--batch-size", "16")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written where the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def says(capsys):
    """Run the command and return what it prints."""

    def run(*words):
        try:
            cli.run(["attack-suite", *map(str, words)])
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"exit code {end.code}") from end
        return capsys.readouterr().out

    return run


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")]


def test_the_standard_suite(says, elsewhere):
    text = says("digits-pgd", *SMALL)
    assert "digits-pgd on 30 test images of digits, linf, epsilon 0.15" in text
    names = ["condition (30 images)", "clean", "APGD-CE-4", "APGD-T-4", "FMN-4", "Square-10", "worst case per image"]
    assert [row[0] for row in rows(text)] == names
    shares = [float(row[1][:-1]) for row in rows(text)[1:]]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == shares[-2]
    (file,) = (elsewhere / "runs").iterdir()
    assert file.name == "digits-pgd-attack-suite.json"
    table = RobustnessTable.load(file)
    assert table.settings["survivors_only"]
    assert f"{table.worst_case():.1%}" == rows(text)[-1][1]


def test_attacks_and_threat_are_chosen(says, elsewhere):
    chosen = ("--attacks", "noise", "--attacks", "cw", "--attacks", "deepfool", "--norm", "l2", "--epsilon", "1/2")
    text = says("digits-standard", *SMALL, *chosen, "--fast", "--out", "a/b.json")
    assert [row[0] for row in rows(text)][2:-1] == ["noise-10", "CW-4", "DeepFool-4"]
    assert "l2, epsilon 0.5" in text
    assert "the fast copy decided otherwise than the network on 0 images" in text
    settings = RobustnessTable.load(elsewhere / "a" / "b.json").settings
    assert settings["attacks"]["CW-4"]["threat"] == {"type": "Threat", "norm": "l2", "epsilon": 0.5}
    assert settings["attacks"]["noise-10"]["steps"] == 10


def test_interrupted_and_resumed(says, elsewhere, monkeypatch, capsys):
    whole = says("digits-pgd", *SMALL, "--out", "whole.json")
    evaluate = measure.evaluate

    def stopped(*given, on_batch, **settings):
        def stop(condition, done, total):
            on_batch(condition, done, total)
            if condition == "APGD-T-4":
                raise KeyboardInterrupt

        return evaluate(*given, on_batch=stop, **settings)

    monkeypatch.setattr(measure, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        cli.app(["attack-suite", "digits-pgd", *SMALL, "--out", "net.json"])
    monkeypatch.setattr(measure, "evaluate", evaluate)
    assert not (elsewhere / "net.json").exists()
    state = elsewhere / "net.json.unfinished"
    assert json.loads(state.read_text())["done"] == 5  # of 2 batches for each of 5 conditions
    with pytest.raises(
        FileExistsError, match=r"net.json.unfinished is an interrupted suite; add --resume .* or --force"
    ):
        says("digits-pgd", *SMALL, "--out", "net.json")
    with pytest.raises(ValueError, match="belongs to an evaluation with another attacks"):
        says("digits-pgd", *SMALL, "--out", "net.json", "--resume", "--epsilon", "0.1")
    capsys.readouterr()
    assert says("digits-pgd", *SMALL, "--out", "net.json", "--resume").replace("net", "whole") == whole
    assert (elsewhere / "net.json").read_text() == (elsewhere / "whole.json").read_text()
    assert not state.exists()


def test_force_starts_anew(says, elsewhere):
    (elsewhere / "net.json").write_text("old")
    with pytest.raises(FileExistsError, match=r"--out net.json exists; choose another name or add --force"):
        says("digits-pgd", *SMALL, "--out", "net.json")
    (elsewhere / "net.json.unfinished").write_text("old")
    says("digits-pgd", *SMALL, "--attacks", "pgd", "--out", "net.json", "--force")
    assert [path.name for path in elsewhere.iterdir()] == ["net.json"]


def test_what_cannot_be_cascaded_is_refused_with_a_way_out(says):
    with pytest.raises(ValueError, match=r"digits-wnll answers by whole batches.*use `robustviz evaluate`"):
        says("digits-wnll", *SMALL)
    with pytest.raises(ValueError, match="cw looks for the nearest image in l2, but the threat is linf; use fmn"):
        says("digits-pgd", *SMALL, "--attacks", "cw")


def test_help_teaches(says):
    text = " ".join(says("--help").replace("│", " ").split())
    for word in (
        "CHECKPOINT",
        "standard",
        "apgd-ce",
        "upper bound",
        "--resume",
        "Ctrl-C",
        "8/255",
        "--fast",
        "l2 only",
    ):
        assert word in text
