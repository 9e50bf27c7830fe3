"""Networks with something new before, after or instead of their modules."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.models import MODELS, Classifier, Normalize, small_cnn
from robustviz.networks import activations, blocks, rewired
from robustviz.tensors import seeded
from tests.networks.conftest import state_of


class Band(nn.Module):
    """Numbers near zero become zero: a sparsifier."""

    def forward(self, values):
        return torch.where(values.abs() < 0.1, torch.zeros_like(values), values)


@pytest.mark.parametrize("where", ["before", "after", "instead"])
@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_rewired_is_a_copy_with_something_new(name, where):
    network = MODELS[name](channels=1).double().eval()
    network.body.train()
    places = activations(network)
    images = torch.rand(2, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    weights, before = deepcopy(network.state_dict()), state_of(network)
    seen = []

    def make(place):
        seen.append(place)
        return nn.PReLU(place.channels, init=0.0 if where == "instead" else 1.0)

    changed = rewired(network, places, make, where=where)
    assert seen == list(places.values())
    assert state_of(network) == before
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
