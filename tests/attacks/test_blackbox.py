"""Attacks without gradients: what a proposal may change, what it costs, and how strong the search is."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from robustviz.attacks import ifgsm, random_noise, square, transfer
from robustviz.objectives import cross_entropy, margin
from robustviz.tensors import norms, seeded
from robustviz.types import Threat

LINF, L2 = Threat("linf", 0.08), Threat("l2", 0.6)
both_threats = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
both_attacks = pytest.mark.parametrize("attack", [square, random_noise])


class Blind(nn.Module):
    """Two classes whose margin is the same for all images: nothing ever fools, and everything is accepted."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images):
        self.asked += 1
        logits = images.new_zeros(len(images), 2)
        logits[:, 0] = 1e6 - self.asked
        return logits


@pytest.fixture
def some(digits):
    return digits[0][:40].clone(), digits[1][:40].clone()


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


@both_attacks
@both_threats
@pytest.mark.parametrize("targeted", [False, True])
def test_properties(attack, threat, targeted, digits_net, some):
    images, path = some[0], []
    labels = (some[1] + 1) % 10 if targeted else some[1]
    before = torch.get_rng_state()
    settings = {"threat": threat, "steps": 30, "targeted": targeted}
    attacked = attack(digits_net, images, labels, on_step=path.append, **settings)
    assert torch.equal(attacked, attack(digits_net, images, labels, generator=seeded(0), **settings))
    assert not torch.equal(attacked, attack(digits_net, images, labels, generator=seeded(1), **settings))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(path[-1].images, attacked)
    sign = -1 if targeted else 1
    for last, step in itertools.pairwise(path[1:]):
        assert norms(step.images - images, threat.norm).max() <= threat.epsilon * (1 + 1e-6)
        assert step.images.min() >= 0
        assert step.images.max() <= 1
        assert (sign * step.objective >= sign * last.objective).all()
        assert torch.equal(step.images[last.fooled], last.images[last.fooled])
    with torch.no_grad():
        torch.testing.assert_close(path[-1].objective, margin(digits_net, attacked, labels))
    assert torch.equal(path[-1].fooled, (decisions(digits_net, attacked) == labels) == targeted)


@both_attacks
@both_threats
def test_only_forward_passes_on_images_that_do_not_fool(attack, threat, counted, digits_net, some):
    net, path = counted(digits_net), []
    attack(net, *some, threat=threat, steps=20, on_step=path.append)
    left = [40, *(int((~step.fooled).sum()) for step in path[:-1])]
    assert net.forwards == left
    assert len(net.forwards) == 21
    assert left[-1] < left[0]
    assert not net.backwards
    net = counted(digits_net, batch_dependent=True)
    attacked = attack(net, *some, threat=threat, steps=20, on_step=path.append)
    assert net.forwards == [40] * 21
    assert int((decisions(net, attacked) != some[1]).sum()) == int(path[-1].fooled.sum())


@both_attacks
def test_wrong_images_are_returned_as_they_are(attack, digits_net, some):
    labels = (decisions(digits_net, some[0]) + 1) % 10
    assert torch.equal(attack(digits_net, some[0], labels, threat=LINF), some[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_square_changes_one_window_at_a_time(channels):
    """After the stripes, a step sets one square to the end of the ball, of the side that the schedule asks for."""
    images, path = 0.25 + 0.5 * torch.rand(6, channels, 12, 10, generator=seeded(2)), []
    labels = torch.zeros(6, dtype=torch.long)
    square(Blind(), images, labels, threat=LINF, steps=100, on_step=path.append)
    stripes = path[1].images - images
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 0.08))
    assert torch.equal(stripes[:, :, :1].sign().expand_as(stripes), stripes.sign())
    sides = []
    for last, step in itertools.pairwise(path[1:]):
        torch.testing.assert_close((step.images - images).abs(), torch.full_like(images, 0.08))
        changed = (step.images != last.images).any(1)
        assert changed.any((1, 2)).all(), "no query is wasted on what is known"
        lines = changed.any(2), changed.any(1)
        extents = [(mask * torch.arange(1, mask.shape[1] + 1)).amax(1) - mask.double().argmax(1) for mask in lines]
        sides.append(int(torch.stack(extents).max()))
    assert sides[0] == 5  # a fourth of the share .8 after two halvings: 24 of 120 pixels
    assert all(side <= 5 for side in sides)
    assert sides[-1] == 1


