"""One row of features from whatever a layer returns, and the layer's own output whatever follows it."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from robustviz.features import recording, snapshot


class Inside(nn.Module):
    """A network whose layer `it` gives what a test wants, and whose head is linear on the flat pixels."""

    def __init__(self, it, shape=None):
        super().__init__()
        self.it, self.shape, self.head = it, shape, nn.Linear(3 * 4 * 4, 3)

    def forward(self, images):
        self.it(images if self.shape is None else images.reshape(len(images), *self.shape))
        return self.head(images.flatten(1))


class Giving(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, values):
        return self.form(values)


PIXELS = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.zeros(5, dtype=torch.long)


def shaped(*shape):
    return Giving(lambda values: values.reshape(len(values), *shape))


FORMS = {
    "flat": (shaped(48), {}, lambda x: x.flatten(1)),
    "maps": (Giving(lambda x: x), {}, lambda x: x.mean((2, 3))),
    "maps, no square": (shaped(3, 2, 8), {}, lambda x: x.mean((2, 3))),
    "maps by name": (shaped(3, 16), {"pool": "maps"}, lambda x: x.mean((2, 3))),
    "tokens": (shaped(6, 8), {}, lambda x: x.reshape(5, 6, 8).mean(1)),
    "tokens by name": (shaped(6, 8), {"pool": "tokens"}, lambda x: x.reshape(5, 6, 8).mean(1)),
    "class token": (shaped(6, 8), {"pool": "cls"}, lambda x: x.reshape(5, 6, 8)[:, 0]),
    "channels last": (
        Giving(lambda x: x.permute(0, 2, 3, 1)),
        {"pool": "channels-last"},
        lambda x: x.mean((2, 3)),
    ),
    "function": (Giving(lambda x: x), {"pool": lambda maps: maps.amax((2, 3))}, lambda x: x.amax((2, 3))),
    "tuple": (Giving(lambda x: (x, 1)), {"pool": lambda pair: pair[0].flatten(1)}, lambda x: x.flatten(1)),
    "dict": (Giving(lambda x: {"a": x}), {"pool": lambda kept: kept["a"].flatten(1)}, lambda x: x.flatten(1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_one_row_of_every_form(form, dtype):
    layer, settings, expected = FORMS[form]
    network = Inside(layer).to(dtype).eval()
    found = snapshot(network, PIXELS.to(dtype), CLASSES, layer="it", condition="c", batch_size=2, **settings)
    assert found.values.dtype == dtype
    torch.testing.assert_close(found.values, expected(PIXELS.to(dtype)))


LAYERS_SAY = {
    "convolution": (nn.Conv2d(3, 4, 1), None, lambda module, x: module(x).mean((2, 3))),
    "one dimension": (nn.Conv1d(3, 4, 1), (3, 16), lambda module, x: module(x.flatten(2)).mean(2)),
    "linear": (nn.Linear(8, 4), (6, 8), lambda module, x: module(x.reshape(5, 6, 8)).mean(1)),
    "encoder": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (6, 8),
        lambda module, x: module(x.reshape(5, 6, 8)).mean(1),
    ),
}


@pytest.mark.parametrize("kind", LAYERS_SAY)
def test_layers_say_where_their_channels_are(kind):
    layer, shape, expected = LAYERS_SAY[kind]
    network = Inside(layer, shape).eval()
    found = snapshot(network, PIXELS, CLASSES, layer="it", condition="c", batch_size=3)
    with torch.no_grad():
        torch.testing.assert_close(found.values, expected(layer, PIXELS))


@pytest.mark.parametrize(
    ("layer", "settings", "message"),
    [
        (
            nn.Sequential(shaped(4, 4, 3), nn.Linear(3, 7)),
            {},
            r"\(n, 4, 4, 7\), with the channels last; choose pool='maps'",
        ),
        (shaped(4, 4, 3), {}, r"\(n, 4, 4, 3\), and nothing says where its channels are; choose .* or a function"),
        (shaped(1, 3, 4, 4), {}, "nothing says where its channels are"),
        (shaped(48), {"pool": "tokens"}, r"must have shape \(n, tokens, c\) with n = 5 images, got \(5, 48\)"),
        (shaped(6, 8), {"pool": "channels-last"}, r"must have shape \(n, h, w, c\)"),
        (shaped(48), {"pool": "maps"}, r"must have shape \(n, c, h, w\)"),
        (Giving(lambda x: (x, x)), {}, "layer it returns a tuple and no tensor; name a layer inside it, or give pool"),
        (Giving(lambda x: {"a": x}), {"pool": "maps"}, "returns a dict and no tensor"),
        (Giving(lambda x: None), {}, "returns a NoneType"),
        (Giving(lambda x: x.flatten(1).argmax(1, keepdim=True)), {}, "floating-point numbers, got torch.int64"),
        (Giving(lambda x: x), {"pool": lambda maps: maps}, r"must have shape \(n, c\) .* got \(5, 3, 4, 4\)"),
        (Giving(lambda x: x), {"pool": lambda maps: 3}, "floating-point numbers, got int"),
        (Giving(lambda x: x.reshape(-1, 4)), {}, r"must have shape \(n, c\) with n = 5 images, got \(60, 4\)"),
    ],
)
def test_snapshot_refuses_what_is_no_row(unchecked, layer, settings, message):
    network = Inside(layer).eval()
    with pytest.raises(ValueError, match=message):
        snapshot(network, PIXELS, CLASSES, layer="it", condition="c", **settings)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_that_is_not_called():
    network = Inside(nn.Identity())
    network.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer unused is not called when the model answers"):
        snapshot(network, PIXELS, CLASSES, layer="unused", condition="c")


@pytest.mark.parametrize("answer", [lambda x: {"logits": x}, lambda x: (x,), lambda x: x[:, 0], lambda x: x[:, :1]])
def test_snapshot_refuses_what_are_no_logits(unchecked, answer):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), Giving(answer))
    with pytest.raises(ValueError, match="model must return"):
        snapshot(network, PIXELS, CLASSES, layer="1", condition="c")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        snapshot(answer, PIXELS, CLASSES, layer="1", condition="c")


IN_PLACE = {
    "ReLU": nn.ReLU(inplace=True),
    "Hardswish": nn.Hardswish(inplace=True),
    "dropout": nn.Dropout(0.5, inplace=True),
    "function": Giving(lambda x: x.mul_(2)),
    "slice": Giving(lambda x: x.index_fill_(1, torch.tensor([0]), 7.0)),
}


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_recorded_is_not_overwritten(kind, gradient):
    """The layer's own output is kept, and the network computes what it always did, gradients included."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), IN_PLACE[kind], nn.Flatten(), nn.Linear(16, 3)).eval()
    own, expected = network[0](PIXELS).detach(), network(PIXELS).detach()
    with torch.set_grad_enabled(gradient), recording(network, ["0", "1"]) as outputs:
        logits = network(PIXELS)
    assert torch.equal(outputs["0"], own)
    assert torch.equal(outputs["1"], network[1](own.clone()))
    assert torch.equal(logits, expected)
    if gradient:  # what is recorded lies on the path to the logits
        (found,) = torch.autograd.grad(logits.sum(), outputs["0"])
        point = own.clone().requires_grad_()
        assert torch.equal(found, torch.autograd.grad(network[1:](point.clone()).sum(), point)[0])


