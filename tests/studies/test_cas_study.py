"""What the comparison of CAS is made of, and what the report says of it."""

import base64
from dataclasses import replace
from functools import partial

import pytest
import torch

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import digits
from robustviz.defenses import Contest
from robustviz.defenses.cas import cas_contests
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison
from robustviz.features import ChannelStats
from robustviz.models import small_cnn
from robustviz.pages import cas as page
from robustviz.records import describe
from robustviz.studies import cas
from robustviz.training.stages import Hardened
from robustviz.types import Threat

ADAPTIVE = cas_contests()


@pytest.fixture(scope="module")
def shipped():
    """Digits networks without defense, adversarially trained, and with CAS. Do not change them."""
    return [checkpoints.load(name)[0] for name in ("digits-standard", "digits-pgd", "digits-pgd-cas")]


@pytest.fixture
def quick(monkeypatch):
    """Short attacks on few images; trained networks come from the shelf."""
    short = partial(cas.fine_pgd, steps=2)
    stored = {"none": "digits-pgd", "cas": "digits-pgd-cas"}
    adaptive = {name: replace(contest, attack=short) for name, contest in ADAPTIVE.items()}
    monkeypatch.setattr(cas, "fine_pgd", short)
    monkeypatch.setattr(cas, "cas_contests", lambda: adaptive)
    for module in (cas, page):
        monkeypatch.setattr(module, "COMMON", {"naive": Contest(short, "published"), "other": Contest(short)})
    monkeypatch.setattr(cas, "TRAINING", {"AT": "pgd", "MART": "mart"})
    monkeypatch.setattr(cas, "digits", lambda part: digits(part).subset(12))
    asked = []

    def harden(image_set, *, defenses=(), **settings):
        names = "".join(defense.name for defense in defenses) or "none"
        asked.append((names, settings))
        return Hardened(checkpoints.load(stored[names])[0], small_cnn, [])

    monkeypatch.setattr(cas, "harden", harden)
    return asked


def test_fine_pgd_is_pgd_with_a_tenth_of_epsilon(shipped):
    some, threat = digits("test").subset(8), Threat("linf", 0.13)
    data = shipped[1], some.images, some.labels
    ours = cas.fine_pgd(*data, threat=threat, steps=5)
    assert torch.equal(ours, pgd(*data, threat=threat, steps=5, step_size=0.013))


def test_every_network_meets_the_common_list_and_cas_the_rest_too(shipped, quick):
    some = digits("test").subset(12)
    (plain, first), (masked, second) = cas.pair("AT", shipped[1], shipped[2], some, 0)
    assert (plain, masked) == ("AT", "AT + CAS")
    threat = Threat("linf", 0.15)
    assert list(first.contests(threat)) == list(cas.COMMON)
    every = second.contests(threat)
    *known, last = every
    assert known == [*cas.COMMON, *ADAPTIVE]
    assert every[last].attack.keywords["source"] is shipped[1]


def test_only_the_first_attack_is_published_and_beta_is_swept():
    every = {**cas.COMMON, **ADAPTIVE}
    assert [name for name, contest in every.items() if contest.kind == "published"] == ["final logits only"]
    betas = [describe(ADAPTIVE[name].attack)["objective"]["heads"]["beta"] for name in list(ADAPTIVE)[:4]]
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
            attacked = contest.at(threat).attack(model, some.images, some.labels)
            return (model(attacked).argmax(1) == some.labels).float().mean().item()

    _, plain, masked = shipped
    naive = cas.COMMON["final logits only"]
    assert accuracy(masked, naive) - accuracy(plain, naive) > 0.1
    assert accuracy(masked, naive) - accuracy(masked, ADAPTIVE["joint, beta = 2"]) > 0.1
    assert accuracy(masked, ADAPTIVE["soft mask, joint"]) < accuracy(plain, naive)


