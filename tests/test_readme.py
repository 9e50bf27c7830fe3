"""What the README shows runs, and what it names exists."""

import ast
import importlib
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from robustviz.benchmark.record import NetworkResults, share
from robustviz.evaluation import CLEAN
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison, spread
from robustviz.records import RunRecord

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_experiment_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 20
    # Two epochs instead of eight: what is tested is that every call exists and fits.
    quick = code.replace("epochs=8", "epochs=2")
    assert quick != code
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worst case per image") == 2


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README.replace("\n", " ")):
        if not target.startswith("https://arxiv.org/abs/"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^    robustviz (\w+)(?= )", README, re.MULTILINE))))
def test_commands_exist(line):
    done = subprocess.run([sys.executable, "-m", "robustviz.cli", line, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_figures_are_those_of_the_record():
    record = Comparison.load(ROOT / "data" / "results" / "wnll.json")
    networks = ["adversarial, softmax", "adversarial, WNLL"]
    for condition, label in ((PUBLISHED, "under the published attack"), (WORST_OF_ALL, "worst case of all attacks")):
        cells = " | ".join(spread(record.values(network, 0.15, condition)) for network in networks)
        assert re.search(rf"\| {label}.* \| {re.escape(cells)} \|", README)
    assert "({} and {} attacks)".format(*(len(record.attacks(network)) for network in networks)) in README
    cas = Comparison.load(ROOT / "data" / "results" / "cas.json")
    for network in ("AT + CAS", "AT"):
        for condition in (PUBLISHED, WORST_OF_ALL):
            assert spread(cas.values(network, 0.15, condition)) in README
    sparse = Comparison.load(ROOT / "data" / "results" / "meansparse.json")
    for network in ("adversarial", "adversarial + meansparse"):
        for condition in (PUBLISHED, WORST_OF_ALL):
            assert spread(sparse.values(network, 0.15, condition)) in README
    smooth = Comparison.load(ROOT / "data" / "results" / "pssilu.json")
    for condition in (PUBLISHED, WORST_OF_ALL):
        assert spread(smooth.values("adversarial + pssilu", 0.15, condition)) in README
    tvm = Comparison.load(ROOT / "data" / "results" / "tvm.json")
    for network, condition in product(("both", "none"), ("naive", WORST_OF_ALL)):
        assert spread(tvm.values(network, 0.15, condition)) in README
    assert spread(tvm.remarks["both: clean, right under all of 5 masks"]) in README
    assert record.settings["images"] == 200
    assert len(record.settings["seeds"]) == 3


@pytest.mark.parametrize(
    ("network", "words"),
    {
        "standard": "standard",
        "pgd": "adversarially trained",
        "pgd-wnll": "adversarially trained, WNLL",
        "pgd-cas": "adversarially trained, CAS",
        "tvm": "trained on TVM versions, behind TVM",
        "tvm-wnll": "trained on TVM versions, behind TVM, WNLL",
    }.items(),
)
def test_figures_of_cifar10_are_those_of_the_records(network, words):
    record = NetworkResults.load(ROOT / "data" / "results" / "cifar10" / f"cifar10-{network}.json")
    figures = (100 * share(record.correct(*names))[0] for names in ([CLEAN], ["PGD-20"], record.worst_members()))
    assert f"| {words} | {' | '.join(f'{figure:.1f}' for figure in figures)} |" in README


def test_the_map_is_complete_and_in_the_order_of_the_layers():
    rows = re.findall(r"^\| (`[^|]+) \|", README.partition("## Map")[2].partition("## Methods")[0], re.MULTILINE)
    mapped = [name for row in rows for name in re.findall(r"`robustviz\.(\w+)`", row)]
    package = {path.stem for path in (ROOT / "robustviz").glob("*.py")} | {
        path.parent.name for path in (ROOT / "robustviz").glob("*/__init__.py")
    }
    assert sorted(mapped) == sorted(package - {"__init__"})
    code = (ROOT / "tests" / "test_architecture.py").read_text()
    layers = ast.literal_eval(re.search(r"LAYERS = (\[.*?\n\])", code, re.DOTALL)[1])
    floors = [next(i for i, names in enumerate(layers) if name in names) for name in mapped]
    assert floors == sorted(floors)


IMPORTS = [
    "attacks.fgsm",
    "attacks.pgd",
    "certificate.certify",
    "data.digits",
    "data.signs",
    "defenses.DEFENSES",
    "defenses.TVM",
    "defenses.WNLLHead",
    "defenses.affinity",
    "defenses.interpolate",
    "defenses.joint",
    "defenses.sparsified",
    "defenses.tvm.TVM",
    "defenses.tvm.minimize_tv",
    "defenses.with_cas",
    "defenses.wnll.WNLLHead",
    "evaluation.evaluate",
    "models.initialized",
    "models.small_cnn",
    "networks.own_network",
    "objectives.mart",
    "objectives.trades",
    "training.TrainConfig",
    "training.train",
    "types.Threat",
]
"""Import paths that README or the design promise."""


@pytest.mark.parametrize("path", IMPORTS)
def test_import_paths_keep_working(path):
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(f"robustviz.{module}"), name)


def test_every_name_of_the_methods_is_there():
    cells = re.findall(
        r"`((?:attacks|objectives|defenses|certificate|models)\.\w+)`", README.partition("## Methods")[2]
    )
    assert len(cells) > 15
    for path in cells:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"robustviz.{module}"), name), path


def test_figures_of_the_road_signs_are_those_of_the_record():
    accuracy = RunRecord.load(ROOT / "data" / "checkpoints" / "signs-standard.json").results["accuracy"]
    assert f"{accuracy[CLEAN]:.0%} right, {accuracy['PGD-20']:.0%} under".replace("%", " %") in README
