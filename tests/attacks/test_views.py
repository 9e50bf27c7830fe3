from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustviz.attacks import (
    against,
    alone_head,
    eot,
    exact_head,
    identity_backward,
    linear_head,
    pgd,
    probability_margin,
    square,
    surrogate_head,
    wide_graph,
)
from robustviz.data import digits as digits_set
from robustviz.defenses import WNLLHead, wnll_classifier
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, margin
from robustviz.records import describe
from robustviz.tensors import drawing, seeded
from robustviz.types import Threat


class Rounding(nn.Module):
    """A purifier without a useful gradient."""

    def forward(self, images):
        return (images * 4).round() / 4


class Noise(nn.Module):
    """A stochastic purifier."""

    stochastic = True
    generator = None

    def forward(self, images):
        generator = seeded(0) if self.generator is None else self.generator
        return images * (1 + 0.3 * torch.randn(images.shape, generator=generator).to(images))


@pytest.fixture(scope="module")
def data():
    everything = digits_set()
    order = torch.randperm(len(everything), generator=seeded(0, 7))
    return everything[order[:-200]], everything[order[-200:]]


@pytest.fixture(scope="module")
def linear(data):
    """Logistic regression on the pixels of digits."""
    train, _ = data
    layer = nn.utils.skip_init(nn.Linear, 64, 10)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(layer(train.images.flatten(1)), train.labels) + 1e-4 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    layer.zero_grad()
    return Classifier(nn.Flatten(), layer, normalize=nn.Identity()).eval()


@pytest.fixture(scope="module")
def wnll(linear, data):
    """The same with a WNLL head on 300 images; features are the pixels."""
    return wnll_classifier(linear, data[0], size=300)


def accuracy(model, images, labels):
    return (model(images).argmax(1) == labels).float().mean().item()


def test_against_runs_the_attack_on_the_view(linear, wnll, data):
    images, labels = data[1].images[:30], data[1].labels[:30]
    attack = partial(pgd, steps=3, threat=Threat("linf", 0.1))
    found = against(wnll, images, labels, view=linear_head, attack=attack, generator=seeded(4))
    assert torch.equal(found, attack(linear, images, labels, generator=seeded(4)))


@pytest.mark.parametrize(
    ("view", "changed"),
    [
        (surrogate_head, {"gradient": "surrogate"}),
        (partial(surrogate_head, logarithm=True), {"gradient": "surrogate-log"}),
        (exact_head, {"gradient": "exact"}),
        (wide_graph(60), {"neighbors": 60, "scale_neighbor": 30}),
        (alone_head, {"joint": False}),
    ],
)
def test_views_change_the_head_alone(wnll, view, changed):
    seen = view(wnll)
    assert seen.body is wnll.body
    assert seen.head.template is wnll.head.template
    kept = {"gradient": "exact", "neighbors": 15, "scale_neighbor": 8, "joint": True}
    assert {name: getattr(seen.head, name) for name in kept} == kept | changed
    assert {name: getattr(wnll.head, name) for name in kept} == kept


def test_exact_view_of_a_surrogate_model(wnll):
    assert exact_head(surrogate_head(wnll)).head.gradient == "exact"


def test_no_linear_head(wnll):
    alone = wnll.replace(head=WNLLHead(wnll.head.template, wnll.head.template_labels, 10))
    with pytest.raises(ValueError, match="linear head beside it"):
        linear_head(alone)


def test_published_attack_overstates_the_defense(wnll, data):
    """Digits, the pixels themselves as features, PGD-20 in L-inf at .2: .825, .745 and .380 were measured before.

    With 200 images a share has a standard error of 3.5 points; the tolerance is three of them.
    """
    images, labels = data[1].images, data[1].labels
    attack = partial(pgd, threat=Threat("linf", 0.2), steps=20)
    left = {
        name: accuracy(wnll, against(wnll, images, labels, view=view, attack=partial(attack, objective=value)), labels)
        for name, view, value in (
            ("surrogate", surrogate_head, cross_entropy),
            ("transfer", linear_head, cross_entropy),
            ("exact", exact_head, probability_margin),
        )
    }
    assert accuracy(wnll, images, labels) == pytest.approx(0.96, abs=0.04)
    assert left["surrogate"] == pytest.approx(0.825, abs=0.105)
    assert left["transfer"] == pytest.approx(0.745, abs=0.105)
    assert left["exact"] == pytest.approx(0.38, abs=0.105)
    assert left["surrogate"] > left["transfer"] > left["exact"] + 0.1


def test_probability_margin_is_the_margin_of_u(wnll, data):
    images, labels = data[1].images[:20], data[1].labels[:20]
    share = wnll.head.probabilities(wnll.features(images))
    own = share.gather(1, labels[:, None]).squeeze(1)
    expected = share.scatter(1, labels[:, None], -1).amax(1) - own
    torch.testing.assert_close(probability_margin(wnll, images, labels), expected)


def test_gradient_passes_the_purifier_unchanged(linear, data):
    images, labels = data[1].images[:50].clone().requires_grad_(), data[1].labels[:50]
    model = linear.replace(purify=Rounding())
    seen = identity_backward(model)
    assert torch.equal(seen(images), model(images))
    (straight,) = torch.autograd.grad(cross_entropy(seen, images, labels).sum(), images)
    purified = Rounding()(images).detach().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(linear, purified, labels).sum(), purified)
    assert torch.equal(straight, expected)
    attack = partial(pgd, threat=Threat("linf", 0.3), steps=10)
    images = images.detach()
    masked, through = (
        accuracy(model, against(model, images, labels, view=view, attack=attack), labels)
        for view in (lambda same: same, identity_backward)
    )
    assert through < masked - 0.3


def test_expectation_over_draws(linear, data):
    images, labels = data[1].images[:10], data[1].labels[:10]
    model = linear.replace(purify=Noise())
    found = eot(margin, 4)(model, images, labels, generator=seeded(5))
    generator = seeded(5)
    with drawing(model, generator):
        expected = torch.stack([margin(model, images, labels) for _ in range(4)])
    torch.testing.assert_close(found, expected.mean(0))
    assert expected.std(0).min() > 0
    assert model.purify.generator is None
    assert torch.equal(eot(margin, 2)(model, images, labels), eot(margin, 2)(model, images, labels))
    with pytest.raises(ValueError, match="draws must be >= 1"):
        eot(margin, 0)


@pytest.mark.parametrize("attack", [partial(pgd, steps=2), partial(square, steps=5)], ids=["pgd", "square"])
def test_expectation_fits_every_attack(linear, data, attack):
    model = linear.replace(purify=Noise())
    images, labels = data[1].images[:5], data[1].labels[:5]
    found = attack(model, images, labels, objective=eot(margin, 3))
    assert (found - images).abs().max() <= 8 / 255 + 1e-6
    assert not torch.equal(found, images)


def test_settings_can_be_recorded():
    attack = partial(against, view=wide_graph(60), attack=partial(pgd, steps=20, objective=eot(margin, 7)))
    settings = describe(attack)
    assert settings["view"] == {"function": "wider_head", "neighbors": 60}
    assert settings["attack"]["steps"] == 20
    assert settings["attack"]["objective"]["draws"] == 7
    assert describe(partial(surrogate_head, logarithm=True)) == {"function": "surrogate_head", "logarithm": True}
