"""WNLL on 1,000 unlabelled points in 64 dimensions: against graphlearning, and with ten times the template."""

import resource
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robustviz.defenses import WNLLHead, affinity, interpolate
from robustviz.tensors import seeded
from tools.bench.timing import Ratio, interleaved, ratios

CLASSES, WIDTH, BATCH = 10, 64, 1000


def main() -> Iterator[Ratio]:
    candidates = {"value + gradient": ours(5000), **graphlearning(5000)}
    yield from ratios("wnll 1000 + 5000", interleaved(candidates, 5), "value + gradient", {"graphlearning": 0.5})
    candidates = {"small": prepared(5000), "large": prepared(50_000)}
    yield from ratios("wnll 1000 + 50,000", interleaved(candidates, 3), "large", {"small": 15})
    unit = 2**30 if sys.platform == "darwin" else 2**20
    yield Ratio("wnll memory", "1 GiB", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit], 2)


def clouds(size: int) -> tuple[Tensor, Tensor]:
    """Overlapping classes: centers are half as far apart as points spread in every direction."""
    labels = torch.randint(CLASSES, (size,), generator=seeded(size, 1))
    centers = 0.5 * torch.randn(CLASSES, WIDTH, generator=seeded(2))
    return centers[labels] + torch.randn(size, WIDTH, generator=seeded(size, 3)), labels


def ours(template: int) -> Callable[[], object]:
    """Everything, neighbors included: weights, shares and the gradient in all points."""
    points, labels = clouds(BATCH + template)
    points.requires_grad_()

    def run() -> None:
        share = interpolate(affinity(points), labels[BATCH:], CLASSES)
        loss = -torch.log(share.gather(1, labels[:BATCH, None]) + 1e-12).sum()
        (gradient,) = torch.autograd.grad(loss, points)
        assert gradient.isfinite().all()
        assert (gradient[:BATCH].abs().amax(1) > 0).float().mean() > 0.5

    return run


def prepared(template: int) -> Callable[[], object]:
    """The head's answer and its gradient in the batch, after its template's neighbor lists are made."""
    head = WNLLHead(*clouds(template), CLASSES)
    features, labels = clouds(BATCH)
    features.requires_grad_()

    def run() -> None:
        loss = head(features).gather(1, labels[:, None]).sum()
        assert torch.autograd.grad(loss, features)[0].isfinite().all()

    return run


def graphlearning(template: int) -> dict[str, Callable[[], object]]:
    """The value alone, with the neighbors of its k-d tree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import graphlearning as gl
        except ImportError as error:
            print(f"graphlearning is left out ({error}): pip install -e '.[dev]'")
            return {}
    points, labels = (values.numpy() for values in clouds(BATCH + template))
    known = torch.arange(BATCH, BATCH + template).numpy()

    def run() -> None:
        found = gl.weightmatrix.knnsearch(points, 16, method="kdtree")
        weights = gl.weightmatrix.knn(points, 15, knn_data=found)
        gl.ssl.laplace(weights, reweighting="wnll").fit(known, labels[known])

    return {"graphlearning": run}
