"""Auto-PGD, FMN and Carlini & Wagner with traces on ResNet20, 100 images of 3x32x32; PGD as an evaluation runs it.

For the evaluation the floor is multiplied with the share of image-steps at which the image was still right, and the
decisions of the network on what the folded copy gave are counted against those on what the network itself gave. Images
are pieces of photographs, and the network's answers serve as labels.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch

from robustviz import checkpoints
from robustviz.attacks import apgd, carlini_wagner, fmn, pgd
from robustviz.models import resnet20
from robustviz.networks.folding import folded
from robustviz.tensors import seeded
from robustviz.types import LINF_8, Threat
from tools.bench.bench_gradient import floor
from tools.bench.bench_tvm import crops
from tools.bench.timing import Ratio, interleaved, ratios

TARGETS = {"floor": 1.05, "pyautoattack": 1.0, "foolbox": 0.8}
ROUNDS = 5


def main() -> Iterator[Ratio]:
    torch.manual_seed(0)
    model = resnet20().eval()
    images = torch.rand(100, 3, 32, 32, generator=seeded(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    for label, steps, attack in (
        ("apgd-20", 20, apgd),
        ("fmn-20", 20, fmn),
        ("carlini_wagner-100", 100, carlini_wagner),
    ):
        candidates = {
            "robustviz": ours(attack, model, images, labels, steps),
            "floor": floor(model, images, labels, steps),
            **others(attack, model, images, labels, steps),
        }
        yield from ratios(label, interleaved(candidates, ROUNDS), "robustviz", TARGETS)
    yield from evaluation()


def evaluation() -> Iterator[Ratio]:
    """PGD-20 with early exit on the folded copy of two ResNet20, at a radius where many images hold out."""
    images = crops()
    for name, epsilon in (("cifar10-pgd", 4 / 255), ("cifar10-standard", 0.5 / 255)):
        model, threat = checkpoints.load(name)[0].requires_grad_(False), Threat("linf", epsilon)
        with torch.no_grad():
            labels = model(images).argmax(1)
        fast, attack = folded(model), partial(pgd, threat=threat, steps=20, early_exit=True)
        seen: list[int] = []
        hook = fast.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        attacked = [attack(victim, images, labels) for victim in (fast, model)]
        hook.remove()
        alive = sum(seen) / (20 * len(images))
        with torch.no_grad():
            decided = [model(pictures).argmax(1) for pictures in attacked]
        differing = int((decided[0] != decided[1]).sum())
        print(f"pgd-20 evaluation of {name}: {alive:.3f} of image-steps alive, {differing} of {len(images)} differ")
        seconds = interleaved(
            {
                "robustviz": partial(attack, fast, images, labels),
                "alive x floor": floor(model, images, labels, 20),
            },
            ROUNDS,
        )
        seconds["alive x floor"] = [alive * value for value in seconds["alive x floor"]]
        yield from ratios(f"pgd-20 {name}", seconds, "robustviz", {"alive x floor": 0.8})


def ours(attack, model, images, labels, steps: int) -> Callable[[], object]:
    """With a trace. Carlini & Wagner: one round, with a lead out of reach, so that no image stops before the floor."""
    if attack is carlini_wagner:
        settings = {"search_steps": 1, "initial_const": 1e3, "confidence": 30.0}
        return lambda: attack(model, images, labels, steps=steps, on_step=lambda step: None, **settings)
    return lambda: attack(model, images, labels, steps=steps, on_step=lambda step: None)


def others(attack, model, images, labels, steps: int) -> dict[str, Callable[[], object]]:
    """The same attack by the other libraries that are installed."""
    found: dict[str, Callable[[], object]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if attack is apgd:
                import pyautoattack

                peer = pyautoattack.AutoAttack(model, eps=LINF_8.epsilon, seed=0).apgd
                peer.n_iter, peer.n_restarts, peer.loss = steps, 1, "ce"
                found["pyautoattack"] = lambda: peer.perturb(images, labels)
            else:
                import foolbox

                wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
                names = {
                    fmn: foolbox.attacks.LInfFMNAttack(steps=steps),
                    carlini_wagner: foolbox.attacks.L2CarliniWagnerAttack(
                        binary_search_steps=1, steps=steps, initial_const=1e3, confidence=30.0, abort_early=False
                    ),
                }
                found["foolbox"] = lambda: names[attack](wrapped, images, labels, epsilons=None)
        except ImportError as error:
            print(f"a peer is left out ({error}): pip install -e '.[dev]'")
    return found
