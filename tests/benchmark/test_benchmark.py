"""RESULTS.md: networks are measured once, claims are judged by their rule, and the page says nothing else."""

import json
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from robustviz import checkpoints, cli
from robustviz.attacks import carlini_wagner, fgsm
from robustviz.benchmark.claims import RULE, Claim, claims, difference, verdict
from robustviz.benchmark.measure import Effort, measure_network, plans, setting_of, survivors
from robustviz.benchmark.page import cost, write_page
from robustviz.benchmark.record import ASSEMBLED, Condition, NetworkResults, how_trained, known_results, share
from robustviz.data import digits
from robustviz.evaluation import evaluate, wilson
from robustviz.fingerprint import differing
from robustviz.models import Normalize
from robustviz.objectives import cross_entropy
from robustviz.records import describe, revision
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)
TINY = Effort(
    images=30, few=10, steps=2, ensemble_steps=2, targets=1, square_steps=3, cw_steps=3, cw_search=1, batch_size=20
)


def opened(name, folder, **force):
    model, record = checkpoints.load(name)
    test_set = digits("test").subset(TINY.images)
    return model, test_set, known_results(name, record, test_set, False, THREAT, 1.0, folder, **force)


def measured(name, folder, suites=("common",), effort=TINY):
    """Measure a shipped network; return its results and the conditions that were computed, in order."""
    model, test_set, known = opened(name, folder)
    done = []

    def store(results):
        done.append(list(results.conditions)[-1])
        results.save(folder)

    todo = plans(model, THREAT, effort, suites)
    return measure_network(model, known, test_set, todo, effort, store=store), done


def test_a_condition_is_what_evaluate_gives(tmp_path):
    results, _ = measured("digits-standard", tmp_path)
    model, test_set, _ = opened("digits-standard", tmp_path)
    images, labels = test_set.images, test_set.labels
    direct = evaluate(
        model,
        images,
        labels,
        {"FGSM": lambda *a, generator=None: fgsm(*a, threat=THREAT)},
        batch_size=20,
        generator=seeded(0),
    )
    for row, name in enumerate(("clean", "FGSM")):
        assert torch.equal(results.right(name), direct.correct[row])
    near = carlini_wagner(model, images[:10], labels[:10], steps=3, search_steps=1, generator=seeded(0))
    lengths = (near - images[:10]).flatten(1).norm(dim=1)
    np.testing.assert_allclose(results.conditions["CW-L2"].distances, lengths, atol=1e-5)
    assert results.conditions["CW-L2"].setting["images"] == 10
    assert NetworkResults.load(tmp_path / "digits-standard.json") == results


def test_nothing_is_measured_twice(tmp_path):
    first, done = measured("digits-standard", tmp_path, ("common", "ensemble"))
    assert done == ["clean", "FGSM", "IFGSM-2", "PGD-2", "CW-L2", "APGD", "APGD, targeted", "FMN", "Square"]
    again, done = measured("digits-standard", tmp_path, ("common", "ensemble"))
    assert (again, done) == (first, [])
    _, done = measured("digits-standard", tmp_path, ("common", "ensemble"), replace(TINY, square_steps=4))
    assert done[-1] == "Square"
    assert len(done) == 1
    file = tmp_path / "digits-standard.json"
    content = json.loads(file.read_text())
    del content["conditions"]["FGSM"], content["conditions"]["FMN"]
    file.write_text(json.dumps(content))
    back, _ = measured("digits-standard", tmp_path, ("common", "ensemble"))
    assert {name: entry.right for name, entry in back.conditions.items()} == {
        name: entry.right for name, entry in first.conditions.items()
    }


def remeasured(folder, **changed):
    """Conditions that are measured again once attacks of the plans are replaced."""
    model, test_set, known = opened("digits-standard", folder)
    todo = plans(model, THREAT, TINY, ("common",))
    todo = {name: replace(plan, attack=changed.get(name, plan.attack)) for name, plan in todo.items()}
    done = []
    measure_network(model, known, test_set, todo, TINY, store=lambda results: None, say=done.append)
    return [line.split(":")[0].split(", ", 1)[1] for line in done]


