"""The way of an attack: what is kept, that it can be repeated and stored, and the numbers along it."""

from functools import partial

import pytest
import torch

from robustviz.attacks import Step, ifgsm, pgd
from robustviz.features import recording
from robustviz.geometry import Trajectory, curves, distance_ratio, margins, trace_steps, trace_strengths
from robustviz.tensors import norms, seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)
LAYER = "3"  # the flat features of `digits_net`


@pytest.fixture(scope="module")
def some(digits):
    return digits[0][:40], digits[1][:40]


@pytest.fixture(scope="module")
def way(digits_net, some):
    return trace_strengths(
        digits_net, *some, partial(pgd, steps=3), [0.1, 0.05, 0.1], layer=LAYER, condition="PGD", batch_size=16
    )


def features(net, images):
    with torch.no_grad(), recording(net, [LAYER]) as outputs:
        net(images)
    return outputs[LAYER]


def test_stages_grow_from_the_clean_images(way, some):
    assert way.stages == (0.0, 0.05, 0.1)
    assert torch.equal(way.images[0], some[0])
    assert torch.equal(way.labels, some[1])
    for epsilon, images in zip(way.stages, way.images, strict=True):
        assert norms(images - some[0], "linf").max() <= epsilon + 1e-6
    assert (way.predictions[0] == way.labels).sum() > (way.predictions[2] == way.labels).sum()


def test_features_and_decisions_are_those_of_the_images(way, digits_net):
    for stage in range(3):
        torch.testing.assert_close(way.values[stage], features(digits_net, way.images[stage]))
        snapshot = way.snapshot(stage)
        assert torch.equal(snapshot.values, way.values[stage])
        with torch.no_grad():
            assert torch.equal(snapshot.predictions, digits_net(way.images[stage]).argmax(1))
    assert way.snapshot(1).condition == "PGD, epsilon 0.05"


def test_the_same_seed_gives_the_same_way_and_every_strength_the_same_noise(way, digits_net, some):
    settings = {"layer": LAYER, "condition": "PGD", "batch_size": 16}
    attack = partial(pgd, steps=3)
    again = trace_strengths(digits_net, *some, attack, [0.05, 0.1], **settings)
    assert torch.equal(again.images, way.images)
    assert torch.equal(again.values, way.values)
    alone = trace_strengths(digits_net, *some, attack, [0.1], **settings)
    assert torch.equal(alone.images[1], way.images[2])
    other = trace_strengths(digits_net, *some, attack, [0.1], **settings, generator=seeded(1))
    assert not torch.equal(other.images[1], way.images[2])


def test_saved_and_loaded(way, tmp_path):
    loaded = Trajectory.load(way.save(tmp_path / "way.safetensors"))
    assert (loaded.layer, loaded.condition, loaded.unit, loaded.stages) == (LAYER, "PGD", "epsilon", way.stages)
    for name in ("images", "values", "predictions", "labels", "indices"):
        assert torch.equal(getattr(loaded, name), getattr(way, name))


def test_some_images_of_a_way(way):
    few = way.select(torch.tensor([5, 2]))
    assert few.indices.tolist() == [5, 2]
    assert torch.equal(few.images, way.images[:, [5, 2]])
    assert torch.equal(few.snapshot(1).values, way.values[1, [5, 2]])


def test_steps_of_one_attack_end_where_it_ends(digits_net, some):
    attack = partial(ifgsm, threat=THREAT, steps=4)
    steps = trace_steps(digits_net, *some, attack, layer=LAYER, condition="IFGSM", batch_size=16)
    assert (steps.unit, steps.stages) == ("step", (0, 1, 2, 3, 4))
    assert torch.equal(steps.images[0], some[0])
    torch.testing.assert_close(steps.images[-1], attack(digits_net, *some), atol=1e-6, rtol=0)
    torch.testing.assert_close(steps.values[2], features(digits_net, steps.images[2]))
    assert torch.equal(steps.labels, some[1])


def test_images_of_an_attack_that_stops_early_stay_where_they_are(digits_net, some):
    def brief(model, images, labels, *, on_step, generator):
        for step in range(3 if len(images) == 16 else 2):
            nothing = torch.zeros(len(images))
            on_step(Step(0, step, images * (1 - step / 10), nothing, nothing > 0))
        return images

    few = (some[0][:20], some[1][:20])
    way = trace_steps(digits_net, *few, brief, layer=LAYER, condition="brief", batch_size=16)
    assert way.stages == (0, 1, 2)
    assert torch.equal(way.images[2][:16], few[0][:16] * 0.8)
    assert torch.equal(way.images[2][16:], few[0][16:] * 0.9)


def test_curves_hold_the_numbers_of_every_stage(way, digits_net, digits):
    images, labels = digits[0][200:400], digits[1][200:400]
    reference = trace_strengths(digits_net, images, labels, pgd, [], layer=LAYER, condition="training").snapshot(0)
    found = curves(reference, way, digits_net)
    assert (found.stages, found.unit, found.condition) == (way.stages, "epsilon", "PGD")
    for stage in range(3):
        snapshot = way.snapshot(stage)
        assert found.accuracy[stage] == (snapshot.predictions == way.labels).double().mean()
        ratio = distance_ratio(reference, snapshot)
        assert found.distance[stage].tolist() == pytest.approx([ratio.quantile(q).item() for q in (0.25, 0.5, 0.75)])
        assert found.margin[stage, 1] == margins(digits_net, way.images[stage], way.labels).quantile(0.5)
    assert found.agreement[0] > found.agreement[2]


def test_what_cannot_be_traced_is_refused(digits_net, some):
    settings = {"layer": LAYER, "condition": "PGD"}
    with pytest.raises(ValueError, match="layer must be one of 0, 1, 2, 3, 4, 5, got body"):
        trace_strengths(digits_net, *some, pgd, [0.1], layer="body", condition="PGD")
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
        trace_strengths(digits_net, *some, pgd, [-0.1], **settings)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        trace_strengths(digits_net, *some, pgd, [0.1], **settings, batch_size=0)
    with pytest.raises(ValueError, match="steps of one restart"):
        trace_steps(digits_net, *some, partial(pgd, steps=1, restarts=2), **settings)
