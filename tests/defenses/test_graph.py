import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.neighbors import NearestNeighbors

from robustviz import neighbors as search
from robustviz.defenses.wnll.graph import affinity, alone, joined_graph
from robustviz.neighbors import nearest
from robustviz.tensors import seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def reference(points, neighbors, scale_neighbor):
    """w_xy = exp(-|x - y|^2 / sigma_x^2), one point after the other, with the neighbors of scikit-learn."""
    distance, index = NearestNeighbors(n_neighbors=neighbors).fit(points).kneighbors()  # itself not counted
    weights = np.zeros((len(points), len(points)))
    for x in range(len(points)):
        weights[x, index[x]] = np.exp(-((distance[x] / distance[x, scale_neighbor - 1]) ** 2))
    return torch.from_numpy(weights)


def clusters(spread, offset):
    """Groups of points, far tighter than they are apart."""
    return offset + normal(6, 5)[torch.arange(120) % 6] + spread * normal(120, 5, seed=1)


@pytest.mark.parametrize(
    "points",
    [normal(120, 5), clusters(1e-2, 0), clusters(1e-7, 0), clusters(1e-3, 1e5), 1e8 * normal(120, 5)],
    ids=["normal", "clusters", "tight", "far off", "large"],
)
@pytest.mark.parametrize("block", [1, 700, 2**23])
def test_weights_are_those_of_the_definition(points, block, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", block)
    ours = affinity(points, neighbors=15, scale_neighbor=8).to_dense()
    torch.testing.assert_close(ours, reference(points.numpy(), 15, 8), rtol=1e-6, atol=1e-12)


def test_float32_and_half_agree_with_float64():
    points = normal(80, 3)
    exact = affinity(points).to_dense()
    single = affinity(points.float())
    assert single.values.dtype == torch.float32
    torch.testing.assert_close(single.to_dense().double(), exact, rtol=1e-4, atol=1e-6)
    assert affinity(points.half()).values.dtype == torch.float32


def test_autocast_changes_nothing():
    points = normal(80, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = affinity(points)
    assert torch.equal(inside.to_dense(), affinity(points).to_dense())


def test_settings_are_clipped_to_the_other_points():
    points = normal(5, 2)
    torch.testing.assert_close(
        affinity(points, neighbors=40, scale_neighbor=30).to_dense(),
        affinity(points, neighbors=4, scale_neighbor=4).to_dense(),
    )
    assert affinity(points[:1]).to_dense().tolist() == [[0.0]]


def test_scale_of_zero_is_the_limit():
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [3.0]])
    weights = affinity(points, neighbors=3, scale_neighbor=2).to_dense()
    assert weights[0].tolist() == [0, 1, 1, 0, 0]
    assert weights[3, :3].tolist() == pytest.approx([np.exp(-1)] * 3)


def test_gradient_of_weights_is_exact_with_sigma():
    points = normal(14, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: affinity(p, neighbors=5, scale_neighbor=3).values, points)
    (with_sigma,) = torch.autograd.grad(affinity(points, neighbors=5, scale_neighbor=3).values.sum(), points)
    # The sum of the weights does not change when all points are scaled, because sigma is scaled too.
    assert (with_sigma * points).sum().item() == pytest.approx(0, abs=1e-12)


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.sampled_from([0, 1, 2, 2.5, 1e-9])
    ),
    st.integers(1, 40),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_ties_and_duplicates_give_weights_and_finite_gradients(points, neighbors, data):
    points = torch.from_numpy(points).requires_grad_()
    weights = affinity(points, neighbors=neighbors, scale_neighbor=data.draw(st.integers(1, neighbors)))
    assert ((weights.values >= 0) & (weights.values <= 1)).all()
    assert (weights.source.bincount() == min(neighbors, len(points) - 1)).all()
    assert (weights.source != weights.target).all()
    (gradient,) = torch.autograd.grad(weights.values.sum(), points)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("neighbors", [3, 15, 39, 40, 70])
