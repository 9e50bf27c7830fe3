"""Total variation against other solvers, and what a purifier and its cached training sets must keep to."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.restoration import denoise_tv_chambolle
from sklearn.datasets import load_sample_images

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.defenses.tvm import TVM, augment, draw_kept, minimize_tv, total_variation, tv_energy
from robustviz.defenses.tvm import energy as tvm_energy
from robustviz.defenses.tvm import layer as tvm
from robustviz.defenses.tvm.primal_dual import Problem
from robustviz.models import small_cnn
from robustviz.tensors import drawing, seeded
from robustviz.types import Threat

WEIGHT = 0.03


def crops(count, size=32, channels=3):
    """Pieces of two photographs, reduced to a quarter: as sharp as the usual 32x32 images."""
    photos = [torch.tensor(photo).permute(2, 0, 1)[:channels] / 255 for photo in load_sample_images().images]
    photos = [torch.nn.functional.avg_pool2d(photo, 4) for photo in photos]
    places = torch.rand(count, 2, generator=seeded(7))
    pieces = []
    for row, (down, right) in enumerate(places.tolist()):
        photo = photos[row % 2]
        top, left = (int(place * (side - size)) for place, side in zip((down, right), photo.shape[1:], strict=True))
        pieces.append(photo[:, top : top + size, left : left + size])
    return torch.stack(pieces)


def noise(seed, count=2, channels=1, size=8):
    return torch.rand(count, channels, size, size, generator=seeded(seed))


def kept_of(images, keep=0.5, **others):
    """The mask that `minimize_tv` draws by itself."""
    return draw_kept(images, keep, **others)


def everything(images):
    return torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)


def test_total_variation_by_hand():
    image = torch.tensor([[[[0.0, 0.0], [0.3, 0.7]], [[0.5, 0.5], [0.5, 0.5]]]])
    # Top left: (0.3, 0); top right: (0.7, 0); bottom left: (0, 0.4); bottom right: 0.
    assert torch.allclose(total_variation(image), torch.tensor([1.4]))
    corner = torch.tensor([[[[0.0, 0.4], [0.3, 0.0]]]])
    assert torch.allclose(total_variation(corner), torch.tensor([0.5 + 0.4 + 0.3]))
    observed, kept = torch.zeros(1, 1, 2, 2), torch.tensor([[[[True, False], [False, False]]]])
    energy = tv_energy(corner + 0.2, observed, kept, weight=0.5)
    assert torch.allclose(energy, torch.tensor([0.02 + 0.5 * 1.2]))


def test_total_variation_has_a_gradient_where_a_picture_is_flat():
    flat = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(flat).sum(), flat)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("weight", [0.01, 0.03, 0.1])
def test_without_a_mask_the_energy_is_that_of_chambolle(weight):
    images = crops(4, 16).double()
    found = minimize_tv(images, keep=1.0, weight=weight, steps=1000, tolerance=1e-4)
    theirs = [
        denoise_tv_chambolle(image, weight=weight, eps=1e-12, max_num_iter=3000, channel_axis=0)
        for image in images.numpy()
    ]
    energy = partial(tv_energy, observed=images, kept=everything(images), weight=weight)
    assert torch.allclose(energy(found), energy(torch.from_numpy(np.stack(theirs))), rtol=1e-3, atol=0)


def test_defaults_reach_the_minimum_of_photographs():
    images = crops(10)
    for keep in (1.0, 0.5):
        kept = kept_of(images, keep)
        energy = partial(tv_energy, observed=images, kept=kept)
        least = energy(minimize_tv(images, keep=keep, steps=800, tolerance=1e-4))
        assert (energy(minimize_tv(images, keep=keep)) <= (1.001 if keep == 1.0 else 1.003) * least).all()


@pytest.mark.parametrize(("keep", "steps"), [(1.0, 20), (0.5, 35)])
def test_few_steps_come_close(keep, steps):
    images = crops(40)
    kept = kept_of(images, keep)
    few, many = (minimize_tv(images, keep=keep, steps=count, tolerance=1e-4) for count in (steps, 400))
    assert tv_energy(few, images, kept).sum() <= 1.001 * tv_energy(many, images, kept).sum()


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_the_tolerance_says_when_to_stop(keep):
    images = crops(12)
    kept = kept_of(images, keep)
    least = tv_energy(minimize_tv(images, keep=keep, steps=800, tolerance=1e-5), images, kept)
    made = []
    for tolerance in (2e-2, 4e-3):
        seen = []
        minimize_tv(images, keep=keep, tolerance=tolerance, on_step=seen.append)
        assert (seen[-1].energy.sum() <= (1 + tolerance) * least.sum()).item()
        made.append(seen[-1].step)
    assert made[0] < made[1] < 100


@given(seed=st.integers(0, 10**6), keep=st.floats(0.1, 1))
@settings(deadline=None, max_examples=20)
def test_no_picture_has_less_energy_than_the_bound(seed, keep):
    images, others = noise(seed, 3).double(), noise(seed + 1, 3).double()
    kept = kept_of(images, keep)
    problem = Problem.of(images, kept, WEIGHT)
    down, right = noise(seed + 2, 6).double().mul(2).sub(1).div(2**0.5).permute(2, 3, 0, 1).chunk(2, 2)
    down, right = down.clone(), right.clone()
    down[-1], right[:, -1] = 0, 0
    point = others.permute(2, 3, 0, 1).clamp(problem.low, problem.high)
    assert (problem.bound(down, right) <= problem.energy(point)).all()
    inside = tv_energy(point.permute(2, 3, 0, 1), images, kept)
    assert torch.allclose(problem.energy(point), inside)


@pytest.mark.parametrize("per_channel", [False, True])
def test_with_a_mask_the_energy_is_that_of_a_convex_solver(per_channel):
    cvxpy = pytest.importorskip("cvxpy")
    images = crops(1, 8).double()
    kept = kept_of(images, per_channel=per_channel)
    total = 0.0
    for channel in range(3):
        picture = images[0, channel].numpy()
        known = kept[0, channel % kept.shape[1]].double().numpy()
        free = cvxpy.Variable((8, 8))
        fit = cvxpy.sum_squares(cvxpy.multiply(known, free - picture)) / 2
        lengths = [
            cvxpy.norm(cvxpy.hstack([free[min(r + 1, 7), c] - free[r, c], free[r, min(c + 1, 7)] - free[r, c]]))
            for r in range(8)
            for c in range(8)
        ]
        total += cvxpy.Problem(cvxpy.Minimize(fit + WEIGHT * sum(lengths))).solve(solver=cvxpy.CLARABEL)
    found = minimize_tv(images, per_channel=per_channel, steps=500, tolerance=1e-4)
    assert tv_energy(found, images, kept).item() == pytest.approx(total, rel=1e-3)


def test_values_of_dropped_pixels_do_not_matter():
    images = crops(3)
    kept = kept_of(images)
    others = torch.where(kept, images, noise(1, 3, 3, 32))
    assert torch.equal(minimize_tv(images), minimize_tv(others))


@given(value=st.floats(0, 1, width=32), keep=st.floats(0.01, 1), per_channel=st.booleans())
@settings(deadline=None, max_examples=30)
def test_a_constant_image_stays(value, keep, per_channel):
    images = torch.full((2, 2, 6, 5), value)
    kept = kept_of(images, keep, per_channel=per_channel)
    known = kept.expand_as(images).flatten(2).any(2)
    found = minimize_tv(images, keep=keep, per_channel=per_channel)
    assert torch.equal(found[known], images[known])
    assert (total_variation(found) == 0).all()


@given(seed=st.integers(0, 10**6), keep=st.sampled_from([0.3, 0.5, 1.0]), weight=st.floats(0.003, 1))
@settings(deadline=None, max_examples=12)
def test_the_energy_never_rises(seed, keep, weight):
    images = noise(seed, 3)
    kept = kept_of(images, keep)
    found = minimize_tv(images, keep=keep, weight=weight)
    assert (tv_energy(found, images, kept, weight=weight) <= tv_energy(images, images, kept, weight=weight)).all()
    assert found.min() >= images.min()
    assert found.max() <= images.max()


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 15))
@settings(deadline=None, max_examples=10)
def test_the_energy_never_rises_however_few_the_steps(seed, steps):
    images = noise(seed, 3)
    found = minimize_tv(images, keep=1.0, weight=0.3, steps=steps, tolerance=0.0)
    energy = partial(tv_energy, observed=images, kept=everything(images), weight=0.3)
    assert (energy(found) <= energy(images)).all()


@given(seed=st.integers(0, 10**6), keep=st.sampled_from([0.5, 1.0]))
@settings(deadline=None, max_examples=6)
def test_transposing_the_image_transposes_the_result(seed, keep):
    images = noise(seed).double()
    kept = kept_of(images, keep)
    found = tvm_energy._minimize(images, kept, WEIGHT, 100, 1e-9)
    turned = tvm_energy._minimize(images.mT.contiguous(), kept.mT.contiguous(), WEIGHT, 100, 1e-9)
    assert torch.allclose(turned, found.mT, atol=1e-9)
    flipped = tvm_energy._minimize(images.flip(3), kept.flip(3), WEIGHT, 100, 1e-9)
    assert not torch.allclose(flipped, found.flip(3), atol=1e-4)


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_row_is_a_column_on_its_side(keep):
    row = noise(6).double().reshape(2, 1, 1, 64)
    kept = kept_of(row, keep)
    found = tvm_energy._minimize(row, kept, WEIGHT, 200, 1e-9)
    assert torch.allclose(tvm_energy._minimize(row.mT, kept.mT, WEIGHT, 200, 1e-9), found.mT, atol=1e-9)
    assert (tv_energy(found, row, kept) < tv_energy(row, row, kept)).all()


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_splitting_a_batch_changes_nothing(keep, tolerance):
    images = crops(9)
    images[4] = 0.5
    together = minimize_tv(images, keep=keep, tolerance=tolerance, generator=seeded(5))
    generator = seeded(5)
    parts = [minimize_tv(i, keep=keep, tolerance=tolerance, generator=generator) for i in images.split([1, 5, 3])]
    assert torch.allclose(torch.cat(parts), together, atol=1e-6)


def test_without_price_the_image_stays():
    images = crops(2)
    for weight in (1e-3, 1e-5):
        # No pixel moves by more than the four differences it takes part in can pull.
        assert (minimize_tv(images, keep=1.0, weight=weight, tolerance=1e-5) - images).abs().max() <= 4 * weight


def test_energies_arrive_on_the_way():
    images = crops(4)
    seen = []
    found = minimize_tv(images, steps=40, tolerance=0.0, on_step=seen.append)
    assert [step.step for step in seen] == list(range(41))
    kept = kept_of(images)
    for step in seen:
        assert torch.allclose(step.energy, tv_energy(step.images, images, kept))
    assert (seen[-1].energy < seen[0].energy).all()
    assert torch.equal(seen[-1].images, found)
    assert torch.equal(found, minimize_tv(images, steps=40, tolerance=0.0))


def test_a_finished_picture_rests_while_others_go_on():
    images = torch.cat((torch.full((1, 3, 32, 32), 0.25), crops(1)))
    seen = []
    minimize_tv(images, keep=1.0, on_step=seen.append)
    assert len(seen) > 11
    assert all(torch.equal(step.images[0], images[0]) for step in seen)


def test_masks():
    images = torch.zeros(50, 3, 16, 16)
    shared, own = (draw_kept(images, 0.3, per_channel=own, generator=seeded(1)) for own in (False, True))
    assert shared.shape == (50, 1, 16, 16)
    assert own.shape == images.shape
    assert shared.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert own.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(own[:, 0], own[:, 1])
    assert draw_kept(images, 1.0).all()


def test_the_gradient_through_the_steps_is_exact():
    images = noise(3, 1, 2, 5).double().mul(0.9).add(0.05).requires_grad_()
    kept = kept_of(images)
    weights = torch.randn(images.shape, generator=seeded(4), dtype=torch.float64)

    def value(pixels):
        return (tvm_energy._minimize(pixels, kept, 0.05, 25, 1e-9) * weights).sum()

    assert torch.autograd.gradcheck(value, images, eps=1e-7, atol=1e-5)
    (gradient,) = torch.autograd.grad(value(images), images)
    assert (gradient[~kept.expand_as(gradient)] == 0).all()
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_nothing_else_changes(dtype):
    images = noise(1, 2, 3, 7).to(dtype)
    before, state = images.clone(), torch.get_rng_state()
    found = minimize_tv(images)
    assert found.shape == images.shape
    assert found.dtype == dtype
    assert not found.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 0}, "keep must be in"),
        ({"keep": 1.5}, "keep must be in"),
        ({"weight": 0}, "weight must be"),
        ({"weight": float("inf")}, "weight must be"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": 2.0}, "steps must be an integer >= 1, got 2.0"),
        ({"steps": float("nan")}, "steps must be an integer >= 1, got nan"),
        ({"tolerance": -1}, "tolerance must be >= 0"),
        ({"tolerance": float("nan")}, "tolerance must be >= 0"),
    ],
)
@pytest.mark.parametrize("entry", [partial(minimize_tv, noise(0)), TVM])
def test_settings_out_of_range(entry, wrong, message, unchecked):
    with pytest.raises(ValueError, match=message):
        entry(**wrong)


def test_images_out_of_range(unchecked):
    with pytest.raises(ValueError, match="divide by 255"):
        minimize_tv(noise(0) * 255)
    with pytest.raises(TypeError, match="floating-point"):
        minimize_tv(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_what_is_no_picture_or_no_mask_is_refused(unchecked):
    images = noise(0)
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch.uint8; convert with images.float"):
        total_variation((images * 255).byte())
    for kept in (torch.ones_like(images), everything(images)[:1], torch.ones(2, 3, 8, 8, dtype=torch.bool)):
        with pytest.raises(ValueError, match="kept must be a mask"):
            tv_energy(images, images, kept)
    for keep in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]"):
            draw_kept(images, keep)


def test_the_layer_draws_from_the_block():
    images = crops(2)
    model = small_cnn(10, 3).replace(purify=TVM(steps=5)).eval()
    assert torch.equal(model(images), model(images))
    assert torch.equal(model.purify(images), minimize_tv(images, steps=5))
    with drawing(model, seeded(3)):
        first, second = model.purify(images), model.purify(images)
    assert not torch.equal(first, second)
    assert torch.equal(first, minimize_tv(images, steps=5, generator=seeded(3)))
    assert model.purify.generator is None
    assert "weight=0.03" in repr(model)


def test_an_attack_goes_through_the_layer(digits):
    images, labels = digits[0][:4], digits[1][:4]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn().replace(purify=TVM(steps=5)).eval()
    attacked = pgd(model, images, labels, threat=Threat("linf", 0.2), steps=2, random_start=False)
    kept = kept_of(images)
    assert not torch.equal(attacked, images)
    assert torch.equal(attacked[~kept], images[~kept])


@pytest.fixture
def clean(digits):
    images, labels = digits
    return ImageSet(images[:70], labels[:70], tuple("0123456789"), "digits")


@pytest.fixture
def made(monkeypatch):
    """Sizes of the batches that were really computed."""
    sizes = []

    def counted(images, **others):
        sizes.append(len(images))
        return minimize_tv(images, **others)

    monkeypatch.setattr(tvm, "minimize_tv", counted)
    return sizes


def test_augmented_sets(clean):
    purifier = TVM(steps=10)
    both = augment(clean, purifier)
    assert len(both) == 140
    assert torch.equal(both.images[:70], clean.images)
    assert torch.equal(both.labels, torch.cat((clean.labels, clean.labels)))
    assert torch.equal(
        both.images[70 : 70 + tvm._BATCH], minimize_tv(clean.images[:64], steps=10, generator=seeded(0, 0))
    )
    attacked = (clean.images + 0.1).clamp(0, 1)
    four = augment(clean, purifier, parts=("clean", "tvm", "attacked", "tvm_attacked"), attacked=attacked)
    assert torch.equal(four.images[:140], both.images)
    assert torch.equal(four.images[140:210], attacked)
    assert not torch.equal(four.images[210:], four.images[70:140])
    assert torch.equal(augment(clean, purifier, parts=("tvm",)).images, both.images[70:])
    assert not torch.equal(augment(clean, purifier, generator=seeded(1)).images, both.images)


def test_versions_are_computed_once(clean, tmp_path, made):
    fresh = augment(clean, TVM(steps=10), folder=tmp_path)
    assert made == [64, 6]
    assert torch.equal(augment(clean, TVM(steps=10), folder=tmp_path).images, fresh.images)
    assert made == [64, 6]


@pytest.mark.parametrize(
    "setting", [{"steps": 11}, {"weight": 0.04}, {"keep": 0.6}, {"tolerance": 0.01}, {"per_channel": True}]
)
def test_versions_of_other_settings_are_not_used(setting, clean, tmp_path, made):
    augment(clean, TVM(steps=10), folder=tmp_path)
    augment(clean, TVM(**({"steps": 10} | setting)), folder=tmp_path)
    assert made == [64, 6, 64, 6]


def test_versions_of_other_images_or_masks_are_not_used(clean, tmp_path, made):
    augment(clean, TVM(steps=10), folder=tmp_path)
    changed = clean.images.clone()
    changed[3, 0, 2, 2] += 0.01 if changed[3, 0, 2, 2] < 0.5 else -0.01
    for other, seed in ((ImageSet(changed, clean.labels, clean.classes, clean.name), None), (clean, seeded(9))):
        made.clear()
        augment(other, TVM(steps=10), folder=tmp_path, generator=seed)
        assert made == [64, 6]


def test_versions_of_another_revision_are_not_used(clean, tmp_path, made, monkeypatch):
    augment(clean, TVM(steps=10), folder=tmp_path)
    monkeypatch.setattr(TVM, "revision", 2)
    augment(clean, TVM(steps=10), folder=tmp_path)
    assert made == [64, 6, 64, 6]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "misfit"])
def test_a_damaged_file_is_made_again(damage, clean, tmp_path, made):
    fresh = augment(clean, TVM(steps=10), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage in ("foreign", "misfit"):
        save_file({"others" if damage == "foreign" else "images": torch.zeros(3)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    again = augment(clean, TVM(steps=10), folder=tmp_path)
    assert torch.equal(again.images, fresh.images)
    assert made == [64, 6, 64, 6]
    assert path.read_bytes() == content


def test_an_interrupted_run_leaves_no_file(clean, tmp_path, monkeypatch):
    def interrupted(images, **others):
        if len(images) < tvm._BATCH:
            raise KeyboardInterrupt
        return images

    monkeypatch.setattr(tvm, "minimize_tv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        augment(clean, TVM(), folder=tmp_path)
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parts": ()}, "parts must be some of"),
        ({"parts": ("clean", "noisy")}, "parts must be some of"),
        ({"parts": ("attacked",)}, "attacked must have the shape"),
        ({"parts": ("tvm_attacked",), "attacked": torch.zeros(2, 1, 8, 8)}, "attacked must have the shape"),
    ],
)
def test_parts_that_cannot_be_made(wrong, message, clean, unchecked):
    with pytest.raises(ValueError, match=message):
        augment(clean, TVM(), **wrong)
