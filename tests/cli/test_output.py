"""What the measuring commands write: records, tables and attacked images; and the page that explains the files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from robustviz import cli
from robustviz.evaluation import RobustnessTable
from robustviz.records import RunRecord

ROOT = Path(__file__).parents[2]
FEW = ("digits-pgd", "--images", "30", "--attacks", "fgsm", "--attacks", "pgd", "--steps", "3")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["robustviz", *words])
    with pytest.raises(SystemExit) as end:
        cli.run(words)
    assert not end.value.code


def test_the_record_says_what_was_measured_and_how_to_reproduce_it(monkeypatch):
    run(monkeypatch, "evaluate", *FEW, "--out", "a/first.json")
    record = RunRecord.load("a/first.json")
    assert record.kind == "evaluate"
    assert record.settings["checkpoint"] == "digits-pgd"
    assert record.settings["images"] == 30
    assert record.settings["threat"] == {"type": "Threat", "norm": "linf", "epsilon": 0.15}
    assert record.settings["trained_by"].startswith("robustviz train")
    assert record.versions["torch"]
    table = RobustnessTable.load("a/first.json")
    assert record.results["accuracy"] == table.accuracies()
    assert record.results["worst_case"] == table.worst_case()
    words = record.command.split()
    assert words[0] == "robustviz"
    run(monkeypatch, *words[1:-1], "second.json")
    assert RunRecord.load("second.json").results == record.results


def test_the_ending_chooses_what_is_written(monkeypatch, elsewhere, capsys):
    outs = [word for ending in ("json", "csv", "tex", "md") for word in ("--out", f"t.{ending}")]
    run(monkeypatch, "evaluate", *FEW, *outs)
    printed = capsys.readouterr().out
    table = RobustnessTable.load("t.json")
    with Path("t.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["condition"] for row in rows] == [*table.conditions, "worst case per image"]
    assert float(rows[1]["accuracy"]) == table.accuracy(table.conditions[1])
    assert Path("t.md").read_text().strip() in printed
    assert Path("t.tex").read_text().startswith(r"\begin{tabular}")
    with pytest.raises(FileExistsError, match=r"--out t.csv exists; choose another name or add --force"):
        cli.run(["evaluate", *FEW, "--out", "t.csv"])
    for name in ("t", "t.txt"):
        with pytest.raises(ValueError, match=rf"--out must end in .json, .csv, .tex, .md, .*got {name}"):
            cli.run(["evaluate", *FEW, "--out", name])
    with pytest.raises(ValueError, match="name each file once"):
        cli.run(["attack-suite", "digits-pgd", "--out", "new.csv", "--out", "new.csv"])
    assert sorted(path.name for path in elsewhere.iterdir()) == ["t.csv", "t.json", "t.md", "t.tex"]


def test_attacked_images_are_saved_and_measured_again(monkeypatch, capsys, elsewhere):
    run(monkeypatch, "evaluate", *FEW, "--save-attacked", "adv.npz", "--out", "t.json")
    printed = capsys.readouterr().out
    table = RobustnessTable.load("t.json")
    with np.load("adv.npz") as file:
        for row, name in enumerate(table.conditions[1:]):
            before, after = file["fooled_before"][row], file["fooled_after"][row]
            assert np.array_equal(before, ~table.correct[row + 1, 0].numpy())
            line = f"{name}: {before.sum()} of 30 images fool the network, {after.sum()} after rounding to 8 bits"
            assert line in printed
    assert "wrote adv.npz" in printed
    with pytest.raises(FileExistsError, match=r"--save-attacked adv\.npz exists"):
        cli.run(["evaluate", *FEW, "--save-attacked", "adv.npz"])
    with pytest.raises(ValueError, match=r"--save-attacked must be a folder or a file that ends in .npz, got adv.zip"):
        cli.run(["evaluate", *FEW, "--save-attacked", "adv.zip"])
    run(monkeypatch, "evaluate", *FEW, "--save-attacked", "pictures")
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["FGSM", "PGD-3"]
    with pytest.raises(FileExistsError, match="--save-attacked pictures is there and not empty"):
        cli.run(["evaluate", *FEW, "--save-attacked", "pictures"])


def test_tables_of_old_runs_are_still_read():
    """What `evaluate --out` wrote before it wrote records."""
    old = {
        "conditions": ["clean", "PGD-2"],
        "labels": [0, 1, 2],
        "predictions": [[[0, 1, 2]], [[0, 0, 2]]],
        "distances": [[0.0, 0.0, 0.0], [0.1, 0.1, 0.1]],
        "settings": {"attacks": {}, "batch_size": 256, "repeats": 1, "survivors_only": False, "seed": 1},
    }
    Path("old.json").write_text(json.dumps(old))
    table = RobustnessTable.load("old.json")
    assert table.accuracies() == {"clean": 1.0, "PGD-2": pytest.approx(2 / 3)}
    assert table.draws == 1


def keys(value):
    """Every key in a JSON file, without those that are names of conditions, attacks or settings."""
    return set(value) if isinstance(value, dict) else set()


def test_the_page_about_files_knows_every_key(monkeypatch):
    page = (ROOT / "docs" / "json-files.md").read_text()
    run(monkeypatch, "evaluate", *FEW, "--out", "t.json")
    run(monkeypatch, "diagnose", "digits-pgd", "--images", "10", "--steps", "1", "--queries", "1", "--out", "diagnosis")
    record, diagnosis = (json.loads(Path(name).read_text()) for name in ("t.json", "diagnosis/diagnosis.json"))
    trained = json.loads((ROOT / "data/checkpoints/digits-pgd.json").read_text())
    compared = json.loads((ROOT / "data/results/wnll.json").read_text())
    measured = json.loads(next((ROOT / "data/results/cifar10").glob("*.json")).read_text())
    known = keys(record) | keys(record["settings"]) | keys(record["results"]) | keys(record["results"]["table"])
    known |= keys(diagnosis) | keys(diagnosis["findings"][0]) | keys(compared) | keys(measured)
    known |= keys(trained) | keys(trained["settings"]) | keys(trained["results"])
    missing = sorted(key for key in known if f"`{key}`" not in page)
    assert not missing, f"docs/json-files.md says nothing of {missing}"
