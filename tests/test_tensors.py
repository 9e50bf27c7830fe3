import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustviz.checks import check_attacked, check_images, check_labels, check_logits, logits_of
from robustviz.tensors import (
    batch_dependent,
    check_model,
    distances,
    draw_seed,
    drawing,
    evaluating,
    norms,
    per_image,
    project,
    seeded,
    stochastic,
)
from robustviz.types import Threat

seeds = st.integers(0, 2**32 - 1)
threats = st.builds(Threat, st.sampled_from(["linf", "l2"]), st.floats(0, 3))
dtypes = st.sampled_from([torch.float32, torch.float64])
half_types = st.sampled_from([torch.float16, torch.bfloat16])


def draw(seed, dtype=torch.float64, spread=1.0):
    """Images in [0, 1] and points all around them, in and out of the box."""
    source = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 3, 3, generator=source, dtype=dtype)
    return images, images + spread * torch.randn(images.shape, generator=source, dtype=dtype)


def slack(dtype):
    return 8 * torch.finfo(dtype).eps


@settings(max_examples=50, deadline=None)
@given(seeds, threats, dtypes, st.floats(0, 2))
def test_project_lands_in_ball_and_box(seed, threat, dtype, spread):
    images, attacked = draw(seed, dtype, spread)
    nearest = project(images, attacked, threat)
    assert nearest.min() >= 0
    assert nearest.max() <= 1
    assert norms(nearest - images, threat.norm).max() <= threat.epsilon + slack(dtype)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from(["linf", "l2"]), st.floats(1e-3, 0.3), half_types)
def test_project_in_half_precision_rounds_inwards(seed, norm, epsilon, dtype):
    """Not a bit outside the ball, and each pixel within one number of the exact projection."""
    images, attacked = (points.clamp(0, 1).to(dtype) for points in draw(seed))
    threat = Threat(norm, epsilon)
    nearest = project(images, attacked, threat)
    assert nearest.dtype == dtype
    assert norms(nearest.double() - images.double(), norm).max() <= threat.epsilon * (1 + 1e-6)
    exact = project(images.double(), attacked.double(), threat)
    assert ((nearest.double() - exact).abs() <= torch.finfo(dtype).eps * exact.clamp_min(1e-3)).all()
    assert torch.equal(project(images, images, threat), images)


@settings(max_examples=50, deadline=None)
@given(seeds, threats, dtypes)
def test_project_is_idempotent(seed, threat, dtype):
    images, attacked = draw(seed, dtype)
    once = project(images, attacked, threat)
    torch.testing.assert_close(project(images, once, threat), once, rtol=0, atol=slack(dtype))


@settings(max_examples=50, deadline=None)
@given(seeds, threats, dtypes)
def test_project_keeps_what_is_inside(seed, threat, dtype):
    images, attacked = draw(seed, dtype)
    attacked = attacked.clamp(0, 1)
    length = norms(attacked - images, threat.norm)
    inside = images + per_image((0.9 * threat.epsilon / length).clamp_max(1), images) * (attacked - images)
    torch.testing.assert_close(project(images, inside, threat), inside, rtol=0, atol=slack(dtype))


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["linf", "l2"]), st.floats(0.01, 0.4))
def test_project_finds_the_nearest_point(seed, norm, epsilon):
    """Seen from the nearest point of a convex set, no other point lies towards where one came from."""
    attacked, elsewhere = draw(seed)
    images, threat = torch.full_like(attacked, 0.5), Threat(norm, epsilon)  # so far inside that the box does not matter
    nearest, other = project(images, attacked, threat), project(images, elsewhere, threat)
    assert ((attacked - nearest) * (other - nearest)).flatten(1).sum(1).max() <= 1e-12


def test_project_of_the_image_itself():
    images = torch.rand(2, 1, 4, 4, generator=seeded(0))
    for norm in ("linf", "l2"):
        assert torch.equal(project(images, images, Threat(norm, 0.0)), images)


def test_norms_by_hand():
    perturbation = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert norms(perturbation, "l2").tolist() == [5, 0]
    assert norms(perturbation, "linf").tolist() == [4, 0]


def test_per_image_multiplies_whole_images():
    scaled = per_image(torch.tensor([2.0, 3.0]), torch.ones(2, 1, 2, 2)) * torch.ones(2, 1, 2, 2)
    assert scaled.tolist() == [[[[2, 2], [2, 2]]], [[[3, 3], [3, 3]]]]


def test_seeded_repeats_and_separates():
    numbers = {
        key: torch.rand(3, generator=seeded(*key)).tolist() for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1)]
    }
    assert len({tuple(values) for values in numbers.values()}) == len(numbers)
    assert torch.rand(3, generator=seeded(1, 0)).tolist() == numbers[1, 0]


