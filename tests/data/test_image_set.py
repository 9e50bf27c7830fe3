"""Image sets: how they are cut and drawn from, and what they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustviz.data import ImageSet, digits, load, stratified, torchvision_set
from robustviz.tensors import seeded

labelings = st.lists(st.integers(0, 4), min_size=2, max_size=80).map(torch.tensor)
seeds = st.integers(0, 2**31)


def numbered(labels):
    """A set whose every image holds its own number, so that it is recognized wherever it goes."""
    count = len(labels)
    images = (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return ImageSet(images, labels, tuple("abcde"), "numbered")


def numbers(image_set):
    return image_set.images[:, 0, 0, 0].tolist()


def shares_hold(whole, part):
    """Every class has its share of the part, to within one image."""
    expected = torch.bincount(whole.labels, minlength=5) * len(part) / len(whole)
    return bool(((torch.bincount(part.labels, minlength=5) - expected).abs() < 1).all())


@settings(max_examples=60, deadline=None)
@given(labelings, seeds, st.data())
def test_subset_is_stratified_and_keeps_the_order(labels, seed, data):
    whole = numbered(labels)
    size = data.draw(st.integers(1, len(whole)))
    part = whole.subset(size, seeded(seed))
    assert len(part) == size
    assert shares_hold(whole, part)
    assert numbers(part) == sorted(set(numbers(part)))
    assert set(numbers(part)) <= set(numbers(whole))
    assert numbers(whole.subset(size, seeded(seed))) == numbers(part)


@settings(max_examples=60, deadline=None)
@given(labelings, seeds, st.floats(0.01, 0.99))
def test_split_is_disjoint_and_complete(labels, seed, share):
    whole = numbered(labels)
    size = round(share * len(whole))
    if not 0 < size < len(whole):
        with pytest.raises(ValueError, match="share must leave images on both sides"):
            whole.split(seeded(seed), share=share)
        return
    larger, held = whole.split(seeded(seed), share=share)
    assert len(held) == size
    assert sorted(numbers(larger) + numbers(held)) == numbers(whole)
    assert shares_hold(whole, held)
    assert shares_hold(whole, larger)
    assert all(numbers(part) == sorted(numbers(part)) for part in (larger, held))
    assert numbers(whole.split(seeded(seed), share=share)[1]) == numbers(held)


def test_the_draw_depends_on_the_generator():
    whole = numbered(torch.arange(60) % 5)
    assert numbers(whole.subset(20)) == numbers(whole.subset(20, seeded(0)))
    assert numbers(whole.subset(20)) != numbers(whole.subset(20, seeded(1)))
    assert numbers(whole.split()[1]) != numbers(whole.split(seeded(1))[1])


def test_stratified_of_everything_is_everything():
    labels = torch.tensor([4, 0, 0, 2])
    assert stratified(labels, 4).tolist() == [0, 1, 2, 3]
    assert stratified(labels, 0).tolist() == []


def test_batches_in_order_and_shuffled():
    whole = numbered(torch.arange(11) % 5)
    in_order = list(whole.batches(4))
    assert [len(images) for images, _ in in_order] == [4, 4, 3]
    assert torch.equal(torch.cat([images for images, _ in in_order]), whole.images)
    assert torch.equal(torch.cat([labels for _, labels in in_order]), whole.labels)
    shuffled = list(whole.batches(4, seeded(0)))
    assert [len(images) for images, _ in shuffled] == [4, 4, 3]
    order = [round(value * 11) for images, _ in shuffled for value in images[:, 0, 0, 0].tolist()]
    assert sorted(order) == list(range(11))
    assert order != list(range(11))
    assert torch.cat([labels for _, labels in shuffled]).tolist() == [number % 5 for number in order]


def test_bad_image_sets(unchecked):
    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    for bad_images, bad_labels, error, words in (
        (images * 255, labels, ValueError, "divide by 255"),
        ((images * 255).int(), labels, TypeError, "float"),
        ((images * 255).byte()[0], labels, ValueError, "shape"),
        ((images * 255).byte(), labels[:3], ValueError, r"shape \(4,\)"),
        ((images * 255).byte(), labels + 1, ValueError, "below the number of classes 2, got 2"),
        (images.clone().fill_(torch.nan), labels, ValueError, "NaN"),
        (images - 1, labels, ValueError, r"\[0, 1\]"),
        (images[0], labels, ValueError, "shape"),
        (images[:0], labels[:0], ValueError, "empty"),
        (images, labels + 1, ValueError, "below the number of classes 2, got 2"),
        (images, labels - 1, ValueError, "from 0, got -1"),
        (images, labels[:3], ValueError, r"shape \(4,\)"),
        (images, labels.float(), TypeError, "integer"),
    ):
        with pytest.raises(error, match=words):
            ImageSet(bad_images, bad_labels, ("a", "b"), "bad")


def test_bad_settings_of_a_set(unchecked):
    whole = numbered(torch.arange(10) % 5)
    for size in (0, -1, 11):
        with pytest.raises(ValueError, match=f"size must be from 1 to 10.*got {size}"):
            whole.subset(size)
    for share in (0.0, 1.0, -0.5, 0.01):
        with pytest.raises(ValueError, match="share must leave"):
            whole.split(share=share)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        list(whole.batches(0))
    for call in (digits, lambda part: load("digits", part), lambda part: torchvision_set("svhn", part=part)):
        with pytest.raises(ValueError, match="part must be one of all, train, test, got 'extra'"):
            call("extra")
    with pytest.raises(ValueError, match="cifar10, cifar100, svhn, mnist, fashionmnist, got 'imagenet'"):
        torchvision_set("imagenet")
    with pytest.raises(
        FileNotFoundError, match="imagenet; known are digits, signs, cifar10, cifar100, svhn, mnist, fashionmnist"
    ):
        load("imagenet")


def test_one_image_is_a_set_too():
    whole = numbered(torch.arange(11) % 5)
    for number in (0, 3, -1, np.int64(10), torch.tensor(4)):
        one = whole[number]
        assert len(one) == len(one.labels) == 1
        assert numbers(one) == numbers(whole)[int(number) : int(number) + 1 or None]
    assert [len(one) for one in whole] == [1] * 11
    for number in (11, -12):
        with pytest.raises(IndexError, match=f"index must be from -11 to 10 in numbered, got {number}"):
            whole[number]


@pytest.mark.parametrize("nothing", [torch.zeros(11, dtype=torch.bool), slice(5, 5), [], torch.tensor([]).long()])
def test_nothing_is_no_set(nothing):
    with pytest.raises(ValueError, match="indices must select at least one of the 11 images of numbered, got none"):
        numbered(torch.arange(11) % 5)[nothing]


@settings(max_examples=30, deadline=None)
@given(labelings, seeds)
def test_bytes_and_floats_are_the_same_set(labels, seed):
    """Whatever is done to them; only the memory differs."""
    pixels = torch.randint(256, (len(labels), 3, 4, 5), generator=seeded(seed)).byte()
    kept, floats = (ImageSet(images, labels, tuple("abcde"), "set") for images in (pixels, pixels.float() / 255))
    size = 1 + seed % len(labels)
    for cut in (
        lambda s: s,
        lambda s: s[seed % len(labels)],
        lambda s: s[: size + 1],
        lambda s: s[torch.arange(len(labels)).flip(0)],
        lambda s: s.to("cpu"),
        lambda s: s.subset(size, seeded(seed)),
    ):
        assert cut(kept).pixels.dtype == torch.uint8
        assert cut(kept).images.dtype == cut(kept)[:1].images.dtype == torch.float32
        assert torch.equal(cut(kept).images, cut(floats).images)
        assert torch.equal(cut(kept).labels, cut(floats).labels)
    for generator in (None, seed):
        pair = [list(s.batches(3, None if generator is None else seeded(generator))) for s in (kept, floats)]
        for (images, numbers), (other, again) in zip(*pair, strict=True):
            assert torch.equal(images, other)
            assert torch.equal(numbers, again)
    assert torch.equal(floats.images, floats.pixels)
    assert torch.equal(replace(kept, name="other").images, kept.images)
    named = ImageSet(images=pixels, labels=labels, classes=tuple("abcde"), name="set")
    assert torch.equal(named.images, kept.images)
    with pytest.raises(AttributeError):
        kept.images = pixels


def test_another_default_device_changes_nothing():
    def drawn():
        whole = ImageSet(digits().images, digits().labels, tuple("0123456789"), "digits")
        larger, held = whole.split()
        parts = (whole.subset(50), larger[:9], held[3], digits("test"), load("signs", "test", limit=20))
        return [part.images for part in parts] + [next(whole.batches(4, seeded(0)))[0]]

    before = drawn()
    torch.set_default_device("meta")
    try:
        after = drawn()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here, whose generators draw on the GPU")
def test_a_generator_of_another_device():
    whole = numbered(torch.arange(60) % 5)
    part = whole.subset(20, torch.Generator("cuda").manual_seed(3))
    assert shares_hold(whole, part)
    assert len(whole.to("cuda").subset(20)) == 20
