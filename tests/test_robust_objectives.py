"""KL, TRADES and MART against their formulas, evaluated with SciPy in float64."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import nn

from robustviz.attacks import pgd
from robustviz.objectives import (
    cross_entropy,
    divergence,
    dlr,
    final,
    kl,
    margin,
    mart,
    mart_loss,
    over_heads,
    trades,
    trades_loss,
)
from robustviz.tensors import seeded
from robustviz.types import Threat

CLASSES = 5


def trades_by_hand(clean, attacked, labels, factor):
    natural = -log_softmax(clean, axis=1)[np.arange(len(labels)), labels]
    return natural + factor * entropy(softmax(clean, axis=1), softmax(attacked, axis=1), axis=1)


def mart_by_hand(clean, attacked, labels, factor):
    rows = np.arange(len(labels))
    p, q = softmax(clean, axis=1), softmax(attacked, axis=1)
    wrong = np.where(np.eye(clean.shape[1], dtype=bool)[labels], -1, q).max(1)
    boosted = -np.log(q[rows, labels]) - np.log1p(-wrong)
    return boosted + factor * entropy(p, q, axis=1) * (1 - p[rows, labels])


pairs = hnp.arrays(np.float64, (2, 6, CLASSES), elements=st.floats(-8, 8))
classes = hnp.arrays(np.int64, 6, elements=st.integers(0, CLASSES - 1))


@given(pairs, classes, st.floats(0, 10))
def test_losses_are_their_formulas(logits, labels, factor):
    clean, attacked = torch.from_numpy(logits)
    for loss, by_hand in ((trades_loss, trades_by_hand), (mart_loss, mart_by_hand)):
        values = loss(clean, attacked, torch.from_numpy(labels), factor=factor)
        np.testing.assert_allclose(values, by_hand(*logits, labels, factor), rtol=1e-9, atol=1e-9)


def test_mart_keeps_its_digits_where_a_probability_rounds_to_one():
    # q_wrong = 1 - 2e-13: in float32, 1 - q_wrong would be 0 and its logarithm infinite.
    attacked = torch.tensor([[0.0, 30.0, 0.0]])
    value = mart_loss(torch.zeros(1, 3), attacked, torch.tensor([0]), factor=0.0)
    torch.testing.assert_close(value, torch.tensor([30 + 30 - np.log(2)], dtype=torch.float32))


@pytest.mark.parametrize("loss", [trades_loss, mart_loss])
def test_gradient_reaches_both_logits(loss):
    generator = seeded(1)
    clean, attacked = (torch.randn(4, CLASSES, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 4])
    both = clean.requires_grad_(), attacked.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, a: loss(c, a, labels, factor=5.0), both)


@given(pairs)
def test_divergence_is_positive_and_zero_at_home(logits):
    before, after = torch.from_numpy(logits)
    assert (divergence(before, after) >= -1e-12).all()
    assert (divergence(before, before + 3) <= 1e-12).all()


class Linear(nn.Module):
    """A linear network with dropout, which shows in which mode it is asked."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, CLASSES, bias=False).double()
        self.dropout = nn.Dropout(0.5)
        self.modes = []
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(CLASSES, 9, generator=seeded(2)))

    def forward(self, images):
        self.modes.append(self.training)
        return self.linear(self.dropout(images.flatten(1)))


@pytest.fixture
def net():
    return Linear()


@pytest.fixture
def some():
    images = torch.rand(6, 1, 3, 3, dtype=torch.float64, generator=seeded(3))
    return images, torch.tensor([0, 1, 2, 3, 4, 0])


def shifted(model, images, labels, /, *, objective, generator=None):
    """An attack whose result is known."""
    return 1 - images


