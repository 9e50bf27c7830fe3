"""The command line: a few commands in a process of their own, the rest inside this one."""

import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustviz import checkpoints, cli
from robustviz.cli import train
from robustviz.defenses import DEFENSES
from robustviz.evaluation import RobustnessTable
from robustviz.evaluation.comparison import Comparison
from robustviz.models import initialized, small_cnn
from robustviz.pages import demo
from robustviz.records import RunRecord

FAST = ("--epochs", "1", "--images", "200", "--precision", "fp32")
PROGRAM = Path(sys.executable).with_name("robustviz")
COMMAND = [PROGRAM] if PROGRAM.exists() else [sys.executable, "-m", "robustviz.cli"]


def run(*words):
    """Run a command in this process; a mistake of the command line itself ends it with an exit code above 0."""
    try:
        cli.run([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"exit code {end.code}") from end


@pytest.fixture
def says(capsys):
    """Run a command and return what it prints."""

    def run_and_read(*words):
        run(*words)
        return capsys.readouterr().out

    return run_and_read


@pytest.fixture
def refuses(capsys):
    """Run a command that cyclopts refuses; return what it says."""

    def run_and_read(*words):
        with pytest.raises(ValueError, match="; see robustviz") as refused:
            cli.run([str(word) for word in words])
        assert not "".join(capsys.readouterr())
        return str(refused.value)

    return run_and_read


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Nothing is written where the tests run."""
    folder = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["robustviz"])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder: one epoch against one step of PGD."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run("train", *FAST, "--attack", "pgd", "--steps", "1", "--epsilon", "1/8", "--out", out)
    return out


def cells(text):
    """The table that a command prints, as lists of words."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")]


# Train and evaluate.


def test_train_writes_a_checkpoint_and_its_record(trained):
    assert sorted(file.name for file in trained.iterdir()) == ["model.json", "model.safetensors"]
    model, record = checkpoints.load(trained)
    assert record.kind == "train"
    assert record.settings["threat"] == {"type": "Threat", "norm": "linf", "epsilon": 0.125}
    assert record.settings["training_images"] == 200
    assert record.settings["attack"]["steps"] == 1
    assert record.settings["training"]["epochs"] == 1
    assert set(record.results["accuracy"]) == {"clean", "PGD-20"}
    assert len(record.results["epochs"]) == 1
    assert model.head.out_features == 10


def test_train_prints_what_it_does(says, elsewhere):
    text = says("train", *FAST)
    assert "training small_cnn on 200 images of digits, defense: none, attack: " in text
    assert "epoch 1/1" in text
    assert [row[0] for row in cells(text)] == ["condition (359 images)", "clean", "PGD-20", "worst case per image"]
    assert "robustviz evaluate runs/digits-small_cnn-none" in text
    assert (elsewhere / "runs" / "digits-small_cnn-none" / "model.safetensors").exists()


def test_the_record_names_the_command_that_gives_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/robustviz", "train", *FAST, "--out", "a b"])
    run("train", *FAST, "--out", tmp_path / "net.safetensors")
    assert checkpoints.load(tmp_path / "net.safetensors")[1].command == f"robustviz train {' '.join(FAST)} --out 'a b'"


