"""The WNLL explorer without a browser."""

import pytest
import torch

from robustviz import checkpoints
from robustviz.data import digits
from robustviz.lessons import load_template_source
from robustviz.widgets import WNLLState, wnll_explorer
from robustviz.widgets.networks import usual_images
from robustviz.widgets.wnll import ADAPTIVE, PUBLISHED


@pytest.fixture(scope="module")
def shared():
    return wnll_explorer()


@pytest.fixture
def panel(shared):
    shared.show(WNLLState())
    return shared


def test_the_votes_are_those_of_the_head(panel):
    panel.show(WNLLState(image=5, epsilon=0.1, neighbors=10, scale_neighbor=4))
    network, _ = checkpoints.load("digits-pgd-wnll")
    source = load_template_source("digits", "pgd-wnll")
    head = network.head.with_settings(joint=False, gradient="exact", neighbors=10, scale_neighbor=4)
    for ballot in panel.record.ballots:
        with torch.no_grad():
            expected = head.probabilities(network.features(ballot.image[None]))[0]
        torch.testing.assert_close(ballot.shares, expected)
        torch.testing.assert_close(ballot.voters, source.images[ballot.indices])
        totals = torch.zeros(10).index_add(0, ballot.labels, ballot.weights)
        assert (totals <= ballot.shares + 1e-5).all(), "no class gets more from the voters shown than from all"


def test_it_starts_with_the_graph_of_the_head():
    network, _ = checkpoints.load("digits-pgd-wnll")
    head = network.head.with_settings(neighbors=12, scale_neighbor=6)
    panel = wnll_explorer(network.replace(head=head), load_template_source("digits", "pgd-wnll"))
    assert (panel.state().neighbors, panel.state().scale_neighbor) == (12, 6)
    assert (panel.controls["neighbors"].value, panel.controls["scale_neighbor"].value) == (12, 6)


def test_three_versions_and_their_rows(panel):
    names = [ballot.condition for ballot in panel.record.ballots]
    assert names == ["clean", PUBLISHED, "transfer, margin"]
    decisions = [ballot.decision == ballot.label for ballot in panel.record.ballots]
    assert decisions == [True, True, False], "the first picture shows what the published attack misses"
    clean, *attacked = (ballot.image for ballot in panel.record.ballots)
    assert torch.equal(clean, usual_images().images[5])
    assert all(0 < (image - clean).abs().max() <= 0.15 + 1e-6 for image in attacked)
    for row, ballot in zip(panel.picture.rows, panel.record.ballots, strict=True):
        assert [bar.get_width() for bar in row.bars] == pytest.approx(ballot.shares.tolist())
        assert sum(ax.get_visible() for ax in row.voters) == len(ballot.weights)


def test_without_strength_nothing_moves(panel):
    panel.presets["no attack"].click()
    clean, *attacked = panel.record.ballots
    assert all(torch.equal(ballot.image, clean.image) for ballot in attacked)


def test_every_end_of_every_control(panel):
    ends = {"image": (0, len(usual_images()) - 1), "epsilon": (0.0, 1.0), "attack": (ADAPTIVE[0], ADAPTIVE[-1])}
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


def test_a_scale_beyond_the_neighbors_is_told(panel):
    shown = panel.record
    panel.controls["neighbors"].value = 5
    assert "not possible: scale_neighbor must be" in panel.message
    assert panel.record is shown
    panel.controls["scale_neighbor"].value = 4
    assert "K = 5, M = 4" in panel.message


@pytest.mark.parametrize("wrong", [WNLLState(image=-1), WNLLState(attack="none such")])
def test_a_state_that_does_not_exist(panel, wrong):
    with pytest.raises(ValueError, match=r"must be|attack cannot be"):
        panel.show(wrong)


def test_a_network_needs_the_source_of_its_template():
    network, _ = checkpoints.load("digits-wnll")
    with pytest.raises(ValueError, match="network must have a WNLLHead, got Linear"):
        wnll_explorer(checkpoints.load("digits-standard")[0], digits("train"))
    with pytest.raises(ValueError, match="source must be given"):
        wnll_explorer(network)
    with pytest.raises(ValueError, match="image_set must be what the template was drawn from"):
        wnll_explorer(network, digits("test"))


def test_few_images():
    assert wnll_explorer(images=usual_images().subset(3)).state().image == 2
