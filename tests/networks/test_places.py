"""Named places: found in networks whose activations are listed here by hand or by an oracle, and rewired."""

from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from robustviz import checkpoints
from robustviz.models import MODELS, Classifier, Normalize, small_cnn
from robustviz.networks import activations, blocks, rewired
from robustviz.networks.tracing import example, layout_of, trace
from robustviz.tensors import seeded


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


def state(network):
    modules = list(network.modules())
    return (
        [module.training for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, *OTHERS])
def test_an_activation_is_found_whatever_it_is(kind, dtype):
    network = built((ACTIVATIONS | OTHERS)[kind])
    network(torch.rand(2, 3, 8, 8))
    network.to(dtype).train()[0].requires_grad_(False)
    weights, before = deepcopy(network.state_dict()), state(network)
    found = activations(network)
    assert list(found) == (["1"] if kind in ACTIVATIONS else [])
    assert state(network) == before
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


@pytest.mark.parametrize("where", ["before", "after", "instead"])
@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_rewired_is_a_copy_with_something_new(name, where):
    network = MODELS[name](channels=1).double().eval()
    network.body.train()
    places = activations(network)
    images = torch.rand(2, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    weights, before = deepcopy(network.state_dict()), state(network)
    seen = []

    def make(place):
        seen.append(place)
        return nn.PReLU(place.channels, init=0.0 if where == "instead" else 1.0)

    changed = rewired(network, places, make, where=where)
    assert seen == list(places.values())
    assert state(network) == before
    assert [m.training for m in changed.modules() if isinstance(m, nn.PReLU)] == [True] * len(places)
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in changed.parameters()}
    assert torch.equal(changed.eval()(images), network.eval()(images))
    assert all(torch.equal(value, weights[key]) for key, value in changed.state_dict().items() if key in weights)
    new = {f"{place}{'' if where == 'instead' else '.0' if where == 'before' else '.1'}.weight" for place in places}
    assert set(changed.state_dict()) == set(weights) | new
    missing = changed.load_state_dict(weights, strict=False)
    assert set(missing.missing_keys) == new
    assert not missing.unexpected_keys


def test_what_is_put_before_after_and_instead_is_called_there():
    trail = []

    class Mark(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, values):
            trail.append((self.name, values.min().item() < 0))
            return values

    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()).eval()
    nn.init.constant_(network[0].weight, -1.0)
    for where, expected in (("before", True), ("after", False), ("instead", True)):
        trail.clear()
        rewired(network, ["1"], lambda place: Mark(place.name), where=where)(torch.rand(1, 1, 9, 9))
        assert trail == [("1", expected)]


def test_weights_of_the_plain_network_load_where_the_old_module_has_some():
    """Numbered names inside numbered names: a whole block, with blocks of its own, gets a neighbor."""
    network = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.PReLU(2)))
    for where, old in (("after", "0.0"), ("before", "0.1")):
        changed = rewired(network, ["0"], lambda place: nn.PReLU(place.channels), where=where)
        other = deepcopy(network)
        nn.init.constant_(other[0][0][0].weight, 7.0)
        assert len(changed.load_state_dict(other.state_dict(), strict=False).missing_keys) == 1
        assert changed.get_parameter(f"{old}.0.0.weight").unique().item() == 7.0
        again = rewired(network, ["0"], lambda place: nn.PReLU(place.channels), where=where)
        again.load_state_dict(changed.state_dict())
        assert again.get_parameter(f"{old}.0.0.weight").unique().item() == 7.0


def test_a_shared_module_changes_at_all_its_names():
    act = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(1, 2, 3), act, nn.Conv2d(2, 2, 3), act)
    changed = rewired(network, activations(network), lambda place: nn.Tanh(), where="instead")
    assert changed[1] is changed[3]
    assert isinstance(changed[3], nn.Tanh)


def test_places_stay_where_they_are_after_rewiring():
    network = small_cnn()
    places = activations(network)
    sparse = rewired(network, places, lambda place: Band())
    assert list(activations(sparse)) == list(places)
    assert list(blocks(sparse)) == list(blocks(network))
    inner = rewired(sparse, activations(sparse), lambda place: nn.PReLU(place.channels), where="after")
    assert list(activations(inner)) == list(places)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_networks_are_looked_into(wrap):
    network = small_cnn()
    assert list(activations(wrap(network))) == list(activations(network))
    assert isinstance(rewired(wrap(network), ["body.0"], lambda place: nn.Identity()), Classifier)


@pytest.mark.parametrize(
    ("places", "settings", "error", "message"),
    [
        (["body.9"], {}, ValueError, r"called and return a tensor: .*body\.0.*; got 'body\.9'"),
        (["purify"], {}, ValueError, "got 'purify'"),
        (["body", "body.0"], {}, ValueError, r"must not lie inside one another, but body\.0 does"),
        (["body.0"], {"where": "behind"}, ValueError, "where must be before, after or instead, got 'behind'"),
        (["body.0"], {"make": lambda place: torch.relu}, TypeError, "make must return an nn.Module"),
    ],
)
def test_rewired_refuses(unchecked, places, settings, error, message):
    network = Classifier(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()), nn.Linear(64, 2), normalize=Normalize(0, 1))
    network.purify = Unnamed()
    with pytest.raises(error, match=message):
        rewired(network, places, **{"make": lambda place: nn.Identity()} | settings)


class Unnamed(nn.Module):
    """A purifier that must not be run for nothing."""

    def forward(self, images):
        raise AssertionError("a purifier answers in pixels")


def test_shipped_networks_with_cas_have_their_last_block_inside_the_pair():
    network = checkpoints.load("digits-pgd-cas")[0]
    assert list(blocks(network)) == ["body.0", "body.1", "body.2.0", "body.3.0"]
