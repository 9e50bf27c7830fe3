"""Every way to harden a network: who plays with which objective, and what comes out."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import ImageSet, digits
from robustviz.defenses import Defense, named, present, registered
from robustviz.defenses.assembly import check_same_shape, defended
from robustviz.defenses.cas import CASBlock, joint
from robustviz.defenses.defense import Training
from robustviz.defenses.tvm import TVM, total_variation
from robustviz.defenses.wnll import features_of, record
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.models import MODELS, Classifier, initialized, small_cnn
from robustviz.objectives import cross_entropy, mart, trades
from robustviz.presets import training_objective
from robustviz.records import RunRecord, describe
from robustviz.training import TrainConfig, hold_out, train
from robustviz.training import stages as pipelines
from robustviz.training.stages import harden, players, state_files
from robustviz.training.state import EpochLog
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def some():
    return digits("train").subset(150)


def hardened(image_set, attack="none", defense="none", **settings):
    config = TrainConfig(epochs=1, batch_size=64, learning_rate=0.05)
    common = {"network": "small_cnn", "config": config, "threat": THREAT, "steps": 2}
    chosen = [] if defense == "none" else [named(defense)]
    return harden(image_set, attack=attack, defenses=chosen, **common, **settings)


def first_stage(attack, defense, *steps):
    """The players of the first stage of a training."""
    objective, against, monitor = players(attack, THREAT, *steps)
    data = digits("train").subset(20)
    training = Training(small_cnn(), data, torch.arange(2), TrainConfig(), objective, against, monitor)
    if defense != "none":
        training = replace(training, behind=[partial(named(defense).stages, options=named(defense).options())])
    stage = next(training.stages()).training
    return stage.objective, stage.attack, stage.monitor


@pytest.mark.parametrize("attack", ["none", "fgsm-rs", "pgd"])
def test_without_a_defense_all_play_with_cross_entropy(attack):
    objective, against, monitor = first_stage(attack, "none", 7)
    assert objective is cross_entropy
    steps = {"none": None, "fgsm-rs": 1, "pgd": 7}[attack]
    assert (against and describe(against)["steps"]) == steps
    assert (monitor and describe(monitor)["steps"]) == (None if attack == "none" else 7)


@pytest.mark.parametrize(("attack", "factor", "with_cas"), [("trades", 6.0, 4.0), ("mart", 5.0, 5.0)])
def test_trades_and_mart_hold_their_attack_and_are_watched_by_pgd(attack, factor, with_cas):
    objective, against, monitor = first_stage(attack, "none", 7, 0.02)
    record = describe(objective)
    assert against is None
    assert (record["function"], record["factor"]) == (attack, factor)
    inside = record["attack"]
    assert (inside["function"], inside["steps"], inside["step_size"]) == ("pgd", 7, 0.02)
    assert inside["threat"]["epsilon"] == 0.1
    assert describe(monitor)["objective"]["function"] == "cross_entropy"
    record = describe(first_stage(attack, "cas", 7)[0])
    assert (record["function"], record["factor"]) == (attack, with_cas)
    assert record["heads"] == {"function": "cas_heads", "beta": 2.0}


def test_with_cas_trainer_attacker_and_watcher_play_with_the_joint_objective():
    for attack in ("fgsm-rs", "pgd"):
        objective, against, monitor = map(describe, first_stage(attack, "cas"))
        assert objective == against["objective"] == monitor["objective"] == describe(joint())
    assert first_stage("none", "cas")[1:] == (None, None)


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
    with pytest.raises(ValueError, match=f"none, fgsm-rs or pgd with WNLL, .*got {attack}"):
        hardened(some, attack, "wnll")


# WNLL: two stages.


@pytest.fixture
def given(monkeypatch):
    """What the training loop is given, instead of training."""
    calls = []

    def watch(model, images, labels, config, *, validation, **settings):
        calls.append((model, images, *hold_out(labels, validation), config, settings))
        return [EpochLog(1, 0.0, None, None, 0.0, chosen=True)]

    monkeypatch.setattr(pipelines, "train", watch)
    return calls


def same_rows(images, others):
    """Whether the same images stand in both, in any order."""
    first, second = ({row.numpy().tobytes() for row in some} for some in (images, others))
    return first == second


def test_both_stages_choose_the_epoch_on_images_that_nothing_is_learned_from(some, given):
    said = []
    hardened(some, defense="wnll", validation=0.2, options={"rounds": 3}, say=said.append)
    known, unseen = hold_out(some.labels, 0.2)
    assert len(given) == len(said) == 6
    for number, (_, images, kept, held, config, settings) in enumerate(given):
        assert same_rows(images[held], some.images[unseen])
        assert settings["resume"] is None
        if number % 2 == 0:
            assert same_rows(images[kept], some.images[known])
            assert config.learning_rate == pytest.approx(0.05 if number == 0 else 0.01)
        else:
            pool = settings["objective"].keywords["template_set"].images
            assert same_rows(torch.cat([images[kept], pool]), some.images[known])
            assert len(kept) == len(pool) == 60
            assert (config.epochs, config.learning_rate) == (2, 0.01)


def test_the_template_of_stage_b_is_current_when_the_epoch_is_judged(some, monkeypatch):
    seen = []

    def watch(model, *data, on_epoch, **settings):
        def check(log):
            if isinstance(model.head, WNLLHead):
                pool = settings["objective"].keywords["template_set"]
                torch.testing.assert_close(
                    model.head.template, features_of(model, pool.images[model.head.template_indices])
                )
                seen.append(model.head.template.clone())

        return train(model, *data, on_epoch=check, **settings)

    monkeypatch.setattr(pipelines, "train", watch)
    monkeypatch.setitem(record.BUFFER, "learning_rate", 0.05)
    found = hardened(some, defense="wnll", options={"rounds": 1})
    assert len(seen) == 2
    assert not torch.equal(*seen)
    assert not found.model.head.template.isnan().any()


def test_too_few_images_are_refused_before_anything_is_trained(given):
    with pytest.raises(ValueError, match=r"--images.*lack 1 of 10 classes.* 29\.3 on average"):
        hardened(digits("train").subset(20), defense="wnll")
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        hardened(digits("train").subset(60), defense="wnll", options={"rounds": 0})
    assert not given


def test_an_interrupted_stage_goes_on_to_the_same_weights(some, tmp_path):
    common = {"attack": "fgsm-rs", "defense": "wnll", "options": {"rounds": 1}}
    whole, stopped = hardened(some, **common), []

    def stop(log, epochs):
        stopped.append((log.epoch, epochs))
        if len(stopped) == 2:  # the first epoch of stage B
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hardened(some, **common, state=tmp_path / "state", on_epoch=stop)
    assert stopped == [(1, 1), (1, 2)]
    again = hardened(some, **common, state=tmp_path / "state")
    for own, other in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(own, other)


# Beginning with a trained network.


@pytest.fixture(scope="module")
def trained():
    return checkpoints.load("digits-standard")[0]


SMALL = partial(defended, network="small_cnn", channels=1)


def first_model(some, start, defense, **settings):
    """The network of the first stage of a training that begins with a trained one."""
    training = Training(start, some, torch.arange(2), TrainConfig(), cross_entropy, pretrained=True, **settings)
    stages = named(defense).stages(training, named(defense).options())
    return next(stages).training.model


def test_with_a_buffer_added_a_trained_network_decides_as_before(trained, some):
    found = first_model(some, deepcopy(trained), "wnll").eval()
    with torch.no_grad():
        assert torch.equal(found(some.images), trained(some.images))
    assert torch.equal(found.body.buffer[0].weight, torch.eye(64))
    again = first_model(some, found, "wnll")
    assert torch.equal(again.body.buffer[0].weight, torch.eye(64)), "one buffer is enough"


def test_a_buffer_of_another_width_starts_untrained_with_its_head():
    wide = Classifier(nn.Flatten(), nn.Linear(8, 3), normalize=nn.Identity())
    classes = ("a", "b", "c")
    some = ImageSet(torch.rand(40, 1, 2, 4), torch.arange(40) % 3, classes, "made up")
    found = first_model(some, wide, "wnll")
    assert found.body.buffer[0].weight.shape == (64, 8)
    assert found.head.weight.shape == (3, 64)


def test_what_cas_needs_is_added_too(trained, some, given):
    hardened(some, defense="cas", start=trained)
    ((found, *_),) = given
    assert sum(isinstance(module, CASBlock) for module in found.modules()) == 2
    assert torch.equal(found.head.weight, trained.head.weight)
    assert not any(isinstance(module, CASBlock) for module in trained.modules())


@pytest.mark.parametrize(
    "build", [partial(SMALL, classes=7), partial(SMALL, channels=3), partial(defended, network="resnet20", channels=1)]
)
def test_another_network_is_no_start(trained, build, some):
    with pytest.raises(ValueError, match=r"start must be the same network with as many classes .* differ"):
        check_same_shape(trained, build)
    with pytest.raises(ValueError, match="start must be the same network"):
        hardened(some, start=build())


@pytest.mark.parametrize("wanted", ["none", "tvm"])
def test_what_the_start_has_stays_and_is_trained_too(some, wanted):
    start = checkpoints.load("digits-pgd-cas")[0]
    found = hardened(some, "pgd", wanted, start=start)
    assert found.stages[0]["objective"]["heads"]["function"] == "cas_heads"
    assert [defense.name for defense in present(found.model)] == ["cas", *(["tvm"] if wanted == "tvm" else [])]
    with torch.no_grad():
        assert not torch.equal(found.model(some.images), start(some.images))


def test_wnll_is_trained_on_a_network_with_cas(some, given):
    found = hardened(some, "pgd", "wnll", start=checkpoints.load("digits-pgd-cas")[0], options={"rounds": 1})
    assert [stage["name"] for stage in found.stages] == ["round-1-training", "round-1-buffer"]
    assert describe(given[0][-1]["objective"])["heads"]["function"] == "cas_heads"
    assert [defense.name for defense in present(found.model)] == ["cas", "wnll"]


def test_options_of_no_defense_are_refused(some):
    with pytest.raises(ValueError, match=r"options must be those of cas \(none\), got 'rounds'"):
        hardened(some, defense="cas", options={"rounds": 1})
    with pytest.raises(ValueError, match=r"those of a training without a defense \(none\), got 'rounds'"):
        hardened(some, options={"rounds": 1})


# Interrupted runs.


def test_a_run_is_told_by_what_it_is(some, tmp_path):
    state = tmp_path / "state"

    def stop(log, epochs):
        raise KeyboardInterrupt

    assert state_files(state) == []
    with pytest.raises(KeyboardInterrupt):
        hardened(some, defense="wnll", options={"rounds": 1}, state=state, on_epoch=stop)
    (tmp_path / "state-notes.txt").write_text("a person's")
    assert state_files(state) == [state, tmp_path / "state-round-1-training"]
    for settings in ({}, {"defense": "cas"}, {"defense": "wnll", "options": {"rounds": 2}}):
        with pytest.raises(ValueError, match=r"state belongs to a run with another defenses; use the settings"):
            hardened(some, **settings, state=state)
    # An option that was added later means its default in the records of runs from before.
    content = json.loads(state.read_text())
    del content["run"]["defenses"]["wnll"]["gradient"]
    state.write_text(json.dumps(content))
    hardened(some, defense="wnll", options={"rounds": 1}, state=state)
    state.write_bytes(b"\x00\xff")
    assert state_files(state) == [state]
    with pytest.raises(ValueError, match="state is damaged or from an earlier version"):
        hardened(some, state=state)


def test_stages_of_one_name_are_refused(some):
    def twice(training, options):
        yield from training.stages()
        yield from training.stages()

    record = Defense("twice", "", "", present=lambda network: False, build=lambda network: network, stages=twice)
    with (
        registered(record),
        pytest.raises(ValueError, match=r"stages must have different names, .* got 'training' twice"),
    ):
        harden(some, network="small_cnn", config=TrainConfig(epochs=1), threat=THREAT, defenses=[record])


@pytest.mark.parametrize("name", ["digits-standard", "digits-wnll"])
def test_training_begins_with_the_given_weights_and_leaves_them_alone(some, given, name):
    start = checkpoints.load(name)[0]
    before = {key: value.clone() for key, value in start.state_dict().items()}
    hardened(some, defense="wnll", start=start, options={"rounds": 1})
    (begun, *_), _ = given
    linear = start.head.linear if isinstance(start.head, WNLLHead) else start.head
    assert torch.equal(begun.head.linear.weight, linear.weight)
    assert begun.head.linear.weight is not linear.weight
    assert all(torch.equal(before[key], value) for key, value in start.state_dict().items())


def test_behind_a_purifier_wnll_learns_from_purified_images_and_keeps_it(some, given, tmp_path):
    start = checkpoints.load("digits-tvm")[0]
    found = hardened(some, defense="wnll", start=start, options={"rounds": 1})
    for _, images, *_ in given:
        assert total_variation(images).mean() < 0.9 * total_variation(some.images).mean()
    assert isinstance(found.model.purify, TVM)
    assert found.model.purify.settings == start.purify.settings
    checkpoints.save(tmp_path / "net.safetensors", found.model, found.build, RunRecord("train", {}, {}))
    again, _ = checkpoints.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(some.images[:20]), found.model(some.images[:20]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "network", "options", "changed"),
    [
        ("pssilu", "small_cnn", {"activation": "silu"}, {"activation": "pssilu"}),
        ("meansparse", "small_cnn", {"alpha": 0.1}, {"alpha": 0.3}),
        ("enresnet", "resnet20", {"members": 2, "scale": 0.3, "over_batch": False}, {"scale": 0.2}),
    ],
)
def test_options_of_a_start_stay_unless_they_are_given(some, given, name, network, options, changed):
    defense = named(name)
    start = defense.build(initialized(partial(MODELS[network], channels=1), 0), **options)
    common = {"network": network, "config": TrainConfig(epochs=1), "threat": THREAT, "start": start}
    kept = harden(some, **common)
    other = harden(some, **common, defenses=[defense], options=changed)
    assert defense.settings(kept.model) == options
    assert defense.settings(other.model) == options | changed
    for result in (kept, other):
        result.build().load_state_dict(result.model.state_dict())


def test_weights_of_added_networks_depend_on_the_seed_alone(some, given):
    def weights():
        torch.rand(1)
        before = torch.get_rng_state()
        config = TrainConfig(epochs=1)
        chosen = {"defenses": [named("enresnet")], "options": {"members": 2}}
        model = harden(some, network="resnet20", config=config, threat=THREAT, **chosen).model
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(), weights())
    assert weights().unique().numel() > 1000
