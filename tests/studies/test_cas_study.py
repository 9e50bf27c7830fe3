"""Comparisons on a model whose every decision is known, and what the comparison of CAS is made of."""

import base64
from dataclasses import replace
from functools import partial
from math import isnan

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import against, pgd, transfer
from robustviz.data import ImageSet, digits
from robustviz.evaluation.comparison import PUBLISHED, WORST, Comparison, Contest, Entry, compare, spread, with_threat
from robustviz.features import ChannelStats
from robustviz.models import Classifier
from robustviz.records import describe
from robustviz.studies import cas
from robustviz.tensors import project
from robustviz.training.stages import Hardened
from robustviz.types import Threat

# One pixel, class 1 if it is above one half: image i is fooled by every change of more than its distance, no smaller.
DISTANCES = torch.tensor([0.05, 0.15, 0.25, 0.35, 0.45])
PIXELS = torch.cat([0.5 + DISTANCES, 0.5 - DISTANCES])
LINE = ImageSet(PIXELS.view(-1, 1, 1, 1), (PIXELS > 0.5).long(), ("dark", "light"), "line")


def linear():
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        head.bias.copy_(torch.tensor([0.5, -0.5]))
    return Classifier(nn.Flatten(), head, normalize=nn.Identity()).eval()


def push(model, images, labels, /, *, threat, rows, generator=None):
    """Move some images, by their number, all the way to the other class."""
    moved = images.clone()
    moved[rows] = (1 - labels[rows]).float().view(-1, 1, 1, 1)
    return project(images, moved, threat)


def measured(contests, epsilons=(0.1, 0.2, 0.3), seeds=(0,), **settings):
    networks = {"linear": Entry(linear(), contests)}
    return compare("test", lambda seed: iter(networks.items()), LINE, seeds=seeds, epsilons=epsilons, **settings)


BRIGHT = Contest(partial(push, rows=slice(0, 5)), "published")
DARK = Contest(partial(push, rows=slice(5, 7)))


def test_worst_cases_are_derived_image_by_image():
    # Of five bright and two dark images, those nearer than epsilon fall: 1 + 1, 2 + 2, 3 + 2 of 10.
    found = measured({"bright": BRIGHT, "dark": DARK}, settings={})
    expected = {0.1: (0.9, 0.9, 0.8), 0.2: (0.8, 0.8, 0.6), 0.3: (0.7, 0.8, 0.5)}
    assert found.epsilons == list(expected)
    for epsilon, (bright, dark, both) in expected.items():
        shares = [found.mean("linear", epsilon, name) for name in ("clean", "bright", "dark", PUBLISHED, WORST)]
        assert shares == pytest.approx([1.0, bright, dark, bright, both])


def test_an_image_that_is_wrong_without_attack_counts_in_both_worst_cases():
    wrong = replace(LINE, labels=LINE.labels.clone())
    wrong.labels[9] = 1
    nothing = Contest(partial(push, rows=slice(0, 0)))
    entries = {"linear": Entry(linear(), {"nothing": nothing, "bright": BRIGHT})}
    found = compare("test", lambda seed: iter(entries.items()), wrong, seeds=[0], epsilons=[0.1], settings={})
    assert found.mean("linear", 0.1, PUBLISHED) == pytest.approx(0.8)
    assert found.mean("linear", 0.1, WORST) == pytest.approx(0.8)


def two_networks(seed):
    """The second meets one attack more, and in seed 1 both are met by a weaker one."""
    dark = Contest(partial(push, rows=slice(5, 7 - seed)))
    yield "plain", Entry(linear(), {"bright": BRIGHT}, {"seed": float(seed)})
    yield "defended", Entry(linear(), {"bright": BRIGHT, "dark": dark})


@pytest.fixture(scope="module")
def over_seeds():
    said = []
    settings = {"settings": {"data": "line"}, "say": said.append, "batch_size": 16}
    return compare("two", two_networks, LINE, seeds=[0, 1], epsilons=[0.3, 0.2], **settings), said


def test_rows_show_mean_and_spread_kinds_and_how_many_attacks(over_seeds):
    found, _ = over_seeds
    assert found.kinds == {"bright": "published", "dark": "adaptive"}
    assert found.networks == ["plain", "defended"]
    assert found.values("defended", 0.2, "dark") == pytest.approx([0.8, 0.9])
    assert found.values("plain", 0.2, "dark") == []
    assert isnan(found.mean("plain", 0.2, "dark"))
    headers, rows = found.rows(0.2)
    assert headers == ["accuracy % at epsilon 0.2", "plain", "defended"]
    assert rows == [
        ["clean", "100.0 ± 0.0", "100.0 ± 0.0"],
        ["bright (published)", "80.0 ± 0.0", "80.0 ± 0.0"],
        ["dark (adaptive)", "-", "85.0 ± 7.1"],
        [PUBLISHED, "80.0 ± 0.0", "80.0 ± 0.0"],
        [WORST, "80.0 ± 0.0", "65.0 ± 7.1"],
        ["attacks behind the worst case", "1", "2"],
    ]
    assert spread([0.25]) == "25.0"
    assert spread([]) == "-"


