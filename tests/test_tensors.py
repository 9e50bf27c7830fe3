import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustviz.tensors import (
    batch_dependent,
    check_images,
    check_labels,
    draw_seed,
    drawing,
    evaluating,
    norms,
    per_image,
    project,
    seeded,
)
from robustviz.types import Threat

seeds = st.integers(0, 2**32 - 1)
threats = st.builds(Threat, st.sampled_from(["linf", "l2"]), st.floats(0, 3))
dtypes = st.sampled_from([torch.float32, torch.float64])


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
