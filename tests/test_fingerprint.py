"""Settings are compared by what they would do, and fingerprints tell apart what a record depends on."""

import copy
import hashlib
import json
from dataclasses import dataclass, make_dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustviz import fingerprint as module
from robustviz.attacks import against, apgd, bounded, carlini_wagner, fgsm, fmn, pgd
from robustviz.data import stratified
from robustviz.fingerprint import check_same, differing, fingerprint, revisions_of, same, settings_of
from robustviz.models import initialized, small_cnn
from robustviz.objectives import cross_entropy, margin
from robustviz.records import describe, revision
from robustviz.training import TrainConfig
from robustviz.types import Threat


def recorded(value):
    """What a file holds of a setting."""
    return json.loads(json.dumps(describe(value)))


def attack(model, images, labels, /, *, steps=10, objective=cross_entropy, generator=None):
    raise AssertionError("is only described")


first = attack


def grown():
    """The same attack with a keyword more, as a later version would have it."""

    def attack(model, images, labels, /, *, steps=10, objective=cross_entropy, decay=0.5, generator=None):
        raise AssertionError("is only described")

    return attack


threats = st.builds(Threat, st.sampled_from(["linf", "l2"]), st.sampled_from([0.0, 0.1, 8 / 255]))
leaves = st.one_of(
    st.builds(lambda threat, steps: partial(pgd, threat=threat, steps=steps), threats, st.integers(1, 3)),
    st.builds(lambda threat, objective: partial(apgd, threat=threat, objective=objective), threats, st.just(margin)),
    st.sampled_from([fgsm, partial(fgsm), partial(fmn, norm="l2"), partial(carlini_wagner, lr=0.1), first, None]),
    st.builds(TrainConfig, epochs=st.integers(1, 2), momentum=st.sampled_from([0.0, 0.9])),
    st.sampled_from([1, 1.5, True, "word", (1, 2), [Threat("l2", 1.0)]]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a: partial(against, view=small_cnn, attack=a), inner),
        st.builds(lambda a, threat: partial(bounded, threat=threat, attack=a), inner, threats),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        st.lists(inner, max_size=2),
    ),
    max_leaves=4,
)


@given(values, values)
def test_settings_mean_the_same_if_their_whole_descriptions_agree(one, other):
    """Without new keywords, revisions and new names, comparing by meaning is comparing descriptions."""
    assert same(recorded(one), one)
    assert same(recorded(one), other) == (recorded(one) == recorded(other))
    assert differing({"a": recorded(one)}, {"a": other}) == ([] if recorded(one) == recorded(other) else ["a"])


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"x": [partial(against, view=small_cnn, attack=a)]}])
def test_a_new_keyword_with_its_default_changes_nothing(wrap):
    for settings in ({}, {"steps": 3}, {"objective": margin}):
        before = recorded(wrap(partial(first, **settings)))
        assert same(before, wrap(partial(grown(), **settings)))
        assert same(before, wrap(partial(grown(), decay=0.5, **settings)))
        assert not same(before, wrap(partial(grown(), decay=0.6, **settings)))
        assert not same(before, wrap(partial(grown(), **settings | {"steps": 4})))
        assert not same(recorded(wrap(partial(grown(), **settings))), wrap(partial(first, **settings)))  # it is gone


def test_a_keyword_without_default_is_not_guessed():
    def attack(model, images, labels, /, *, steps=10, objective=cross_entropy, target, generator=None):
        raise AssertionError("is only described")

    assert not same(recorded(first), partial(attack, target=3))
    assert same(recorded(partial(attack, target=3)), partial(attack, target=3))


def test_a_revision_makes_exactly_its_own_records_stale():
    mended = revision(2)(grown())
    assert mended.revision == 2
    assert describe(mended)["revision"] == 2
    assert "revision" not in describe(first)
    assert not same(recorded(first), mended)
    assert not same(recorded(partial(bounded, attack=first)), partial(bounded, attack=mended))
    assert same(recorded(mended), partial(mended, steps=10))
    assert not same(recorded(mended), revision(3)(grown()))
    assert not same(recorded(mended), first)
    assert same(recorded(pgd), pgd)
    assert same(recorded(first) | {"revision": 1}, first)
    with pytest.raises(ValueError, match="number must be >= 1, got 0"):
        revision(0)


def test_a_new_field_of_a_dataclass_means_its_default():
    old = make_dataclass("Settings", [("size", int)], frozen=True)
    new = make_dataclass("Settings", [("size", int), ("deep", tuple, (1, 2))], frozen=True)
    assert same(recorded(old(3)), new(3))
    assert not same(recorded(old(3)), new(3, deep=(1,)))
    assert not same(recorded(old(3)), new(4))
    assert not same(recorded(new(3)), old(3))
    assert not same(recorded(Threat("l2", 1.0)) | {"type": "Ball"}, Threat("l2", 1.0))


