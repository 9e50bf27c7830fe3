"""TVM put together: training with it, what the held-out images are, and what its comparison is made of."""

import base64
import sys
from functools import partial

import pytest
import torch

from robustviz import checkpoints, cli
from robustviz.attacks import pgd
from robustviz.data import digits
from robustviz.defenses import named
from robustviz.defenses.tvm import TVM, record, total_variation
from robustviz.defenses.tvm import layer as defense
from robustviz.defenses.wnll import wnll_classifier
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison
from robustviz.pages import photograph as photographs
from robustviz.pages import tvm as page
from robustviz.plots import plot_purified, plot_strengths
from robustviz.presets import usual_threat
from robustviz.records import RunRecord, describe
from robustviz.studies import tvm
from robustviz.training import TrainConfig, hold_out, train
from robustviz.training import stages as pipelines
from robustviz.training.stages import Hardened, harden
from robustviz.training.state import EpochLog
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def some():
    return digits("train").subset(150)


def hardened(image_set, *, seed=0, augment="none", defense="none", **settings):
    """Train with a defense, and with TVM versions of the images, whether the purifier is in front or not."""
    config = TrainConfig(epochs=1, batch_size=64, learning_rate=0.05, seed=seed)
    chosen = [named(name) for name in dict.fromkeys([defense, "tvm"][: 1 + (augment == "tvm")]) if name != "none"]
    options = {"augment": augment, "in_front": defense == "tvm"} if named("tvm") in chosen else {}
    settings |= {"defenses": chosen, "options": options}
    return harden(image_set, network="small_cnn", config=config, threat=THREAT, steps=2, **settings)


# Training.


def test_the_purifier_stands_in_front_of_the_network_that_was_trained_without(some, tmp_path):
    plain, behind = hardened(some), hardened(some, defense="tvm")
    for own, other in zip(plain.model.state_dict().values(), behind.model.state_dict().values(), strict=True):
        assert torch.equal(own, other)
    assert isinstance(behind.model.purify, TVM)
    assert behind.model.purify.settings == TVM().settings
    images = some.images[:20]
    with torch.no_grad():
        torch.testing.assert_close(behind.model(images), plain.model(TVM()(images)), rtol=0, atol=1e-6)
    checkpoints.save(tmp_path / "net.safetensors", behind.model, behind.build, RunRecord("train", {}, {}))
    again, _ = checkpoints.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(images), behind.model(images), rtol=0, atol=1e-6)


@pytest.fixture
def given(monkeypatch):
    """What the training loop is given, instead of training."""
    calls = []

    def watch(model, images, labels, config, *, validation, **settings):
        calls.append((images, labels, *hold_out(labels, validation)))
        return [EpochLog(1, 0.0, None, None, 0.0, chosen=True)]

    monkeypatch.setattr(pipelines, "train", watch)
    return calls


@pytest.mark.parametrize("behind", ["none", "tvm", "cas"])
def test_no_held_out_image_is_trained_on(some, given, behind):
    hardened(some, augment="tvm", defense=behind, validation=0.2)
    ((images, labels, kept, held),) = given
    known, unseen = hold_out(some.labels, 0.2)
    count = len(known)
    assert (len(kept), len(held)) == (2 * count, len(unseen)) == (240, 30)
    assert torch.equal(images[kept[:count]], some.images[known])
    assert torch.equal(labels[kept], some.labels[known].repeat(2))
    assert torch.equal(labels[held], some.labels[unseen])
    versions = images[kept[count:]]
    assert total_variation(versions).mean() < 0.9 * total_variation(some.images[known]).mean()
    # Each version is made from the image whose label it has: on kept pixels it stays near.
    assert (versions - some.images[known]).square().mean() < (versions - some.images[known.roll(1)]).square().mean() / 2
    if behind == "tvm":
        assert total_variation(images[held]).mean() < 0.9 * total_variation(some.images[unseen]).mean()
    else:
        assert torch.equal(images[held], some.images[unseen])


def test_wnll_refuses_versions_of_its_own_images(some):
    with pytest.raises(ValueError, match="augment must be none with WNLL, got 2 versions of every image"):
        hardened(some, augment="tvm", defense="wnll")


