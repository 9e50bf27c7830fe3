"""Both ways: our attacks on any PyTorch module, and other libraries' attacks on our classifiers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import (
    apgd,
    apgd_targeted,
    bounded,
    carlini_wagner,
    deepfool,
    fgsm,
    fmn,
    ifgsm,
    mifgsm,
    pgd,
    random_noise,
    square,
)
from robustviz.evaluation import evaluate
from robustviz.evaluation.suites import standard_ensemble
from robustviz.types import Threat

LINF, L2 = Threat("linf", 0.15), Threat("l2", 1.0)


class Plain(nn.Module):
    """What any user has: parameters, a forward that works with functions, dropout and a batch norm; no slots."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(72, 10)

    def forward(self, pixels):
        maps = F.max_pool2d(F.relu(self.norm(self.convolution(pixels))), 2)
        return self.linear(F.dropout(maps.flatten(1), 0.2, self.training))


@pytest.fixture(scope="module")
def plain(digits):
    """Trained for a moment, and left in training mode as a user may have left it."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Plain()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for rows in torch.randperm(len(images)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.train()


@pytest.fixture
def classifier():
    return checkpoints.load("digits-pgd")[0]


def right(net, images, labels):
    with torch.no_grad():
        return net(images).argmax(1) == labels


@pytest.mark.parametrize(
    "attack",
    [
        partial(fgsm, threat=LINF),
        partial(ifgsm, threat=LINF, steps=5),
        partial(pgd, threat=LINF, steps=5),
        partial(mifgsm, threat=LINF, steps=5),
        partial(apgd, threat=LINF, steps=5),
        partial(apgd_targeted, threat=LINF, steps=5, targets=2),
        partial(carlini_wagner, steps=10, search_steps=3, initial_const=1.0, lr=0.05),
        deepfool,
        partial(fmn, steps=20),
        partial(bounded, threat=L2, attack=partial(fmn, norm="l2", steps=20)),
        partial(square, threat=LINF, steps=30),
        partial(random_noise, threat=Threat("linf", 0.4), steps=10),
    ],
    ids=lambda attack: getattr(attack, "func", attack).__name__,
)
def test_our_attacks_on_any_module(plain, digits, attack):
    images, labels = digits[0][:30], digits[1][:30]
    attacked = attack(plain, images, labels)
    assert plain.training
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    plain.eval()
    try:
        assert right(plain, attacked, labels).sum() < right(plain, images, labels).sum()
    finally:
        plain.train()


def test_the_ensemble_on_any_module(plain, digits):
    images, labels = digits[0][:30], digits[1][:30]
    ensemble = standard_ensemble(Threat("linf", 0.06), 10, steps=4, queries=5)
    tables = [evaluate(plain, images, labels, ensemble, survivors_only=True, fast=fast) for fast in (False, True)]
    assert 0 < tables[0].worst_case() < tables[0].accuracy("clean")
    assert tables[0].worst_case() == tables[1].worst_case()


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD"])
def test_a_classifier_under_foolbox(foolbox, classifier, digits, name):
    """Their attack finds on our classifier the bits that ours finds: nothing is normalized twice, or left out."""
    images, labels = digits[0][:40], digits[1][:40]
    threat = LINF if name == "LinfPGD" else L2
    wrapped = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    peer = getattr(foolbox.attacks, name)(abs_stepsize=0.05, steps=5, random_start=False)
    theirs = peer.run(wrapped, images, foolbox.criteria.Misclassification(labels), epsilon=threat.epsilon)
    ours = ifgsm(classifier, images, labels, threat=threat, steps=5, step_size=0.05)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0 if threat is LINF else 1e-5)
    fooled = peer(wrapped, images, labels, epsilons=threat.epsilon)[2]
    assert torch.equal(~fooled, right(classifier, theirs, labels))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_a_classifier_under_autoattack(autoattack, classifier, digits, threat):
    images, labels = digits[0][:40], digits[1][:40]
    package = autoattack(classifier, threat)
    package.verbose, package.attacks_to_run = False, ["apgd-ce", "square"]
    package.apgd.n_iter, package.square.n_queries = 10, 20
    attacked, _ = package.run_standard_evaluation(images, labels)
    change = (attacked - images).flatten(1)
    assert change.norm(dim=1, p=torch.inf if threat is LINF else 2).max() <= threat.epsilon + 1e-5
    clean, robust = (right(classifier, pictures, labels).sum() for pictures in (images, attacked))
    assert 0 < robust < clean
