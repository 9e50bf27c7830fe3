"""What must be true of every attack: one table of attacks against all properties.

A new attack is one more row. `threat=` stands in the row, because the exactness test sets another epsilon.
"""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robustviz.attacks import (
    apgd,
    apgd_targeted,
    carlini_wagner,
    deepfool,
    fgsm,
    fmn,
    ifgsm,
    mifgsm,
    pgd,
    random_noise,
    square,
)
from robustviz.objectives import dlr, margin
from robustviz.tensors import seeded
from robustviz.types import Threat

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.8)

ATTACKS = [
    (f"{name}-{threat.norm}", partial(attack, threat=threat), threat)
    for threat in (LINF, L2)
    for name, attack in (
        ("fgsm", fgsm),
        ("ifgsm", ifgsm),
        ("pgd", pgd),
        ("pgd-restarts", partial(pgd, restarts=3, steps=5)),
        ("pgd-early-exit", partial(pgd, restarts=2, early_exit=True)),
        ("mifgsm", mifgsm),
        ("apgd", partial(apgd, steps=20)),
        ("apgd-dlr", partial(apgd, steps=20, objective=dlr)),
        ("apgd-early-exit", partial(apgd, steps=20, restarts=2, early_exit=True)),
    )
]
SQUARE_L2 = partial(square, threat=L2, steps=60)
ATTACKS += [("square-linf", partial(square, threat=LINF, steps=150), LINF), ("square-l2", SQUARE_L2, L2)]

every_attack = pytest.mark.parametrize(
    ("attack", "threat"), [pytest.param(attack, threat, id=name) for name, attack, threat in ATTACKS]
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def network(classes=10):
    """A network with everything that an attack could disturb, in a mixed state: partly frozen, with gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)),
            nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)),
            nn.Linear(256, classes),
        )
        net(torch.rand(32, 1, 8, 8))  # gives batch norm statistics of its own
        net(torch.rand(32, 1, 8, 8)).sum().backward()
    net[0].eval().requires_grad_(False)
    return net


@pytest.fixture
def some(digits):
    """Sixteen digits; many pixels are exactly 0 or 1."""
    return digits[0][:16].clone(), digits[1][:16].clone()


def size(perturbation, threat):
    return perturbation.flatten(1).double().norm(dim=1, p=torch.inf if threat.norm == "linf" else 2)


@every_attack
def test_in_ball_and_box(attack, threat, some):
    images, labels = some
    attacked = attack(network(), images, labels)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert size(attacked - images, threat).max() <= threat.epsilon * (1 + 1e-6)
    assert (size(attacked - images, threat) > 0).any()


@every_attack
def test_epsilon_zero_changes_nothing(attack, threat, some):
    assert torch.equal(attack(network(), *some, threat=Threat(threat.norm, 0.0)), some[0])


def state(net, *tensors):
    """Everything that a call could leave behind, as plain values."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [(module.training, *(len(getattr(module, hook)) for hook in hooks)) for module in net.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in net.parameters()],
        {name: values.tolist() for name, values in net.state_dict().items()},
        [(t.tolist(), t.requires_grad, t.grad) for t in tensors],
        (torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()),  # noqa: NPY002
        torch.is_grad_enabled(),
    )


@every_attack
@pytest.mark.parametrize("training", [True, False])
def test_leaves_no_trace(attack, threat, some, training):
    net = network() if training else network().eval()
    before = state(net, *some)
    attack(net, *some)
    assert state(net, *some) == before


@every_attack
def test_leaves_no_trace_after_an_error(attack, threat, some):
    def broken(model, images, labels, /, *, generator=None):
        model(images)
        raise RuntimeError("on purpose")

    net = network()
    before = state(net, *some)
    with pytest.raises(RuntimeError, match="on purpose"):
        attack(net, *some, objective=broken)
    assert state(net, *some) == before


@every_attack
def test_result_has_no_history(attack, threat, some):
    images, labels = some
    attacked = attack(network(), images.requires_grad_(), labels)
    assert not attacked.requires_grad
    assert images.grad is None