def test_square_in_l2_spends_the_whole_budget():
    images, path = torch.full((5, 3, 12, 12), 0.5), []
    square(Blind(), images, torch.zeros(5, dtype=torch.long), threat=L2, steps=60, on_step=path.append)
    for step in path[1:]:
        torch.testing.assert_close(norms(step.images - images, "l2"), torch.full((5,), 0.6))
    changes = [((b.images - a.images).abs() > 1e-6).any(1).sum((1, 2)) for a, b in itertools.pairwise(path)]
    assert changes[-1].max() <= 2 * 3 * 3


@pytest.mark.parametrize("threat", [Threat("linf", 0.05), Threat("l2", 0.3)], ids=["linf", "l2"])
def test_square_comes_near_the_optimum_of_a_linear_model(threat):
    """The largest margin in the ball is known: epsilon times the dual norm of the difference of the weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double().requires_grad_(False)
    normal = torch.randn(36, generator=seeded(0), dtype=torch.float64)
    net[1].weight.copy_(torch.stack([torch.zeros_like(normal), normal]))
    net[1].bias.copy_(torch.tensor([1e3, -normal.sum() / 2]))
    images, path = torch.full((3, 1, 6, 6), 0.5, dtype=torch.float64), []
    square(net, images, torch.tensor([0, 0, 0]), threat=threat, steps=300, on_step=path.append)
    most = threat.epsilon * normal.norm(p=1 if threat.norm == "linf" else 2)
    gain = path[-1].objective - path[0].objective
    assert (gain <= most + 1e-9).all()
    assert (gain >= (0.97 if threat.norm == "linf" else 0.5) * most).all()


@both_threats
def test_strength_beside_autoattack(autoattack, digits, digits_net, threat):
    """The same number of queries: robust accuracy at most half a point above theirs."""
    images, labels = digits[0][:200], digits[1][:200]
    peer = autoattack(digits_net, threat).square
    peer.n_queries, peer.resc_schedule, peer.rescale_schedule = 200, True, True
    attacked = square(digits_net, images, labels, threat=threat, steps=200), peer.perturb(images, labels)
    right = [(decisions(digits_net, points) == labels).float().mean().item() for points in attacked]
    assert 0 < right[0] <= right[1] + 0.005


def test_all_negative_logits_are_no_shelter(double_net, digits):
    class Shifted(nn.Module):
        def forward(self, images):
            return double_net(images) - 1024

    images, labels = digits[0][:10].double(), digits[1][:10]
    settings = {"threat": LINF, "steps": 50}
    assert torch.equal(square(Shifted(), images, labels, **settings), square(double_net, images, labels, **settings))


@both_attacks
def test_objective_is_what_is_raised(attack, digits_net, some):
    path = []
    attack(digits_net, *some, threat=LINF, steps=10, objective=cross_entropy, on_step=path.append)
    with torch.no_grad():
        torch.testing.assert_close(path[-1].objective, cross_entropy(digits_net, path[-1].images, some[1]))


def test_transfer_is_the_attack_on_the_source(digits_net, some):
    class Untouchable(nn.Module):
        def forward(self, images):
            raise AssertionError

    attack = partial(ifgsm, threat=LINF)
    attacked = transfer(Untouchable(), *some, source=digits_net, attack=attack)
    assert torch.equal(attacked, attack(digits_net, *some))
    noise = partial(random_noise, threat=LINF, steps=1)
    attacked = transfer(Untouchable(), *some, source=digits_net, attack=noise, generator=seeded(3))
    assert torch.equal(attacked, noise(digits_net, *some, generator=seeded(3)))


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (square, {"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        (square, {"steps": 0}, "steps must be finite and >= 1, got 0"),
        (random_noise, {"steps": 0}, "steps must be finite and >= 1, got 0"),
    ],
)
def test_bad_settings(digits_net, some, attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(digits_net, *some, **settings)