def test_a_new_keyword_leaves_conditions_valid_and_a_revision_makes_its_own_stale(tmp_path):
    def grown(model, images, labels, /, *, threat, objective=cross_entropy, targeted=False, width=1, generator=None):
        return fgsm(model, images, labels, threat=threat, objective=objective, targeted=targeted)

    grown.__name__ = "fgsm"
    measured("digits-standard", tmp_path)
    assert remeasured(tmp_path) == []
    assert remeasured(tmp_path, FGSM=partial(grown, threat=THREAT)) == []
    assert remeasured(tmp_path, FGSM=partial(grown, threat=THREAT, width=2)) == ["FGSM"]
    assert remeasured(tmp_path, FGSM=partial(revision(2)(grown), threat=THREAT)) == ["FGSM"]


SHARES = replace(TINY, images=20, few=12, batch_size=7, draws=4)


def by_shares(name, folder, **settings):
    model, test_set, known = opened(name, folder)
    said = []
    todo = plans(model, THREAT, SHARES, ("common", "adaptive", "heads"))
    keep = {name: plan for name, plan in todo.items() if name in (*KEPT, *settings.pop("more", ()))}
    store = settings.pop("store", lambda results: results.save(folder))
    return measure_network(model, known, test_set[:20], keep, SHARES, store=store, say=said.append, **settings), said


KEPT = ("clean", "FGSM", "PGD-2", "CW-L2", "transfer, margin", "BPDA", "clean, linear head beside")


@pytest.mark.parametrize("name", ["digits-tvm", "digits-wnll"])
def test_networks_that_do_not_always_answer_alike_are_measured_by_shares(tmp_path, name):
    results, said = by_shares(name, tmp_path)
    again, nothing = by_shares(name, tmp_path)
    assert (again, nothing) == (results, [])
    joint = name == "digits-wnll"
    assert (ASSEMBLED in results.conditions) == joint
    model, test_set, _ = opened(name, tmp_path)
    todo = plans(model, THREAT, SHARES, ("common", "adaptive"))
    members = [member for member in results.worst_members() if not todo[member].few]
    attacks = {member: todo[member].attack for member in members if member != "clean"}
    part, settings = test_set[:20], {"batch_size": 7, "draws": 4, "generator": seeded(0)}
    table = evaluate(model, part.images, part.labels, attacks, **settings)
    for row, member in enumerate(table.conditions):
        assert torch.equal(results.right(member), table.correct[row])
        assert results.conditions[member].setting["draws"] == 4
        assert results.conditions[member].setting["jointly"] == joint
    if joint:
        assert torch.equal(results.right(ASSEMBLED), table.assembled == table.labels)
        assert share(results.correct(*results.worst_members())) == (table.worst_case(), table.worst_case_interval())
        assert len(results.conditions["clean, linear head beside"].right) == 20  # which answers alike
    assert share(results.correct(*members)) == (table.worst_case(), table.worst_case_interval())
    assert results.correct("clean", "CW-L2").shape == (4, 12)
    assert len(said) == len(results.conditions)
    assert "figures are shares of these answers" in write_page({name: results})


