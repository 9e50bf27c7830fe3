"""One step of adversarial training (PGD-7, ResNet20, 64 images of 3x32x32) against the passes it cannot do without.

And what bfloat16 with channels-last maps saves on a processor that has units for it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from robustviz.attacks import pgd
from robustviz.models import initialized, resnet20
from robustviz.objectives import cross_entropy
from robustviz.tensors import evaluating, seeded
from robustviz.training import TrainConfig, _Run, _training, bf16_pays
from tools.bench.timing import Ratio, interleaved, ratios

STEPS, COUNT = 7, 64


def main() -> Iterator[Ratio]:
    images = torch.rand(COUNT, 3, 32, 32, generator=seeded(0))
    labels = torch.randint(10, (COUNT,), generator=seeded(1))
    candidates = {"robustviz": step(images, labels, "fp32"), "floor": floor(images, labels)}
    if bf16_pays(images, torch.device("cpu")):
        candidates["robustviz bf16"] = step(images, labels, "bf16")
    seconds = interleaved(candidates)
    yield from ratios("adversarial step", seconds, "robustviz", {"floor": 1.1})
    if "robustviz bf16" in seconds:
        yield from ratios("adversarial step, bf16", seconds, "robustviz bf16", {"robustviz": 1.0})


def step(images, labels, precision: str) -> Callable[[], object]:
    """What `train` does for one batch, augmentation included."""
    model = initialized(resnet20, 0)
    config = TrainConfig(padding=4, flip=True, precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    job = _Run(model, images, labels, config, optimizer, cross_entropy, partial(pgd, steps=STEPS), None)
    rows = torch.arange(COUNT)

    def run() -> None:
        with _training(model, job.bf16):
            noise = seeded(0)
            job.update(*job.batch(rows, noise, noise), 0.1, noise)

    return run


def floor(images, labels) -> Callable[[], object]:
    """The attack's passes forward and back to the pixels, one pass with weight gradients, and the optimizer's step."""
    model = initialized(resnet20, 0).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)

    def run() -> None:
        with evaluating(model):
            for _ in range(STEPS):
                point = images.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(point), labels), point)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run