def test_seeded_leaves_the_global_stream():
    before = torch.get_rng_state()
    torch.rand(3, generator=seeded(1))
    assert torch.equal(before, torch.get_rng_state())


def test_draw_seed():
    assert draw_seed(None) == 0
    generator = seeded(3)
    first, second = draw_seed(generator), draw_seed(generator)
    assert first != second
    assert draw_seed(seeded(3)) == first


class Marked(nn.Module):
    batch_dependent = True


def test_batch_dependent_looks_inside():
    assert not batch_dependent(nn.Sequential(nn.Linear(2, 2)))
    assert batch_dependent(nn.Sequential(nn.Linear(2, 2), nn.Sequential(Marked())))


class Functional(nn.Module):
    """Batch statistics that no module tells of."""

    def forward(self, images):
        logits = images.flatten(1)
        return logits - logits.mean(0)


class Drawing(nn.Module):
    """Random answers that do not depend on the batch."""

    stochastic, generator = True, None

    def forward(self, images):
        own = torch.rand(images.shape, generator=self.generator) + torch.rand(images.shape)
        return (images + own).flatten(1)


class OneSize(nn.Module):
    def forward(self, images):
        return images.view(5, 4)


PLAIN = nn.Flatten()
NETWORKS = {
    "plain": (PLAIN, False, False),
    "declared": (nn.Sequential(PLAIN, Marked()), True, True),
    "batch norm": (nn.Sequential(nn.BatchNorm2d(1), PLAIN), False, False),
    "batch norm without statistics": (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), PLAIN), True, True),
    "instance norm": (nn.Sequential(nn.InstanceNorm2d(1), PLAIN), False, False),
    "hidden": (Functional(), False, True),
    "random": (Drawing(), False, False),
    "dropout": (nn.Sequential(PLAIN, nn.Dropout()), False, False),
    "one size": (OneSize(), False, True),
}


@pytest.mark.parametrize(("net", "declared", "found"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_batch_dependence_is_found_by_asking(net, declared, found, dtype):
    images = torch.rand(5, 1, 2, 2, generator=seeded(0)).to(dtype)
    before = torch.get_rng_state()
    assert batch_dependent(net.to(dtype)) == declared
    assert batch_dependent(net, images) == found
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training


def test_stochastic_looks_inside():
    assert not stochastic(nn.Sequential(nn.Dropout()))
    assert stochastic(nn.Sequential(nn.ReLU(), nn.Sequential(Drawing())))


class Halving(nn.Module):
    """Writes into what it is given."""

    def forward(self, images):
        return images.mul_(0.5).flatten(1)


def test_logits_of_keeps_the_images():
    images = torch.ones(2, 1, 2, 2)
    assert logits_of(Halving(), images).tolist() == [[0.5] * 4] * 2
    assert images.min() == 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"logits": torch.zeros(2, 3)}, r"logits of shape \(2, classes\), got dict; wrap it"),
        ((torch.zeros(2, 3), None), "got tuple"),
        (None, "got NoneType"),
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(3, 2), r"got \(3, 2\)"),
        (torch.zeros(2, 3, 1, 1), r"got \(2, 3, 1, 1\)"),
        (torch.zeros(2, 3).long(), "floating-point logits, got torch.int64"),
        (torch.zeros(2, 1), r"at least two classes, got shape \(2, 1\).* logits \(0, z\)"),
    ],
    ids=str,
)
def test_check_logits_refuses(output, message):
    with pytest.raises(ValueError, match=message):
        check_logits(output, 2)


def test_one_logit_becomes_two_by_the_remedy():
    z = torch.tensor([[-1.0], [2.0]])
    assert check_logits(torch.cat([torch.zeros_like(z), z], 1), 2).argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("model", [lambda images: images, None, nn.Linear])
def test_check_model_refuses(model, unchecked):
    for check in (check_model, batch_dependent, lambda model: evaluating(model).__enter__()):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got .*; call a function in the forward"):
            check(model)


CLEAN = torch.full((2, 1, 2, 2), 0.5)
STRAYS = {
    "array": (CLEAN.numpy(), None, TypeError, "got ndarray"),
    "bytes": (CLEAN.byte(), None, TypeError, "got torch.uint8"),
    "shape": (CLEAN[:1], None, ValueError, r"shape \(2, 1, 2, 2\), got \(1, 1, 2, 2\)"),
    "NaN": (CLEAN * math.nan, None, ValueError, "from nan to nan"),
    "box": (CLEAN * 2.1, None, ValueError, "from 1.05 to 1.05; clip them"),
    "linf": (CLEAN + 0.11, Threat("linf", 0.1), ValueError, "linf distance 0.1 of the images, but one is at 0.11"),
    "l2": (CLEAN + 0.11, Threat("l2", 0.2), ValueError, "one is at 0.22; project them"),
}