@every_attack
def test_same_seed_same_result(attack, threat, some):
    net = network()
    first = attack(net, *some, generator=seeded(1))
    torch.manual_seed(7)
    assert torch.equal(first, attack(net, *some, generator=seeded(1)))
    assert torch.equal(attack(net, *some), attack(net, *some, generator=seeded(0)))


@every_attack
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_dtype_and_device(attack, threat, some, dtype, device):
    images = some[0].to(device, dtype)
    attacked = attack(network().to(device, dtype), images, some[1].to(device))
    assert (attacked.shape, attacked.dtype, attacked.device) == (images.shape, images.dtype, images.device)


class Answering(nn.Module):
    """A network that answers in numbers of another type."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, images):
        assert images.dtype == torch.float32
        return self.net(images).to(self.dtype)


ON_MARGIN = {
    "pgd": partial(pgd, threat=LINF, restarts=2, steps=3, objective=margin),
    "apgd": partial(apgd, threat=L2, steps=10, objective=margin),
    "square": partial(square, threat=LINF, steps=10),
    "noise": partial(random_noise, threat=LINF, steps=3),
    "cw": partial(carlini_wagner, steps=10, search_steps=2, initial_const=1.0, lr=0.05),
    "fmn": partial(fmn, steps=10),
    "deepfool": deepfool,
    "apgd-targeted": partial(apgd_targeted, threat=LINF, steps=5, targets=2),
}


@pytest.mark.parametrize("attack", ON_MARGIN.values(), ids=ON_MARGIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_may_answer_in_another_type(attack, some, dtype):
    """Differences of logits are the same numbers in float64; in bfloat16 they keep three digits."""
    images, labels = some
    net = network().eval()
    attacked, plain = attack(Answering(net, dtype), images, labels), attack(net, images, labels)
    assert attacked.dtype == torch.float32
    fooled, expected = (int((net(points).argmax(1) != labels).sum()) for points in (attacked, plain))
    assert abs(fooled - expected) <= (2 if dtype == torch.bfloat16 else 0)
    if dtype == torch.float64:
        torch.testing.assert_close(attacked, plain)


@every_attack
def test_works_without_gradients_outside(attack, threat, some):
    net = network()
    expected = attack(net, *some)
    with torch.no_grad():
        assert torch.equal(attack(net, *some), expected)


@every_attack
def test_attacks_in_evaluation_mode(attack, threat, some):
    assert torch.equal(attack(network().train(), *some), attack(network().eval(), *some))


@every_attack
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(attack, threat, some, classes):
    net, images, labels = network(classes).eval(), some[0], some[1] % classes
    with torch.no_grad():
        before = nn.functional.cross_entropy(net(images), labels)
        after = nn.functional.cross_entropy(net(attack(net, images, labels)), labels)
    assert after > before


@every_attack
@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_exact_on_a_linear_model(attack, threat, factor):
    """Two classes and a plane between them, which every image has at the same known distance."""
    if attack is SQUARE_L2 and factor > 1:
        factor = 2.0  # its windows of at least 3 x 3 pixels are too coarse for 4 x 4
    source = seeded(5)
    normal = torch.randn(16, generator=source, dtype=torch.float64)
    points = 0.5 + 0.05 * torch.randn(8, 16, generator=source, dtype=torch.float64)
    side = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    points += ((0.3 * side - (points - 0.5) @ normal) / normal.dot(normal))[:, None] * normal
    distance = 0.3 / normal.norm(p=1 if threat.norm == "linf" else 2).item()
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-normal, normal]))
        net[1].bias.copy_(torch.stack([normal.sum(), -normal.sum()]) / 2)
    images, labels = points.view(8, 1, 4, 4), (side > 0).long()
    assert torch.equal(net(images).argmax(1), labels)
    attacked = attack(net, images, labels, threat=Threat(threat.norm, factor * distance))
    assert (net(attacked).argmax(1) != labels).tolist() == [factor > 1] * 8
