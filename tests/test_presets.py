import pytest
import torch

from robustviz.presets import (
    evaluation_attacks,
    stem,
    training_attack,
    usual_augmentation,
    usual_device,
    usual_threat,
)
from robustviz.records import describe
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


def test_usual_threat():
    assert usual_threat("digits") == Threat("linf", 0.15)
    assert usual_threat("mnist") == Threat("linf", 0.3)
    assert usual_threat("cifar10") == usual_threat("some/folder") == Threat("linf", 8 / 255)
    assert usual_threat("digits", "l2", 0.0) == Threat("l2", 0.0)
    with pytest.raises(ValueError, match=r"epsilon must be finite and >= 0.*got -1"):
        usual_threat("digits", "linf", -1.0)


def test_usual_augmentation_keeps_what_a_digit_means():
    assert usual_augmentation("digits") == {"padding": 0, "flip": False}
    assert not usual_augmentation("svhn")["flip"]
    assert not usual_augmentation("mnist")["flip"]
    assert usual_augmentation("cifar10") == usual_augmentation("some/folder") == {"padding": 4, "flip": True}


def test_training_attacks():
    assert training_attack("none", THREAT) is None
    pgd = describe(training_attack("pgd", THREAT, 7, 0.02))
    assert (pgd["function"], pgd["steps"], pgd["step_size"], pgd["threat"]["epsilon"]) == ("pgd", 7, 0.02, 0.1)
    fast = describe(training_attack("fgsm-rs", THREAT, 7))
    assert (fast["function"], fast["steps"], fast["random_start"]) == ("pgd", 1, True)
    assert fast["step_size"] == pytest.approx(0.125)
    assert describe(training_attack("fgsm-rs", THREAT, 7, 0.1))["step_size"] == 0.1


def test_evaluation_attacks_have_the_names_of_their_columns():
    attacks = evaluation_attacks(["pgd", "fgsm", "mifgsm", "ifgsm"], THREAT, 5, 3)
    assert list(attacks) == ["PGD-5", "FGSM", "MI-FGSM-5", "IFGSM-5"]
    described = describe(attacks)
    assert [described[name]["function"] for name in attacks] == ["pgd", "fgsm", "mifgsm", "ifgsm"]
    assert {described[name]["steps"] for name in attacks if name != "FGSM"} == {5}
    assert described["PGD-5"]["restarts"] == 3
    assert {described[name]["threat"]["epsilon"] for name in attacks} == {0.1}


def test_unknown_names_list_the_known(unchecked):
    with pytest.raises(ValueError, match=r"none, fgsm-rs, pgd, trades, mart, got 'madry'"):
        training_attack("madry", THREAT)
    with pytest.raises(ValueError, match=r"fgsm, ifgsm, pgd, mifgsm, got 'cw'"):
        evaluation_attacks(["pgd", "cw"], THREAT)
    for name in ("abacus", "meta"):
        with pytest.raises(ValueError, match=rf"'{name}' is not there.*use auto or cpu"):
            usual_device(name)


def test_usual_device(monkeypatch):
    assert usual_device("cpu") == torch.device("cpu")
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert usual_device("auto") == torch.device(expected)


def test_stem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stem("cifar10") == "cifar10"
    (tmp_path / "flowers").mkdir()
    assert stem("./flowers/") == stem(str(tmp_path / "flowers")) == "flowers"
    assert stem(".") == tmp_path.name