def test_markdown_holds_every_strength_from_weak_to_strong_and_the_remarks(over_seeds):
    text = over_seeds[0].to_markdown()
    assert text.index("epsilon 0.2") < text.index("epsilon 0.3") < text.index("seed")
    assert "50.0 ± 70.7" in text


def test_settings_are_recorded_and_progress_is_said(over_seeds):
    found, said = over_seeds
    assert found.settings == {"seeds": [0, 1], "images": 10, "norm": "linf", "batch_size": 16, "data": "line"}
    assert len(said) == 4
    assert said[0] == f"seed 0, plain, epsilon 0.2: clean 100.0%, {PUBLISHED} 80.0%, {WORST} 80.0%"


def test_comparisons_are_stored_and_read_again(over_seeds, tmp_path):
    found, _ = over_seeds
    path = found.save(tmp_path / "two.json")
    assert Comparison.load(path) == found
    for damaged in ('{"name": "two"}', "nothing"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"two\.json is not a comparison"):
            Comparison.load(path)


def test_the_threat_reaches_the_innermost_attack():
    threat = Threat("linf", 0.07)
    for attack in (pgd, partial(against, view=linear, attack=partial(transfer, source=linear(), attack=pgd))):
        settings = describe(with_threat(attack, threat))
        while "attack" in settings:
            assert "threat" not in settings
            settings = settings["attack"]
        assert (settings["function"], settings["threat"]["epsilon"]) == ("pgd", 0.07)


@pytest.fixture(scope="module")
def shipped():
    """Digits networks without defense, adversarially trained, and with CAS. Do not change them."""
    return [checkpoints.load(name)[0] for name in ("digits-standard", "digits-pgd", "digits-pgd-cas")]


@pytest.fixture
def quick(monkeypatch):
    """Short attacks on few images; trained networks come from the shelf."""
    short = partial(cas.small_steps, steps=2)
    stored = {"none": "digits-pgd", "cas": "digits-pgd-cas"}
    monkeypatch.setattr(cas, "COMMON", {"naive": Contest(short, "published"), "other": Contest(short)})
    monkeypatch.setattr(cas, "small_steps", short)
    monkeypatch.setattr(cas, "ADAPTIVE", {name: replace(cas.ADAPTIVE[name], attack=short) for name in cas.ADAPTIVE})
    monkeypatch.setattr(cas, "TRAINING", {"AT": "pgd", "MART": "mart"})
    monkeypatch.setattr(cas, "digits", lambda part: digits(part).subset(12))
    asked = []

    def harden(image_set, *, defense="none", **settings):
        asked.append((defense, settings))
        return Hardened(checkpoints.load(stored[defense])[0], linear, [])

    monkeypatch.setattr(cas, "harden", harden)
    return asked


def test_small_steps_are_pgd_with_a_tenth_of_epsilon(shipped):
    some, threat = digits("test").subset(8), Threat("linf", 0.13)
    data = shipped[1], some.images, some.labels
    ours = cas.small_steps(*data, threat=threat, steps=5)
    assert torch.equal(ours, pgd(*data, threat=threat, steps=5, step_size=0.013))


def test_every_network_meets_the_common_list_and_cas_the_rest_too(shipped, quick):
    some = digits("test").subset(12)
    (plain, first), (masked, second) = cas.pair("AT", shipped[1], shipped[2], some, 0)
    assert (plain, masked) == ("AT", "AT + CAS")
    assert list(first.contests) == list(cas.COMMON)
    *known, last = second.contests
    assert known == [*cas.COMMON, *cas.ADAPTIVE]
    assert second.contests[last].attack.keywords["source"] is shipped[1]


def test_only_the_first_attack_is_published_and_beta_is_swept():
    every = {**cas.COMMON, **cas.ADAPTIVE}
    assert [name for name, contest in every.items() if contest.kind == "published"] == ["final logits only"]
    betas = [describe(cas.ADAPTIVE[name].attack)["objective"]["heads"]["beta"] for name in list(cas.ADAPTIVE)[:4]]
    assert betas == [0.5, 2.0, 10.0, 100.0]


def test_compare_cas_trains_pairs_and_gives_a_table_that_can_be_stored(quick, tmp_path):
    said = []
    (found,) = cas.compare_cas([3], said.append)
    assert (found.name, found.networks) == ("cas", ["AT", "AT + CAS", "MART", "MART + CAS"])
    assert [(defense, s["attack"], s["config"].seed) for defense, s in quick] == [
        (defense, attack, 3) for attack in ("pgd", "mart") for defense in ("none", "cas")
    ]
    assert found.epsilons == [0.1, 0.15]
    assert [len(found.attacks(name)) for name in found.networks] == [2, 11, 2, 11]
    assert Comparison.load(found.save(tmp_path / "cas.json")) == found
    assert found.settings["contests"]["soft mask, joint"]["kind"] == "adaptive"
    assert len(said) == 4
    # Two equal attacks leave together what one leaves: the remark is the per-image worst case of the common list.
    assert found.remarks[f"AT + CAS: {cas.SAME}"] == found.values("AT + CAS", 0.15, "naive")
    assert f"AT: {cas.SAME}" not in found.remarks
    assert found.remarks[f"MART + CAS: {cas.AGREES}"][0] > 0.9
    shares = [values[0] for name, values in found.remarks.items() if "magnitude" not in name]
    assert all(0 <= share <= 1 for share in shares)


