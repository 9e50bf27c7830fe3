from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.defenses import (
    WNLLHead,
    affinity,
    buffered,
    interpolate,
    only_buffer_trains,
    refresh_template,
    wnll_classifier,
    wnll_objective,
)
from robustviz.defenses.wnll import balanced, template_sizes
from robustviz.models import Classifier, Normalize
from robustviz.tensors import batch_dependent, seeded
from robustviz.training import TrainConfig, train
from robustviz.types import Threat

CLASSES = 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def clouds(size, seed=0):
    """Three overlapping clouds of features and their classes."""
    labels = torch.arange(size) % CLASSES
    return 2 * normal(CLASSES, 4, seed=9)[labels] + normal(size, 4, seed=seed), labels


@pytest.fixture
def head():
    template, labels = clouds(60, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(4, CLASSES).double()
    return WNLLHead(template, labels, CLASSES, linear=linear)


@pytest.fixture(scope="module")
def image_set():
    """Pictures of 4x4 pixels, three classes."""
    generator = seeded(3)
    labels = torch.randint(CLASSES, (240,), generator=generator)
    patterns = torch.rand(CLASSES, 1, 4, 4, generator=generator)
    noise = torch.rand(240, 1, 4, 4, generator=generator)
    return ImageSet(0.5 * patterns[labels] + 0.5 * noise, labels, ("a", "b", "c"), "patterns")


@pytest.fixture
def classifier():
    """Convolution, batch norm, dropout and a linear head, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        return Classifier(body, nn.Linear(8, CLASSES), normalize=Normalize(0.5, 0.25))


def test_head_is_log_of_the_interpolation(head):
    features, _ = clouds(20)
    share = interpolate(affinity(torch.cat([features, head.template])), head.template_labels, CLASSES)
    torch.testing.assert_close(head(features), torch.log(share + 1e-12))
    assert head.batch_dependent
    assert batch_dependent(nn.Sequential(head))


def test_alone_is_joint_one_at_a_time(head):
    features, _ = clouds(20)
    alone = head.with_settings(joint=False)
    assert not batch_dependent(alone)
    torch.testing.assert_close(alone(features), torch.cat([head(one) for one in features.split(1)]))
    assert (alone(features) - head(features)).abs().max() > 1e-3


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("templates", [1, 2])
def test_gradient_of_the_head_is_exact(head, joint, templates):
    head = WNLLHead(head.template, head.template_labels, CLASSES, joint=joint, templates=templates)
    features = clouds(8)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda f: head(f).exp(), features)


def test_surrogate_is_as_published(head):
    features, labels = clouds(20)
    features.requires_grad_()
    share = head.probabilities(features).detach()
    one_hot = nn.functional.one_hot(labels, CLASSES)
    for gradient, values, slope in (
        ("surrogate", share, share.softmax(1) - one_hot),
        ("surrogate-log", torch.log(share + 1e-12), share - one_hot),
    ):
        scores = head.with_settings(gradient=gradient)(features)
        assert torch.equal(scores, values)
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        (found,) = torch.autograd.grad(loss, features)
        torch.testing.assert_close(found, slope @ head.linear.weight.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("templates", [1, 3])
def test_votes_add_up_to_the_answer(head, joint, templates):
    indices = torch.arange(60) + 500
    settings = {"joint": joint, "templates": templates, "template_indices": indices}
    head = WNLLHead(head.template, head.template_labels, CLASSES, **settings)
    features, _ = clouds(10)
    voters, weights = head.votes(features)
    one_hot = nn.functional.one_hot(head.template_labels, CLASSES).double()
    torch.testing.assert_close((weights[..., None] * one_hot[voters - 500]).sum(1), head.probabilities(features))
    torch.testing.assert_close(weights.sum(1), torch.ones(10, dtype=torch.float64))
    assert (weights.diff(dim=1) <= 0).all()
    few = head.votes(features, count=4)
    assert torch.equal(few[0], voters[:, :4])
    assert torch.equal(few[1], weights[:, :4])


def test_several_templates_are_averaged(head):
    features, _ = clouds(10)
    parts = zip(head.template.chunk(2), head.template_labels.chunk(2), strict=True)
    mean = sum(WNLLHead(*part, CLASSES).probabilities(features) for part in parts) / 2
    torch.testing.assert_close(
        WNLLHead(head.template, head.template_labels, CLASSES, templates=2).probabilities(features), mean
    )


def test_neighbor_lists_are_made_once_and_again_when_the_template_changes(head):
    features, _ = clouds(10)
    other, labels = clouds(60, seed=5)
    head(features)
    lists = head._prepared()
    assert head.with_settings(gradient="surrogate")._prepared() is lists
    assert head.with_settings(neighbors=20)._prepared()[0].indices.shape == (60, 20)
    assert head._prepared() is lists
    fresh = WNLLHead(other, labels, CLASSES, linear=head.linear)
    copied, wider = deepcopy(head), head.with_settings()
    copied.load_state_dict(fresh.state_dict())
    assert torch.equal(copied(features), fresh(features))
    wider.refresh(other, labels)
    assert torch.equal(wider(features), fresh(features))
    assert head._prepared() is lists
    assert head.float()(features.float()).dtype == torch.float32


def test_state_dict_holds_the_template(head):
    assert set(head.state_dict()) == {
        "template",
        "template_labels",
        "template_indices",
        "linear.weight",
        "linear.bias",
    }


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(head, joint, size):
    scores = head.with_settings(joint=joint)(clouds(5)[0][:size])
    assert scores.shape == (size, CLASSES)
    assert scores.isfinite().all()


@pytest.mark.parametrize("joint", [True, False])
def test_small_templates_and_duplicates(joint):
    template = torch.zeros(3, 2)
    head = WNLLHead(template, torch.arange(3), 3, joint=joint)
    features = torch.zeros(4, 2, requires_grad=True)
    share = head.probabilities(features)
    torch.testing.assert_close(share, torch.full((4, 3), 1 / 3))
    assert torch.autograd.grad(share[:, 0].sum(), features)[0].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": torch.full((6, 2), torch.nan)}, "must be finite"),
        ({"template_labels": torch.arange(5) % 3}, "one label for each point"),
        ({"template_labels": torch.arange(6)}, r"template_labels must lie in 0..2, got 5"),
        ({"template_labels": torch.arange(6) % 2}, r"lack \[2\].*5.5 on average"),
        ({"template": torch.zeros(0, 2), "template_labels": torch.arange(0)}, "at least one labelled point"),
        ({"neighbors": 4}, "scale_neighbor must be from 1 to neighbors"),
        ({"gradient": "none"}, "gradient must be one of"),
        ({"gradient": "surrogate"}, "linear must be given"),
        ({"templates": 4}, "templates must divide"),
        ({"templates": 3}, "must hold all 3 classes"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(change, message):
    given = {"template": normal(6, 2), "template_labels": torch.arange(6) % 3, "classes": 3} | change
    with pytest.raises(ValueError, match=message):
        WNLLHead(**given)


def test_bad_features(head):
    with pytest.raises(ValueError, match="features must be finite"):
        head(torch.full((2, 4), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"features must have shape \(n, 4\)"):
        head(normal(2, 5))


def test_template_is_balanced_even_if_the_images_are_not():
    labels = torch.tensor([0] * 50 + [1] * 8 + [2] * 3)
    for size, counts in ((9, [3, 3, 3]), (20, [9, 8, 3]), (61, [50, 8, 3])):
        chosen = balanced(labels, size, 3, seeded(1))
        assert labels[chosen].bincount().tolist() == counts
        assert len(set(chosen.tolist())) == size
    assert not torch.equal(balanced(labels, 9, 3, seeded(1)), balanced(labels, 9, 3, seeded(2)))


@pytest.mark.parametrize("templates", [1, 2])
def test_classifier_from_a_trained_one(classifier, image_set, templates):
    classifier.train()
    before = deepcopy(classifier.state_dict())
    model = wnll_classifier(classifier, image_set, size=60, templates=templates, neighbors=12, generator=seeded(1))
    head = model.head
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.body is classifier.body
    assert head.linear is classifier.head
    assert (head.neighbors, head.templates, len(head.template)) == (12, templates, 60 * templates)
    assert (head.template_labels.bincount() == 20 * templates).all()
    assert torch.equal(image_set.labels[head.template_indices], head.template_labels)
    again = wnll_classifier(model, image_set, size=60, generator=seeded(2))
    assert again.head.linear is classifier.head
    classifier.eval()
    with torch.no_grad():
        torch.testing.assert_close(head.template, classifier.features(image_set.images[head.template_indices]))
        classifier.body[0].weight.mul_(-1)
        refresh_template(model, image_set)
        torch.testing.assert_close(head.template, classifier.features(image_set.images[head.template_indices]))


@pytest.mark.parametrize(
    ("images", "given", "wanted"),
    [
        (60, {}, (60, 1)),
        (4999, {}, (4999, 1)),
        (9999, {}, (5000, 1)),
        (12_000, {}, (5000, 2)),
        (50_000, {}, (5000, 3)),
        (50_000, {"size": 300}, (300, 1)),
        (50_000, {"templates": 5}, (5000, 5)),
        (12_000, {"templates": 3}, (4000, 3)),
    ],
)
def test_templates_are_large_by_default_and_several_where_there_are_images(images, given, wanted):
    pictures = ImageSet(
        torch.rand(images, 1, 1, 2, generator=seeded(0)), torch.arange(images) % 3, ("a", "b", "c"), "x"
    )
    plain = Classifier(nn.Flatten(), nn.Linear(2, 3), normalize=Normalize(0.5, 0.25))
    head = wnll_classifier(plain, pictures, **given).head
    assert (len(head.template) // head.templates, head.templates) == wanted
    if not given:
        assert template_sizes(images) == wanted


def test_template_too_small_or_without_a_class(classifier, image_set):
    with pytest.raises(ValueError, match=r"size must be at least 3.*5\.5 on average"):
        wnll_classifier(classifier, image_set, size=2)
    with pytest.raises(ValueError, match=r"size must be from 3.*to 240"):
        wnll_classifier(classifier, image_set, size=1000)
    with pytest.raises(ValueError, match=r"lack \[3\].*8\.3 on average"):
        wnll_classifier(classifier, replace(image_set, classes=("a", "b", "c", "d")), size=60)


def test_buffer_block(classifier, image_set):
    state = torch.get_rng_state()
    model = buffered(classifier, 5, generator=seeded(1))
    assert torch.equal(state, torch.get_rng_state())
    assert model.body.network is classifier.body
    assert model.features(image_set.images).shape == (240, 5)
    assert (model.features(image_set.images) >= 0).all()
    assert model(image_set.images).shape == (240, CLASSES)
    assert model.head.weight.requires_grad
    with pytest.raises(ValueError, match="head must be linear"):
        buffered(wnll_classifier(model, image_set, size=30))
    with pytest.raises(ValueError, match="`buffered` puts one there"), only_buffer_trains(classifier):
        pass


@pytest.mark.parametrize("gradient", ["exact", "surrogate"])
@pytest.mark.parametrize("attack", [None, partial(pgd, threat=Threat("linf", 0.05), steps=2)], ids=["natural", "pgd"])
def test_stage_b_changes_the_buffer_and_nothing_else(classifier, image_set, gradient, attack):
    classifier.normalize.mean.fill_(0.4)
    classifier.head.bias.requires_grad_(False)
    model = wnll_classifier(buffered(classifier, 6), image_set, size=30, gradient=gradient)
    before = deepcopy(model.state_dict())
    trainable = [weight.requires_grad for weight in model.parameters()]
    config = TrainConfig(epochs=2, batch_size=60, learning_rate=0.05)
    with only_buffer_trains(model):
        train(
            model,
            image_set.images,
            image_set.labels,
            config,
            objective=wnll_objective(image_set, 30),
            attack=attack,
            validation=0.0,
        )
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"body.buffer.0.weight", "body.buffer.0.bias"}
    assert [weight.requires_grad for weight in model.parameters()] == trainable


def test_stage_b_lowers_its_objective(classifier, image_set):
    model = wnll_classifier(buffered(classifier, 6), image_set, size=30)
    objective = wnll_objective(image_set, 60)
    with only_buffer_trains(model):
        model.eval()
        optimizer = torch.optim.SGD(model.body.buffer.parameters(), 0.1, momentum=0.9)
        values = []
        for step in range(25):
            loss = objective(model, image_set.images[:120], image_set.labels[:120], generator=seeded(step % 5)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_objective_is_minus_log_u(classifier, image_set):
    model = wnll_classifier(classifier.eval(), image_set, size=30)
    images, labels = image_set.images[:20], image_set.labels[:20]
    found = wnll_objective(image_set, 30)(model, images, labels, generator=seeded(7))
    other = wnll_classifier(classifier, image_set, size=30, generator=seeded(7))
    expected = -torch.log(
        other.head.probabilities(model.features(images)).gather(1, labels[:, None]).squeeze(1) + 1e-12
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), classifier.body[0].weight)
    (template_fixed,) = torch.autograd.grad(expected.sum(), classifier.body[0].weight)
    assert (gradient - template_fixed).norm() > 0.05 * gradient.norm()
    with pytest.raises(ValueError, match="head must be a WNLLHead"):
        wnll_objective(image_set, 30)(classifier, images, labels)