def test_foolbox_finds_the_naive_number(shipped, foolbox):
    import eagerpy

    some, model = digits("test").subset(60), shipped[2]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=40, abs_stepsize=0.015, random_start=False)
    _, _, won = attack(wrapped, eagerpy.astensor(some.images), eagerpy.astensor(some.labels), epsilons=0.15)
    ours = cas.fine_pgd(model, some.images, some.labels, threat=Threat("linf", 0.15))
    with torch.no_grad():
        naive = (model(ours).argmax(1) == some.labels).float().mean().item()
    assert 1 - won.raw.float().mean().item() == pytest.approx(naive, abs=2 / 60)  # ours starts at random


def test_the_section_has_both_figures_the_table_and_a_sentence_each(quick, monkeypatch):
    monkeypatch.setattr(page, "digits", lambda part: digits(part).subset(100))
    section = page.cas_section(0)
    assert [picture.name for picture in section.pictures] == ["cas-magnitude", "cas-frequency"]
    for picture, sentence in zip(section.pictures, section.paragraphs[-2:], strict=True):
        assert sentence in picture.alt
        assert picture.caption
        assert base64.b64decode(picture.png)[1:4] == b"PNG"
    (grid,) = section.tables
    assert list(grid.headers)[1:] == list(page._SHOWN)
    assert list(grid.rows)[-1][1:] == ["2", "2", "11"]
    assert "Of 100 test images at epsilon = 0.15" in section.paragraphs[1]


def stats(frequency, magnitude):
    return ChannelStats(torch.full((4,), frequency).double(), torch.full((4,), magnitude).double())


def test_sentences_say_what_was_measured():
    flat = stats(0.9, 1.0), stats(0.9, 1.0)
    rising = {"standard": (stats(0.9, 1.0), stats(0.9, 1.5)), "AT": flat, "AT + CAS": flat}
    falling = {"standard": (stats(0.9, 1.0), stats(0.9, 0.5)), "AT": flat, "AT + CAS": flat}
    assert "+50% (standard), +0% (AT)" in page.magnitude_sentence(rising)
    assert "in the mean it is so here too, in the largest channel it is so" in page.magnitude_sentence(rising)
    assert "-50% (standard)" in page.magnitude_sentence(falling)
    assert "in the mean it is not so here, in the largest channel it is not so" in page.magnitude_sentence(falling)
    for clean, attacked, verdict in ((0.5, 0.6, "it does."), (0.5, 0.95, "clean images only."), (0.95, 0.95, "not.")):
        masked = stats(clean, 1.0), stats(attacked, 1.0)
        sentence = page.frequency_sentence({"standard": flat, "AT": flat, "AT + CAS": masked})
        assert sentence.endswith(verdict)
        assert f"{clean:.0%} and {attacked:.0%} (AT + CAS)" in sentence


@pytest.mark.parametrize(("adaptive", "verdict"), [(0.6, "So the naive"), (0.9, "not clear")])
def test_the_attack_sentence_weighs_naive_against_worst(adaptive, verdict):
    def row(published, worst, *attacks):
        return {
            "0.15": {"clean": [1.0], **{a: [published] for a in attacks}, PUBLISHED: [published], WORST_OF_ALL: [worst]}
        }

    found = Comparison(
        "cas",
        {"standard": row(0.1, 0.0, "a"), "AT": row(0.7, 0.65, "a"), "AT + CAS": row(0.9, adaptive, "a", "b")},
        {"a": "published", "b": "adaptive"},
        {f"AT + CAS: {cas.SAME}": [0.8], f"AT + CAS: {cas.AGREES}": [0.99]},
        {},
    )
    sentence = page._attack_sentence(found, Threat("linf", 0.15), 50)
    assert verdict in sentence
    assert f"leave 65% and 80%; all 2 that apply to CAS leave {adaptive:.0%} (against 1 for AT" in sentence
    assert "On 99% of the attacked images" in sentence