def test_everything_may_be_trained_on(some, given):
    hardened(some, augment="tvm", validation=0.0)
    ((images, _, kept, held),) = given
    assert (len(images), len(kept), len(held)) == (300, 300, 0)


def test_indices_may_be_held_out(unchecked):
    labels = torch.arange(6) % 2
    kept, held = hold_out(labels, torch.tensor([4, 1]))
    assert (kept.tolist(), held.tolist()) == ([0, 2, 3, 5], [1, 4])
    assert len(hold_out(labels, torch.tensor([], dtype=torch.long))[1]) == 0
    for wrong in (torch.arange(6), 1.0, -0.1):
        with pytest.raises(ValueError, match="validation must be a share from 0 to below 1 that leaves images"):
            hold_out(labels, wrong)


def test_a_run_with_other_held_out_images_is_not_resumed(some, tmp_path):
    model, state = hardened(some).model, tmp_path / "state"
    loop = partial(train, model, some.images, some.labels, TrainConfig(epochs=1, batch_size=64), resume=state)
    loop(validation=torch.arange(10))
    with pytest.raises(ValueError, match="another validation"):
        loop(validation=torch.arange(1, 11))
    assert len(loop(validation=torch.arange(10))) == 1


def test_versions_are_kept_for_the_next_run_with_the_same_settings(some, given, tmp_path, monkeypatch):
    hardened(some, augment="tvm", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(defense, "minimize_tv", None)
    hardened(some, augment="tvm", cache=tmp_path)
    assert torch.equal(given[0][0], given[1][0])
    with pytest.raises(TypeError, match="not callable"):
        hardened(some, augment="tvm", cache=tmp_path, seed=1)


# The command line.


@pytest.fixture
def says(capsys, monkeypatch, tmp_path):
    """Run a command where nothing of value is, and return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["robustviz"])

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.app([str(word) for word in words])
        assert not end.value.code
        return capsys.readouterr().out

    return run


def test_train_and_evaluate_behind_tvm(says, tmp_path, monkeypatch):
    few = partial(record.bpda_contests, steps=2, averaged_steps=1)
    monkeypatch.setattr(record, "bpda_contests", lambda *, draws, exact: few(draws=2, exact=exact))
    words = ("--defense", "tvm", "--augment", "tvm", "--epochs", "1", "--images", "60", "--epsilon", "0.1")
    text = says("train", *words)
    folder = tmp_path / "runs" / "digits-small_cnn-tvm-none"
    assert all(f"| {condition} " in text for condition in ("PGD-20, as published", "BPDA", "BPDA + EOT"))
    assert "condition (250 images)" in text
    model, written = checkpoints.load(folder)
    assert isinstance(model.purify, TVM)
    assert (written.settings["defense"], written.settings["augment"]) == ("tvm", "tvm")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of the training part and of the held-out part
    found = says("evaluate", folder, "--images", "10", "--attacks", "fgsm", "--no-adaptive")
    assert "FGSM, as published" in found
    assert "BPDA" not in found


def test_compare_runs_the_comparison_of_tvm(says, monkeypatch, tmp_path):
    found = Comparison("tvm", {"none": {"0.1": {"clean": [1.0], PUBLISHED: [0.5], WORST_OF_ALL: [0.25]}}}, {}, {}, {})
    asked = []
    monkeypatch.setattr(tvm, "compare_tvm", lambda seeds, say: asked.append(list(seeds)) or [found])
    assert "accuracy % at epsilon 0.1" in says("compare", "tvm", "--seeds", "2", "--out", tmp_path / "results")
    assert asked == [[0, 1]]
    assert Comparison.load(tmp_path / "results" / "tvm.json") == found


# The comparison.


@pytest.fixture(scope="module")
def shipped():
    """Digits networks: without defense, and trained with TVM versions, behind TVM. Do not change them."""
    return [checkpoints.load(name)[0] for name in ("digits-standard", "digits-tvm")]


def test_the_naive_attack_does_not_know_of_the_purifier(shipped):
    few, (_, both) = digits("test").subset(10), shipped
    contest = tvm.tvm_contests(steps=3)["naive"]
    found = contest.at(THREAT).attack(both, few.images, few.labels)
    assert torch.equal(found, pgd(both.replace(purify=None), few.images, few.labels, threat=THREAT, steps=3))
    assert contest.kind == "published"


def test_only_the_naive_attack_is_published_and_thirty_masks_are_averaged():
    for exact in (False, True):
        contests = tvm.tvm_contests(exact=exact)
        assert [name for name, contest in contests.items() if contest.kind == "published"] == ["naive"]
        draws = {name: describe(c.attack)["attack"]["objective"].get("draws") for name, c in contests.items()}
        assert {draws[name] for name in draws if "EOT" in name} == {30}
        assert draws["BPDA"] == draws["unrolled gradient"] == 1
    with_head = describe(tvm.tvm_contests(exact=True)["BPDA"].attack)
    assert [view["function"] for view in with_head["view"]["views"]] == ["identity_backward", "exact_head"]


def test_attacks_that_know_of_the_purifier_are_stronger(shipped):
    test_set = digits("test")
    contests = tvm.tvm_contests(steps=10, averaged_steps=10, draws=10)
    attacks = {name: contest.at(usual_threat("digits")).attack for name, contest in contests.items()}
    accuracy = evaluate(shipped[1], test_set.images, test_set.labels, attacks, draws=4).accuracies()
    assert accuracy["clean"] > 0.75
    assert accuracy["BPDA"] <= accuracy["naive"] + 0.05
    assert accuracy["BPDA + EOT"] < min(accuracy["BPDA"], accuracy["naive"])
    assert accuracy["unrolled gradient"] < accuracy["clean"] - 0.15


@pytest.fixture
def quick(monkeypatch, shipped):
    """Attacks of few steps and draws on few images; trained networks come from the shelf."""
    short = partial(tvm.tvm_contests, 2, 1, 2)
    for module in (tvm, page):
        monkeypatch.setattr(module, "tvm_contests", lambda *_, exact=False, **__: short(exact=exact))
        monkeypatch.setattr(module, "digits", lambda part: digits(part).subset(60))
        monkeypatch.setattr(module, "_IMAGES", 12)
        monkeypatch.setattr(module, "_EPSILONS", (0.15,))
    monkeypatch.setattr(page, "photographs", partial(photographs.photographs, size=32))
    asked = []

    def stored(image_set, *, defenses=(), options=None, start=None, **settings):
        names = [defense.name for defense in defenses]
        asked.append((names, options, settings["config"].seed))
        if "wnll" in names:
            return Hardened(wnll_classifier(start, image_set, size=40), tvm.purified, [])
        return Hardened(shipped["tvm" in names].replace(purify=None), tvm.purified, [])

    monkeypatch.setattr(tvm, "harden", stored)
    return asked


def test_compare_tvm_gives_a_table_that_can_be_stored(quick, tmp_path):
    (found,) = tvm.compare_tvm([3])
    assert quick == [([], None, 3), (["tvm"], tvm.AUGMENTED, 3), (["wnll"], {"rounds": 1}, 3)]
    assert found.networks == ["none", "TVM", "augmentation", "both", "WNLL + both"]
    assert [len(found.attacks(name)) for name in found.networks] == [2, 4, 2, 4, 6]
    assert found.epsilons == [0.15]
    assert found.settings["tvm"]["keep"] == 0.5
    assert Comparison.load(found.save(tmp_path / "tvm.json")) == found


def test_the_networks_of_the_comparison_differ_in_one_thing_each(quick):
    networks = {
        name: entry.model
        for name, entry in tvm.trained_entries(*(digits(part).subset(60) for part in ("train", "test")), 0)
    }
    pairs = (("none", "TVM"), ("augmentation", "both"))
    for bare, behind in pairs:
        assert networks[bare].body is networks[behind].body
        assert networks[bare].head is networks[behind].head
        assert isinstance(networks[behind].purify, TVM)
    assert networks["WNLL + both"].purify is networks["both"].purify
    assert isinstance(networks["WNLL + both"].head, WNLLHead)


# The section.


def test_attacks_on_photographs_are_what_the_caption_says():
    clean, *noisy = photographs.photographs(0, size=32)
    assert [row.name for row in (clean, *noisy)] == ["clean", "8/255", "16/255"]
    for row, levels in zip(noisy, (8, 16), strict=True):
        assert (row.image - clean.image).abs().max() == pytest.approx(levels / 255, abs=1e-6)
        assert torch.equal(row.kept, clean.kept)
        assert row.after < row.before
        energy = 0.03 * total_variation(row.result[None]) + ((row.result - row.image) * row.kept).square().sum() / 2
        assert row.after == pytest.approx(energy.item(), rel=1e-5)
    network, record = checkpoints.load(photographs.READER)
    names = [record.settings["classes"][network(row.image[None]).argmax()] for row in (clean, *noisy)]
    assert names[0] not in names[1:]
    assert f"calls the three pictures {', '.join(names)}, and purified" in photographs.picture_sentence([clean, *noisy])


@pytest.mark.parametrize("size", [0, 214])
def test_a_photograph_has_only_so_many_pixels(size):
    with pytest.raises(ValueError, match=f"size must be from 1 to 213, the photograph's height, got {size}"):
        photographs.sample_photograph(size)


def test_pictures_have_a_row_each():
    rows = photographs.photographs(0, size=16)
    axes = plot_purified(rows).axes
    assert len(axes) == 9
    assert [ax.get_ylabel() for ax in axes[::3]] == ["clean", "8/255", "16/255"]
    assert [ax.get_xlabel() for ax in axes[2::3]] == [f"E = {row.after:.1f}" for row in rows]
    assert f"{rows[1].before:.1f} to {rows[1].after:.1f} (8/255)" in photographs.picture_sentence(rows)


def test_the_section_has_both_figures_the_table_and_a_sentence_each(quick):
    section = page.tvm_section(0)
    assert [picture.name for picture in section.pictures] == ["tvm-photographs", "tvm-digits"]
    for picture, sentence in zip(section.pictures, section.paragraphs[1::2], strict=True):
        assert sentence in picture.alt
        assert base64.b64decode(picture.png)[1:4] == b"PNG"
    (grid,) = section.tables
    assert list(grid.headers)[1:] == ["none", "TVM", "augmentation", "both", "WNLL + both"]


def test_each_attack_has_a_panel_with_the_networks_it_applies_to():
    shares = {"0.1": {"clean": [1.0], "naive": [0.5, 0.7]}, "0.2": {"clean": [1.0], "naive": [0.2]}}
    both = {epsilon: row | {"BPDA": [0.1]} for epsilon, row in shares.items()}
    found = Comparison("tvm", {"none": shares, "both": both}, {"naive": "published", "BPDA": "adaptive"}, {}, {})
    figure = plot_strengths(found, {"none": "standard", "both": "trained for it"}, ("naive", "BPDA"))
    naive, bpda = figure.axes
    assert [len(ax.lines) for ax in (naive, bpda)] == [2, 1]
    assert list(naive.lines[0].get_xdata()) == [0.0, 0.1, 0.2]
    assert list(naive.lines[0].get_ydata()) == pytest.approx([100, 60, 20])
    assert bpda.lines[0].get_color() == naive.lines[1].get_color()
    assert len({line.get_marker() for line in naive.lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "trained for it"]


def test_the_sentence_says_what_was_measured():
    def row(clean, naive, worst, *others):
        shares = {
            "clean": [clean],
            "naive": [naive],
            **{name: [naive] for name in others},
            PUBLISHED: [0.0],
            WORST_OF_ALL: [worst],
        }
        return {"0.1": shares}

    networks = {"none": row(1.0, 0.6, 0.5), "TVM": row(0.7, 0.3, 0.2), "both": row(0.9, 0.8, 0.4, "b")}
    found = Comparison(
        "tvm",
        networks | {"WNLL + both": row(0.9, 0.85, 0.35, "b")},
        {"naive": "published", "b": "adaptive"},
        {},
        {},
    )
    sentence = page._attack_sentence(found, 0.1, 50)
    assert "reads 100%, and 70% behind TVM; trained with TVM versions it reads 90%" in sentence
    assert "leaves 60%, 30% and 80%, all attacks together 50%, 20% and 40%" in sentence
    assert "by +20 points under the naive attack, and by -10 points in the worst case" in sentence
    assert "has 1 attacks without TVM and 2 with it" in sentence
    assert sentence.endswith("With WNLL on top of both 85% and 35% are left.")
