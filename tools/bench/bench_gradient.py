"""FGSM, and PGD-20 with a trace, on ResNet20 and 100 images: against bare passes and against other libraries."""

import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from robustviz.attacks import fgsm, ifgsm
from robustviz.models import resnet20
from robustviz.tensors import evaluating, seeded
from robustviz.types import LINF_8
from tools.bench.timing import Ratio, interleaved, ratios

TARGETS = {"floor": 1.05, "torchattacks": 1.05, "foolbox": 0.8}
STEP_SIZE = 2 / 255


def main() -> Iterator[Ratio]:
    torch.manual_seed(0)
    model = resnet20().eval()
    images = torch.rand(100, 3, 32, 32, generator=seeded(0))
    labels = torch.randint(10, (100,), generator=seeded(1))
    for label, steps in (("fgsm", 1), ("pgd-20", 20)):
        candidates = {
            "robustviz": ours(model, images, labels, steps),
            "floor": floor(model, images, labels, steps),
            **others(model, images, labels, steps),
        }
        yield from ratios(label, interleaved(candidates), "robustviz", TARGETS)


def ours(model, images, labels, steps: int) -> Callable[[], object]:
    if steps == 1:
        return lambda: fgsm(model, images, labels)
    return lambda: ifgsm(model, images, labels, steps=steps, step_size=STEP_SIZE, on_step=lambda step: None)


def floor(model, images, labels, steps: int) -> Callable[[], object]:
    """The passes that no attack can do without: forward and back to the pixels, with the parameters frozen."""

    def run() -> None:
        with evaluating(model):
            for _ in range(steps):
                point = images.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(point), labels), point)

    return run


def others(model, images, labels, steps: int) -> dict[str, Callable[[], object]]:
    """The same attack by the other libraries that are installed, each called as its documentation does."""
    found: dict[str, Callable[[], object]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchattacks

            peer = (
                torchattacks.FGSM(model, eps=LINF_8.epsilon)
                if steps == 1
                else torchattacks.PGD(model, eps=LINF_8.epsilon, alpha=STEP_SIZE, steps=steps, random_start=False)
            )
            found["torchattacks"] = lambda: peer(images, labels)
        except ImportError as error:
            print(f"torchattacks is left out ({error}): pip install --no-deps torchattacks, as `make bench` does")
        try:
            import foolbox

            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
            attack = (
                foolbox.attacks.LinfFastGradientAttack()
                if steps == 1
                else foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=False)
            )
            found["foolbox"] = lambda: attack(wrapped, images, labels, epsilons=LINF_8.epsilon)
        except ImportError as error:
            print(f"foolbox is left out ({error}): pip install -e '.[dev]'")
    return found
