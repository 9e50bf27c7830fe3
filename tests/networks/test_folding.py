"""The fast copy: the same function as the network, in fewer operations, and the network as it was."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.defenses.assembly import defended
from robustviz.evaluation import evaluate
from robustviz.models import MODELS, Classifier, initialized
from robustviz.networks import folded
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
    torch.testing.assert_close(folded(model)(images), model(images), rtol=1e-4, atol=1e-4)


class Standardized(nn.Conv2d):
    def forward(self, maps):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(maps, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Halved(nn.BatchNorm2d):
    def forward(self, maps):
        return super().forward(maps) / 2


class Parts(nn.Module):
    """A sequence whose parts are used by `use` besides, or instead."""

    def __init__(self, use):
        super().__init__()
        self.parts, self.use = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), use

    def forward(self, maps):
        return self.use(self.parts, maps)


def pair(convolution=None, norm=None):
    return nn.Sequential(convolution or nn.Conv2d(3, 3, 1), norm or nn.BatchNorm2d(3))


def changed(attribute, change):
    """A pair of which one part, or the whole, was changed after it was made."""
    sequence = pair()
    change(sequence if attribute is None else sequence[attribute])
    return sequence


def doubling(module):
    module.forward = lambda maps: 2 * type(module).forward(module, maps)


def shared_convolution():
    shared = nn.Conv2d(3, 3, 1)
    return nn.Sequential(pair(shared), shared)


def shared_norm():
    shared = nn.BatchNorm2d(3)
    return nn.Sequential(pair(norm=shared), pair(norm=shared), shared)


def tied_weights():
    first, second = pair(), pair()
    second[0].weight = first[0].weight
    return nn.Sequential(first, second)


def twice(module=None):
    module = module or pair()
    return nn.Sequential(module, module)


STAYS = {
    "subclass of a convolution": lambda: pair(Standardized(3, 3, 3)),
    "subclass of batch norm": lambda: pair(norm=Halved(3)),
    "parametrized convolution": lambda: pair(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))),
    "parametrized batch norm": lambda: pair(norm=nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None)),
    "weights by a hook": lambda: pair(nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))),
    "hook behind the convolution": lambda: changed(0, lambda m: m.register_forward_hook(lambda m, i, o: o.relu())),
    "hook before batch norm": lambda: changed(1, lambda m: m.register_forward_pre_hook(lambda m, i: (i[0].relu(),))),
    "forward of its own": lambda: changed(0, doubling),
    "sequence with a forward of its own": lambda: changed(None, doubling),
    "convolution used elsewhere": shared_convolution,
    "batch norm used elsewhere": shared_norm,
    "only the convolution": lambda: Parts(lambda parts, maps: parts[0](maps)),
    "only batch norm": lambda: Parts(lambda parts, maps: parts[1](maps)),
    "parts with something between": lambda: Parts(lambda parts, maps: parts[1](parts[0](maps).relu())),
    "also the convolution": lambda: Parts(lambda parts, maps: parts(maps) + parts[0](maps)),
    "weights as numbers": lambda: Parts(lambda parts, maps: parts(maps) * parts[0].weight.sum()),
    "statistics as numbers": lambda: Parts(lambda parts, maps: parts(maps) - parts[1].running_mean[0]),
}
FOLDS = {
    "pair": pair,
    "affine": lambda: pair(nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False), nn.BatchNorm2d(6, affine=False)),
    "sequence used twice": twice,
    "tied weights": tied_weights,
    "parts in turn": lambda: Parts(lambda parts, maps: parts[1](parts[0](maps))),
    "hook behind the pair": lambda: changed(None, lambda m: m.register_forward_hook(lambda m, i, o: o.relu())),
    "subclass of a sequence": lambda: torchvision.ops.Conv2dNormActivation(3, 5),
}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [*STAYS, *FOLDS])
def test_the_same_logits_or_no_folding(kind, dtype, channels_last):
    network = nn.Sequential((STAYS | FOLDS)[kind](), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    lived_in(network.train())
    for module in network.modules():
        if hasattr(module, "weight_u") or hasattr(module, "parametrizations"):
            network(torch.rand(2, 3, 8, 8))  # estimates that the weights are divided by
    network = network.to(dtype).eval()
    images = torch.rand(6, 3, 8, 8, generator=seeded(0), dtype=dtype)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(images)
    for given in (None, images):
        fast = folded(network, images=given)
        torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
        assert (norms_left(fast) > 0) == (kind in STAYS)
        assert torch.equal(network(images), expected)


def test_a_copy_that_differs_on_the_given_images_alone_is_not_used():
    """What one random image does not show, the images of an evaluation do."""

    class Sometimes(Parts):
        def forward(self, maps):
            return self.parts[0](maps) if len(maps) > 3 else self.parts(maps)

    network = lived_in(nn.Sequential(Sometimes(None), nn.Flatten())).eval()
    images = torch.rand(5, 3, 8, 8, generator=seeded(0))
    assert norms_left(folded(network)) == 0
    assert norms_left(folded(network, images=images)) == 1
    table = evaluate(network, images, torch.zeros(5).long(), {"PGD": partial(pgd, steps=1)}, fast=True)
    assert table.settings["differing"] == {"clean": 0, "PGD": 0}


def test_without_an_image_that_runs_the_copy_is_plain():
    network = nn.Sequential(pair(), nn.Flatten(), nn.Linear(3 * 5 * 7, 3)).eval()
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(folded(network)(images), network(images))
    assert norms_left(folded(network)) == 1
    assert norms_left(folded(network, images=images)) == 0


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
