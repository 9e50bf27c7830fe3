"""The channel explorer without a browser."""

import pytest
import torch

from robustviz.attacks import pgd
from robustviz.features import channel_stats, last_stage, snapshot
from robustviz.types import Threat
from robustviz.widgets import ChannelState, channel_explorer
from robustviz.widgets.channel import THRESHOLDS, ChannelMeasurements
from robustviz.widgets.networks import usual_images, usual_networks

SIZE = 30


@pytest.fixture(scope="module")
def shared():
    return channel_explorer(size=SIZE)


@pytest.fixture
def panel(shared):
    shared.show(ChannelState())
    return shared


def test_it_shows_what_the_library_measures(panel):
    panel.controls["epsilon"].value = 0.09
    panel.controls["label"].value = 3
    images = usual_images().subset(SIZE)
    for name, network in usual_networks().items():
        attacked = pgd(network, images.images, images.labels, threat=Threat("linf", 0.09))
        for shown, which in zip(panel.record.stats[name], (images.images, attacked), strict=True):
            taken = snapshot(network, which, images.labels, layer=last_stage(network), condition="")
            expected = channel_stats(taken, label=3)
            torch.testing.assert_close(shown.magnitude, expected.magnitude)
            torch.testing.assert_close(shown.frequency, expected.frequency)


def test_the_profiles_follow(panel):
    panel.controls["epsilon"].value = 0.3
    for column, (clean, attacked) in enumerate(panel.record.stats.values()):
        above, below = panel.picture.axes[:, column]
        heights = [above.patches[0].get_data().values, above.patches[1].get_data().values, above.lines[0].get_ydata()]
        assert heights[1] == pytest.approx(clean.magnitude.sort(descending=True).values.numpy())
        assert heights[2] == pytest.approx(attacked.magnitude.sort(descending=True).values.numpy())
        order = clean.frequency.argsort(descending=True, stable=True)
        assert below.lines[0].get_ydata() == pytest.approx(100 * attacked.frequency[order].numpy())
        assert above.get_ylim()[1] > max(map(max, heights))
        texts = [text.get_text() for text in below.get_legend().get_texts()]
        assert f"{attacked.above_half} above 50 %" in texts[1]


def test_without_an_attack_both_profiles_are_one(panel):
    panel.presets["no attack"].click()
    for clean, attacked in panel.record.stats.values():
        assert torch.equal(clean.magnitude, attacked.magnitude)


def test_every_end_of_every_control(panel):
    options = {name: control.options for name, control in panel.controls.items()}
    for name, choices in options.items():
        for choice in (choices[0], choices[-1]):
            panel.controls[name].value = choice[1] if isinstance(choice, tuple) else choice
            assert not panel.message.startswith(("not possible", "busy"))
            assert panel.record.state == panel.state()


def test_a_step_of_the_slider_attacks_nothing(panel, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError

    monkeypatch.setattr("robustviz.widgets.channel.ATTACKS", {"PGD-10": never})
    for epsilon in (0.0, 0.3, 0.03):
        panel.controls["epsilon"].value = epsilon
        assert panel.record.state.epsilon == epsilon


def test_a_state_comes_back(panel):
    panel.controls["threshold"].value = THRESHOLDS[4]
    panel.controls["label"].value = 5
    state, said, seen = panel.state(), panel.message, bytes(panel.children[-1].value)
    panel.show(ChannelState())
    panel.show(state)
    assert (panel.state(), panel.message, bytes(panel.children[-1].value)) == (state, said, seen)


@pytest.mark.parametrize("state", [ChannelState(epsilon=0.1), ChannelState(attack="x"), ChannelState(label=10)])
def test_impossible_states_are_refused(panel, state):
    with pytest.raises(ValueError, match=r"must be|cannot be"):
        panel.show(state)


def test_a_panel_without_networks_is_refused():
    with pytest.raises(ValueError, match="networks must hold at least one network by its name, got none"):
        channel_explorer({})


def test_a_class_without_images_is_told():
    images = usual_images().subset(5)
    measurements = ChannelMeasurements(usual_networks(), images, (0.0, 0.1))
    missing = min(set(range(10)) - set(images.labels.tolist()))
    with pytest.raises(ValueError, match="label must be a class of the snapshot"):
        measurements.compute(ChannelState(epsilon=0.1, label=missing), lambda done, total: None)
