"""CPU seconds of `robustviz --help` as a share of those of `import torch`, each in a fresh process."""

import subprocess
import sys
from collections.abc import Iterator
from resource import RUSAGE_CHILDREN, getrusage

from tools.bench.timing import ROUNDS, Ratio

PROGRAMS = (("-m", "robustviz.cli", "--help"), ("-c", "import torch"))


def main() -> Iterator[Ratio]:
    rounds = [[spent(words) for words in PROGRAMS] for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    yield Ratio("robustviz --help", "import torch", [ours / other for ours, other in rounds], 0.35)


def spent(words):
    """CPU seconds of a process, its start and end included."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
