"""Every number beside the map, on known geometry: against closed forms, scikit-learn and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import calinski_harabasz_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from robustviz.features import FeatureSnapshot
from robustviz.geometry import (
    boundary_distance,
    centroid_shifts,
    decisions_differ,
    distance_ratio,
    margins,
    neighbor_agreement,
    probability_margins,
    scatter_ratio,
    separation,
    separation_rows,
    silhouette,
)
from robustviz.tensors import seeded

CENTERS = 4 * torch.eye(3, 5)


def taken(values, labels, condition="clean", predictions=None, layer="body"):
    values, labels = torch.as_tensor(values), torch.as_tensor(labels)
    predictions = labels if predictions is None else torch.as_tensor(predictions)
    return FeatureSnapshot(layer, condition, values, labels, predictions, torch.arange(len(labels)))


def gaussian(count, seed, condition="clean", move=0.0):
    """Three Gaussian classes of unit spread in five dimensions, all moved along the first axis."""
    labels = torch.arange(count) % 3
    values = CENTERS[labels] + torch.randn(count, 5, generator=seeded(seed)).double()
    values[:, 0] += move
    return taken(values, labels, condition)


TRAINING, CLEAN, MOVED = gaussian(240, 0, "training"), gaussian(60, 1), gaussian(60, 1, "attacked", 20.0)


@pytest.mark.parametrize("neighbors", [1, 15])
def test_distance_is_scikit_learns(neighbors):
    oracle = NearestNeighbors(n_neighbors=neighbors).fit(TRAINING.values)
    usual = np.median(oracle.kneighbors()[0][:, -1])  # without an argument none is its own neighbor
    expected = oracle.kneighbors(CLEAN.values)[0][:, -1] / usual
    # torch's median of an even count is the lower of the two in the middle, NumPy's their mean
    np.testing.assert_allclose(distance_ratio(TRAINING, CLEAN, neighbors=neighbors), expected, rtol=0.01)


def test_distance_on_a_line_by_hand():
    line = taken([[float(i), 0.0] for i in range(9)], [0] * 9)
    far = taken([[4.0, 0.0], [4.0, 3.0], [18.0, 0.0]], [0] * 3)
    assert distance_ratio(line, far, neighbors=1).tolist() == [0, 3, 10]


def test_neighbor_agreement_is_scikit_learns():
    oracle = KNeighborsClassifier(15).fit(TRAINING.values, TRAINING.labels)
    for snapshot in (CLEAN, MOVED):
        expected = oracle.predict_proba(snapshot.values)[range(60), snapshot.labels]
        np.testing.assert_allclose(neighbor_agreement(TRAINING, snapshot), expected)


def test_scatter_ratio_is_that_of_calinski_and_harabasz():
    score = calinski_harabasz_score(CLEAN.values, CLEAN.labels)
    assert scatter_ratio(CLEAN) == pytest.approx(score * (3 - 1) / (60 - 3))
    named = taken(CLEAN.values, torch.tensor([2, 5, 9])[CLEAN.labels])
    assert scatter_ratio(named) == pytest.approx(scatter_ratio(CLEAN))


def test_scatter_ratio_by_hand():
    square = taken([[-3.0, -1], [-3, 1], [3, -1], [3, 1]], [0, 0, 1, 1])
    assert scatter_ratio(square) == pytest.approx(9)


def test_silhouette_is_scikit_learns_and_by_hand():
    assert silhouette(CLEAN) == pytest.approx(silhouette_score(CLEAN.values, CLEAN.labels))
    pairs = taken([[0.0], [1], [10], [11]], [0, 0, 1, 1])
    assert silhouette(pairs) == pytest.approx(((10.5 - 1) / 10.5 + (9.5 - 1) / 9.5) / 2)


def test_centroid_shift_is_the_move_in_units_of_the_spread():
    spread = np.sqrt(np.mean([CLEAN.values[CLEAN.labels == y].var(0, correction=0).sum().item() for y in range(3)]))
    shifts = centroid_shifts(CLEAN, MOVED)
    assert shifts.keys() == {0, 1, 2}
    np.testing.assert_allclose(list(shifts.values()), 20 / spread)
    assert centroid_shifts(CLEAN, CLEAN) == {0: 0, 1: 0, 2: 0}


def test_boundary_distance_reaches_the_boundary_and_no_nearer_one():
    head = nn.Linear(5, 3).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 5, generator=seeded(2)))
        head.bias.copy_(torch.tensor([0.5, -0.2, 0.1]))
    distances = boundary_distance(head, CLEAN)
    logits = head(CLEAN.values)
    assert torch.equal(distances > 0, logits.argmax(1) == CLEAN.labels)
    for features, label, distance in zip(CLEAN.values, CLEAN.labels.tolist(), distances, strict=True):
        gaps = []
        for other in set(range(3)) - {label}:
            normal = head.weight[label] - head.weight[other]
            foot = features - distance * normal / normal.norm()
            gaps.append((head(foot)[label] - head(foot)[other]).item())
        assert min(gaps, key=abs) == pytest.approx(0, abs=1e-9)
        assert max(gaps) >= -1e-9


def test_boundary_distance_of_two_classes_in_closed_form():
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        head.bias.copy_(torch.tensor([-5.0, 0.0]))
    points = taken([[5.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0, 0, 1])
    np.testing.assert_allclose(boundary_distance(head, points), [2, -1, 1], rtol=1e-6)


def test_margin_by_hand_and_of_a_network(digits, digits_net):
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]]))
    np.testing.assert_allclose(probability_margins(logits, torch.tensor([0, 2])), [0.5, -0.1], atol=1e-6)
    images, labels = digits[0][:30], digits[1][:30]
    found = margins(digits_net, images, labels, batch_size=7)
    with torch.no_grad():
        decided = digits_net(images)
    assert torch.equal(found > 0, decided.argmax(1) == labels)
    np.testing.assert_allclose(found, probability_margins(decided, labels), atol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_share_of_different_decisions(pairs):
    first, second = (taken(torch.zeros(len(pairs), 1), [0] * len(pairs), predictions=row) for row in zip(*pairs))  # noqa: B905
    assert decisions_differ(first, second) == pytest.approx(np.mean([a != b for a, b in pairs]))


def test_the_bundle_holds_the_same_numbers():
    attacked = taken(MOVED.values, MOVED.labels, "attacked", [0] * 60)
    found = separation(TRAINING, CLEAN, attacked, torch.linspace(-1, 1, 61).double()[:60])
    assert found.condition == "attacked"
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.distance == distance_ratio(TRAINING, attacked).median().item() > 4
    assert found.agreement == pytest.approx(neighbor_agreement(TRAINING, attacked).mean().item())
    assert found.scatter == pytest.approx(scatter_ratio(CLEAN))  # all were moved alike
    assert found.silhouette == pytest.approx(silhouette(CLEAN))
    assert found.shift == pytest.approx(np.mean(list(centroid_shifts(CLEAN, attacked).values())))
    headers, (row,) = separation_rows([found])
    assert len(headers) == len(row) == 8
    assert row[:2] == ["attacked", "33.3%"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distance_ratio(TRAINING, CLEAN, neighbors=240), "neighbors must be from 1 to 239, got 240"),
        (lambda: distance_ratio(TRAINING, taken(CLEAN.values, CLEAN.labels, layer="head")), "must be of layer body"),
        (lambda: distance_ratio(taken(torch.ones(20, 2), [0] * 20), taken(torch.ones(1, 2), [0])), "must vary"),
        (lambda: neighbor_agreement(TRAINING, taken([[torch.nan] * 5], [0], "odd")), "features of odd must be finite"),
        (lambda: scatter_ratio(taken([[1.0], [2.0]], [4, 4])), "at least two classes"),
        (lambda: silhouette(taken([[1.0], [2.0]], [0, 1])), "more images than classes"),
        (lambda: centroid_shifts(CLEAN, TRAINING), "same images in the same order"),
        (lambda: centroid_shifts(taken([[1.0], [2.0]], [0, 1]), taken([[1.0], [2.0]], [0, 1])), "several different"),
        (lambda: decisions_differ(CLEAN, TRAINING), "same images"),
        (lambda: boundary_distance(nn.Linear(4, 3), CLEAN), "head must take 5 features, got one for 4"),
        (lambda: margins(nn.Flatten(), torch.zeros(1, 1, 2, 2), torch.tensor([0]), batch_size=0), "batch_size must be"),
    ],
)
def test_what_has_no_answer_is_refused(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
