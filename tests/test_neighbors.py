"""Nearest neighbors against whole distance matrices, whatever the scale, the ties and the precision of products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robustviz import neighbors as search
from robustviz.neighbors import nearest, nearest_and_reached
from robustviz.tensors import seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def distances(queries, points, itself):
    """Squared distances by subtraction, in float64."""
    squared = (queries[:, None].double() - points[None].double()).square().sum(2)
    return squared.fill_diagonal_(torch.inf) if itself else squared


def expected(squared, count):
    """Nearest first, of equal ones the last."""
    best = squared.flip(1).sort(dim=1, stable=True)
    return squared.shape[1] - 1 - best.indices[:, :count], best.values[:, :count]


CLOUDS = {
    "normal": normal(300, 6),
    "clusters": normal(5, 6)[torch.arange(300) % 5] + 1e-3 * normal(300, 6, seed=1),
    "tight clusters": normal(5, 6)[torch.arange(300) % 5] + 1e-8 * normal(300, 6, seed=1),
    "far from the origin": 1e6 + normal(300, 6),
    "grid": torch.randint(0, 3, (300, 2), generator=seeded(2)).double(),
    "one place": torch.ones(300, 3, dtype=torch.float64),
    "one far point": torch.cat([normal(299, 6), torch.full((1, 6), 1e9, dtype=torch.float64)]),
}


@pytest.mark.parametrize("block", [1, 2000, 2**23])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_neighbors_are_those_of_the_whole_matrix(cloud, dtype, itself, block, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", block)
    points = CLOUDS[cloud].to(dtype)
    queries = points[:40] if itself else points[:40] + points[40:80] / 7
    indices, values = expected(distances(queries, points, itself), 9)
    found = nearest(queries, points, 9, itself=itself)
    torch.testing.assert_close(found.squared, values, rtol=1e-12, atol=0)
    if cloud != "tight clusters":  # there, which of two points is nearer is lost to rounding even in float64
        assert torch.equal(found.indices, indices)


@given(
    st.integers(1, 25),
    arrays.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.sampled_from([0, 1, 2, 5, 1e-9])),
    st.integers(0, 8),
    st.sampled_from([1, 1e-12, 1e-30, 1e12]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_neighbors_and_reach_with_ties_at_any_scale(batch, points, count, scale, itself, infinite, data):
    points = scale * torch.from_numpy(points)
    batch = min(batch, len(points))
    queries = points[:batch] if itself else points[:batch].flip(0) + scale
    count = min(count, len(points) - itself)
    first = data.draw(st.integers(batch if itself else 0, len(points)))
    reach = torch.full((len(points) - first,), torch.inf if infinite else 3.5 * scale**2, dtype=torch.float64)
    squared = distances(queries, points, itself)
    found, pairs = nearest_and_reached(queries, points, count, reach, itself=itself)
    indices, values = expected(squared, count)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.squared, values, rtol=1e-12, atol=0)
    near = (squared[:, first:] < reach).nonzero().tolist()
    assert sorted(zip(pairs.queries.tolist(), pairs.points.tolist(), strict=True)) == list(map(tuple, near))
    torch.testing.assert_close(pairs.squared, squared[pairs.queries, first + pairs.points], rtol=1e-12, atol=0)


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_of_less_precision_change_nothing(allowed):
    points = normal(400, 64).float()
    wanted = nearest(points, points, 15, itself=True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest(points, points, 15, itself=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.squared, wanted.squared)


def test_the_fast_search_is_seldom_in_doubt(monkeypatch):
    """On features that differ, float32 decides nearly all; the rest goes on in float64."""
    asked, blocks = [], search._blocks

    def counted(queries, points, rows, precision):
        asked.append((precision, len(rows)))
        return blocks(queries, points, rows, precision)

    monkeypatch.setattr(search, "_blocks", counted)
    points = normal(3000, 64).float().relu()
    nearest(points, points, 15, itself=True)
    assert asked[0] == (torch.float32, 3000)
    assert sum(rows for _, rows in asked[1:]) < 60


@pytest.mark.parametrize(("queries", "points"), [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_search(queries, points):
    found = nearest(torch.zeros(queries, 3), torch.zeros(points, 3), 0)
    assert found.indices.shape == found.squared.shape == (queries, 0)
