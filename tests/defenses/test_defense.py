"""A defense as a record: what is known, what a network has, and what its attacks are."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import against, pgd, transfer
from robustviz.data import digits
from robustviz.defenses import DEFENSES, Contest, Defense, Stage, Training, known, named, present, registered
from robustviz.defenses.defense import NoOptions, at, itself
from robustviz.objectives import cross_entropy
from robustviz.records import describe
from robustviz.training import TrainConfig
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)
MINE = Defense(
    "mine", "Mine", "nobody", present=lambda network: hasattr(network, "mine"), build=lambda network: network
)


@pytest.mark.parametrize("name", list(checkpoints.shipped()))
def test_the_records_tell_what_a_network_has(name):
    network, record = checkpoints.load(name)
    made = record.settings["architecture"]
    assert [defense.name for defense in present(network)] == [
        d.name for d in DEFENSES if made.get(d.name) not in (None, False)
    ]
    for defense in present(network):
        settings = defense.settings(network)
        known = made[defense.name] if isinstance(made[defense.name], dict) else {}
        assert {name: settings[name] for name in known} == known, "the checkpoint has these already"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-pgd", []),
        ("digits-tvm", ["BPDA", "BPDA + EOT"]),
        ("cifar10-tvm-wnll", ["BPDA", "BPDA + EOT", "BPDA + EOT, from the linear head"]),
        (
            "digits-pgd-wnll",
            [
                "surrogate gradient", "surrogate on log u", "transfer from the linear head", "transfer, margin",
                "exact, -log u", "exact, margin", "one at a time, margin", "wide graph, K = 60",
            ],
        ),
        (
            "digits-pgd-cas",
            [
                "joint, beta = 0.5", "joint, beta = 2", "joint, beta = 10", "joint, beta = 100", "auxiliary only",
                "soft mask, final logits", "soft mask, joint", "soft mask, margin",
            ],
        ),
    ],
)  # fmt: skip
def test_attacks_of_several_defenses_are_made_together_at_the_threat(name, expected):
    network = checkpoints.load(name)[0]
    contests = {key: c for defense in present(network) for key, c in defense.attacks(network, THREAT).items()}
    assert list(contests) == expected
    for contest in contests.values():
        attack = describe(contest.attack)
        attack = attack.get("attack", attack)
        assert attack["threat"]["epsilon"] == 0.1
    assert [key for key, c in contests.items() if c.kind == "published"] == expected[: name == "digits-pgd-wnll"]


def test_a_record_is_known_inside_its_block_alone():
    assert MINE not in known()
    with registered(MINE) as record:
        assert record is named("mine")
        assert known() == (*DEFENSES, MINE)
        own = nn.Linear(1, 1)
        own.mine = True
        assert present(own) == (MINE,)
        with pytest.raises(ValueError, match="there is a defense 'mine' already"), registered(MINE):
            pass
        assert named("mine") is MINE, "a refused record takes nothing away"
    with pytest.raises(RuntimeError), registered(MINE):
        raise RuntimeError
    assert known() == DEFENSES
    with pytest.raises(ValueError, match=r"one of .*cas, wnll, tvm, got 'mine'; one of your own needs `with"):
        named("mine")


@dataclass
class Changeable:
    share: float = 0.5


@dataclass(frozen=True)
class Demanding:
    share: float


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"name": "two words"}, ValueError, "lower-case letters, digits and underscores, got 'two words'"),
        ({"name": "none"}, ValueError, "another word than channels, classes"),
        ({"name": "Mine"}, ValueError, "lower-case"),
        ({"name": ""}, ValueError, "got ''"),
        ({"options": Changeable}, ValueError, "options must be a frozen dataclass"),
        ({"options": Demanding}, TypeError, "share"),
    ],
)
def test_a_record_that_cannot_be_one_is_refused(settings, error, said):
    common = {"name": "mine", "title": "", "source": "", "present": MINE.present, "build": MINE.build}
    with pytest.raises(error, match=said):
        Defense(**(common | settings))


def test_a_contest_keeps_its_own_settings_at_every_threat():
    contest = Contest(partial(against, view=nn.Module, attack=partial(pgd, steps=7, restarts=2)), "published")
    there = at({"it": contest}, THREAT)["it"]
    inner = describe(there.attack)["attack"]
    assert (inner["threat"]["epsilon"], inner["steps"], inner["restarts"], there.kind) == (0.1, 7, 2, "published")
    assert describe(there.with_steps(3).attack)["attack"]["steps"] == 3
    assert Contest(partial(pgd, threat=THREAT)).with_steps(3).attack.keywords == {"threat": THREAT}


def test_the_threat_reaches_the_innermost_attack():
    threat = Threat("linf", 0.07)
    for attack in (pgd, partial(against, view=itself, attack=partial(transfer, source=nn.Linear(1, 1), attack=pgd))):
        settings = describe(Contest(attack).at(threat).attack)
        while "attack" in settings:
            assert "threat" not in settings
            settings = settings["attack"]
        assert (settings["function"], settings["threat"]["epsilon"]) == ("pgd", 0.07)


def test_stages_of_a_training_are_made_by_the_defenses_behind_it(shipped_small):
    training = shipped_small

    def outer(training):
        yield from training.stages()
        yield Stage("outer", gather=bool)

    def inner(training):
        for stage in training.configured(epochs=3).stages():
            yield stage
            yield Stage("inner", gather=bool)

    assert [stage.name for stage in training.stages()] == ["training"]
    stages = list(Training(**(vars(training) | {"behind": (outer, inner)})).stages())
    assert [stage.name for stage in stages] == ["training", "inner", "outer"]
    assert stages[0].training.config.epochs == 3
    assert training.kept.tolist() == [0, 2, 4]
    assert NoOptions() == MINE.configured({"other": 1})


@pytest.fixture
def shipped_small():
    some = digits("train").subset(5)
    return Training(checkpoints.load("digits-pgd")[0], some, torch.tensor([1, 3]), TrainConfig(), cross_entropy)