def test_conditions_that_are_measured_together_go_on_after_a_stop(tmp_path):
    class Stopped(Exception):  # noqa: N818 (nothing is wrong)
        pass

    def stop(condition, done, total):
        if condition == "PGD-2":
            raise Stopped

    whole, _ = by_shares("digits-wnll", tmp_path / "whole")
    unfinished = tmp_path / "unfinished"
    with pytest.raises(Stopped):
        by_shares("digits-wnll", tmp_path / "parts", unfinished=unfinished, on_batch=stop)
    assert unfinished.exists()
    parts, _ = by_shares("digits-wnll", tmp_path / "parts", unfinished=unfinished)
    assert {name: entry.right for name, entry in parts.conditions.items()} == {
        name: entry.right for name, entry in whole.conditions.items()
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_revision_of_a_defense_makes_every_condition_of_its_networks_stale(tmp_path, monkeypatch):
    measured("digits-standard", tmp_path)
    monkeypatch.setattr(Normalize, "revision", 2, raising=False)
    assert remeasured(tmp_path) == ["clean", "FGSM", "IFGSM-2", "PGD-2", "CW-L2"]


SHIPPED_RESULTS = [
    file
    for file in sorted((Path(__file__).parents[2] / "data" / "results" / "cifar10").glob("*.json"))
    if file.stem in checkpoints.shipped()
]


@pytest.mark.parametrize("file", SHIPPED_RESULTS, ids=lambda file: file.stem)
def test_nothing_that_is_shipped_is_measured_again(file):
    """Settings of every shipped condition mean what today's plan would do, unless its attack has been mended since."""
    results, (model, record) = NetworkResults.load(file), checkpoints.load(file.stem)
    assert results.identity["weights"] == record.results["sha256"]
    threat = Threat(results.threat["norm"], results.threat["epsilon"])
    effort = Effort(draws=max(condition.setting.get("draws", 1) for condition in results.conditions.values()))
    todo = plans(model, threat, effort, ("common", "heads", "adaptive", "ensemble"))
    assert todo.keys() == results.conditions.keys() - {ASSEMBLED}
    for name in todo:
        condition = results.conditions[name]
        seen = model if todo[name].view is None else todo[name].view(model)
        attacked = survivors(results, todo[name], condition.setting["images"])
        changed = differing(condition.setting, setting_of(todo[name], seen, attacked, effort))
        mended = revised(describe(todo[name].attack)) - revised(condition.setting["attack"])
        assert changed == (["attack"] if mended else []), name


def revised(setting):
    """Functions in a description that have a revision, with it."""
    if not isinstance(setting, dict):
        return set()
    inner = set().union(*(revised(value) for value in setting.values()))
    return inner | ({(setting["function"], setting["revision"])} if "revision" in setting else set())


@pytest.mark.parametrize("field", ["weights", "images"])
def test_records_of_other_weights_or_images_are_left_alone(tmp_path, field):
    results, _ = measured("digits-standard", tmp_path)
    replace(results, identity=results.identity | {field: "another"}).save(tmp_path)
    with pytest.raises(FileExistsError, match="is about other weights, images or limits"):
        opened("digits-standard", tmp_path)
    assert opened("digits-standard", tmp_path, force=True)[2].conditions == {}


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "digits-standard.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no results of a network"):
        opened("digits-standard", tmp_path)
    assert not opened("digits-standard", tmp_path, force=True)[2].conditions


def test_the_ensemble_is_a_cascade_but_not_for_a_head_that_answers_by_batches(tmp_path):
    results, _ = measured("digits-standard", tmp_path, ("ensemble",))
    left = [results.right(name) for name in results.members("ensemble")]
    assert all((after <= before).all() for before, after in pairwise(left))
    model, _ = checkpoints.load("digits-pgd-wnll")
    assert all(not plan.after for plan in plans(model, THREAT, TINY, ("ensemble",)).values())


@pytest.mark.parametrize(
    ("name", "published", "adaptive"),
    [
        ("digits-pgd", None, 0),
        ("digits-pgd-wnll", "surrogate_head", 7),
        ("digits-pgd-cas", None, 8),
        ("digits-tvm", "unpurified", 2),
    ],
)
def test_published_attacks_go_the_published_way(name, published, adaptive):
    """And the published attack is not measured again among the adaptive ones."""
    made = plans(checkpoints.load(name)[0], THREAT, replace(TINY, steps=20), ("common", "adaptive"))
    kinds = [plan.suite for plan in made.values()]
    assert kinds.count("adaptive") >= adaptive
    assert (kinds.count("adaptive") == 0) == (adaptive == 0)
    described = json.dumps([str(plan.attack) for plan in made.values() if plan.suite == "common"][1:])
    assert (described.count(published) == 4) if published else ("view" not in described)
    assert len({str(plan.attack) for plan in made.values()}) == len(made)


