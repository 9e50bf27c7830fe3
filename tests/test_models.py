import pytest
import torch
from torch import nn

from robustviz.models import MODELS, Classifier, Normalize, ResidualBlock, ZeroPadded, resnet20
from robustviz.tensors import seeded

SIZES = {"resnet20": 0.27, "resnet56": 0.85, "resnet110": 1.7, "resnet18": 11.17, "vgg16": 14.7}
"""Millions of parameters: the ResNets of He et al., table 6; ResNet18 and VGG16 in their usual form for 32x32."""


@pytest.mark.parametrize(("name", "millions"), SIZES.items())
def test_parameter_counts(name, millions):
    count = sum(parameter.numel() for parameter in MODELS[name]().parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02)


def test_parameter_count_of_resnet20_to_the_last():
    convolutions = 27 * 16 + 9 * (6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    batch_norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert sum(p.numel() for p in resnet20().parameters()) == convolutions + batch_norms + 64 * 10 + 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits(name, channels):
    net = MODELS[name](classes=7, channels=channels).eval()
    for size in (32, 8):
        with torch.no_grad():
            assert net(torch.rand(2, channels, size, size, generator=seeded(0))).shape == (2, 7)


@pytest.mark.parametrize(("name", "width"), [("small_cnn", 64), ("resnet20", 64), ("resnet18", 512), ("vgg16", 512)])
def test_penultimate_width(name, width):
    net = MODELS[name]().eval()
    images = torch.rand(2, len(net.normalize.mean), 32, 32, generator=seeded(0))
    features = net.features(images)
    assert features.shape == (2, width)
    assert torch.equal(net.head(features), net(images))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("arguments", [{"classes": 1}, {"channels": 0}])
@pytest.mark.parametrize("name", MODELS)
def test_networks_refuse(name, arguments):
    with pytest.raises(ValueError, match=r"(classes must be >= 2|channels must be >= 1), got"):
        MODELS[name](**arguments)


def test_depth():
    """Depth counts the layers with weights on the longest path: convolutions and linear layers."""
    for name, depth in (("resnet20", 20), ("resnet56", 56), ("resnet110", 110), ("vgg16", 14), ("resnet18", 18)):
        layers = [
            module
            for path, module in MODELS[name]().named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in path
        ]
        assert len(layers) == depth, name


def test_shortcut_without_parameters():
    block = ResidualBlock(2, 5, 2, projection=False)
    assert isinstance(block.shortcut, ZeroPadded)
    assert not list(block.shortcut.parameters())
    assert list(ResidualBlock(2, 5, 2, projection=True).shortcut.parameters())
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    shortened = block.shortcut(maps)
    assert shortened.shape == (1, 5, 2, 2)
    assert shortened[0, 1:3].tolist() == [[[0, 2], [8, 10]], [[16, 18], [24, 26]]]
    assert not shortened[0, [0, 3, 4]].any()


def test_block_of_the_same_shape_adds_its_input():
    block = ResidualBlock(3, 3, projection=True).eval()
    nn.init.zeros_(block.second[0].weight)
    maps = torch.randn(2, 3, 4, 4, generator=seeded(0))
    assert torch.equal(block(maps), maps.relu())


def test_normalize_by_hand():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert Normalize([0.0, 0.5, 0.5], [1.0, 0.25, 0.25])(images).flatten().tolist() == [0, 0, 2]
    assert Normalize(0.5, 0.5)(images).flatten().tolist() == [-1, 0, 1]


def test_normalize_fitted():
    images = torch.rand(50, 3, 8, 8, generator=seeded(0)) * torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1) + 0.1
    normalized = Normalize.fitted(images)(images)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std((0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_normalize_refuses():
    with pytest.raises(ValueError, match="images must have 3 channels, got 1"):
        Normalize([0.5] * 3, [0.25] * 3)(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"std must be positive, got \[0\.2, 0\.0\]"):
        Normalize([0.0, 0.0], [0.2, 0.0])


def test_normalization_is_saved_and_moves_with_the_network():
    net = Normalize(0.25, 0.5)
    assert set(net.state_dict()) == {"mean", "std"}
    assert not list(net.parameters())
    assert net.double()(torch.zeros(1, 1, 1, 1, dtype=torch.float64)).item() == -0.5


@pytest.fixture
def net():
    return Classifier(nn.Flatten(), nn.Linear(4, 3), normalize=Normalize(0.5, 0.5))


def test_the_four_slots_are_passed_in_order():
    trail = []

    class Mark(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, images):
            trail.append(self.name)
            return images.flatten(1) if self.name == "body" else images

    Classifier(Mark("body"), Mark("head"), normalize=Mark("normalize"), purify=Mark("purify"))(torch.zeros(1, 1, 2, 2))
    assert trail == ["purify", "normalize", "body", "head"]


def test_replace_shares_the_rest(net):
    head = nn.Linear(4, 5)
    changed = net.replace(head=head)
    assert changed.head is head
    assert net.head is not head
    for slot in ("purify", "normalize", "body"):
        assert getattr(changed, slot) is getattr(net, slot)


def test_replace_fills_and_empties_purify(net):
    purify = nn.AvgPool2d(3, 1, padding=1)
    cleaned = net.replace(purify=purify)
    assert cleaned.purify is purify
    images = torch.rand(2, 1, 2, 2, generator=seeded(0))
    assert not torch.equal(cleaned(images), net(images))
    assert torch.equal(cleaned.replace(purify=None)(images), net(images))


def test_replace_keeps_every_mode(net):
    net.train().body.eval()
    changed = net.replace(head=nn.Linear(4, 5).eval())
    assert (changed.training, changed.body.training, changed.head.training) == (True, False, False)
    assert not net.eval().replace().training


def test_replace_refuses_an_unknown_slot(net):
    with pytest.raises(ValueError, match="slots are purify, normalize, body, head, got neck, tail"):
        net.replace(tail=nn.Identity(), neck=nn.Identity())
