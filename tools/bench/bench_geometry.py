"""Numbers beside the map on 50,000 features of 64 channels, in units of the matrix product of all pairs; growth.

The unit is the float32 product of all queries with all reference features, in blocks, and nothing else.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustviz.features import FeatureSnapshot
from robustviz.geometry import Trajectory, curves, distance_ratio, neighbor_agreement
from robustviz.neighbors import nearest
from robustviz.tensors import seeded
from tools.bench.timing import Ratio, growth, interleaved, peak_memory, ratios

WIDTH, CLASSES, STAGES = 64, 10, 11


def main() -> Iterator[Ratio]:
    reference, queries = features(50_000, 0), features(50_000, 1)
    unit = "matrix product"
    candidates = {
        "distance": lambda: distance_ratio(reference, queries),
        "agreement": lambda: neighbor_agreement(reference, queries),
        unit: lambda: product(queries.values, reference.values),
    }
    seconds = interleaved(candidates, 2)
    yield from ratios("distance_ratio, 50,000", seconds, "distance", {unit: 3})
    yield from ratios("neighbor_agreement, 50,000", seconds, "agreement", {unit: 3})
    seconds = interleaved(stages(5000), 3)
    yield from ratios("curves, 11 stages of 5,000", seconds, "curves", {"one search": 2})
    yield from growth("distance_ratio, points", (3000, 12_000, 48_000), measured_alone, 2.1)


def features(count: int, seed: int) -> FeatureSnapshot:
    """Features of overlapping classes, never negative, as behind a ReLU."""
    labels = torch.randint(CLASSES, (count,), generator=seeded(seed, 1))
    centers = 0.5 * torch.randn(CLASSES, WIDTH, generator=seeded(2))
    values = (centers[labels] + torch.randn(count, WIDTH, generator=seeded(seed, 3))).relu()
    return FeatureSnapshot("body", f"seed {seed}", values, labels, labels, torch.arange(count))


def product(queries: Tensor, points: Tensor) -> None:
    """All inner products, 2**23 at a time, in the same memory."""
    rows = 2**23 // len(points)
    block = points.new_empty(rows, len(points))
    for some in queries.split(rows):
        torch.mm(some, points.T, out=block[: len(some)])


def stages(count: int) -> dict[str, Callable[[], object]]:
    """Curves of an attack of 11 stages, and one search for the neighbors of all its points."""
    reference, points = features(count, 0), features(STAGES * count, 1)
    images = torch.zeros(STAGES, count, 1, 1, 2)
    path = Trajectory(
        "body",
        "attack",
        "epsilon",
        tuple(map(float, range(STAGES))),
        images,
        points.values.view(STAGES, count, WIDTH),
        points.predictions.view(STAGES, count),
        points.labels[:count],
        points.indices[:count],
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, CLASSES))
    return {
        "curves": lambda: curves(reference, path, network),
        "one search": lambda: nearest(points.values, reference.values, 15),
    }


def measured_alone(count: int) -> tuple[float, float]:
    """CPU seconds of `distance_ratio` and peak GiB of the process, in a fresh one."""
    command = [sys.executable, "-m", "tools.bench.bench_geometry", str(count)]
    seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(memory)


if __name__ == "__main__":
    known, asked = features(int(sys.argv[1]), 0), features(int(sys.argv[1]), 1)
    taken = interleaved({"distance": lambda: distance_ratio(known, asked)}, 1)["distance"]
    print(min(taken), peak_memory())