def test_train_repeats(trained, tmp_path):
    run("train", *FAST, "--attack", "pgd", "--steps", "1", "--epsilon", "0.125", "--out", tmp_path / "again")
    one, other = (checkpoints.load(folder)[0].state_dict() for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluate_uses_what_the_record_says(says, trained, tmp_path):
    text = says("evaluate", trained, "--images", "100", "--steps", "3", "--out", tmp_path / "table.json")
    assert "on 100 test images of digits, linf, epsilon 0.125" in text
    names = ["condition (100 images)", "clean", "FGSM", "IFGSM-3", "PGD-3", "worst case per image"]
    assert [row[0] for row in cells(text)] == names
    table = RobustnessTable.load(tmp_path / "table.json")
    assert cells(text) == cells(table.to_markdown())
    assert table.settings["attacks"]["PGD-3"]["threat"]["epsilon"] == 0.125


def test_evaluate_understands_fractions_and_other_settings(says, trained):
    text = says(
        "evaluate", trained, "--images", "50", "--epsilon", "8/255", "--norm", "l2", "--attacks", "mifgsm",
        "--attacks", "pgd", "--steps", "2", "--restarts", "2", "--survivors-only", "--batch-size", "20",
        "--device", "cpu",
    )  # fmt: skip
    assert "l2, epsilon 0.03137" in text
    assert [row[0] for row in cells(text)][1:-1] == ["clean", "MI-FGSM-2", "PGD-2"]


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 pictures that a network learns at once: dark and bright ones, 16x16, in color."""
    source = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 128)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            noise = source.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures_from_end_to_end(says, pictures, tmp_path):
    text = says(
        "train", "--data", pictures, "--model", "resnet20", "--epochs", "1", "--batch-size", "8", "--precision", "fp32",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert "training resnet20 on 32 images of pictures" in text
    model, record = checkpoints.load(tmp_path / "run")
    assert record.settings["classes"] == ["bright", "dark"]
    assert record.settings["threat"]["epsilon"] == pytest.approx(8 / 255)
    assert record.settings["training"]["flip"]
    assert model.head.out_features == 2
    text = says("evaluate", tmp_path / "run", "--attacks", "pgd", "--steps", "2")
    assert [row[0] for row in cells(text)] == ["condition (8 images)", "clean", "PGD-2", "worst case per image"]
    with pytest.raises(ValueError, match=r"--data digits has the classes .*but the network was trained on .*bright"):
        run("evaluate", tmp_path / "run", "--data", "digits")


# What exists is not touched.


def test_nothing_is_overwritten_without_force(trained, tmp_path):
    before = {file.name: file.read_bytes() for file in trained.iterdir()}
    with pytest.raises(FileExistsError, match=r"holds a finished run; choose another name or add --force"):
        run("train", *FAST, "--out", trained)
    with pytest.raises(FileExistsError, match="holds a finished run"):
        run("train", *FAST, "--out", trained / "model.safetensors", "--resume")
    (tmp_path / "table.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"--out .*table.json exists"):
        run("evaluate", trained, "--out", tmp_path / "table.json")
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is there and not empty"):
        run("demo", "--out", tmp_path)
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == before
    assert (tmp_path / "table.json").read_text() == (tmp_path / "index.html").read_text() == "mine"


def test_force_replaces(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    run("train", *FAST, "--seed", "1", "--out", tmp_path / "run", "--force")
    assert checkpoints.load(tmp_path / "run")[1].settings["training"]["seed"] == 1
    (tmp_path / "table.json").write_text("old")
    run("evaluate", trained, "--images", "20", "--attacks", "fgsm", "--out", tmp_path / "table.json", "--force")
    RobustnessTable.load(tmp_path / "table.json")


@pytest.fixture
def stops(monkeypatch):
    """Ctrl-C after the second epoch."""
    line = train.epoch_line

    def interrupt(log, epochs):
        if log.epoch == 2:
            raise KeyboardInterrupt
        return line(log, epochs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "epoch_line", interrupt)
        yield patch


SHORT = ("--epochs", "3", "--images", "100", "--precision", "fp32")


def test_an_interrupted_run_is_resumed(says, stops, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run("train", *SHORT, "--out", out)
    assert sorted(file.name for file in out.iterdir()) == ["model.state", "model.state-training"]
    stops.undo()
    with pytest.raises(FileExistsError, match=r"holds an interrupted run; add --resume to go on, or --force"):
        run("train", *SHORT, "--out", out)
    with pytest.raises(ValueError, match=r"model.state-training belongs to a run with another config"):
        run("train", *SHORT, "--out", out, "--learning-rate", "0.2", "--resume")
    text = says("train", *SHORT, "--out", out, "--resume")
    assert "epoch 3/3" in text
    assert "epoch 2/3" not in text
    assert sorted(file.name for file in out.iterdir()) == ["model.json", "model.safetensors"]
    run("train", *SHORT, "--out", tmp_path / "whole")
    one, other = (checkpoints.load(folder)[0].state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_run_is_started_anew_by_force(says, stops, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("train", *SHORT, "--out", tmp_path)
    stops.undo()
    text = says("train", *SHORT, "--seed", "5", "--out", tmp_path, "--force")
    assert "epoch 1/3" in text


def test_every_stage_of_a_defense_is_claimed(stops, tmp_path):
    """A defense that trains in stages keeps a file for each; a file of the user's own is left alone."""
    wnll = ("train", *SHORT, "--defense", "wnll", "--rounds", "1", "--out", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(*wnll)
    stops.undo()
    (tmp_path / "model.state-notes.txt").write_text("a person's")
    for words in (wnll, ("train", *SHORT, "--out", tmp_path)):
        with pytest.raises(FileExistsError, match="holds an interrupted run"):
            run(*words)
    for words in (("train", *SHORT, "--out", tmp_path), (*wnll[:-4], "--rounds", "2", *wnll[-2:])):
        with pytest.raises(ValueError, match=r"model.state belongs to a run with another defenses; use the settings"):
            run(*words, "--resume")
    with pytest.raises(FileNotFoundError, match="there is no data set or folder nowhere"):
        run("train", "--data", "nowhere", "--out", tmp_path, "--force")
    with pytest.raises(ValueError, match=r"validation must be a share from 0 to below 1"):
        run("train", *SHORT, "--validation", "1.5", "--out", tmp_path, "--force")
    names = ["model.state", "model.state-notes.txt", "model.state-round-1-training"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names, "nothing is removed before the input is checked"
    run("train", *SHORT, "--out", tmp_path, "--force")
    names = ["model.json", "model.safetensors", "model.state-notes.txt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rounds", "1"), "--rounds is no option of train without --defense wnll; see robustviz train --help"),
        (("--defense", "wnll", "--round", "1"), r"--round is no option of train \(--rounds is\)"),
        (("--defense", "wnll", "--rounds", "1.5"), "--rounds must be a whole number, got '1.5'"),
        (("--defense", "wnll", "--rounds", "0"), "rounds must be >= 1, got 0"),
        (("--defense", "wnll", "--gradient", "no"), "--gradient must be exact or surrogate or surrogate-log, got 'no'"),
        (("--defense", "tvm", "--in-front", "perhaps"), "--in-front must be yes or no, got 'perhaps'"),
        (("--defense", "tmv"), "defense must be one of .*wnll, tvm, got 'tmv'; one of your own needs"),
        (("--defense", "mine.py:MINE"), "runs the code of that file; read it, and add --trust if you trust it"),
        (("--defense", "mine.py:MINE", "--trust"), "there is no file mine.py; a defense of your own is given as FILE"),
    ],
)
def test_defenses_and_their_options_are_checked_first(tmp_path, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("train", *words, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_help_lists_defenses_and_their_options(says):
    text = says("train", "--help")
    for defense in DEFENSES:
        assert defense.title in " ".join(text.replace("│", " ").split())
        for name in defense.option_names:
            assert f"--{name.replace('_', '-')}" in text


def test_control_c_says_how_to_go_on(tmp_path):
    """Sent to a real process once its first epoch is on disk."""
    words = ["train", "--epochs", "2000", "--images", "100", "--out", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A suite that runs in the background ignores Ctrl-C, and its children would too.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*COMMAND, *words], **pipes, preexec_fn=listen)
    try:
        for line in process.stdout:
            if line.startswith("epoch "):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "robustviz: interrupted; a command that has --resume" in errors
    assert "Traceback" not in errors
    files = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert files == ["model.state", "model.state-training"]


# Mistakes.


def test_unknown_names_list_the_known(refuses, trained):
    with pytest.raises(ValueError, match=r"--model must be one of small_cnn, resnet20, .*vgg16, got 'resnet21'"):
        run("train", "--model", "resnet21")
    with pytest.raises(FileNotFoundError, match=r"no data set or folder imagenet; known are digits, signs, cifar10"):
        run("train", "--data", "imagenet")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint nowhere.*digits-pgd, .*digits-standard"):
        run("evaluate", "nowhere")
    for words, known in (
        (("train", "--attack", "madry"), ("none", "fgsm-rs", "pgd")),
        (("evaluate", trained, "--attacks", "cw"), ("fgsm", "ifgsm", "pgd", "mifgsm")),
        (("train", "--norm", "l1"), ("linf", "l2")),
        (("train", "--schedule", "linear"), ("constant", "steps", "cosine", "one-cycle")),
        (("train", "--precision", "fp16"), ("auto", "fp32", "bf16")),
        (("fetch", "imagenet"), ("cifar10", "svhn", "mnist")),
    ):
        text = refuses(*words)
        assert all(name in text for name in (*known, str(words[-1]))), text
    assert "--epsilom" in refuses("train", "--epsilom", "1")
    assert "tran" in refuses("tran")


def test_bad_epsilon(refuses, trained):
    for word in ("eight", "8/0", "nan", "8/255/2"):
        text = refuses("evaluate", trained, "--epsilon", word)
        assert "number or a fraction such as 8/255" in text
        assert word in text
    for word in ("-1", "-8/255"):
        text = refuses("evaluate", trained, f"--epsilon={word}")
        assert f"--epsilon: must be >= 0 on the [0, 1] pixel scale, got {word}" in text


def test_bad_numbers(unchecked, trained, tmp_path):
    out = ("--out", tmp_path / "new")
    for words, message in (
        (("train", "--epochs", "0", *out), "epochs must be >= 1, got 0"),
        (("train", "--batch-size", "0", *out), "batch_size must be >= 1"),
        (("train", "--learning-rate", "nan", *out), "--learning-rate: must be a finite number, got 'nan'"),
        (("train", "--images", "0", *out), "--images must be >= 1, got 0"),
        (("train", "--attack", "pgd", "--steps", "0", *out), "--steps must be >= 1, got 0"),
        (("train", "--learning-rate", "0", *out), "--learning-rate must be > 0, got 0"),
        (("train", "--epsilon", "5", *out), "--epsilon must be from 0 to 1, .*got 5; .*8/255"),
        (("train", "--validation", "1", *out), "validation must be a share"),
        (("train", "--device", "abacus", *out), "'abacus' is not there"),
        (("evaluate", trained, "--steps", "0"), "--steps. Must be >= 1"),
        (("evaluate", trained, "--restarts", "0"), "--restarts. Must be >= 1"),
        (("evaluate", trained, "--images", "0"), r'Invalid value "0" for --images. Must be >= 1'),
        (("evaluate", trained, "--epsilon", "5"), "--epsilon must be from 0 to 1, .*linf.*, got 5; .*8/255"),
        (("evaluate", trained, "--epsilon", "8.1", "--norm", "l2"), "--epsilon must be from 0 to 8, .*l2.*, got 8.1"),
        (("evaluate", trained, "--batch-size", "0"), "--batch-size. Must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*words)
    assert not (tmp_path / "new").exists()


def test_bad_counts_are_refused_before_anything_is_measured(refuses):
    for option in ("--few", "--images", "--batch-size", "--targets", "--cw-search"):
        for value in ("0", "-1"):
            assert f'Invalid value "{value}" for {option}. Must be >= 1' in refuses("results", option, value)


def test_whole_numbers_are_not_rounded(refuses):
    for words in (
        ("evaluate", "digits-pgd", "--images", "1.5"),
        ("train", "--seed", "2.7"),
        ("train", "--images", "1e3"),
        ("evaluate", "digits-pgd", "--batch-size", 10**30),
        ("results", "--batch-size", 10**30),
    ):
        assert f"for {words[-2]}: must be a whole number below 2^63, got '{words[-1]}'" in refuses(*words)


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be loaded: what is refused is refused before."""
    monkeypatch.setattr(checkpoints, "load", lambda *words, **settings: pytest.fail("a network was loaded"))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("demo",), "--out"),
        (("features", "digits-pgd"), "--out"),
        (("evaluate", "digits-pgd"), "--out"),
        (("diagnose", "digits-pgd"), "--out"),
        (("compare", "wnll"), "--out"),
        (("results", "digits-pgd"), "--out"),
        (("results", "digits-pgd", "--out", "new"), "--page"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else words,
)
def test_an_impossible_place_is_refused_before_the_work(idle, elsewhere, words, option):
    (elsewhere / "afile").write_text("mine")
    for place, why in (("afile/new/x", "Not a directory"), ("/proc/new/x", ""), (f"{'n' * 300}/x", "too long")):
        with pytest.raises(ValueError, match=rf"{option} must lie in a folder that can be written to, but .*{why}"):
            run(*words, "--force", option, place)
    assert [file.name for file in elsewhere.iterdir()] == ["afile"]


def test_a_file_is_no_folder_and_a_folder_no_page(idle, elsewhere):
    (elsewhere / "afile").write_text("mine")
    for words in (("demo",), ("features", "digits-pgd"), ("diagnose", "digits-pgd"), ("results", "digits-pgd")):
        with pytest.raises(ValueError, match=r"but afile cannot: Not a directory"):
            run(*words, "--out", "afile", "--force")
    with pytest.raises(IsADirectoryError, match=r"--page \. is a folder; name a file"):
        run("results", "digits-pgd", "--page", ".", "--force")
    with pytest.raises(FileExistsError, match="--page afile is no page of this command"):
        run("results", "digits-pgd", "--page", "afile")


def test_a_place_leaves_no_trace_when_the_work_cannot_begin(elsewhere):
    with pytest.raises(FileNotFoundError, match="no checkpoint nope"):
        run("evaluate", "nope", "--out", "new/sub/x.json")
    assert not list(elsewhere.iterdir())


def test_what_cannot_be_saved_was_printed(monkeypatch, capsys, tmp_path):
    def forged(seeds, say):
        (tmp_path / "out").write_text("a file, meanwhile")
        yield Comparison("wnll", {}, {}, {}, {})

    monkeypatch.setattr("robustviz.studies.wnll.compare_wnll", forged)
    monkeypatch.setattr(Comparison, "to_markdown", lambda self: "| the table |")
    with pytest.raises(OSError, match="out"):
        run("compare", "wnll", "--out", tmp_path / "out")
    assert "| the table |" in capsys.readouterr().out


def test_where_there_are_fewer_images_all_are_taken_and_the_line_says_how_many(says, pictures, tmp_path):
    settings = ("--data", pictures, "--epochs", "1", "--batch-size", "8", "--images", "500", "--out", tmp_path / "run")
    assert "training small_cnn on 32 images of pictures" in says("train", *settings)
    assert "on 8 test images of pictures" in says("evaluate", tmp_path / "run", "--images", "500", "--attacks", "fgsm")


@pytest.mark.parametrize("name", [name for name in checkpoints.shipped() if name.startswith("digits")])
def test_a_shipped_network_refuses_pictures_of_another_size(tmp_path, name):
    for digit in range(10):
        (tmp_path / "large" / str(digit)).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (16, 16), 20 * digit).save(tmp_path / "large" / str(digit) / f"{number}.png")
    with pytest.raises(ValueError, match=r"images of shape \[1, 16, 16\], but .* made for \[1, 8, 8\]"):
        run("evaluate", name, "--data", tmp_path / "large")


# Starting from a trained network.


@pytest.mark.parametrize(
    ("start", "words", "message"),
    [
        ("digits-pgd", ("--model", "resnet20"), "is a small_cnn, not a resnet20; use --model small_cnn"),
        (
            "digits-pgd",
            ("--data", "pictures"),
            "has 10 classes, not 2 and reads images of 1 channels, not 3; give --data of its kind",
        ),
    ],
)
def test_another_network_is_no_start(pictures, monkeypatch, start, words, message):
    monkeypatch.chdir(pictures.parent)
    with pytest.raises(ValueError, match=f"--start {start} must be the network to train, but it {message}, or start"):
        run("train", "--start", start, *words)
    assert not Path("runs").exists()


def test_a_run_goes_on_only_from_the_start_that_it_began_with(stops, tmp_path):
    out = ("--out", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run("train", *SHORT, *out, "--start", "digits-pgd")
    stops.undo()
    network = "the network with checksum [0-9a-f]{8}"
    for words, wanted in (((), "new weights"), (("--start", "digits-standard"), network)):
        with pytest.raises(
            ValueError, match=f"model.state-training belongs to a run that began with {network}, not with {wanted};"
        ):
            run("train", *SHORT, *out, *words, "--resume")
    same = checkpoints.find("digits-pgd")  # by another name
    run("train", *SHORT, *out, "--start", same, "--resume")
    assert checkpoints.load(tmp_path / "run")[1].settings["start"]["name"] == str(same)


def test_bad_folders(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty must hold one subfolder"):
        run("train", "--data", tmp_path / "empty", "--out", tmp_path / "new")
    file = pictures / "dark" / "3.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"dark/3.png cannot be read as a picture"):
        run("train", "--data", pictures, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_cut_in_half(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        run("evaluate", tmp_path / "run")


def test_a_checkpoint_that_another_program_wrote(tmp_path):
    """Its record says nothing of data and threat; the options do not help, but the error says what is missing."""
    build = partial(small_cnn, classes=10, channels=1)
    path = checkpoints.save(tmp_path / "net.safetensors", initialized(build, 0), build, RunRecord("notebook", {}, {}))
    with pytest.raises(
        ValueError, match=r"net.safetensors is not from `robustviz train`: its record lacks classes, data, threat"
    ):
        run("evaluate", path)


def test_mistakes_are_one_line():
    answer = subprocess.run([*COMMAND, "train", "--data", "nowhere"], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith("robustviz: there is no data set or folder nowhere; known are digits")
    assert len(answer.stderr.strip().split("\n")) == 1


# The other commands.


def test_checkpoints_lists_what_comes_with_the_library(says):
    text = says("checkpoints")
    rows = cells(text)
    assert rows[0] == ["name", "data", "network", "epsilon", "accuracy on test images"]
    assert [row[0] for row in rows[1:]] == list(checkpoints.shipped())
    for name in ("digits-standard", "digits-pgd"):
        record = checkpoints.load(name)[1]
        (row,) = [row for row in rows if row[0] == name]
        assert f"clean {record.results['accuracy']['clean']:.1%}" in row[-1]
        assert record.command.partition(" --out")[0] in text
    assert "--force" not in text  # pasting a line replaces no shipped network
    assert "data/checkpoints" not in text


def test_evaluate_of_a_shipped_network(says):
    text = says("evaluate", "--checkpoint", "digits-pgd", "--images", "40", "--attacks", "fgsm")
    assert "digits-pgd on 40 test images of digits, linf, epsilon 0.15" in text
    left_out = "attacks made for its defense are left out"
    assert left_out not in says("evaluate", "digits-pgd", "--images", "20", "--attacks", "fgsm", "--no-adaptive")
    assert left_out in says("evaluate", "digits-wnll", "--images", "20", "--attacks", "fgsm", "--no-adaptive")


def test_fetch(says, monkeypatch, tmp_path):
    from torchvision import datasets

    class Forged:
        classes = ("airplane", "car")

        def __init__(self, root, train, download):
            assert (root, download) == (tmp_path, True)
            count = 6 if train else 4
            self.data, self.targets = np.zeros((count, 32, 32, 3), np.uint8), [0, 1] * (count // 2)

    monkeypatch.setattr(datasets, "CIFAR10", Forged)
    assert says("fetch", "cifar10", "--root", tmp_path).strip() == f"cifar10: 10 images of 2 classes in {tmp_path}"


def test_a_set_that_is_not_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"robustviz fetch svhn --root {tmp_path}"):
        run("train", "--data", "svhn", "--root", tmp_path)


def test_demo_ends_with_the_table_and_the_path(says, monkeypatch, tmp_path):
    def forged(out, *, seed, say):
        say(f"did it with seed {seed}")
        return out / "index.html", "| a | b |"

    monkeypatch.setattr(demo, "run_demo", forged)
    text = says("demo", "--out", tmp_path / "page", "--seed", "3")
    assert text.split("\n") == [
        "did it with seed 3",
        "",
        "| a | b |",
        "",
        f"open {tmp_path / 'page' / 'index.html'}",
        "",
    ]


@pytest.mark.parametrize("command", ["", "train", "evaluate", "demo", "fetch", "checkpoints"])
def test_help_teaches(says, command):
    text = " ".join(says(*([command] if command else []), "--help").replace("│", " ").split())
    words = {
        "": ["robustviz demo", "train", "evaluate", "fetch", "checkpoints"],
        "train": ["8/255", "Madry", "--resume", "Ctrl-C", "--model", "resnet20", "[default: 15]", "bf16", "digits"],
        "evaluate": ["CHECKPOINT", "upper bound", "95 %", "--epsilon", "8/255", "worst case"],
        "demo": ["a minute", "--seed", "--force"],
        "fetch": ["cifar10", "170 MB", "--root"],
        "checkpoints": ["how each was trained"],
    }[command]
    for word in words:
        assert word in text


def test_version(says):
    assert says("--version").strip()


def test_a_network_is_trained_anew_with_the_one_that_it_began_with(monkeypatch, says, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, words in {"first": (*SHORT[2:], "--epochs", "1"), "second": (*SHORT, "--start", "runs/first")}.items():
        monkeypatch.setattr(sys, "argv", ["robustviz", "train", *words, "--out", f"runs/{name}"])
        run("train", *words, "--out", f"runs/{name}")
    few = ("--images", "20", "--attacks", "fgsm")
    assert "runs/retrained/second on 20 test images" in says("evaluate", "runs/second", "--retrain", *few)
    for name in ("first", "second"):
        one, other = (checkpoints.load(f"runs/{folder}{name}")[0].state_dict() for folder in ("", "retrained/"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    command = checkpoints.load("runs/retrained/second")[1].command
    assert "--start runs/retrained/first" in command
    assert sys.argv[-1] == "runs/second", "what was typed is put back"
    assert "is there already" in says("evaluate", "runs/second", "--retrain", *few)
    Path("other.safetensors").write_bytes(Path("runs/first/model.safetensors").read_bytes())
    record = json.loads(Path("runs/first/model.json").read_text())
    Path("other.json").write_text(json.dumps(record | {"command": "make it"}))
    with pytest.raises(ValueError, match=r"--retrain: the record of other.safetensors names no command"):
        run("evaluate", "other.safetensors", "--retrain")
