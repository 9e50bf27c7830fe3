"""Named places: found in networks whose activations are listed here by hand or by an oracle, and rewired."""

from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from robustviz.models import MODELS, small_cnn
from robustviz.networks import activations, blocks, rewired
from robustviz.networks.tracing import example, layout_of, trace
from robustviz.tensors import seeded
from tests.networks.conftest import state_of


class Swish(nn.Module):
    def forward(self, values):
        return values * torch.sigmoid(values)


class LearnedShape(nn.Module):
    """One number for each channel, and a second path through an activation of PyTorch's inside."""

    def __init__(self, channels):
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.5, 2, channels))
        self.inner = nn.Softplus()

    def forward(self, maps):
        return self.inner(maps * self.slope[:, None, None])


class Band(nn.Module):
    """Numbers near zero become zero: a sparsifier."""

    def forward(self, values):
        return torch.where(values.abs() < 0.1, torch.zeros_like(values), values)


class Noise(nn.Module):
    def forward(self, values):
        return values + torch.randn_like(values)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, values):
        return self.factor * values + 1


class Normed(nn.Module):
    def forward(self, values):
        return values / values.flatten(1).norm(dim=1)[:, None, None, None]


class Fussy(nn.Module):
    def forward(self, values):
        if values.max() > 50:
            raise ArithmeticError("too large")
        return values


ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "in place": partial(nn.ReLU, inplace=True),
    "PReLU": partial(nn.PReLU, 4),
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "own": Swish,
    "own, of each channel": partial(LearnedShape, 4),
    "wrapped": lambda: nn.Sequential(Band(), nn.ReLU()),
    "wrapped twice": lambda: nn.Sequential(nn.Identity(), nn.Sequential(nn.PReLU())),
}
OTHERS = {
    "identity": nn.Identity,
    "dropout": nn.Dropout,
    "affine": Scaled,
    "noise": Noise,
    "of the whole picture": Normed,
    "that raises": Fussy,
    "batch norm": partial(nn.BatchNorm2d, 4),
    "softmax": partial(nn.Softmax2d),
    "layers inside": lambda: nn.Sequential(nn.Conv2d(4, 4, 1)),
}


def built(make):
    return nn.Sequential(nn.Conv2d(3, 4, 3), make(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, *OTHERS])
def test_an_activation_is_found_whatever_it_is(kind, dtype):
    network = built((ACTIVATIONS | OTHERS)[kind])
    network(torch.rand(2, 3, 8, 8))
    network.to(dtype).train()[0].requires_grad_(False)
    weights, before = deepcopy(network.state_dict()), state_of(network)
    found = activations(network)
    assert list(found) == (["1"] if kind in ACTIVATIONS else [])
    assert state_of(network) == before
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    if found:
        assert (found["1"].module, found["1"].channels, found["1"].layout) == (network[1], 4, "maps")