@pytest.mark.parametrize("block", [50, 2**23])
def test_prepared_template_gives_the_same_weights(neighbors, block, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", block)
    features, template = normal(25, 3), normal(40, 3, seed=1)
    chosen = {"neighbors": neighbors, "scale_neighbor": 3}
    prepared = nearest(template, template, min(neighbors, 39), itself=True)
    whole = affinity(torch.cat([features, template]), **chosen).to_dense()
    whole[25:, 25:] = 0
    together = joined_graph(features, template, prepared, **chosen).to_dense()
    together[25:, 25:] = 0
    torch.testing.assert_close(together, whole)
    singly = alone(features, template, prepared, **chosen).to_dense()
    for x in range(25):
        one = affinity(torch.cat([features[x : x + 1], template]), **chosen).to_dense()
        torch.testing.assert_close(singly[x, 25:], one[0, 1:])
        torch.testing.assert_close(singly[25:, x], one[1:, 0])
    assert (singly[:25, :25] == 0).all()


def definition(points, neighbors, scale_neighbor):
    """The whole matrix, by subtraction; of neighbors at the same distance those with higher numbers count."""
    count = min(neighbors, len(points) - 1)
    squared = (points[:, None] - points[None]).square().sum(2).fill_diagonal_(torch.inf)
    best = squared.flip(1).sort(dim=1, stable=True)
    near, scale = best.values[:, :count], best.values[:, min(scale_neighbor, count) - 1, None]
    weights = torch.where(scale > 0, torch.exp(-near / scale), (near == 0).double())
    return torch.zeros_like(squared).scatter(1, len(points) - 1 - best.indices[:, :count], weights)


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(3, 40), st.just(2)), elements=st.integers(0, 3)),
    st.integers(1, 20),
    st.sampled_from([1, 1e-12, 1e9]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_all_three_are_the_definition_with_ties_at_any_scale(points, neighbors, factor, data):
    points, batch = factor * torch.from_numpy(points), data.draw(st.integers(1, len(points) - 1))
    chosen = {"neighbors": neighbors, "scale_neighbor": data.draw(st.integers(1, neighbors))}
    features, template = points[:batch], points[batch:]
    prepared = nearest(template, template, min(neighbors, len(template) - 1), itself=True)
    whole = definition(points, *chosen.values())
    torch.testing.assert_close(affinity(points, **chosen).to_dense(), whole)
    whole[batch:, batch:] = 0
    together = joined_graph(features, template, prepared, **chosen).to_dense()
    together[batch:, batch:] = 0
    torch.testing.assert_close(together, whole)
    singly = alone(features, template, prepared, **chosen).to_dense()
    for x in range(batch):
        one = definition(torch.cat([features[x : x + 1], template]), *chosen.values())
        torch.testing.assert_close(singly[x, batch:], one[0, 1:])
        torch.testing.assert_close(singly[batch:, x], one[1:, 0])


@given(
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-13, 13),
    st.sampled_from([0.0, 0.1, 100.0]),
)
@settings(max_examples=30, deadline=None)
def test_scaling_all_points_changes_no_weight_and_scales_the_gradient(seed, dtype, exponent, offset):
    factor, points = 10**exponent, (offset + normal(60, 4, seed=seed)).to(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    answers = []
    for moved, unit in ((points, 1.0), (points * factor, factor)):
        moved = moved.clone().requires_grad_()
        values = affinity(moved).values
        (gradient,) = torch.autograd.grad((values * torch.arange(len(values))).sum(), moved)
        answers.append((values.detach(), gradient * unit))
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=tolerance, atol=tolerance * answers[0][1].abs().max())


@pytest.mark.parametrize("graph_of", [joined_graph, alone])
def test_gradient_with_a_prepared_template(graph_of):
    features, template = normal(6, 3).requires_grad_(), normal(20, 3, seed=1).requires_grad_()
    prepared = nearest(template, template, 5, itself=True)
    assert torch.autograd.gradcheck(
        lambda f: graph_of(f, template, prepared, neighbors=5, scale_neighbor=3).to_dense()[:, :6], features
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbors": 5, "scale_neighbor": 6}, "scale_neighbor must be from 1 to neighbors"),
        ({"neighbors": 0, "scale_neighbor": 0}, "scale_neighbor must be from 1"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        affinity(normal(10, 2), **change)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_points_must_be_finite(bad):
    points = normal(10, 2)
    points[3, 1] = bad
    with pytest.raises(ValueError, match="features must be finite"):
        affinity(points)