@pytest.mark.parametrize(("attacked", "threat", "error", "message"), STRAYS.values(), ids=STRAYS)
def test_check_attacked_refuses(attacked, threat, error, message):
    with pytest.raises(error, match=message):
        check_attacked(CLEAN, attacked, threat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_check_attacked_accepts_what_project_gives(dtype):
    images, attacked = (points.clamp(0, 1).to(dtype) for points in draw(0))
    for threat in (Threat("linf", 8 / 255), Threat("l2", 0.5)):
        check_attacked(images, project(images, attacked, threat), threat)
        assert distances(images, project(images, attacked, threat), threat.norm).max() > 0.9 * threat.epsilon


@pytest.mark.parametrize("failing", [False, True])
def test_evaluating_gives_everything_back(failing):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    try:
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            assert not any(parameter.requires_grad for parameter in net.parameters())
            if failing:
                raise KeyError("on purpose")
    except KeyError:
        assert failing
    assert before == ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()])


class Noise(nn.Module):
    stochastic = True
    generator = None


@pytest.mark.parametrize("failing", [False, True])
def test_drawing_lends_the_generator(failing):
    net = nn.Sequential(Noise(), nn.Sequential(Noise()), nn.ReLU())
    outer, inner = seeded(1), seeded(2)
    with drawing(net, outer):
        try:
            with drawing(net, inner):
                assert net[0].generator is inner
                assert net[1][0].generator is inner
                if failing:
                    raise KeyError("on purpose")
        except KeyError:
            assert failing
        assert net[0].generator is outer
    assert net[0].generator is None
    assert net[1][0].generator is None


IMAGES = torch.full((2, 1, 2, 2), 0.5)
LABELS = torch.tensor([0, 1])


def with_pixel(value):
    images = IMAGES.clone()
    images[0, 0, 0, 0] = value
    return images


BAD_IMAGES = {
    "bytes": ((IMAGES * 255).byte(), TypeError, r"images must be a floating-point tensor, got torch.uint8.*/ 255"),
    "integers": (torch.ones(2, 1, 2, 2).long(), TypeError, "floating-point tensor, got torch.int64"),
    "array": (IMAGES.numpy(), TypeError, "got ndarray"),
    "no batch": (IMAGES[0], ValueError, r"shape \(n, c, h, w\) and not be empty, got \(1, 2, 2\)"),
    "empty": (IMAGES[:0], ValueError, r"not be empty, got \(0, 1, 2, 2\)"),
    "NaN": (with_pixel(math.nan), ValueError, "images must be finite, but contain NaN"),
    "infinite": (with_pixel(math.inf), ValueError, "reach from 0.5 to inf"),
    "0..255": (with_pixel(255.0), ValueError, "reach from 0.5 to 255: divide by 255"),
    "normalized": (with_pixel(-1.8), ValueError, "reach from -1.8 to 0.5; normalization belongs inside the model"),
    "a little over": (with_pixel(1.001), ValueError, "reach from 0.5 to 1.001; normalization"),
}
BAD_LABELS = {
    "float": (LABELS.float(), TypeError, "labels must be an int64 tensor, got torch.float32"),
    "int32": (LABELS.int(), TypeError, r"int64 tensor, got torch.int32; .* `.long\(\)`"),
    "int16": (LABELS.short(), TypeError, "got torch.int16"),
    "uint8": (LABELS.byte(), TypeError, "got torch.uint8"),
    "bool": (LABELS.bool(), TypeError, "got torch.bool"),
    "list": ([0, 1], TypeError, "got list"),
    "length": (torch.tensor([0, 1, 1]), ValueError, r"labels must have shape \(2,\), one for each image, got \(3,\)"),
    "one-hot": (torch.eye(2).long(), ValueError, r"shape \(2,\)"),
    "negative": (torch.tensor([-1, 0]), ValueError, "labels must be class indices from 0, got -1"),
    "too large": (torch.tensor([0, 2]), ValueError, "labels must lie below the number of classes 2, got 2"),
}


@pytest.mark.parametrize(("images", "error", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_check_images_refuses(images, error, message, unchecked):
    with pytest.raises(error, match=message):
        check_images(images)


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_check_labels_refuses(labels, error, message, unchecked):
    for check in (lambda: check_images(IMAGES, labels, classes=2), lambda: check_labels(labels, 2, 2)):
        with pytest.raises(error, match=message):
            check()


def test_check_images_accepts():
    check_images(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([1]), classes=2)
    check_images(IMAGES.double().requires_grad_(), LABELS)