@pytest.mark.parametrize("name", MODELS)
def test_every_activation_of_our_networks_is_a_module(name):
    """All that is not linear is among them: without them, and pooling, a network is a sum of paths."""
    network = MODELS[name](channels=3).double().eval()
    found = activations(network)
    assert [p.name for p in found.values()] == [n for n, m in network.named_modules() if isinstance(m, nn.ReLU)]
    linear = rewired(network, found, lambda place: nn.Identity(), where="instead")
    for layer, module in list(linear.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            linear.set_submodule(layer, nn.AvgPool2d(2, ceil_mode=True))
    first, second = torch.rand(2, 2, 3, 32, 32, generator=seeded(0), dtype=torch.float64)
    expected = (linear(first) + linear(second)) / 2
    torch.testing.assert_close(linear((first + second) / 2), expected, rtol=1e-8, atol=0)
    assert not torch.allclose(network((first + second) / 2), (network(first) + network(second)) / 2)


def test_channels_stages_and_blocks_of_resnet20():
    found = activations(MODELS["resnet20"]())
    assert [p.channels for p in found.values()] == [16] * 7 + [32] * 6 + [64] * 6
    assert [p.stage for p in found.values()] == [0] * 7 + [1] * 6 + [2] * 6
    assert list(blocks(MODELS["resnet20"]())) == ["body.0", *(f"body.{s}.{b}" for s in (1, 2, 3) for b in range(3))]
    assert found["body.2.1.first.2"].block == "body.2.1.first"
    assert found["body.2.1.activation"].block == "body.2.1"


TORCHVISION = {
    "resnet18": ("layer4.1", "layer4.1.relu", 512, "maps"),
    "mobilenet_v3_small": ("features.12", "features.12.2", 576, "maps"),
    "swin_t": ("features.7.1.mlp.1", "features.7.1.mlp.1", 3072, "channels-last"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_last_block_of_torchvisions_networks(name):
    network = torchvision.models.get_model(name, weights=None, num_classes=3)
    last, place = list(blocks(network).items())[-1]
    assert (last, place.name, place.channels, place.layout) == TORCHVISION[name]


def test_a_module_that_acts_twice():
    network = torchvision.models.resnet50(num_classes=3)
    place = activations(network)["layer1.0.relu"]
    assert (place.widths, place.channels, place.block) == ((64, 64, 256), 256, "layer1.0")
    with pytest.raises(ValueError, match=r"layer1\.0\.relu is one module that is called with 64, 64, 256 channels"):
        rewired(network, ["layer1.0.relu"], lambda place: nn.PReLU(place.channels))
    smooth = rewired(network, activations(network), lambda place: nn.SiLU(), where="instead")
    assert not any(isinstance(module, nn.ReLU) for module in smooth.modules())


def test_tokens_of_a_transformer():
    found = activations(timm.create_model("vit_tiny_patch16_224", num_classes=3))
    assert list(found) == [f"blocks.{i}.mlp.act" for i in range(12)]
    assert {(p.layout, p.channels, p.stage) for p in found.values()} == {("tokens", 768, 0)}


@pytest.mark.parametrize(
    ("layers", "shape", "expected"),
    [
        ([nn.Conv2d(3, 8, 1), nn.Dropout()], (3, 8, 8), "maps"),
        ([nn.Linear(8, 8), nn.Dropout()], (8, 8, 8), "channels-last"),
        ([nn.LayerNorm(5), nn.Conv2d(3, 7, 1)], (3, 7, 5), "maps"),
        ([nn.Dropout()], (7, 7, 5), None),
        ([nn.Dropout()], (3, 7, 7), "maps"),
        ([nn.Flatten(2), nn.Linear(4, 6)], (3, 2, 2), "tokens"),
        ([nn.Flatten(2), nn.Conv1d(3, 5, 1), nn.Dropout()], (3, 2, 2), "maps"),
        ([nn.Flatten(2)], (3, 2, 2), "tokens"),
        ([nn.Flatten()], (3, 2, 2), "flat"),
        ([nn.Unflatten(1, (1, 3))], (3, 2, 2), None),
    ],
)
def test_where_the_channels_are(layers, shape, expected):
    calls = trace(nn.Sequential(*layers), torch.rand(1, *shape))
    assert layout_of(calls, len(calls) - 1) == expected


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), (3, 8, 8)),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 3)), (1, 7, 7)),
        (nn.Sequential(nn.Conv2d(5, 2, 3), nn.Flatten(), nn.Linear(2 * 26**2, 3)), (5, 28, 28)),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 32, 32)),
        (small_cnn(), (1, 32, 32)),
    ],
)
def test_an_image_that_the_network_accepts(network, shape):
    assert example(network).shape == (1, *shape)
    assert torch.equal(example(network), example(network))


def test_no_image_that_could_be_made_runs():
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 3))
    with pytest.raises(ValueError, match=r"give `images`.*mat1 and mat2"):
        activations(network)
    assert activations(network, torch.rand(2, 1, 1, 7)) == {}
