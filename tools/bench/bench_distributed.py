"""Two processes with one thread each against one: an epoch of training and an evaluation of ResNet20 with PGD-3.

Wall-clock time, because the processes run beside each other: on a busy machine the figures say little.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch

from robustviz.attacks import pgd
from robustviz.distributed import processes
from robustviz.evaluation import evaluate
from robustviz.models import initialized, resnet20
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, train
from tools.bench.timing import Ratio

COUNT, BATCH, ROUNDS = 256, 64, 3
ATTACK = partial(pgd, steps=3)


def main() -> Iterator[Ratio]:
    if (os.cpu_count() or 1) < 2:
        print("two processes are left out: this machine has one core")
        return
    one, two = (timed(count) for count in (1, 2))
    for name in one:
        shares = [both / alone for alone, both in zip(one[name], two[name], strict=True)]
        yield Ratio(f"{name}, 2 processes", "1 process", shares, 0.67)
        speedup = 1 / median(shares)
        print(f"{name}: speed-up {speedup:.2f} by a second process, efficiency {speedup / 2:.0%}")


def timed(count: int) -> dict[str, list[float]]:
    """Seconds of each task in each round, by so many processes, started as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in names.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "tools.bench.bench_distributed"]
        cwd = Path(__file__).parents[2]
        started.append(subprocess.Popen(words, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True))
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a process of the bench has failed; its error stands above")
    lines = [line.split(":") for line in answers[0].splitlines()]
    return {name: [float(second) for second in seconds.split()] for name, seconds in lines}


def worker() -> None:
    """Do every task `ROUNDS` times and once before; the first process prints the seconds."""
    images = torch.rand(COUNT, 3, 32, 32, generator=seeded(0))
    labels = torch.randint(10, (COUNT,), generator=seeded(1))
    config = TrainConfig(epochs=1, batch_size=BATCH, padding=4, flip=True, precision="fp32")
    model = initialized(resnet20, 0)
    tasks: dict[str, Callable[[], object]] = {
        "training": lambda: train(model, images, labels, config, attack=ATTACK, validation=0.0),
        "evaluation": lambda: evaluate(model, images, labels, {"PGD": ATTACK}, batch_size=BATCH),
    }
    for name, task in tasks.items():
        seconds = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            task()
            seconds.append(time.perf_counter() - start)
        if processes().first:
            print(f"{name}:{' '.join(f'{second:.3f}' for second in seconds[1:])}")


if __name__ == "__main__":
    worker()
