"""Image sets: how they are cut and drawn from, and what they are made of."""

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
        FileNotFoundError, match="imagenet; known sets are digits, signs, cifar10, cifar100, svhn, mnist, fashionmnist"
    ):
        load("imagenet")
