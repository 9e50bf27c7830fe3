"""Decisions over a plane where the border is known, and the votes behind a WNLL decision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robustviz.data import ImageSet
from robustviz.defenses import wnll_classifier
from robustviz.features import FeatureSnapshot
from robustviz.geometry import ballot, embed, faithfulness, image_plane, map_regions
from robustviz.models import Classifier
from robustviz.tensors import seeded

IMAGES = torch.tensor([[0.2, 0.2, 0.2], [0.6, 0.2, 0.2], [0.2, 0.8, 0.2]]).view(3, 1, 1, 3)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NAMES = ("clean", "first", "second")


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(bias))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def test_the_plane_through_images_has_the_known_border_and_confidence():
    model = nn.Sequential(nn.Flatten(), linear([[0.0, 0, 0], [10.0, 0, 0]], [4.0, 0.0]))  # the border is 0.4
    plane = image_plane(model, IMAGES, NAMES, resolution=33)
    np.testing.assert_allclose(plane.points, [[0, 0], [0.4, 0], [0, 0.6]], atol=1e-6)
    first_pixel = (0.2 + plane.horizontal).clamp(0, 1)
    clear = (first_pixel - 0.4).abs() > 1e-6
    assert torch.equal(plane.decisions[:, clear], (first_pixel > 0.4).long()[clear].expand(33, -1))
    sure = torch.sigmoid((10 * first_pixel - 4).abs())
    np.testing.assert_allclose(plane.confidence, sure.expand(33, -1), atol=1e-5)
    assert plane.horizontal[0] < 0 < 0.4 < plane.horizontal[-1]
    assert plane.vertical[0] < 0 < 0.6 < plane.vertical[-1]
    assert plane.names == NAMES


@needs_gpu
def test_planes_of_a_gpu_are_those_of_the_processor():
    model = nn.Sequential(nn.Flatten(), linear([[0.0, 0, 0], [10.0, 0, 0]], [4.0, 0.0]))
    embedding, clean = embed(flat_features(80, 0, "training"), method="pca"), flat_features(50, 1, "clean")
    head = linear([[0.0, 0, 0, 0], [2.0, 0, 0, 0]], [1.0, 0.0])
    slices, regions, shares = [], [], []
    for device in ("cpu", "cuda"):
        slices.append(image_plane(model.to(device), IMAGES.to(device), NAMES, resolution=33))
        regions.append(map_regions(head.to(device), embedding, resolution=25))
        shares.append(faithfulness(head, embedding, replace(clean, values=clean.values.to(device))))
    for expected, found in (slices, regions):
        for name in ("horizontal", "vertical", "decisions", "confidence", "points"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert shares[0] == shares[1]


def test_a_plane_needs_three_images_that_span_it():
    with pytest.raises(ValueError, match="images must be three, got 2"):
        image_plane(nn.Flatten(), IMAGES[:2], NAMES)
    with pytest.raises(ValueError, match="clean, first, second must span a plane, but lie on one line"):
        image_plane(nn.Flatten(), torch.stack([IMAGES[0], IMAGES[1], (IMAGES[0] + IMAGES[1]) / 2]), NAMES)
    with pytest.raises(ValueError, match="resolution must be >= 2"):
        image_plane(nn.Flatten(), IMAGES, NAMES, resolution=1)


def flat_features(count, seed, condition):
    """Features that vary in two dimensions only, so that a PCA map shows all of their space."""
    values = torch.zeros(count, 4)
    values[:, :2] = torch.randn(count, 2, generator=seeded(seed)) * torch.tensor([3.0, 1.0])
    labels = (values[:, 0] > 0.5).long()
    return FeatureSnapshot("body", condition, values, labels, labels, torch.arange(count))


def test_regions_of_a_flat_space_are_exact_and_faithful():
    embedding = embed(flat_features(80, 0, "training"), method="pca")
    head = linear([[0.0, 0, 0, 0], [2.0, 0, 0, 0]], [1.0, 0.0])  # the border is 0.5
    regions = map_regions(head, embedding, resolution=25)
    down, right = torch.meshgrid(regions.vertical, regions.horizontal, indexing="ij")
    first = (torch.stack([right, down], 2) @ embedding.axes)[..., 0] + embedding.reference.values[:, 0].double().mean()
    clear = (first - 0.5).abs() > 1e-4
    assert torch.equal(regions.decisions[clear], (first > 0.5).long()[clear])
    assert faithfulness(head, embedding, flat_features(50, 1, "clean")) == 1


@pytest.fixture(scope="module")
def interpolating():
    """Two clusters of pictures, their pixels as features, and a WNLL head on all of them."""
    labels = torch.arange(60) % 2
    images = (0.3 + 0.4 * labels.view(-1, 1, 1, 1) + 0.05 * torch.randn(60, 1, 2, 2, generator=seeded(0))).clamp(0, 1)
    image_set = ImageSet(images, labels, ("dark", "light"), "pictures")
    plain = Classifier(nn.Flatten(), linear([[0.0] * 4, [1.0] * 4], [2.0, 0.0]), normalize=nn.Identity()).eval()
    return wnll_classifier(plain, image_set, size=40, joint=True), image_set


def test_ballot_names_the_voters_and_their_sum_is_the_decision(interpolating):
    model, image_set = interpolating
    image = torch.full((1, 2, 2), 0.52)
    found = ballot(model, image_set, image, 1, condition="clean", count=100)
    assert torch.equal(found.voters, image_set.images[found.indices])
    assert torch.equal(found.labels, image_set.labels[found.indices])
    assert (found.weights.diff() <= 0).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    for label in (0, 1):
        assert found.weights[found.labels == label].sum() == pytest.approx(found.shares[label].item(), abs=1e-5)
    alone = model.replace(head=model.head.with_settings(joint=False))
    with torch.no_grad():
        assert found.decision == alone(image[None]).argmax(1).item()
    few = ballot(model, image_set, image, 1, condition="clean", count=3)
    assert torch.equal(few.indices, found.indices[:3])


def test_a_plane_asks_a_batch_dependent_model_about_one_point_at_a_time(interpolating):
    model, image_set = interpolating
    images = image_set.images[[0, 1, 3]]
    whole, single = (image_plane(model, images, NAMES, resolution=6, batch_size=size) for size in (36, 1))
    assert torch.equal(whole.decisions, single.decisions)
    torch.testing.assert_close(whole.confidence, single.confidence)


def test_ballots_need_a_wnll_head_and_its_image_set(interpolating):
    model, image_set = interpolating
    image = image_set.images[0]
    with pytest.raises(ValueError, match="head must be a WNLLHead, got Linear"):
        ballot(model.replace(head=model.head.linear), image_set, image, 0, condition="clean")
    with pytest.raises(ValueError, match="what the template was drawn from, but pictures does not fit"):
        ballot(model, image_set[:20], image, 0, condition="clean")
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        ballot(model, image_set, image, 0, condition="clean", count=0)