def test_heads_of_wnll(tmp_path):
    results, _ = measured("digits-wnll", tmp_path, ("heads",))
    model, test_set, _ = opened("digits-wnll", tmp_path)
    linear = model.replace(head=model.head.linear)
    with torch.no_grad():
        expected = linear(test_set.images).argmax(1) == test_set.labels
    assert torch.equal(results.right("clean, linear head beside"), expected[None])
    assert results.members("heads") == ["clean, one at a time", "clean, linear head beside"]


def made(name, network="resnet20", **rights):
    """Results with given decisions; the clean images come first."""
    conditions = {
        key.replace("_", "-"): Condition(suite, {"attack": None}, right, distances, 1.0)
        for key, (suite, right, distances) in rights.items()
    }
    known = how_trained(checkpoints.load("digits-standard")[1]) | {"network": network}
    data = {"name": "cifar10", "pictures": True}
    threat = {"norm": "linf", "epsilon": 8 / 255, "l2": 0.5}
    return NetworkResults(name, known, data, threat, {"weights": name, "images": "same"}, conditions)


def ones(count, of=100):
    return "1" * count + "0" * (of - count)


def pair(published, worst, network="resnet20"):
    """A network that is 46 % right under IFGSM and 40 % in the worst case, and one with a defense."""
    before = {"clean": ones(80), "IFGSM_20": ones(46), "APGD": ones(40)}
    after = {"clean": ones(80), "IFGSM_20": ones(published), "APGD": ones(worst)}
    suites = {"clean": "common", "IFGSM_20": "common", "APGD": "ensemble"}
    return {
        name: made(name, network, **{key: (suites[key], right, []) for key, right in rights.items()})
        for name, rights in {"before": before, "after": after}.items()
    }


CLAIM = Claim("a paper", "a defense helps", "resnet20", "before", "after", "IFGSM-20", 23.0, "46 -> 69")


@pytest.mark.parametrize(
    ("published", "worst", "expected"),
    [
        (69, 60, "reproduced"),
        (58, 52, "reproduced"),  # half of the gain
        (57, 52, "not reproduced"),
        (69, 51, "reproduced only under the published attack"),
        (69, 30, "reproduced only under the published attack"),
        (40, 60, "not reproduced"),
    ],
)
def test_the_rule(published, worst, expected):
    outcome = verdict(CLAIM, pair(published, worst))
    assert outcome.text == expected
    assert outcome.published[0] == pytest.approx(published - 46)
    assert outcome.worst[0] == pytest.approx(min(published, worst) - 40)
    on_another = verdict(replace(CLAIM, network="resnet56"), pair(published, worst))
    assert on_another.text == f"tested on ResNet20 instead: {expected}"


def test_without_a_figure_any_gain_beyond_chance_will_do():
    assert verdict(replace(CLAIM, gain=None), pair(52, 46)).text == "reproduced"
    assert verdict(replace(CLAIM, gain=None), pair(49, 46)).text == "not reproduced"  # 3 of 100 may be chance


def test_what_was_not_tested_is_said():
    both = pair(69, 60)
    assert "before and after not trained here" in verdict(CLAIM, {}).text
    assert "after not trained here: a matter of hours without a GPU" in verdict(CLAIM, {"before": both["before"]}).text
    assert "FGSM was not measured" in verdict(replace(CLAIM, condition="FGSM"), both).text
    other = replace(both["after"], identity={"weights": "after", "images": "others"})
    assert "same images" in verdict(CLAIM, both | {"after": other}).text


