"""Auto-PGD: its rules by hand, its accounts, and its strength beside the authors' own package."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from robustviz.attacks import apgd, apgd_targeted
from robustviz.attacks.apgd import checkpoint_steps
from robustviz.objectives import cross_entropy, dlr, margin
from robustviz.tensors import norms, seeded
from robustviz.types import Threat

LINF, L2 = Threat("linf", 0.08), Threat("l2", 0.6)
both_threats = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
ATTACKS = {
    "ce": apgd,
    "dlr": partial(apgd, objective=dlr),
    "targeted": apgd_targeted,
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@pytest.fixture
def some(digits):
    return digits[0][:30].clone(), digits[1][:30].clone()


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


def test_checkpoints():
    """Shares .22, .41, .57, .70, .80, .87, .93, .99, as the recursion of section 3.2 gives them."""
    assert checkpoint_steps(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoint_steps(20) == {5, 9, 12, 14, 16, 18, 19, 20}
    assert checkpoint_steps(1) == {1}


@every_attack
@both_threats
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_exact_on_a_linear_model(attack, threat, classes):
    """An image is fooled exactly when its nearest plane is within reach; no image here is close to the edge."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double().requires_grad_(False)
    net[1].weight.copy_(torch.randn(classes, 16, generator=seeded(3), dtype=torch.float64))
    net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    images = 0.5 + 0.1 * torch.randn(200, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    logits = net(images)
    labels = logits.argmax(1)
    slopes = net[1].weight[labels][:, None] - net[1].weight[None]
    planes = (logits.amax(1, keepdim=True) - logits) / slopes.norm(dim=2, p=1 if threat.norm == "linf" else 2)
    nearest = planes.scatter(1, labels[:, None], torch.inf).amin(1)
    threat = Threat(threat.norm, nearest.median().item())
    clear = (nearest / threat.epsilon - 1).abs() > 0.01
    attacked = attack(net, images, labels, threat=threat, steps=30)
    fooled = decisions(net, attacked) != labels
    assert not (fooled & (nearest > threat.epsilon))[clear].any()
    missed = (~fooled & (nearest < threat.epsilon))[clear]
    # Only the attack that tries every class is sure to find the nearest plane of many.
    assert missed.float().mean() <= (0 if classes == 2 or attack is apgd_targeted else 0.1)


def test_finds_the_top_of_a_hill():
    """A narrow valley of ellipses, whose top inside the ball is known: momentum and halving lead there."""
    top = 0.5 + 0.1 * torch.randn(1, 1, 4, 4, generator=seeded(0), dtype=torch.float64)
    scale = torch.logspace(0, 1, 16, dtype=torch.float64).view(1, 1, 4, 4)

    def hill(model, images, labels, /, *, generator=None):
        return -(scale * (images - top) ** 2).sum((1, 2, 3))

    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    net[1].bias.data = torch.tensor([1e3, 0.0], dtype=torch.float64)
    images, labels = torch.full_like(top, 0.5), torch.tensor([0])
    for threat in (Threat("linf", 0.5), Threat("l2", 1.0)):
        found = apgd(net, images, labels, threat=threat, objective=hill, steps=150)
        assert (found - top).abs().max() < 0.01


@both_threats
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", [cross_entropy, dlr, margin])
def test_returns_the_best_of_its_path(digits_net, some, threat, objective, targeted):
    images, path = some[0], []
    labels = (some[1] + 1) % 10 if targeted else some[1]
    settings = {"threat": threat, "steps": 8, "restarts": 2, "objective": objective, "targeted": targeted}
    attacked = apgd(digits_net, images, labels, on_step=path.append, **settings)
    assert torch.equal(attacked, apgd(digits_net, images, labels, **settings))
    assert [(step.restart, step.step) for step in path] == [(r, s) for r in range(2) for s in range(9)]
    for step in path:
        with torch.no_grad():
            torch.testing.assert_close(step.objective, objective(digits_net, step.images, labels))
        assert torch.equal(step.fooled, (decisions(digits_net, step.images) == labels) == targeted)
        assert norms(step.images - images, threat.norm).max() <= threat.epsilon * (1 + 1e-6)
        assert step.images.min() >= 0
        assert step.images.max() <= 1
    for i in range(len(images)):
        ranks = [(bool(step.fooled[i]), (-1 if targeted else 1) * step.objective[i].item()) for step in path]
        assert torch.equal(attacked[i], path[ranks.index(max(ranks))].images[i])


def test_steps_are_halved_where_nothing_rises(double_net, digits):
    """Up to the first checkpoint the sign steps are 2 epsilon wide, so that the iterate sits in corners of the ball."""
    images, labels, path = digits[0][:10].double(), digits[1][:10], []
    apgd(double_net, images, labels, threat=LINF, steps=20, random_start=False, on_step=path.append)
    moves = torch.stack([norms(b.images - a.images, "linf") for a, b in itertools.pairwise(path)])
    assert (moves[0] <= LINF.epsilon + 1e-12).all()
    assert (moves[0] > 0.9 * LINF.epsilon).all()
    assert moves[-1].median() < 0.5 * LINF.epsilon


@every_attack
@both_threats
def test_strength_beside_autoattack(autoattack, digits, digits_net, attack, threat):
    """The same steps, one restart: robust accuracy at most half a point above theirs."""
    images, labels = digits[0][:400], digits[1][:400]
    peers = autoattack(digits_net, threat)
    peer = peers.apgd_targeted if attack is apgd_targeted else peers.apgd
    peer.n_iter, peer.n_restarts = 20, 1
    if attack is not apgd_targeted:
        peer.loss = "ce" if attack is apgd else "dlr"
    theirs = peer.perturb(images, labels)
    ours = attack(digits_net, images, labels, threat=threat, steps=20)
    right = [(decisions(digits_net, attacked) == labels).float().mean().item() for attacked in (ours, theirs)]
    assert 0 < right[0] <= right[1] + 0.005


def test_passes(counted, digits_net, some):
    """One forward and one backward pass a step, and one more look at the end; the trace is free."""
    for settings in ({}, {"on_step": lambda step: None}, {"objective": dlr, "random_start": False}):
        net = counted(digits_net)
        apgd(net, *some, steps=7, threat=LINF, **settings)
        assert (net.forwards, net.backwards) == ([30] * 8, [30] * 7)
    net = counted(digits_net)
    apgd_targeted(net, *some, steps=7, targets=3, threat=LINF)
    assert (net.forwards, net.backwards) == ([30] * 25, [30] * 21)


@every_attack
def test_early_exit(counted, digits_net, some, attack):
    plain, early = counted(digits_net), counted(digits_net)
    settings = {"threat": LINF, "steps": 10}
    attacked = [attack(net, *some, early_exit=exits, **settings) for net, exits in ((plain, False), (early, True))]
    fooled = [decisions(digits_net, images) != some[1] for images in attacked]
    assert 0 < fooled[0].sum() < 30
    assert (fooled[0] == fooled[1]).float().mean() > 0.9
    assert sum(early.forwards) < sum(plain.forwards)


@every_attack
def test_a_batch_dependent_model_chooses_image_by_image(counted, digits_net, some, attack):
    """It keeps the best point of each image, whatever became of the others in that batch."""
    net, path = counted(digits_net, batch_dependent=True), []
    attacked = attack(net, *some, threat=LINF, steps=5, on_step=path.append)
    assert set(net.forwards) == {30}
    chosen = set()
    for i in range(len(attacked)):
        ranks = [(bool(step.fooled[i]), step.objective[i].item()) for step in path]
        chosen.add(ranks.index(max(ranks)))
        assert torch.equal(attacked[i], path[ranks.index(max(ranks))].images[i])
    assert len(chosen) > 1
    with pytest.raises(ValueError, match="early_exit must be False for a model"):
        attack(net, *some, early_exit=True)


@pytest.mark.parametrize("attack", [partial(apgd, objective=dlr), apgd_targeted], ids=["dlr", "targeted"])
@pytest.mark.parametrize("shift", [0.0, -512.0])
def test_neither_scale_nor_shift_of_the_logits_matters(double_net, digits, attack, shift):
    class Changed(nn.Module):
        def forward(self, images):
            return 64 * double_net(images) + shift

    images, labels = digits[0][:10].double(), digits[1][:10]
    # Behind the boundary, with the label in third place, DLR is constant and its gradient is rounding: leave before.
    settings = {"threat": LINF, "steps": 5, "early_exit": True}
    expected = attack(double_net, images, labels, **settings)
    torch.testing.assert_close(attack(Changed(), images, labels, **settings), expected, rtol=0, atol=1e-6)


def test_result_does_not_depend_on_the_batch(double_net, digits):
    images, labels = digits[0][:4].double(), digits[1][:4]
    attack = partial(apgd, threat=L2, steps=10, random_start=False)
    alone = [attack(double_net, images[i : i + 1], labels[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(attack(double_net, images, labels), torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (apgd, {"steps": 0}, "steps must be finite and >= 1, got 0"),
        (apgd, {"restarts": 0}, "restarts must be finite and >= 1, got 0"),
        (apgd_targeted, {"targets": 0}, "targets must be finite and >= 1, got 0"),
        (apgd, {"early_exit": True, "on_step": print}, "early_exit must be False with on_step"),
    ],
)
def test_bad_settings(digits_net, some, attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(digits_net, *some, **settings)
