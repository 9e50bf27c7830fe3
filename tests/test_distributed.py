"""Two processes give what one gives: gradients, training, tables; without a launcher nothing is different."""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import fgsm, pgd
from robustviz.distributed import Processes, processes
from robustviz.evaluation import RobustnessTable, evaluate
from robustviz.objectives import cross_entropy, trades
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, train
from robustviz.training.loop import _Run
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)
CONFIG = TrainConfig(epochs=3, batch_size=55, padding=1, flip=True, precision="fp32", weight_decay=0.01)
OBJECTIVES = {"cross_entropy": cross_entropy, "trades": partial(trades, attack=partial(fgsm, threat=THREAT))}

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is missing: pip install 'robustviz[distributed]'",
)


def some_digits():
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels[:200]).view(-1, 1, 8, 8) / 16, torch.from_numpy(labels[:200]).long()


def plain():
    """In float64, without batch norm, dropout or anything else that would look at the rest of a batch."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10)
        return nn.Sequential(*layers).double()


def gradients():
    """Gradient of each objective in one update of 55 images, which two processes cannot halve."""
    images, labels = some_digits()
    found = {}
    for name, objective in OBJECTIVES.items():
        model = plain()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run = _Run(model, images, labels, CONFIG, optimizer, objective, partial(fgsm, threat=THREAT), None)
        common = seeded(1)
        noise = run.own(common, 0, 0)
        shared, own_labels = run.batch(torch.arange(55), common, noise)
        run.update(shared, own_labels, 0.0, noise, run.together.weight(len(shared), 55))
        found |= {f"{name}/{key}": parameter.grad.clone() for key, parameter in model.named_parameters()}
    return found


def trained(folder=None, stop=None):
    """Train, if asked stop after an epoch; weights and logs. 180 images in updates of 55: the last one has 15."""
    model = plain()

    def interrupt(log):
        if log.epoch == stop:
            raise InterruptedError

    state = None if folder is None else Path(folder) / "run.state"
    settings = {"attack": partial(fgsm, threat=THREAT), "resume": state, "on_epoch": interrupt}
    try:
        logs = train(model, *some_digits(), CONFIG, monitor=partial(pgd, threat=THREAT, steps=2), **settings)
    except InterruptedError:
        return None
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}, logs


def normalized():
    """Batch norm and dropout see a part of the batch each; what is left must be the same in both processes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10)
        )
    images, labels = some_digits()
    train(model, images.float(), labels, replace(CONFIG, epochs=1))
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def tables():
    """Tables of a network and of one that answers by batches, under attacks that draw and others that do not."""
    images, labels = (part[:70] for part in some_digits())
    attacks = {"PGD": partial(pgd, threat=THREAT, steps=2), "FGSM": partial(fgsm, threat=THREAT)}
    found = {}
    for name in ("digits-standard", "digits-wnll"):
        settings = {"batch_size": 30, "survivors_only": name == "digits-standard", "generator": seeded(3)}
        found[name] = evaluate(checkpoints.load(name)[0], images.float(), labels, attacks, **settings)
    return found


def attacked_batches():
    """How many of three batches this process attacks itself."""
    images, labels = (part[:70] for part in some_digits())
    seen = []

    def attack(model, images, labels, /, *, generator=None):
        seen.append(len(images))
        return images

    evaluate(plain(), images, labels, {"counted": attack}, batch_size=30)
    return seen


def together(folder):
    """What each of two processes does; it writes what it found into a folder of its own."""
    rank = processes().rank
    own = Path(folder) / str(rank)
    own.mkdir()
    (own / "facts.json").write_text(json.dumps([processes().count, processes().silent, attacked_batches()]))
    save_file(gradients(), own / "gradients")
    weights, logs = trained()
    save_file(weights, own / "weights")
    (own / "logs.json").write_text(json.dumps([asdict(log) for log in logs]))
    assert trained(folder, stop=1) is None
    save_file(trained(folder)[0], own / "resumed")
    save_file(normalized(), own / "normalized")
    for name, table in tables().items():
        table.save(own / f"{name}.json")


def start(code, folder, count=2):
    """Start processes as a launcher does, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environment = {key: str(value) for key, value in names.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", code]
        cwd = Path(__file__).parents[1]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, env=os.environ | environment, cwd=cwd, **pipes))
    try:
        answers = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, answers, strict=True):
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder in which two processes have written what they found."""
    folder = tmp_path_factory.mktemp("pair")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_distributed\n"
    start(f"{code}test_distributed.together({str(folder)!r})", folder)
    return folder


