"""What the README shows runs, and what it names exists."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from robustviz.benchmark.record import NetworkResults, share
from robustviz.evaluation import CLEAN
from robustviz.evaluation.comparison import PUBLISHED, WORST, Comparison, spread

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
    for condition, label in ((PUBLISHED, "under the published attack"), (WORST, "worst case of all attacks")):
        cells = " | ".join(spread(record.values(network, 0.15, condition)) for network in networks)
        assert re.search(rf"\| {label}.* \| {re.escape(cells)} \|", README)
    assert "({} and {} attacks)".format(*(len(record.attacks(network)) for network in networks)) in README
    cas = Comparison.load(ROOT / "data" / "results" / "cas.json")
    for network in ("AT + CAS", "AT"):
        for condition in (PUBLISHED, WORST):
            assert spread(cas.values(network, 0.15, condition)) in README
    tvm = Comparison.load(ROOT / "data" / "results" / "tvm.json")
    for network, condition in product(("both", "none"), ("naive", WORST)):
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
