"""The fast copy: the same function as the network, in fewer operations, and the network as it was."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.defenses.assembly import defended
from robustviz.models import MODELS, Classifier, initialized
from robustviz.networks.folding import folded
from robustviz.tensors import seeded
from robustviz.types import Threat


def lived_in(model):
    """Give every batch norm statistics and weights of its own."""
    draw = seeded(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, values in module.state_dict().items():
                if values.is_floating_point():
                    least = 0.5 if name in ("weight", "running_var") else -0.5
                    values.copy_(least + torch.rand(values.shape, generator=draw))
    return model


def norms_left(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "resnet18"])
def test_same_logits_and_gradients_without_batch_norm(name):
    model = lived_in(initialized(partial(MODELS[name], channels=3), 0)).double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fast = folded(model)
    images = torch.rand(2, 3, 8, 8, generator=seeded(1), dtype=torch.float64)
    assert norms_left(model) > 0
    assert norms_left(fast) == 0
    assert isinstance(fast, Classifier)
    assert not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    gradients = []
    for network in (model.eval(), fast):
        point = images.clone().requires_grad_()
        logits = network(point)
        gradients += [logits, torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1, 2])), point)[0]]
    torch.testing.assert_close(gradients[2], gradients[0])
    torch.testing.assert_close(gradients[3], gradients[1])


def test_pictures_are_stored_channels_last():
    body = folded(initialized(MODELS["resnet20"], 0)).body
    maps = body[1](body[0](torch.rand(2, 3, 8, 8)))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not maps.is_contiguous()


def test_defenses_are_copied_with_the_rest(digits):
    images = digits[0][:20]
    build = partial(defended, network="small_cnn", channels=1, cas=True, tvm={"weight": 0.02})
    model = lived_in(initialized(build, 0)).eval()
    assert norms_left(folded(model)) == 0
    torch.testing.assert_close(folded(model)(images), model(images), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_folded_stays():
    """A norm that is not right behind its convolution, one without statistics, and a sequence with its own rules."""

    class Doubling(nn.Sequential):
        def forward(self, images):
            return super().forward(images) + self[0](images)

    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3, track_running_stats=False),
        Doubling(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2, affine=False),
    )
    model = lived_in(model).eval()
    images = torch.rand(4, 1, 6, 6, generator=seeded(0))
    assert norms_left(folded(model)) == 3
    torch.testing.assert_close(folded(model)(images), model(images))


def test_a_shared_convolution_keeps_its_weights_elsewhere():
    shared = nn.Conv2d(2, 2, 1)
    model = lived_in(nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(2)), shared)).eval()
    images = torch.rand(3, 2, 4, 4, generator=seeded(0))
    torch.testing.assert_close(folded(model)(images), model(images))


def test_bfloat16_answers_in_float32_and_nearly_the_same(digits):
    model, images = checkpoints.load("digits-pgd")[0], digits[0][:200]
    fast = folded(model, precision="bf16")
    assert isinstance(fast, Classifier)
    exact, near = model(images), fast(images)
    assert near.dtype == torch.float32
    assert (near - exact).abs().max() > 1e-4, "it does compute with fewer digits"
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()
    plain = nn.Sequential(copy.deepcopy(model.body), nn.Linear(64, 3)).eval()
    assert folded(plain, precision="bf16")(images).dtype == torch.float32


def test_an_attack_on_the_copy_works_on_the_network(digits):
    model, images, labels = checkpoints.load("digits-standard")[0], digits[0][:200], digits[1][:200]
    attack = partial(pgd, threat=Threat("linf", 0.1), steps=5)
    shares = []
    for victim in (model, folded(model), folded(model, precision="bf16")):
        attacked = attack(victim, images, labels)
        assert attacked.dtype == torch.float32
        shares.append((model(attacked).argmax(1) == labels).double().mean().item())
    assert shares[0] < 0.5
    assert shares[1] == pytest.approx(shares[0], abs=0.01)
    assert shares[2] == pytest.approx(shares[0], abs=0.03)
