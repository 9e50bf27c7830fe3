import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax
from torch import nn

from robustviz.objectives import cross_entropy, dlr, logit_margin, margin, objective_and_logits

flat = nn.Flatten()  # images (n, 1, 1, K) are their own logits
OBJECTIVES = [cross_entropy, margin, dlr]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.__name__)


def logits_as_images(classes, count=6, seed=0):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=source, dtype=torch.float64)
    return logits.view(count, 1, 1, classes), torch.randint(classes, (count,), generator=source)


@pytest.mark.parametrize("scale", [1, 300])
def test_cross_entropy_agrees_with_scipy(scale):
    images, labels = logits_as_images(7)
    expected = -log_softmax(scale * images.numpy()[:, 0, 0], axis=1)[range(6), labels]
    torch.testing.assert_close(cross_entropy(flat, scale * images, labels), torch.from_numpy(expected))


def test_margin_by_hand():
    images = torch.tensor([[5.0, 2.0, -1.0], [5.0, 2.0, -1.0], [5.0, 2.0, -1.0], [-3.0, -3.0, -8.0]])[:, None, None]
    assert margin(flat, images, torch.tensor([0, 1, 2, 0])).tolist() == [-3, 3, 6, 0]


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays("float64", (4, 5), elements=st.floats(-1e3, 1e3)), st.lists(st.integers(0, 4), min_size=4, max_size=4)
)
def test_margin_is_positive_exactly_when_wrong(logits, labels):
    values = logit_margin(torch.from_numpy(logits), torch.tensor(labels))
    others = [max(row[k] for k in range(5) if k != label) for row, label in zip(logits, labels, strict=True)]
    assert [value > 0 for value in values] == [o > row[k] for o, row, k in zip(others, logits, labels, strict=True)]


def test_dlr_by_hand():
    images = torch.tensor([[8.0, 2.0, -4.0, -9.0], [8.0, 2.0, -4.0, -9.0], [8.0, 2.0, -4.0, -9.0]])[:, None, None]
    values = dlr(flat, images.double(), torch.tensor([0, 1, 3]))
    torch.testing.assert_close(values, torch.tensor([-6, 6, 17]).double() / 12)


def test_dlr_agrees_with_autoattack():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    for seed in range(5):
        images, labels = logits_as_images(10, count=20, seed=seed)
        expected = autopgd.APGDAttack.dlr_loss(SimpleNamespace(), images.flatten(1), labels)
        torch.testing.assert_close(dlr(flat, images, labels), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 1e4), st.floats(-100, 100))
def test_dlr_ignores_scale_and_shift_of_the_logits(seed, scale, shift):
    images, labels = logits_as_images(5, seed=seed)
    torch.testing.assert_close(
        dlr(flat, scale * images + shift, labels), dlr(flat, images, labels), rtol=1e-6, atol=1e-8
    )


def test_dlr_of_two_classes_is_the_margin():
    images, labels = logits_as_images(2)
    assert torch.equal(dlr(flat, images, labels), margin(flat, images, labels))


@every_objective
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradients(objective, classes):
    images, labels = logits_as_images(classes)
    assert torch.autograd.gradcheck(lambda points: objective(flat, points, labels), images.requires_grad_())


@every_objective
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_one_number_for_each_image_whatever_the_others_are(objective, classes):
    images, labels = logits_as_images(classes)
    values = objective(flat, images, labels)
    assert values.shape == labels.shape
    for i in range(len(images)):
        torch.testing.assert_close(objective(flat, images[i : i + 1], labels[i : i + 1]), values[i : i + 1])


class Counting(nn.Module):
    """Logits from images, and how many images each pass had."""

    def __init__(self, classes=3):
        super().__init__()
        self.passes, self.layer = [], nn.Sequential(nn.Flatten(), nn.Linear(4, classes))

    def forward(self, images):
        self.passes.append(len(images))
        return self.layer(images)


IMAGES, LABELS = torch.full((2, 1, 2, 2), 0.25), torch.tensor([0, 2])


@every_objective
def test_objective_and_logits_in_one_pass(objective):
    net = Counting()
    values, logits = objective_and_logits(objective, net, IMAGES, LABELS)
    assert net.passes == [2]
    assert torch.equal(values, objective(net, IMAGES, LABELS))
    assert torch.equal(logits, net(IMAGES))
    assert values.requires_grad
    assert not logits.requires_grad


def test_logits_are_those_of_the_images_asked_about():
    def doubtful(model, images, labels, /, *, generator=None):
        return model(1 - images).sum(1) + model(images).sum(1) + model(images[:, :, :1].repeat(1, 1, 2, 1) * 0).sum(1)

    net = Counting()
    _, logits = objective_and_logits(doubtful, net, IMAGES, LABELS)
    assert torch.equal(logits, net(IMAGES))


def test_an_objective_that_never_asks_the_model_costs_one_pass():
    def brightness(model, images, labels, /, *, generator=None):
        return images.sum((1, 2, 3))

    net = Counting()
    values, logits = objective_and_logits(brightness, net, IMAGES, LABELS)
    assert values.tolist() == [1, 1]
    assert net.passes == [2]
    assert torch.equal(logits, net(IMAGES))


def test_generator_reaches_the_objective():
    def noisy(model, images, labels, /, *, generator=None):
        return model(images).sum(1) * torch.rand(len(images), generator=generator)

    net = Counting()
    first, again, other = (
        objective_and_logits(noisy, net, IMAGES, LABELS, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_hook_is_left_after_an_error(unchecked):
    net = Counting(classes=2)
    with pytest.raises(ValueError, match="labels must lie below the number of classes 2, got 2"):
        objective_and_logits(cross_entropy, net, IMAGES, LABELS)
    assert not net._forward_hooks


class Returning(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(3, 3), r"got \(3, 3\)"),
        (torch.zeros(2, 3, 1, 1), r"got \(2, 3, 1, 1\)"),
        ((torch.zeros(2, 3), None), "got tuple"),
    ],
)
def test_logits_of_another_shape_are_refused(output, got, unchecked):
    with pytest.raises(ValueError, match=r"model must return logits of shape \(2, classes\), " + got):
        objective_and_logits(cross_entropy, Returning(output), IMAGES, LABELS)