@pytest.mark.parametrize(("objective", "by_hand"), [(trades, trades_by_hand), (mart, mart_by_hand)])
def test_objective_is_the_formula_on_clean_and_attacked_images(net, some, objective, by_hand):
    images, labels = some
    values = objective(net.eval(), images, labels, attack=shifted, factor=3.0)
    logits = [net(batch).detach().numpy() for batch in (images, 1 - images)]
    np.testing.assert_allclose(values.detach(), by_hand(*logits, labels.numpy(), 3.0), rtol=1e-9)


@pytest.mark.parametrize(("objective", "passes"), [(trades, 1 + 4 + 2), (mart, 4 + 2)])
def test_attack_in_evaluation_mode_loss_in_train_mode(net, some, objective, passes):
    attack = partial(pgd, threat=Threat("linf", 0.1), steps=4)
    objective(net.train(), *some, attack=attack).sum().backward()
    assert net.modes == [False] * (passes - 2) + [True, True]
    assert net.training
    assert net.dropout.training
    assert net.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", [trades, mart])
def test_an_attack_that_switches_nothing_is_in_evaluation_mode(net, some, objective):
    seen = []

    def attack(model, images, labels, /, *, objective, generator=None):
        seen.append((model.training, model.dropout.training, model.linear.weight.requires_grad))
        return images

    objective(net.train(), *some, attack=attack).sum().backward()
    assert seen == [(False, False, False)]
    assert net.dropout.training


@pytest.mark.parametrize("steps", [1, 10])
def test_trades_attack_raises_the_divergence_from_the_clean_prediction(net, some, steps):
    images, labels = some
    threat = Threat("linf", 0.05)
    seen = {}

    def watched(*arguments, objective, **settings):
        seen["attacked"] = pgd(*arguments, threat=threat, steps=steps, step_size=0.1, objective=objective, **settings)
        return seen["attacked"]

    trades(net.eval(), images, labels, attack=watched)
    reached = divergence(net(images), net(seen["attacked"]))
    noise = torch.rand(images.shape, dtype=torch.float64, generator=seeded(4)) * 2 - 1
    assert (reached > divergence(net(images), net((images + 0.05 * noise.sign()).clamp(0, 1)))).all()
    assert (seen["attacked"] - images).abs().max() <= 0.05 + 1e-12


def test_kl_is_scipys_entropy_and_stationary_at_the_reference(net, some):
    images, labels = some
    moved = (1 - images).requires_grad_()
    reference = final(net.eval(), images, labels)
    values = kl(net, moved, labels, reference=reference)
    probabilities = [softmax(net(batch).detach().numpy(), axis=1) for batch in (images, moved)]
    np.testing.assert_allclose(values.detach(), entropy(*probabilities, axis=1), rtol=1e-9)
    home = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl(net, home, labels, reference=reference).sum(), home)
    assert gradient.abs().max() < 1e-12


def test_kl_refuses_an_attack_that_drops_images(unchecked, net, some):
    with pytest.raises(ValueError, match="early_exit"):
        trades(net, *some, attack=partial(pgd, threat=Threat("linf", 1.0), steps=20, early_exit=True))


@pytest.mark.parametrize("objective", [cross_entropy, margin, dlr])
def test_one_head_is_the_objective_itself(net, some, objective):
    net.eval()
    assert torch.equal(over_heads(net, *some, objective=objective), objective(net, *some))


def test_several_heads_are_added_by_weight_from_one_forward_pass(net, some):
    def twice(model, images, labels, /):
        logits = model(images)
        return [(1.0, logits), (0.5, -logits)]

    net.eval()
    logits, labels = net(some[0]).detach(), some[1]
    net.modes.clear()
    values = over_heads(net, *some, objective=cross_entropy, heads=twice)
    assert len(net.modes) == 1
    single = [nn.functional.cross_entropy(part, labels, reduction="none") for part in (logits, -logits)]
    torch.testing.assert_close(values, single[0] + 0.5 * single[1])


def test_same_generator_same_loss(net, some):
    attack = partial(pgd, threat=Threat("linf", 0.1), steps=2)
    first, second, other = (
        trades(net.eval(), *some, attack=attack, generator=seeded(seed)).detach() for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