def test_a_new_name_is_the_same_function(monkeypatch):
    def newer(model, images, labels, /, *, steps=10, objective=cross_entropy, generator=None):
        raise AssertionError("is only described")

    assert not same(recorded(first), newer)
    monkeypatch.setitem(module.RENAMED, "attack", "newer")
    assert same(recorded(first), newer)
    assert same(recorded({"a": partial(against, attack=first)}), {"a": partial(against, attack=newer)})
    assert not same(recorded(partial(first, steps=4)), newer)


@pytest.mark.parametrize("foreign", [None, 3, "pgd", [], {}, {"function": "pgd", "other": 1}, {"function": ["pgd"]}])
def test_a_foreign_record_is_not_the_same(foreign):
    assert not same(foreign, pgd)
    assert foreign == {} or not same(foreign, TrainConfig())  # every field of which has a default


def test_what_differs_is_named():
    before = recorded({"attack": pgd, "seed": 0, "gone": 1, "steps": [1, 2]})
    now = {"attack": partial(pgd, steps=3), "seed": 0, "new": 1, "steps": (1, 2)}
    assert differing(before, now) == ["attack", "gone", "new"]
    with pytest.raises(
        ValueError, match=r"^a/b belongs to a run with another attack and gone and new; use the settings"
    ):
        check_same(Path("a/b"), before, now, "a run")
    check_same(Path("a/b"), before, {"attack": pgd, "seed": 0, "gone": 1, "steps": [1, 2]}, "a run")


# Fingerprints.


def test_fingerprints_of_data_are_those_on_disk(digits):
    """Recorded identities of test images and of survivors were made like this."""
    images, labels = digits
    key = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        key.update(np.ascontiguousarray(tensor.numpy()).data)
    assert fingerprint(images, labels) == key.hexdigest()
    mask = labels == 3
    assert fingerprint(mask) == hashlib.sha256(bytes(mask.tolist())).hexdigest()


@dataclass(frozen=True)
class Size:
    value: int


class Layer(nn.Module):
    def __init__(self, size=3, named=None, found=None):
        super().__init__()
        self.size, self.named, self.settings, self.found = size, named, Size(size), {"last": found, "kept": size}
        self._private = object()


def test_a_fingerprint_changes_with_every_number_and_setting():
    model, images = initialized(small_cnn, 0), torch.rand(3, 1, 8, 8)
    nudged, statistics, dropout = (copy.deepcopy(model) for _ in range(3))
    next(nudged.parameters()).data.view(-1)[0] += 1e-6
    next(buffer for name, buffer in statistics.named_buffers() if "mean" in name)[0] += 1e-6
    variants = [
        model, nudged, statistics, nn.Sequential(model), copy.deepcopy(model).double(), images, images.double(),
        images.view(3, 1, 64, 1), images + torch.eye(8) * 1e-6, images[:2], images.bfloat16(), images.half(),
        Layer(3), Layer(4), Layer(3, named="a"),
    ]  # fmt: skip
    assert len({fingerprint(value) for value in variants}) == len(variants)
    assert fingerprint(model.train()) == fingerprint(copy.deepcopy(model).eval())
    assert fingerprint(Layer(found=object())) == fingerprint(Layer(found=object()))
    assert fingerprint(images.transpose(2, 3)) == fingerprint(images.transpose(2, 3).contiguous())
    nested = {"transfer": partial(pgd, objective=partial(margin, other=model))}
    changed = {"transfer": partial(pgd, objective=partial(margin, other=nudged))}
    assert fingerprint(nested) != fingerprint(changed)
    assert fingerprint(nested) == fingerprint({"transfer": [(model,)]})
    assert fingerprint(dropout) == fingerprint(model)


def test_the_revision_of_a_module_counts():
    @revision(2)
    class Layer2(Layer):
        pass

    Layer2.__qualname__ = Layer.__qualname__
    assert fingerprint(Layer2()) != fingerprint(Layer())
    assert "revision 2" in settings_of(nn.Sequential(Layer2()))
    assert revisions_of(nn.Sequential(Layer2(), Layer())) == {"Layer2": 2}
    assert revisions_of(initialized(small_cnn, 0)) == {}


def test_a_fingerprint_needs_no_more_than_the_data(digits):
    rows = stratified(digits[1], 20)
    assert fingerprint(digits[0][rows]) == fingerprint(digits[0][rows].clone())
