import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import csr_matrix

from robustviz.defenses import affinity, interpolate
from robustviz.defenses.wnll import dense_interpolation, interpolation
from robustviz.defenses.wnll.graph import joined_graph
from robustviz.neighbors import nearest
from robustviz.tensors import seeded

CLASSES = 4


@pytest.fixture(scope="module")
def laplace():
    """Laplace learning of graphlearning: (matrix, labels of the last points, reweighting) to u of the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import graphlearning as gl

    def solve(matrix, labels, reweighting="none"):
        known = np.arange(len(matrix) - len(labels), len(matrix))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = gl.ssl.laplace(csr_matrix(matrix.numpy()), reweighting=reweighting, tol=1e-14)
            return torch.from_numpy(model.fit(known, labels.numpy())[: known[0]])

    return solve


@pytest.fixture(params=["dense", "sparse"])
def solver(request, monkeypatch):
    monkeypatch.setattr(interpolation, "DENSE_LIMIT", 2000 if request.param == "dense" else 0)
    return request.param


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def labels_of(size, seed=0):
    return torch.arange(size)[torch.randperm(size, generator=seeded(seed))] % CLASSES


def path():
    """0-2-3-1 with unit weights; the points 2 and 3 come first, then the labelled ends 0 and 1."""
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    for x, y in ((2, 0), (0, 1), (1, 3)):
        matrix[x, y] = matrix[y, x] = 1
    return matrix


@pytest.mark.parametrize(("multiplier", "share"), [(0, 2 / 3), (None, 5 / 7), (1, 5 / 7)])
def test_path(solver, multiplier, share):
    voltages = interpolate(path(), torch.tensor([0, 1]), 2, multiplier=multiplier)
    expected = torch.tensor([[share, 1 - share], [1 - share, share]], dtype=torch.float64)
    torch.testing.assert_close(voltages, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_weights_agree_with_graphlearning(solver, laplace, seed):
    weights = affinity(normal(100, 3, seed=seed)).to_dense()
    weights, labels = (weights + weights.T) / 2, labels_of(30, seed)
    for reweighting, multiplier in (("wnll", None), ("none", 0)):
        ours = interpolate(weights, labels, CLASSES, multiplier=multiplier)
        torch.testing.assert_close(ours, laplace(weights, labels, reweighting), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("multiplier", [None, 0, 3.5])
def test_asymmetric_weights_agree_with_graphlearning(solver, laplace, seed, multiplier):
    size, known = 100, 30
    weights = affinity(normal(size, 3, seed=seed))
    matrix, labels = weights.to_dense(), labels_of(known, seed)
    both = matrix + matrix.T
    extra = (size / known - 1 if multiplier is None else multiplier) * matrix[-known:, :-known]
    both[-known:, :-known] += extra
    both[:-known, -known:] += extra.T
    theirs = laplace(both, labels)
    for given_as in (weights, matrix):
        ours = interpolate(given_as, labels, CLASSES, multiplier=multiplier)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@given(
    st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.sampled_from([0.0, 0.5, 4.0])
)
@settings(max_examples=40, deadline=None)
def test_the_fast_solution_is_the_dense_one(seed, unlabelled, known, classes, multiplier):
    """Also its gradient in the weights, which autograd takes through the dense one."""
    draw, size = seeded(seed), unlabelled + known
    matrix = torch.rand(size, size, generator=draw, dtype=torch.float64).fill_diagonal_(0).requires_grad_()
    labels = torch.randint(classes, (known,), generator=draw)
    slope = torch.rand(unlabelled, classes, generator=draw, dtype=torch.float64)
    fast = interpolate(matrix, labels, classes, multiplier=multiplier)
    dense = dense_interpolation(matrix, labels, classes, multiplier)
    torch.testing.assert_close(fast, dense, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((u * slope).sum(), matrix)[0] for u in (fast, dense)]
    # Shares sum to 1, so a slope that is the same for all classes must not matter; the dense one keeps its rounding.
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("points", [normal(400, 2), 20 * normal(5, 2)[torch.arange(400) % 5] + normal(400, 2, seed=1)])
def test_dense_and_sparse_agree_in_value_and_gradient(points, monkeypatch):
    points, labels, answers = points.requires_grad_(), labels_of(20), []
    for limit in (2000, 0):
        monkeypatch.setattr(interpolation, "DENSE_LIMIT", limit)
        voltages = interpolate(affinity(points), labels, CLASSES)
        (gradient,) = torch.autograd.grad((voltages * normal(*voltages.shape, seed=2)).sum(), points)
        answers.append((voltages.detach(), gradient))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-9)


def test_gradient_is_exact_in_all_points(solver):
    points, labels = normal(30, 3).requires_grad_(), labels_of(18)
    assert torch.autograd.gradcheck(
        lambda p: interpolate(affinity(p, neighbors=6, scale_neighbor=4), labels, CLASSES), points
    )


def test_gradient_is_exact_in_a_matrix(solver):
    matrix = torch.rand(9, 9, generator=seeded(0), dtype=torch.float64)
    matrix[matrix < 0.4] = 0
    matrix.fill_diagonal_(0)
    matrix += 0.01 * (torch.rand(9, 9, generator=seeded(1), dtype=torch.float64) < 0.5)
    matrix.requires_grad_()
    entries = matrix > 0  # at 0 the matrix cannot be moved both ways
    assert torch.autograd.gradcheck(
        lambda values: interpolate(
            torch.zeros_like(matrix).masked_scatter(entries, values), labels_of(4), CLASSES, multiplier=1.3
        ),
        matrix[entries].detach().requires_grad_(),
    )


def test_leaving_sigma_out_would_be_seen():
    points = normal(200, 8).requires_grad_()
    weights = affinity(points)

    def gradient(values):
        changed = type(weights)(weights.source, weights.target, values, 200, weights.points)
        share = interpolate(changed, labels_of(60), CLASSES)
        return torch.autograd.grad(share[:, 0].sum(), points, retain_graph=True)[0]

    scale = nearest(points, points, 8, itself=True).squared[:, -1]
    squared = (points[weights.source] - points[weights.target]).square().sum(1)
    without = gradient(torch.exp(-squared / scale[weights.source]))
    full = gradient(weights.values)
    assert (without - full).norm() > 0.3 * full.norm()


def test_float32_is_kept_and_close():
    points, labels = normal(300, 8), labels_of(100)
    exact = interpolate(affinity(points), labels, CLASSES)
    single = interpolate(affinity(points.float()), labels, CLASSES)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4)


def test_autocast_changes_nothing(solver):
    weights, labels = affinity(normal(100, 3).float()), labels_of(30)
    with torch.autocast("cpu", torch.bfloat16):
        inside = interpolate(weights, labels, CLASSES)
    assert torch.equal(inside, interpolate(weights, labels, CLASSES))


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(3, 30), st.just(2)), elements=st.sampled_from([0, 1, 2, 50, 1e-9])),
    st.integers(1, 40),
    st.sampled_from([1, CLASSES]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_laws_hold_with_ties_duplicates_and_isolated_points(points, neighbors, classes, dense, data):
    known = data.draw(st.integers(1, len(points) - 1))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=known, max_size=known)))
    multiplier = data.draw(st.sampled_from([None, 0.0, 10.0]))
    points = torch.from_numpy(points).requires_grad_()
    weights = affinity(points, neighbors=neighbors, scale_neighbor=data.draw(st.integers(1, neighbors)))
    before, interpolation.DENSE_LIMIT = interpolation.DENSE_LIMIT, 2000 if dense else 0
    try:
        voltages = interpolate(weights, labels, classes, multiplier=multiplier)
        (gradient,) = torch.autograd.grad(torch.log(voltages + 1e-12).sum(), points)
    finally:
        interpolation.DENSE_LIMIT = before
    assert ((voltages >= 0) & (voltages <= 1)).all()
    torch.testing.assert_close(voltages.sum(1), torch.ones(len(points) - known, dtype=torch.float64))
    assert set(voltages.detach().amax(0).nonzero().flatten().tolist()) <= set(labels.tolist())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_without_template_take_the_nearest_label(solver, dtype):
    far = torch.linspace(0, 1, 12)[:, None] * torch.tensor([[1.0, 0.0]])
    near = 0.9 * torch.linspace(0, 1, 12)[:, None] * torch.tensor([[1.0, 0.0]])
    # Two groups without a labelled point; the one at 100 is nearest to class 1, the one at -100 to class 2.
    groups = [far + torch.tensor([100.0, 0]), near - torch.tensor([100.0, 0])]
    template = torch.cat([far + torch.tensor([x, 0.0]) for x in (0.0, 60.0, -60.0)])
    points = torch.cat([*groups, template]).to(dtype).requires_grad_()
    voltages = interpolate(
        affinity(points, neighbors=5, scale_neighbor=3), torch.arange(3).repeat_interleave(12), 3, multiplier=0
    )
    assert voltages.detach().round().tolist() == [[0, 1, 0]] * 12 + [[0, 0, 1]] * 12
    assert torch.autograd.grad(voltages.sum(), points)[0].abs().max() == 0


def test_a_thread_thinner_than_rounding_still_gives_shares(solver):
    """Two strongly joined_graph points hang on the template by very little; their answer is that little's ratio."""
    for thread in (1e-6, 1e-9):
        matrix = torch.zeros(4, 4, dtype=torch.float64)
        matrix[0, 1], matrix[0, 2], matrix[1, 3] = 1, thread, 3 * thread
        voltages = interpolate(matrix, torch.tensor([0, 1]), 2, multiplier=0)
        torch.testing.assert_close(voltages[0], torch.tensor([0.25, 0.75], dtype=torch.float64), rtol=0, atol=1e-5)


