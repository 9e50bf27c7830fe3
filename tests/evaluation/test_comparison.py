"""Comparisons on a model whose every decision is known."""

from dataclasses import replace
from functools import partial
from math import isnan

import pytest
import torch
from torch import nn

from robustviz.data import ImageSet
from robustviz.defenses import Contest
from robustviz.defenses.defense import at
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison, Entry, compare, spread
from robustviz.models import Classifier
from robustviz.tensors import project

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
    networks = {"linear": Entry(linear(), partial(at, contests))}
    return compare("test", lambda seed: iter(networks.items()), LINE, seeds=seeds, epsilons=epsilons, **settings)


BRIGHT = Contest(partial(push, rows=slice(0, 5)), "published")
DARK = Contest(partial(push, rows=slice(5, 7)))


def test_worst_cases_are_derived_image_by_image():
    # Of five bright and two dark images, those nearer than epsilon fall: 1 + 1, 2 + 2, 3 + 2 of 10.
    found = measured({"bright": BRIGHT, "dark": DARK}, settings={})
    expected = {0.1: (0.9, 0.9, 0.8), 0.2: (0.8, 0.8, 0.6), 0.3: (0.7, 0.8, 0.5)}
    assert found.epsilons == list(expected)
    for epsilon, (bright, dark, both) in expected.items():
        shares = [found.mean("linear", epsilon, name) for name in ("clean", "bright", "dark", PUBLISHED, WORST_OF_ALL)]
        assert shares == pytest.approx([1.0, bright, dark, bright, both])


def test_an_image_that_is_wrong_without_attack_counts_in_both_worst_cases():
    wrong = replace(LINE, labels=LINE.labels.clone())
    wrong.labels[9] = 1
    nothing = Contest(partial(push, rows=slice(0, 0)))
    entries = {"linear": Entry(linear(), partial(at, {"nothing": nothing, "bright": BRIGHT}))}
    found = compare("test", lambda seed: iter(entries.items()), wrong, seeds=[0], epsilons=[0.1], settings={})
    assert found.mean("linear", 0.1, PUBLISHED) == pytest.approx(0.8)
    assert found.mean("linear", 0.1, WORST_OF_ALL) == pytest.approx(0.8)


def two_networks(seed):
    """The second meets one attack more, and in seed 1 both are met by a weaker one."""
    dark = Contest(partial(push, rows=slice(5, 7 - seed)))
    yield "plain", Entry(linear(), partial(at, {"bright": BRIGHT}), {"seed": float(seed)})
    yield "defended", Entry(linear(), partial(at, {"bright": BRIGHT, "dark": dark}))


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
        [WORST_OF_ALL, "80.0 ± 0.0", "65.0 ± 7.1"],
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
    assert said[0] == f"seed 0, plain, epsilon 0.2: clean 100.0%, {PUBLISHED} 80.0%, {WORST_OF_ALL} 80.0%"


def test_comparisons_are_stored_and_read_again(over_seeds, tmp_path):
    found, _ = over_seeds
    path = found.save(tmp_path / "two.json")
    assert Comparison.load(path) == found
    for damaged in ('{"name": "two"}', "nothing"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"two\.json is not a comparison"):
            Comparison.load(path)


@pytest.mark.parametrize(("epsilons", "seeds"), [((0.1, 0.10001), [0]), ((), [0]), ((0.1,), [])])
def test_strengths_that_a_record_cannot_tell_apart_are_refused(epsilons, seeds):
    with pytest.raises(ValueError, match="epsilons must be one or more that differ in their first four digits, and"):
        measured({"bright": BRIGHT}, epsilons, seeds, settings={})
