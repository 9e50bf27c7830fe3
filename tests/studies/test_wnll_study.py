"""The comparison of WNLL: which attacks it holds, what it remarks, and that its record says so."""

import base64
from functools import partial

import pytest
import torch

from robustviz import checkpoints
from robustviz.attacks import ifgsm, pgd
from robustviz.data import digits
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import Comparison, Contest
from robustviz.pages import wnll as page
from robustviz.studies import wnll
from robustviz.tensors import seeded
from robustviz.training.stages import Hardened
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def interpolating():
    """A network of digits with WNLL. Do not change it."""
    return checkpoints.load("digits-wnll")[0]


@pytest.fixture
def quick(monkeypatch, interpolating):
    """Attacks of one step on few images; trained networks come from the shelf."""
    short = Contest(partial(pgd, steps=1))
    softmax = {"IFGSM": Contest(partial(pgd, steps=1), "published")}
    for module in (wnll, page):
        monkeypatch.setattr(module, "baseline", lambda: softmax)
    monkeypatch.setattr(wnll, "SQUARE", {"Square": short})
    monkeypatch.setattr(wnll, "PUBLISHED_STEPS", 1)
    monkeypatch.setattr(wnll, "_IMAGES", 12)
    monkeypatch.setattr(wnll, "AMONG", 5)
    monkeypatch.setattr(wnll, "digits", lambda part: digits(part).subset(400 if part == "train" else 20))
    contests = {"surrogate gradient": Contest(short.attack, "published")}
    for module in (wnll, page):
        monkeypatch.setattr(module, "wnll_contests", lambda *_, **__: contests)
    asked = []

    def stored(image_set, *, attack, **settings):
        asked.append((attack, [d.name for d in settings["defenses"]], settings["config"].seed))
        return Hardened(interpolating, checkpoints.load, [])

    monkeypatch.setattr(wnll, "harden", stored)
    return asked


def test_other_templates_follow_from_the_generator_alone(interpolating):
    few = digits("test").subset(10)
    (contest,) = wnll.other_templates_contest(digits("train").subset(200), 2).values()
    attack = contest.at(THREAT).attack
    first, again, other = (attack(interpolating, few.images, few.labels, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    default = [attack(interpolating, few.images, few.labels) for _ in range(2)]
    assert torch.equal(*default)


def test_other_templates_are_disjoint_and_as_large_as_there_are_images(interpolating):
    seen = []

    def look(model, images, labels, /, *, generator):
        seen.append(model.head)
        return images

    few, pool = digits("test").subset(5), digits("train").subset(300)
    wnll.other_templates(interpolating, few.images, few.labels, image_set=pool, attack=look, templates=3)
    (head,) = seen
    assert (head.templates, len(head.template)) == (3, 300)
    assert len(head.template_indices.unique()) == 300


def test_an_attacked_image_among_clean_ones_is_like_any_other_where_the_batch_does_not_matter(interpolating):
    few = digits("test").subset(40)
    softmax = interpolating.replace(head=interpolating.head.linear)
    attack = partial(ifgsm, threat=THREAT, steps=3)
    measured = evaluate(softmax, few.images, few.labels, {"IFGSM": attack}).accuracy("IFGSM")
    assert 0 < measured < 1
    assert wnll.among_clean(softmax, few, attack) == measured


def test_attacks_and_decisions_of_the_remarks_share_a_batch(interpolating, monkeypatch):
    sizes = []

    def watched(model, images, labels, attacks, *, batch_size):
        sizes.append((len(images), batch_size))
        return evaluate(model, images, labels, attacks, batch_size=batch_size)

    monkeypatch.setattr(wnll, "evaluate", watched)
    monkeypatch.setattr(wnll, "PUBLISHED_STEPS", 1)
    monkeypatch.setattr(wnll, "AMONG", 10)
    some = digits("test").subset(30)
    found = wnll._remarks(interpolating.replace(head=interpolating.head.linear), interpolating, some)
    assert sizes == [(30, 30)] * 4 + [(10, 10)]
    assert all(0 <= share <= 1 for share in found.values())
    assert len(found) == 8


def test_compare_wnll_gives_tables_that_can_be_stored(quick, tmp_path):
    pixels, trained = wnll.compare_wnll([5])
    assert quick == [("none", ["wnll"], 5), ("pgd", ["wnll"], 5)]
    assert [found.name for found in (pixels, trained)] == ["wnll-pixels", "wnll"]
    assert trained.networks[:3] == ["standard, softmax", "standard, WNLL", "standard, WNLL one at a time"]
    for network in trained.networks:
        for attack in trained.attacks(network):
            assert attack in trained.settings["contests"]
    recorded = trained.settings["contests"]["other templates (EOT)"]["attack"]
    assert (recorded["function"], recorded["templates"], recorded["image_set"]["type"]) == (
        "other_templates",
        2,
        "ImageSet",
    )
    for found in (pixels, trained):
        assert Comparison.load(found.save(tmp_path / f"{found.name}.json")) == found


def test_the_section_has_a_figure_for_each_network(quick):
    section = page.wnll_section(0)
    assert [picture.name for picture in section.pictures] == ["wnll-standard", "wnll-adversarially"]
    for picture, sentence in zip(section.pictures, section.paragraphs[1:], strict=True):
        assert sentence in picture.alt
        assert base64.b64decode(picture.png)[1:4] == b"PNG"