@pytest.mark.parametrize("form", [lambda x: (x, [x]), lambda x: {"a": x, "b": (x, 3)}])
def test_tensors_inside_tuples_and_dicts_are_not_overwritten_either(form):
    def overwrite(kept):
        (kept["a"] if isinstance(kept, dict) else kept[0]).zero_()
        return torch.ones(5, 3)

    network = nn.Sequential(Giving(lambda x: x * 1), Giving(form), Giving(overwrite))
    with recording(network, ["1"]) as outputs:
        network(PIXELS)
    kept = outputs["1"]
    assert torch.equal(kept["a"] if isinstance(kept, dict) else kept[0], PIXELS)


def test_torchvisions_batch_norm_before_an_activation_in_place():
    network = resnet18(num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32)
    found = snapshot(network, images, CLASSES[:2], layer="bn1", condition="c").values
    with torch.no_grad():
        torch.testing.assert_close(found, network.bn1(network.conv1(images)).mean((2, 3)))
    assert found.min() < 0


def test_images_stay_as_they_are_when_the_network_writes_into_them():
    network = nn.Sequential(Giving(lambda x: x.sub_(0.5).div_(0.25)), nn.Flatten(), nn.Linear(48, 3)).eval()
    before = PIXELS.clone()
    found = snapshot(network, PIXELS, CLASSES, layer="0", condition="c")
    assert torch.equal(PIXELS, before)
    torch.testing.assert_close(found.values, ((before - 0.5) / 0.25).mean((2, 3)))
