"""Recorded layers against torchvision's extractor, channel statistics against hand and NumPy."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from robustviz.defenses.cas import with_cas
from robustviz.features import ChannelStats, FeatureSnapshot, channel_stats, last_stage, recording, snapshot
from robustviz.models import MODELS, small_cnn
from robustviz.networks import activations, rewired

LAYERS = ["body.0", "body.3", "body", "head"]


@pytest.fixture(scope="module")
def net(digits):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = small_cnn()
        net(digits[0][:256])  # gives batch norm statistics of its own
    return net.eval()


@pytest.fixture
def some(digits):
    return digits[0][:40], digits[1][:40]


def hooks(net):
    return sum(len(module._forward_hooks) for module in net.modules())


def test_recorded_layers_are_torchvisions(unchecked, net, some):
    # torchvision names the last operation in a layer, not the layer.
    nodes = {"body.0.2": "body.0", "body.3.2": "body.3", "body.5": "body", "head": "head"}
    expected = create_feature_extractor(deepcopy(net), nodes)(some[0])
    with recording(net, LAYERS) as outputs:
        assert outputs == {}
        net(some[0])
    assert outputs.keys() == expected.keys()
    for layer, output in outputs.items():
        torch.testing.assert_close(output, expected[layer], rtol=0, atol=0)
    assert hooks(net) == 0


def test_recorded_outputs_carry_the_gradient(net, some):
    images = some[0].clone().requires_grad_()
    with recording(net, ["body"]) as outputs:
        logits = net(images)
    (through,) = torch.autograd.grad(net.head(outputs["body"]).sum(), images, retain_graph=True)
    assert torch.equal(through, torch.autograd.grad(logits.sum(), images)[0])


def test_hooks_leave_after_an_error(net, some):
    with pytest.raises(RuntimeError, match="channels"), recording(net, LAYERS):
        net(some[0].expand(-1, 3, -1, -1))
    assert hooks(net) == 0


def test_unknown_layer_lists_the_known_ones(net, some):
    with pytest.raises(ValueError, match=r"layer must be one of .*body\.3\.2.*, head, got stage9"):
        snapshot(net, *some, layer="stage9", condition="clean")
    assert hooks(net) == 0


@pytest.mark.parametrize("name", MODELS)
def test_last_stage_is_before_the_last_mask_and_before_pooling(name):
    plain = MODELS[name](channels=1).eval()
    layer = last_stage(plain)
    masked = last_stage(with_cas(plain, 10))
    assert masked == f"{layer}.0"
    with recording(plain, [layer, "body"]) as outputs:
        plain(torch.rand(2, 1, 16, 16))
    maps = outputs[layer]
    assert maps.dim() == 4
    assert maps.min() == 0  # after the last ReLU
    assert maps.shape[1] == plain.head.in_features
    if name != "vgg16":  # there a maximum stands between
        torch.testing.assert_close(maps.mean((2, 3)), outputs["body"])


def test_last_stage_of_a_network_without_blocks():
    with pytest.raises(ValueError, match="name the layer yourself"):
        last_stage(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_snapshot_of_any_batch_split(net, some, batch_size):
    images, labels = some
    modes = [module.training for module in net.modules()]
    taken = snapshot(net, images, labels, layer="body.3", condition="clean", batch_size=batch_size)
    with torch.no_grad():
        torch.testing.assert_close(taken.values, net.features(images))
        assert torch.equal(taken.predictions, net(images).argmax(1))
    assert (taken.layer, taken.condition) == ("body.3", "clean")
    assert torch.equal(taken.labels, labels)
    assert taken.indices.tolist() == list(range(40))
    assert [module.training for module in net.modules()] == modes
    assert not taken.values.requires_grad
    whole = channel_stats(snapshot(net, images, labels, layer="body.3", condition="clean"))
    stats = channel_stats(taken)
    torch.testing.assert_close(stats.magnitude, whole.magnitude)
    torch.testing.assert_close(stats.frequency, whole.frequency)


def test_snapshot_of_flat_features_keeps_them(net, some):
    taken = snapshot(net, *some, layer="head", condition="clean")
    with torch.no_grad():
        assert torch.equal(taken.values, net(some[0]))


def test_snapshot_refuses_an_empty_batch(net, some):
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        snapshot(net, *some, layer="body", condition="clean", batch_size=0)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_networks_give_the_features_of_the_network_inside(net, some, wrap):
    found, expected = (
        snapshot(network, *some, layer="body.3", condition="c").values for network in (wrap(deepcopy(net)), net)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.PReLU, nn.Tanh])
def test_statistics_after_other_activations(activation, some):
    network = rewired(small_cnn(), activations(small_cnn()), lambda place: activation(), where="instead").eval()
    found = snapshot(network, *some, layer=last_stage(network), condition="c")
    assert found.values.min() < 0
    stats, mirrored = channel_stats(found), channel_stats(replace(found, values=-found.values))
    assert torch.equal(stats.frequency, mirrored.frequency)
    assert stats.magnitude.min() > 0


def taken(values, labels=None):
    values = torch.as_tensor(values)
    labels = torch.zeros(len(values), dtype=torch.long) if labels is None else torch.tensor(labels)
    return FeatureSnapshot("body", "clean", values, labels, labels, torch.arange(len(values)))


# The threshold is 1 % of the largest channel of the same image: 1.0, 0.02 and 0 in the three images.
VALUES = [[100.0, 1.0, 1.5, 0.0], [0.5, 2.0, 0.02, 0.03], [0.0, 0.0, 0.0, 0.0]]


def test_statistics_by_hand():
    stats = channel_stats(taken(VALUES))
    np.testing.assert_allclose(stats.frequency, [2 / 3, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(stats.magnitude, [100.5 / 3, 1.0, 1.52 / 3, 0.01], rtol=1e-6)
    assert stats.frequency.dtype == stats.magnitude.dtype == torch.float64
    assert stats.mean_frequency == pytest.approx(5 / 12)
    assert stats.mean_magnitude == pytest.approx((100.5 + 3 + 1.52 + 0.03) / 12)
    assert stats.above_half == 1
    assert stats.uniformity == pytest.approx(entropy([2, 1, 1, 1]) / np.log(4))


def test_statistics_of_one_class():
    stats = channel_stats(taken(VALUES, [0, 1, 1]), label=1, threshold=0.1)
    assert stats.frequency.tolist() == [0.5, 0.5, 0, 0]
    np.testing.assert_allclose(stats.magnitude, [0.25, 1.0, 0.01, 0.015])


def test_uniformity_at_its_ends():
    for frequency, expected in (([1.0] * 8, 1.0), ([0, 0.3, 0], 0.0), ([0.0, 0.0], 0.0), ([1.0], 0.0)):
        frequency = torch.tensor(frequency, dtype=torch.float64)
        assert ChannelStats(frequency, frequency).uniformity == pytest.approx(expected, abs=1e-12)


@given(
    hnp.arrays(np.float64, (5, 6), elements=st.floats(-1e3, 1e3)),
    st.floats(0, 0.9),
    st.sampled_from([2.0**-4, 1.0, 8.0]),
)
def test_statistics_are_numpys_and_frequency_has_no_unit(values, threshold, scale):
    stats = channel_stats(taken(values), threshold=threshold)
    active = [[abs(value) > threshold * max(map(abs, row)) for value in row] for row in values]
    np.testing.assert_allclose(stats.frequency, np.mean(active, 0))
    np.testing.assert_allclose(stats.magnitude, np.mean(np.abs(values), 0))
    scaled = channel_stats(taken(values * scale), threshold=threshold)
    if np.abs(values)[values != 0].min(initial=1) > 1e-300:  # below, a product leaves the range of float64
        assert torch.equal(scaled.frequency, stats.frequency)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (VALUES, {"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1.0"),
        (VALUES, {"label": 3}, r"label must be a class of the snapshot \(0\), got 3"),
        ([[float("nan"), 2.0]], {}, "features must be finite, but 1 of layer body are not"),
        ([[float("-inf"), 2.0]], {}, "features must be finite"),
    ],
)
def test_statistics_refuse(values, settings, message):
    with pytest.raises(ValueError, match=message):
        channel_stats(taken(values), **settings)
