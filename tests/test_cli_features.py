"""The command `features` on a shipped network with few images: every file is there and holds what the page says."""

import json

import pytest
import torch

from robustviz import cli
from robustviz.data import digits
from robustviz.experiments.geometry import CLEAN, SOFTMAX, STRONGEST, WNLL, both_heads
from robustviz.geometry import Embedding, Trajectory
from robustviz.records import RunRecord


def run(*arguments):
    cli.app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    small = ["--no-umap", "--strengths", 3, "--images", 40, "--training-images", 300, "--steps", 4]
    run("features", "digits-wnll", *small, "--out", folder)
    return folder


def test_every_figure_and_number_is_written(out):
    figures = {"heads", "ways-pca", "course", "plane-softmax", "plane-wnll", "votes"}
    assert {file.stem for file in out.glob("*.png")} == figures
    page = (out / "index.html").read_text()
    assert page.count("<img") == len(figures)
    numbers = json.loads((out / "numbers.json").read_text())
    rows = {row["condition"]: row for row in numbers["conditions"]}
    assert len(rows) == 6
    clean, attacked = rows[f"{WNLL}, {CLEAN}"], rows[f"{WNLL}, {STRONGEST}"]
    assert clean["accuracy"] > 0.9 > attacked["accuracy"]
    assert attacked["distance"] > clean["distance"]
    assert attacked["agreement"] < clean["agreement"]
    assert clean["shift"] == 0 < attacked["shift"]
    assert 0.5 < numbers["faithfulness of the decision regions"][WNLL] <= 1
    markdown = (out / "numbers.md").read_text()
    assert all(condition in markdown for condition in (*rows, *numbers["decided differently"]))
    assert RunRecord.load(out / "record.json").settings["checkpoint"] == "digits-wnll"


def test_what_was_computed_can_be_loaded_and_gone_on_with(out):
    embedding = Embedding.load(out / f"map-{WNLL.lower()}.safetensors")
    way = Trajectory.load(out / "way-adaptive.safetensors")
    assert way.stages == pytest.approx((0, 0.15, 0.3))
    torch.testing.assert_close(embedding.place(way.values), embedding.positions[way.condition])
    assert Embedding.load(out / f"map-{SOFTMAX}.safetensors").reference.values.shape == (300, 64)


def test_a_folder_in_use_is_kept(out):
    with pytest.raises(FileExistsError, match="--force"):
        run("features", "digits-wnll", "--out", out)


def test_an_unknown_layer_lists_the_layers(tmp_path):
    with pytest.raises(ValueError, match=r"layer must be one of .*body.*, got stage9"):
        run("features", "digits-pgd", "--layer", "stage9", "--images", 20, "--out", tmp_path / "new")


def test_the_template_of_a_shipped_network_is_found_and_others_get_one():
    from robustviz import checkpoints

    training_set = digits("train")
    model, _ = checkpoints.load("digits-wnll")
    softmax, same, source = both_heads(model, training_set)
    assert same is model
    assert softmax.head is model.head.linear
    assert torch.equal(source.labels[model.head.template_indices], model.head.template_labels)
    plain, _ = checkpoints.load("digits-standard")
    softmax, new, source = both_heads(plain, training_set)
    assert softmax is plain
    assert (source is training_set, len(new.head.template)) == (True, 1000)
