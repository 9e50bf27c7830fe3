"""Every way to harden a network: who plays with which objective, and what comes out."""

from functools import partial

import pytest
import torch

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import digits
from robustviz.defenses.cas import CASBlock, joint
from robustviz.defenses.wnll_head import WNLLHead
from robustviz.models import initialized
from robustviz.objectives import cross_entropy, mart, trades
from robustviz.pipelines import harden, players
from robustviz.recipes import training_objective
from robustviz.records import RunRecord, describe
from robustviz.training import TrainConfig, train
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def some():
    return digits("train").subset(150)


def hardened(image_set, attack="none", defense="none", **settings):
    config = TrainConfig(epochs=1, batch_size=64, learning_rate=0.05)
    common = {"network": "small_cnn", "config": config, "threat": THREAT, "steps": 2}
    return harden(image_set, attack=attack, defense=defense, **common, **settings)


@pytest.mark.parametrize("attack", ["none", "fgsm-rs", "pgd"])
def test_without_a_defense_all_play_with_cross_entropy(attack):
    objective, against, monitor = players(attack, "none", THREAT, 7)
    assert objective is cross_entropy
    steps = {"none": None, "fgsm-rs": 1, "pgd": 7}[attack]
    assert (against and describe(against)["steps"]) == steps
    assert (monitor and describe(monitor)["steps"]) == (None if attack == "none" else 7)


@pytest.mark.parametrize(("attack", "factor", "with_cas"), [("trades", 6.0, 4.0), ("mart", 5.0, 5.0)])
def test_trades_and_mart_hold_their_attack_and_are_watched_by_pgd(attack, factor, with_cas):
    objective, against, monitor = players(attack, "none", THREAT, 7, 0.02)
    record = describe(objective)
    assert against is None
    assert (record["function"], record["factor"]) == (attack, factor)
    inside = record["attack"]
    assert (inside["function"], inside["steps"], inside["step_size"]) == ("pgd", 7, 0.02)
    assert inside["threat"]["epsilon"] == 0.1
    assert describe(monitor)["objective"]["function"] == "cross_entropy"
    record = describe(players(attack, "cas", THREAT, 7)[0])
    assert (record["function"], record["factor"]) == (attack, with_cas)
    assert record["heads"] == {"function": "cas_heads", "beta": 2.0}


def test_with_cas_trainer_attacker_and_watcher_play_with_the_joint_objective():
    for attack in ("fgsm-rs", "pgd"):
        objective, against, monitor = map(describe, players(attack, "cas", THREAT))
        assert objective == against["objective"] == monitor["objective"] == describe(joint())
    assert players("none", "cas", THREAT)[1:] == (None, None)


def test_objectives_by_name():
    assert training_objective("pgd", THREAT) is cross_entropy
    assert training_objective("trades", THREAT).func is trades
    assert training_objective("mart", THREAT).func is mart


@pytest.mark.parametrize("attack", ["trades", "mart"])
@pytest.mark.parametrize("defense", ["none", "cas"])
def test_training_by_name_is_the_training_loop_with_that_objective(some, attack, defense):
    found = hardened(some, attack, defense)
    inner = partial(pgd, threat=THREAT, steps=2)
    objective = partial({"trades": trades, "mart": mart}[attack], attack=inner)
    monitor = inner
    if defense == "cas":
        objective = joint(partial(objective, factor=4.0) if attack == "trades" else objective)
        monitor = partial(inner, objective=joint())
    model = initialized(found.build, 0)
    config = TrainConfig(epochs=1, batch_size=64, learning_rate=0.05)
    logs = train(model, some.images, some.labels, config, objective=objective, monitor=monitor)
    for own, other in zip(found.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(own, other)
    assert found.logs[0].loss == logs[0].loss
    assert found.logs[0].robust_accuracy is not None
    assert any(isinstance(module, CASBlock) for module in found.model.modules()) == (defense == "cas")
    assert not found.model.training


def test_only_natural_training_is_not_watched(some):
    assert hardened(some).logs[0].robust_accuracy is None
    assert hardened(some, "fgsm-rs").logs[0].robust_accuracy is not None


@pytest.mark.parametrize("defense", ["none", "wnll", "cas"])
def test_what_is_hardened_can_be_stored_and_given_again(some, defense, tmp_path):
    found = hardened(some, "pgd", defense)
    checkpoints.save(tmp_path / "net.safetensors", found.model, found.build, RunRecord("train", {}, {}))
    again, _ = checkpoints.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(some.images[:40]), found.model(some.images[:40]), rtol=0, atol=1e-6)
    assert isinstance(found.model.head, WNLLHead) == (defense == "wnll")
    assert len(found.logs) == (6 if defense == "wnll" else 1)  # twice: one epoch, and two of the buffer


@pytest.mark.parametrize("attack", ["trades", "mart"])
def test_wnll_has_an_objective_of_its_own(some, attack):
    with pytest.raises(ValueError, match=f"none, fgsm-rs or pgd with WNLL, got '{attack}'"):
        hardened(some, attack, "wnll")