def test_no_unlabelled_points():
    assert interpolate(affinity(normal(5, 2)), labels_of(5), CLASSES).shape == (0, CLASSES)


def test_prepared_template_gives_the_same_answer():
    features, template, labels = normal(50, 3), normal(80, 3, seed=1), labels_of(80)
    graph = joined_graph(
        features, template, nearest(template, template, 15, itself=True), neighbors=15, scale_neighbor=8
    )
    whole = affinity(torch.cat([features, template]))
    torch.testing.assert_close(interpolate(graph, labels, CLASSES), interpolate(whole, labels, CLASSES))


@pytest.mark.parametrize(
    ("weights", "labels", "options", "message"),
    [
        (path(), [], {}, "at least one labelled point"),
        (path(), [0, 2], {}, r"template_labels must lie in 0..1, got 2"),
        (path(), [0, -1], {}, r"got -1"),
        (path(), [0, 1, 0, 1, 0], {}, "not be longer than the 4 points"),
        (path(), [0, 1], {"multiplier": -1.0}, "multiplier must be finite and >= 0"),
        (-path(), [0, 1], {}, "finite and >= 0"),
        (path() * torch.nan, [0, 1], {}, "finite and >= 0"),
        (path()[:3], [0, 1], {}, "square matrix"),
        (torch.zeros(4, 4), [0, 1], {}, "2 are cut off"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(weights, labels, options, message):
    with pytest.raises(ValueError, match=message):
        interpolate(weights, torch.tensor(labels, dtype=torch.long), 2, **options)