def test_difference_is_the_paired_interval():
    before, after = (torch.rand(400, generator=seeded(seed)) < share for seed, share in ((1, 0.4), (2, 0.6)))
    mean, low, high = difference(before.double(), after[:300].double())
    gains = 100 * (after[:300].double() - before[:300].double()).numpy()
    interval = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert mean == pytest.approx(gains.mean())
    assert (low, high) == pytest.approx((interval.low, interval.high), rel=0.02)  # normal instead of t


def test_carlini_wagner_counts_within_its_radius():
    near = made("x", clean=("common", "1110", []), CW_L2=("common", "0100", [0.4, 0.0, 0.7, 0.1]))
    assert near.right("CW-L2").tolist() == [[False, True, True, False]]
    assert near.median_distance() == pytest.approx(0.7)  # of 0.4, infinity, 0.7
    assert near.worst_members() == ["clean"]


def test_the_worst_case_is_over_the_images_that_all_attacks_met():
    entry = made("x", clean=("common", "1111", []), FGSM=("common", "1101", []), BPDA=("adaptive", "01", []))
    assert entry.correct("clean", "FGSM", "BPDA").tolist() == [[False, True]]


def test_the_page_comes_from_the_records_alone():
    both = pair(69, 30)
    networks = {"cifar10-pgd": both["before"], "cifar10-pgd-wnll": both["after"]}
    networks = {name: replace(entry, name=name) for name, entry in networks.items()}
    page = write_page(networks)
    low, high = wilson(0.69, 100)
    assert f"69.0 ({100 * low:.1f} to {100 * high:.1f})" in page
    assert RULE in page
    assert "JPEG-decoded CIFAR-10 pictures: 100 test images" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| WNLL makes")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4] == "46.0 % -> 69.0 %"
    assert cells[-2] == "reproduced only under the published attack"
    assert page.count("not trained here: ") == len(claims()) - 1
    assert f"In short: of {len(claims())} claims, 1 reproduced only under the published attack; " in page
    for entry in networks.values():
        assert entry.network["command"] in page


def test_without_an_attack_there_is_no_worst_case_and_networks_to_train_are_named():
    entry = made("cifar10-1k", clean=("common", "1111", []))
    page = write_page({"cifar10-1k": entry, "cifar10-pgd": replace(entry, name="cifar10-pgd")})
    (line,) = [line for line in page.splitlines() if line.startswith("| cifar10-1k") and "100.0" in line]
    assert [cell.strip() for cell in line.split("|")][-3:] == ["-", "0", ""]
    assert "These do not come with the library: cifar10-1k. Given again by:" in page


def test_every_claim_has_a_source_and_networks():
    for claim in claims():
        assert re.search(r"arXiv \d{4}\.\d{5}, \w", claim.source)
        assert claim.before != claim.after
        assert claim.after.startswith("cifar10-")


def test_cost_finds_the_settings_of_parts():
    described = {"function": "against", "attack": {"function": "pgd", "steps": 10, "restarts": 1}, "view": {"draws": 5}}
    assert cost(described) == {"steps": 10, "draws": 5}


def test_the_command(tmp_path, capsys):
    out, page = tmp_path / "records", tmp_path / "RESULTS.md"
    words = ["results", "digits-standard", "--data", "digits", "--images", "20", "--few", "10", "--suites", "heads"]
    places = ["--out", str(out), "--page", str(page)]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            cli.app([*words, *places])
        assert not end.value.code
    printed = capsys.readouterr().out
    assert printed.count("digits-standard, clean: ") == 1
    assert "1 conditions known" in printed
    text = page.read_text()
    page.unlink()
    with pytest.raises(SystemExit):
        cli.app(["results", "--write-only", *places])
    assert page.read_text() == text
    assert "digits: 20 test images" in text


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="no network whose name begins with cifar11-"):
        cli.app(["results", "--data", "cifar11", "--out", str(tmp_path)], exit_on_error=False, print_error=False)
    with pytest.raises(FileNotFoundError, match="holds no results"):
        cli.app(["results", "--write-only", "--out", str(tmp_path)], exit_on_error=False, print_error=False)