@needs_accelerate
def test_both_take_part_and_one_shows_and_writes(pair):
    facts = [json.loads((pair / str(rank) / "facts.json").read_text()) for rank in (0, 1)]
    assert facts == [[2, None, [30, 10]], [2, True, [30]]]
    assert (pair / "run.state").exists()


@needs_accelerate
def test_gradients_are_those_of_one_process(pair):
    expected = gradients()
    for rank in (0, 1):
        found = load_file(pair / str(rank) / "gradients")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10)


@needs_accelerate
def test_training_is_that_of_one_process(pair):
    weights, logs = trained()
    for rank in (0, 1):
        found = load_file(pair / str(rank) / "weights")
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)
        others = json.loads((pair / str(rank) / "logs.json").read_text())
        for log, other in zip(logs, others, strict=True):
            assert other["loss"] == pytest.approx(log.loss, rel=1e-6)
            assert other["clean_accuracy"] == log.clean_accuracy
            assert other["robust_accuracy"] == log.robust_accuracy
            assert other["chosen"] == log.chosen


@needs_accelerate
@pytest.mark.parametrize("kind", ["weights", "normalized"])
def test_both_processes_end_with_the_same_bits(pair, kind):
    one, other = (load_file(pair / str(rank) / kind) for rank in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_accelerate
def test_an_interrupted_run_goes_on_to_the_same_bits(pair):
    for rank in (0, 1):
        through, resumed = (load_file(pair / str(rank) / kind) for kind in ("weights", "resumed"))
        assert all(torch.equal(through[name], resumed[name]) for name in through)


@needs_accelerate
@pytest.mark.parametrize("name", ["digits-standard", "digits-wnll"])
def test_tables_are_those_of_one_process_bit_for_bit(pair, name):
    expected = tables()[name]
    for rank in (0, 1):
        found = RobustnessTable.load(pair / str(rank) / f"{name}.json")
        assert torch.equal(found.predictions, expected.predictions)
        assert torch.equal(found.distances, expected.distances)
        assert found.draws == (1 if name == "digits-standard" else 16)
        assert (found.assembled is None) == (expected.assembled is None) == (name == "digits-standard")
        assert found.assembled is None or torch.equal(found.assembled, expected.assembled)
        assert found.settings == json.loads(json.dumps(expected.settings))


@needs_accelerate
def test_the_command_runs_unchanged_under_a_launcher(tmp_path):
    """Lines are printed once, and what is on disk afterwards is what a single process leaves."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["train", "--images", "60", "--epochs", "1", "--precision", "fp32", "--out", str(tmp_path / "run")]
    words = [sys.executable, *launcher, "-m", "robustviz.cli", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("epoch 1/1") == answer.stdout.count("worst case per image") == 1
    assert checkpoints.load(tmp_path / "run")[1].settings["training_images"] == 60
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]


# One process, and the arithmetic of sharing.


def test_without_a_launcher_there_is_one_process_and_no_accelerate():
    code = (
        "import sys, torch; from robustviz.distributed import processes; p = processes()\n"
        "print(p.rank, p.count, p.silent, p.first, 'accelerate' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    words = [sys.executable, "-c", code]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.split() == ["0", "1", "None", "True", "False"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 6, 7, 20])
def test_shares_make_up_the_batch(count, size):
    batch = torch.arange(size) + 10
    parts = [Processes(rank, count).share(batch) for rank in range(count)]
    assert all(len(part) for part in parts)
    joined = torch.cat(parts).tolist()
    assert joined[:size] == batch.tolist()
    assert set(joined) == set(batch.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    weights = [Processes(rank, count).weight(len(part), size) for rank, part in enumerate(parts)]
    assert math.fsum(weights) == pytest.approx(count)
    if size >= count:  # the mean of weighted means is the mean
        means = [weight * part.double().mean() for weight, part in zip(weights, parts, strict=True)]
        assert sum(means) / count == pytest.approx(batch.double().mean())


def test_one_process_answers_everything_in_order():
    seen = []

    def answer(item):
        seen.append(item)
        return item**2

    for item, squared in Processes().work(iter([3, 1, 2]), answer):
        assert seen[-1] == item  # each is answered when it is asked for
        assert squared == item**2
    assert seen == [3, 1, 2]


def test_a_missing_accelerate_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"robustviz\[distributed\]"):
        processes.__wrapped__()
