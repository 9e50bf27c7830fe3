"""Maps of features: PCA against scikit-learn, placing against its regressor, storing, going on, and refusing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsRegressor

from robustviz.features import FeatureSnapshot
from robustviz.geometry import MAP_NEIGHBORS, Embedding, embed
from robustviz.tensors import seeded

CENTERS = torch.tensor([[0.0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])


def snapshot(values, condition="training", labels=None, layer="body"):
    values = torch.as_tensor(values)
    labels = torch.zeros(values.shape[0], dtype=torch.long) if labels is None else labels
    return FeatureSnapshot(layer, condition, values, labels, labels, torch.arange(len(values)))


def clusters(count, seed=0, condition="training"):
    labels = torch.arange(count) % 3
    return snapshot(CENTERS[labels] + torch.randn(count, 4, generator=seeded(seed)), condition, labels)


@pytest.fixture(scope="module")
def flat():
    return embed(clusters(90), [clusters(30, 1, "clean")], method="pca")


@pytest.fixture(scope="module")
def umap():
    return embed(clusters(120), [clusters(30, 1, "clean")], seed=3)


def same(first, second):
    assert torch.equal(first.coordinates, second.coordinates)
    assert first.positions.keys() == second.positions.keys()
    assert all(torch.equal(first.positions[name], second.positions[name]) for name in first.positions)


def test_pca_is_scikit_learns(flat):
    fitted = PCA(2).fit(flat.reference.values.double().numpy())
    np.testing.assert_allclose(flat.coordinates, fitted.transform(flat.reference.values.double()), atol=1e-10)
    others = clusters(30, 1).values
    np.testing.assert_allclose(flat.positions["clean"], fitted.transform(others.double()), atol=1e-10)
    np.testing.assert_allclose(flat.explained, fitted.explained_variance_ratio_, rtol=1e-10)


def test_new_points_on_umap_are_the_weighted_mean_of_their_neighbors(umap):
    oracle = KNeighborsRegressor(MAP_NEIGHBORS, weights="distance", algorithm="kd_tree")
    oracle.fit(umap.reference.values.double().numpy(), umap.coordinates.numpy())
    others = clusters(40, 2).values
    np.testing.assert_allclose(umap.place(others), oracle.predict(others.double().numpy()), atol=1e-9)
    np.testing.assert_allclose(umap.place(umap.reference.values), umap.coordinates, atol=1e-9)
    assert umap.explained is None


def test_umap_keeps_clusters_apart_and_puts_new_points_to_their_own(umap):
    labels = umap.reference.labels
    middle = torch.stack([umap.coordinates[labels == label].mean(0) for label in range(3)])
    nearest = torch.cdist(umap.positions["clean"], middle).argmin(1)
    assert torch.equal(nearest, torch.arange(30) % 3)


def test_the_same_seed_gives_the_same_map_and_only_the_reference_shapes_it(umap):
    same(umap, umap.refitted([clusters(30, 1, "clean")]))
    assert torch.equal(umap.coordinates, umap.refitted([clusters(5, 7, "other")]).coordinates)


@pytest.mark.parametrize("method", ["flat", "umap"])
def test_saved_loaded_and_gone_on(method, request, tmp_path):
    embedding = request.getfixturevalue(method)
    loaded = Embedding.load(embedding.save(tmp_path / "map.safetensors"))
    same(embedding, loaded)
    assert (loaded.method, loaded.seed, loaded.explained) == (embedding.method, embedding.seed, embedding.explained)
    more = clusters(7, 5, "attacked")
    longer = loaded.extended([more])
    assert torch.equal(longer.positions["attacked"], embedding.place(more.values))
    assert "attacked" not in loaded.positions
    if method == "flat":
        same(loaded.refitted([clusters(30, 1, "clean")]), embedding)


def test_features_of_any_shape_are_placed(flat):
    values = torch.randn(3, 5, 4, generator=seeded(0))
    assert torch.equal(flat.place(values).reshape(15, 2), flat.place(values.reshape(15, 4)))
    way = replace(clusters(6, 2, "way"), values=values[:, :2].reshape(6, 4))
    assert flat.extended([way]).positions["way"].shape == (6, 2)


def test_lifting_is_undone_by_placing(flat):
    points = torch.tensor([[0.0, 0], [3, -2], [50, 50]], dtype=torch.float64)
    np.testing.assert_allclose(flat.place(flat.lift(points)), points, atol=1e-9)


def test_lifting_a_training_point_gives_its_features(flat, umap):
    for embedding in (flat, umap):
        lifted = embedding.lift(embedding.coordinates[:5])
        np.testing.assert_allclose(lifted, embedding.reference.values[:5], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tsne"}, "method must be one of umap, pca, got 'tsne'"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*32 - 1, got -1"),
        ({"seed": 2**32}, r"seed must be from 0 to 2\*\*32 - 1, got 4294967296"),
        ({"reference": clusters(15)}, r"at least 16 points of at least 2 channels, got \(15, 4\)"),
        ({"reference": snapshot(torch.rand(20, 1))}, r"at least 2 channels, got \(20, 1\)"),
        ({"reference": snapshot(torch.ones(20, 4))}, "reference must vary, but all 20 features of layer body"),
        ({"reference": snapshot(torch.full((20, 4), torch.nan))}, "finite, but 80 of 80 are not"),
        ({"records": [snapshot(torch.rand(3, 5), "clean")]}, r"must have 4 channels, as the reference, got \(3, 5\)"),
        ({"records": [snapshot(torch.tensor([[1.0, 2, 3, torch.inf]]), "clean")]}, "finite, but 1 of 4"),
        ({"records": [clusters(3, 1, "a"), clusters(4, 2, "a")]}, "condition each, but 'a' comes twice"),
        ({"records": [snapshot(torch.rand(3, 4), "clean", layer="head")]}, "must be of layer body, .* got head"),
    ],
)
def test_what_cannot_be_mapped_is_refused(unchecked, change, message):
    given = {"reference": clusters(30), "records": [], "method": "pca", "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        embed(given["reference"], given["records"], method=given["method"], seed=given["seed"])


def test_a_map_does_not_take_a_condition_twice(flat):
    with pytest.raises(ValueError, match="'clean' comes twice"):
        flat.extended([clusters(3, 1, "clean")])


def test_foreign_and_damaged_files_are_refused(flat, tmp_path):
    from robustviz.geometry import Trajectory

    path = flat.save(tmp_path / "map.safetensors")
    with pytest.raises(ValueError, match="must hold a trajectory, but holds a embedding"):
        Trajectory.load(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged or no embedding"):
        Embedding.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Embedding.load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        flat.save(tmp_path / "map.json")
