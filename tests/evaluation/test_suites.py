"""The one answer to which attacks a network is measured with."""

from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import ifgsm, pgd
from robustviz.defenses import Contest, Defense, registered
from robustviz.defenses.tvm import TVM
from robustviz.evaluation.suites import (
    SuiteAttack,
    adaptive_attacks,
    baseline,
    contests,
    ensemble,
    published_name,
    published_view,
    standard_ensemble,
    suite,
)
from robustviz.models import small_cnn
from robustviz.records import describe
from robustviz.tensors import norms, seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


def test_the_standard_ensemble_is_one_of_the_suites():
    standard = standard_ensemble(THREAT, 10)
    assert list(standard) == ["APGD-CE-100", "APGD-T-100", "FMN-100", "Square-5000"]
    assert describe(standard) == describe(ensemble(["apgd-ce", "apgd-t", "fmn", "square"], THREAT, 10))
    described = describe(standard)
    assert [settings["function"] for settings in described.values()] == ["apgd", "apgd_targeted", "bounded", "square"]
    assert {settings["threat"]["epsilon"] for settings in described.values()} == {0.1}
    assert described["FMN-100"]["attack"]["norm"] == "linf"
    assert described["APGD-T-100"]["targets"] == 9
    assert describe(standard_ensemble(Threat("l2", 1.0), 3))["APGD-T-100"]["targets"] == 2
    assert describe(standard_ensemble(Threat("l2", 1.0), 3))["FMN-100"]["attack"]["norm"] == "l2"


@pytest.mark.parametrize(("norm", "classes"), [("linf", 2), ("linf", 10), ("l2", 3)])
def test_every_attack_of_a_suite_fools_within_the_threat(digits, norm, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    net[1].weight.data.copy_(torch.randn(classes, 64, generator=seeded(2)))
    images, threat = digits[0][:20], Threat(norm, {"linf": 0.08, "l2": 0.6}[norm])
    labels = net(images).argmax(1)
    names = [name for name in get_args(SuiteAttack) if norm == "l2" or name != "cw"]
    for attack in ensemble(names, threat, classes, steps=10, queries=20).values():
        attacked = attack(net, images, labels)
        assert (norms(attacked - images, norm) <= threat.epsilon + 1e-5).all()
        assert (net(attacked).argmax(1) != labels).any()


def test_unknown_names_list_the_known(unchecked):
    with pytest.raises(ValueError, match=r"apgd-ce, apgd-dlr.*noise, got 'fab'"):
        ensemble(["fab"], THREAT, 10)
    with pytest.raises(ValueError, match="classes must be >= 2, got 1"):
        standard_ensemble(THREAT, 1)
    with pytest.raises(ValueError, match="the threat is linf; use fmn"):
        ensemble(["cw"], THREAT, 10)


def test_every_defense_is_measured_with_the_attacks_made_for_it():
    pgd_attack = {"PGD": partial(pgd, threat=THREAT)}
    interpolating = checkpoints.load("digits-wnll")[0]
    plain, both = checkpoints.load("digits-standard")[0], checkpoints.load("digits-tvm")[0]
    assert suite(plain, pgd_attack, THREAT) == pgd_attack
    borrowed = suite(interpolating, pgd_attack, THREAT)
    assert {"PGD, as published", "surrogate gradient", "wide graph, K = 60"} <= borrowed.keys()
    assert describe(borrowed["PGD, as published"])["view"]["function"] == "surrogate_head"
    iterated = {"IFGSM": partial(ifgsm, threat=THREAT, steps=20)}
    assert "surrogate gradient" not in suite(interpolating, iterated, THREAT)  # the same attack
    purified = suite(both, pgd_attack, THREAT)
    assert list(purified) == ["PGD, as published", "BPDA", "BPDA + EOT"]
    assert describe(purified["PGD, as published"])["view"]["function"] == "unpurified"
    assert list(suite(both, pgd_attack, THREAT, for_defense=False)) == ["PGD, as published"]
    of_both = suite(interpolating.replace(purify=both.purify), pgd_attack, THREAT)["PGD, as published"]
    assert [view["function"] for view in describe(of_both)["view"]["views"]] == ["unpurified", "surrogate_head"]
    on_both = adaptive_attacks(interpolating.replace(purify=both.purify), THREAT)
    assert list(on_both) == ["BPDA", "BPDA + EOT", "BPDA + EOT, from the linear head"]
    assert all(describe(attack)["attack"]["threat"]["epsilon"] == 0.1 for attack in on_both.values())


@pytest.mark.parametrize(
    ("name", "published", "some_adaptive"),
    [
        ("digits-pgd", ["IFGSM"], {"PGD", "PGD, margin"}),
        ("digits-wnll", ["surrogate gradient"], {"exact, margin", "wide graph, K = 60"}),
        ("digits-tvm", ["IFGSM, as published"], {"BPDA", "BPDA + EOT"}),
        ("cifar10-tvm-wnll", ["IFGSM, as published"], {"BPDA + EOT, from the linear head"}),
        ("digits-pgd-cas", ["IFGSM"], {"PGD, margin", "joint, beta = 2", "soft mask, joint"}),
    ],
)
def test_contests_are_published_and_adaptive_and_hold_the_adaptive_set(name, published, some_adaptive):
    network = checkpoints.load(name)[0]
    found = contests(network, THREAT)
    assert [key for key, contest in found.items() if contest.kind == "published"] == published
    assert published_name(dict(reversed(found.items()))) == published[0], "told by its kind, not by its position"
    assert some_adaptive <= found.keys()
    made = adaptive_attacks(network, THREAT)
    assert {key: describe(contest.attack) for key, contest in found.items() if key in made} == describe(made)
    short = {key: describe(contest.attack) for key, contest in contests(network, THREAT, steps=3).items()}
    steps = {key: settings.get("attack", settings).get("steps") for key, settings in short.items()}
    assert {steps[key] for key in steps if "beta" not in key and "mask" not in key and key != "auxiliary only"} == {3}


def test_without_a_published_contest_there_is_no_name():
    with pytest.raises(ValueError, match="contests must hold one of the kind published, got PGD"):
        published_name({"PGD": baseline()["PGD"]})


def halved(model):
    return model.replace(purify=None)


def test_a_defense_without_attacks_is_measured_with_the_usual_ones_in_both_views():
    record = Defense(
        "mine",
        "",
        "",
        present=lambda network: hasattr(network, "mine"),
        build=lambda network: network,
        published=halved,
    )
    network = small_cnn()
    network.mine = True
    with registered(record):
        assert published_view(network) is halved
        found = contests(network, THREAT)
    assert {name: contest.kind for name, contest in found.items()} == {
        "IFGSM, as published": "published",
        "PGD": "adaptive",
        "PGD, margin": "adaptive",
    }


def test_attacks_of_a_registered_defense_join_those_of_the_others():
    record = Defense(
        "mine",
        "",
        "",
        present=lambda network: hasattr(network, "mine"),
        build=lambda network: network,
        attacks=lambda network, threat: {"mine": Contest(partial(pgd, threat=threat))},
    )
    network = small_cnn().replace(purify=TVM())
    network.mine = True
    with registered(record):
        assert list(adaptive_attacks(network, THREAT)) == ["BPDA", "BPDA + EOT", "mine"]
    assert list(adaptive_attacks(network, THREAT)) == ["BPDA", "BPDA + EOT"]
