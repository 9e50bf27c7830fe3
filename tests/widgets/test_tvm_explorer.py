"""The TVM explorer without a browser."""

from dataclasses import replace

import pytest
import torch

from robustviz.attacks import pgd
from robustviz.defenses.tvm import draw_kept, minimize_tv, tv_energy
from robustviz.tensors import seeded
from robustviz.types import Threat
from robustviz.widgets import TVMState, tvm_explorer
from robustviz.widgets.networks import usual_images, usual_networks
from robustviz.widgets.tvm import ATTACKS


@pytest.fixture(scope="module")
def shared():
    return tvm_explorer()


@pytest.fixture
def panel(shared):
    shared.show(TVMState())
    return shared


def test_it_shows_what_the_library_computes(panel):
    panel.show(TVMState(image=4, epsilon=0.2, keep=0.75, weight=0.1, draw=3))
    record, network = panel.record, usual_networks()["standard"]
    one = usual_images()[torch.tensor([4])]
    came = pgd(network, one.images, one.labels, threat=Threat("linf", 0.2))
    purified = minimize_tv(came, weight=0.1, keep=0.75, generator=seeded(3))
    kept = draw_kept(came, 0.75, generator=seeded(3))
    torch.testing.assert_close(record.came, came[0])
    torch.testing.assert_close(record.purified, purified[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(record.kept, (came * kept)[0])
    with torch.no_grad():
        said = network(torch.cat([one.images, came, record.purified[None]])).softmax(1)
    torch.testing.assert_close(record.confidences, said)
    energy = tv_energy(record.purified[None], came, kept, weight=0.1).item()
    assert record.energies[-1] == pytest.approx(energy, rel=1e-3)
    assert record.energies[-1] <= record.energies[0]


def test_the_picture_follows(panel):
    before = panel.children[-1].value
    panel.controls["weight"].value = 1.0
    assert panel.children[-1].value != before
    assert list(panel.picture.line.get_ydata()) == list(panel.record.energies)
    assert panel.record.purified.std() < panel.record.came.std() / 2, "a high price leaves little variation"


def test_another_mask_keeps_other_pixels(panel):
    first = panel.record
    panel.controls["draw"].value = 1
    assert torch.equal(panel.record.came, first.came)
    assert not torch.equal(panel.record.kept, first.kept)


def test_every_attack_stays_in_the_ball(panel):
    for attack in ATTACKS:
        panel.controls["attack"].value = attack
        largest = (panel.record.came - panel.record.clean).abs().max()
        assert largest == 0 if attack == "none" else 0 < largest <= 0.15 + 1e-6


def test_every_end_of_every_control(panel):
    ends = {"image": (0, len(usual_images()) - 1), "epsilon": (0.0, 1.0), "keep": (0.05, 1.0)}
    ends |= {"weight": (0.001, 1.0), "draw": (0, 20)}
    for name, values in ends.items():
        for value in values:
            panel.controls[name].value = value
            assert "not possible" not in panel.message, (name, value)
            assert panel.record.state == panel.state()


def test_every_preset(panel):
    for name, button in panel.presets.items():
        button.click()
        assert "not possible" not in panel.message, name
        assert panel.record.state == panel.state()


@pytest.mark.parametrize("wrong", [{"image": 10_000}, {"attack": "none such"}, {"keep": 0.0}, {"weight": -1.0}])
def test_a_state_that_does_not_exist(panel, wrong):
    with pytest.raises(ValueError, match=r"must be|cannot be"):
        panel.show(replace(TVMState(), **wrong))
    assert panel.state() == TVMState()


@pytest.mark.parametrize("wrong", [{}, usual_networks(), [None]], ids=("nothing", "dict", "list"))
def test_several_networks_are_refused(unchecked, wrong):
    with pytest.raises(TypeError, match=r"network must be one robustviz.models.Classifier, got (dict|list)"):
        tvm_explorer(wrong)
