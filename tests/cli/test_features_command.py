"""The command `features` on a shipped network with few images: every file is there and holds what the page says."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from robustviz import checkpoints, cli
from robustviz.cli.target import data_name
from robustviz.data import ImageSet, digits
from robustviz.defenses import Contest, wnll_classifier
from robustviz.defenses.assembly import defended
from robustviz.defenses.defense import at
from robustviz.geometry import Embedding, Trajectory, template_source
from robustviz.models import Classifier
from robustviz.pages import closeup
from robustviz.records import RunRecord
from robustviz.studies import geometry
from robustviz.studies.geometry import (
    CLEAN,
    PUBLISHED_ATTACK,
    SOFTMAX,
    STRONGEST,
    WNLL,
    both_heads,
    study,
    study_pair,
)
from robustviz.tensors import seeded
from robustviz.training import hold_out
from robustviz.types import Threat


def run(*arguments):
    cli.app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    small = ["--no-umap", "--strengths", 3, "--images", 40, "--training-images", 300, "--steps", 4]
    run("features", "digits-wnll", *small, "--out", folder)
    return folder


def test_every_figure_and_number_is_written(out):
    figures = {"heads", "ways-pca", "curves", "plane-softmax", "plane-wnll", "votes"}
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


def test_too_few_training_images_for_a_map_are_refused_before_any_attack(tmp_path):
    with pytest.raises(ValueError, match=r"--training-images must be at least 16, .* got 3; give more"):
        run("features", "digits-pgd", "--training-images", 3, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_too_few_images_for_a_spread_are_refused_before_any_attack(tmp_path):
    with pytest.raises(ValueError, match=r"--images must give some class two test images, .* got 10 of as many"):
        run("features", "digits-pgd", "--images", 10, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_template_of_a_shipped_network_is_found_and_others_get_one():
    training_set = digits("train")
    model, _ = checkpoints.load("digits-wnll")
    source = template_source("digits-wnll", training_set)
    softmax, same = both_heads(model, source)
    assert same is model
    assert softmax.head is model.head.linear
    assert torch.equal(source.labels[model.head.template_indices], model.head.template_labels)
    plain, _ = checkpoints.load("digits-standard")
    softmax, new = both_heads(plain, training_set)
    assert softmax is plain
    assert len(new.head.template) == 1000


def test_a_wnll_head_is_never_replaced_without_a_word():
    model, _ = checkpoints.load("digits-wnll")
    with pytest.raises(ValueError, match="template_source"):
        both_heads(model, digits("train"))  # 144 of these were held out


def tiny(count, seed):
    """Pictures of 2x2 pixels in two classes that overlap, which an attack of 0.1 can carry across."""
    labels = torch.arange(count) % 2
    images = 0.4 + 0.2 * labels.view(-1, 1, 1, 1) + 0.08 * torch.randn(count, 1, 2, 2, generator=seeded(seed))
    return ImageSet(images.clamp(0, 1), labels, ("dark", "light"), "tiny")


@pytest.fixture(scope="module")
def interpolating():
    """A network with a joint WNLL head whose features are the pixels, and the images of its template."""
    linear, source = nn.Linear(4, 2), tiny(120, 0)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0] * 4, [5.0] * 4]))
        linear.bias.copy_(torch.tensor([10.0, 0.0]))
    plain = Classifier(nn.Flatten(), linear, normalize=nn.Identity()).eval()
    return wnll_classifier(plain, source, size=100), source


def saved(path, head, **settings):
    """A checkpoint of a small network with a WNLL head, and a record with these settings."""
    build = partial(defended, network="small_cnn", classes=2, channels=1, wnll={"size": len(head.template)})
    model = build()
    model.head.refresh(torch.randn(len(head.template), 64), head.template_labels)
    model.head.template_indices.copy_(head.template_indices)
    return checkpoints.save(path, model, build, RunRecord("train", settings, {}))


def test_a_template_is_found_with_any_held_out_share_and_number_of_training_images(tmp_path):
    training_set = tiny(401, 0)[torch.randperm(401, generator=seeded(3))]
    used = training_set.subset(300)
    kept = used[hold_out(used.labels, 0.25)[0]]
    plain = Classifier(nn.Flatten(), nn.Linear(4, 2), normalize=nn.Identity()).eval()
    head = wnll_classifier(plain, kept, size=100).head
    path = saved(tmp_path / "right.safetensors", head, validation=0.25, training_images=300)
    assert torch.equal(template_source(path, training_set).images, kept.images)
    other = saved(tmp_path / "wrong.safetensors", head, validation=0.1, training_images=300)
    with pytest.raises(ValueError, match="was trained on other images than the 401 of tiny"):
        template_source(other, training_set)


def test_conditions_and_ways_are_attacked_in_the_same_batches(interpolating, monkeypatch):
    sizes = set()

    def noise(model, images, labels, /, *, threat, generator):
        sizes.add(len(images))
        return (images + threat.epsilon * (2 * torch.rand(images.shape, generator=generator) - 1)).clamp(0, 1)

    made = {"second": Contest(noise), "first": Contest(noise, "published")}
    monkeypatch.setattr(geometry, "contests", lambda model, threat, steps: at(made, threat))
    model, source = interpolating
    test_set, threat = tiny(300, 1), Threat("linf", 0.1)  # a batch of 256 and one of 44
    found = study("tiny", model, source, test_set, threat, [0.05, 0.1], source=source)
    assert sizes == {256, 44}
    assert found.conditions[PUBLISHED_ATTACK].attack == "first", "told by its kind"
    for name in (PUBLISHED_ATTACK, STRONGEST):
        assert found.ways[name].stages[-1] == 0.1
        assert torch.equal(found.ways[name].images[-1], found.conditions[name].images), name


@pytest.fixture(scope="module")
def pair(interpolating):
    model, source = interpolating
    return study_pair(model, source, tiny(30, 1), Threat("linf", 0.1), [0.1], steps=2)


@pytest.mark.parametrize(
    ("unmoved", "names"),
    [
        ((), (CLEAN, PUBLISHED_ATTACK, STRONGEST)),
        ((PUBLISHED_ATTACK,), (CLEAN, STRONGEST, closeup.OTHER)),
        ((STRONGEST,), (CLEAN, PUBLISHED_ATTACK, closeup.OTHER)),
        ((PUBLISHED_ATTACK, STRONGEST), None),
    ],
)
def test_an_image_that_no_attack_moves_has_no_plane(pair, unmoved, names):
    clean = pair.wnll.conditions[CLEAN].images
    shift = torch.tensor([[0.05, 0.0], [0.0, 0.0]])
    images = {CLEAN: clean, PUBLISHED_ATTACK: clean + shift, STRONGEST: clean + shift.flip(0)} | dict.fromkeys(
        unmoved, clean
    )
    moved = {name: replace(c, images=images[name].clamp(0, 1)) for name, c in pair.wnll.conditions.items()}
    section = closeup.plane_section(replace(pair, wnll=replace(pair.wnll, conditions=moved)))
    (text,) = [picture.alt for picture in section.pictures if "wnll" in picture.name] or [section.paragraphs[-1]]
    assert ("no attack moves the chosen image" if names is None else ", ".join(names)) in text


def test_a_page_is_written_without_an_attack(tmp_path):
    few = ["--no-umap", "--strengths", 2, "--images", 20, "--training-images", 100, "--steps", 1, "--epsilon", 0]
    run("features", "digits-wnll", *few, "--out", tmp_path)
    assert "no attack moves the chosen image" in (tmp_path / "index.html").read_text()


def test_the_data_of_a_record_is_resolved_once(tmp_path, monkeypatch):
    record = RunRecord("train", {"data": "./cifar10"}, {})
    monkeypatch.chdir(tmp_path)
    assert data_name(record, None) == "cifar10"
    assert data_name(record, "/data/cifar10") == "/data/cifar10"
    (tmp_path / "cifar10").mkdir()
    assert data_name(record, None) == "./cifar10"


def test_a_network_beside_must_take_the_same_images(tmp_path, interpolating):
    known = {"data": "digits", "threat": {"norm": "linf", "epsilon": 0.1}, "classes": ["dark", "light"]}
    other = saved(tmp_path / "other.safetensors", interpolating[0].head, **known)
    with pytest.raises(ValueError, match=r"other\.safetensors does not suit digits-wnll: .*'dark', 'light'"):
        run("features", "digits-wnll", "--beside", other, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