def test_the_naive_attack_flatters_the_shipped_network(shipped):
    some, threat = digits("test").subset(100), Threat("linf", 0.15)

    def accuracy(model, contest):
        with torch.no_grad():
            attacked = with_threat(contest.attack, threat)(model, some.images, some.labels)
            return (model(attacked).argmax(1) == some.labels).float().mean().item()

    _, plain, masked = shipped
    naive = cas.COMMON["final logits only"]
    assert accuracy(masked, naive) - accuracy(plain, naive) > 0.1
    assert accuracy(masked, naive) - accuracy(masked, cas.ADAPTIVE["joint, beta = 2"]) > 0.1
    assert accuracy(masked, cas.ADAPTIVE["soft mask, joint"]) < accuracy(plain, naive)


def test_foolbox_finds_the_naive_number(shipped, foolbox):
    import eagerpy

    some, model = digits("test").subset(60), shipped[2]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=40, abs_stepsize=0.015, random_start=False)
    _, _, won = attack(wrapped, eagerpy.astensor(some.images), eagerpy.astensor(some.labels), epsilons=0.15)
    ours = cas.small_steps(model, some.images, some.labels, threat=Threat("linf", 0.15))
    with torch.no_grad():
        naive = (model(ours).argmax(1) == some.labels).float().mean().item()
    assert 1 - won.raw.float().mean().item() == pytest.approx(naive, abs=2 / 60)  # ours starts at random


def test_the_section_has_both_figures_the_table_and_a_sentence_each(quick, monkeypatch):
    monkeypatch.setattr(cas, "digits", lambda part: digits(part).subset(100))
    section = cas.cas_section(0)
    assert [picture.name for picture in section.pictures] == ["cas-magnitude", "cas-frequency"]
    for picture, sentence in zip(section.pictures, section.paragraphs[-2:], strict=True):
        assert sentence in picture.alt
        assert picture.caption
        assert base64.b64decode(picture.png)[1:4] == b"PNG"
    (grid,) = section.tables
    assert list(grid.headers)[1:] == list(cas.SHOWN)
    assert list(grid.rows)[-1][1:] == ["2", "2", "11"]
    assert "Of 100 test images at epsilon = 0.15" in section.paragraphs[1]


def stats(frequency, magnitude):
    return ChannelStats(torch.full((4,), frequency).double(), torch.full((4,), magnitude).double())


def test_sentences_say_what_was_measured():
    flat = stats(0.9, 1.0), stats(0.9, 1.0)
    rising = {"standard": (stats(0.9, 1.0), stats(0.9, 1.5)), "AT": flat, "AT + CAS": flat}
    falling = {"standard": (stats(0.9, 1.0), stats(0.9, 0.5)), "AT": flat, "AT + CAS": flat}
    assert "+50% (standard), +0% (AT)" in cas.magnitude_sentence(rising)
    assert "in the mean it is so here too, in the largest channel it is so" in cas.magnitude_sentence(rising)
    assert "-50% (standard)" in cas.magnitude_sentence(falling)
    assert "in the mean it is not so here, in the largest channel it is not so" in cas.magnitude_sentence(falling)
    for clean, attacked, verdict in ((0.5, 0.6, "it does."), (0.5, 0.95, "clean images only."), (0.95, 0.95, "not.")):
        masked = stats(clean, 1.0), stats(attacked, 1.0)
        sentence = cas.frequency_sentence({"standard": flat, "AT": flat, "AT + CAS": masked})
        assert sentence.endswith(verdict)
        assert f"{clean:.0%} and {attacked:.0%} (AT + CAS)" in sentence


@pytest.mark.parametrize(("adaptive", "verdict"), [(0.6, "So the naive"), (0.9, "not clear")])
def test_the_attack_sentence_weighs_naive_against_worst(adaptive, verdict):
    def row(published, worst, *attacks):
        return {"0.15": {"clean": [1.0], **{a: [published] for a in attacks}, PUBLISHED: [published], WORST: [worst]}}

    found = Comparison(
        "cas",
        {"standard": row(0.1, 0.0, "a"), "AT": row(0.7, 0.65, "a"), "AT + CAS": row(0.9, adaptive, "a", "b")},
        {"a": "published", "b": "adaptive"},
        {f"AT + CAS: {cas.SAME}": [0.8], f"AT + CAS: {cas.AGREES}": [0.99]},
        {},
    )
    sentence = cas.attack_sentence(found, Threat("linf", 0.15), 50)
    assert verdict in sentence
    assert f"leave 65% and 80%; all 2 that apply to CAS leave {adaptive:.0%} (against 1 for AT" in sentence
    assert "On 99% of the attacked images" in sentence
