"""Explorers in a notebook: state there and back, presets, words, and what is left where widgets do not run."""

import base64
import re

import altair as alt
import pytest

from robustviz.explorers import show_training, show_wnll
from robustviz.explorers.live import LiveChart, LiveExplorer


@pytest.fixture
def live(explorer):
    return explorer.live()


def browser_sets(live, **values):
    """What the browser does when a control is turned: the chart's parameters arrive as a whole."""
    live.chart.set_state({"_params": {**live.chart.values, **values}})


def test_state_there_and_back(live, explorer):
    assert live.state() == {"attack": "PGD", "strength": 0.1, "image": 0}
    live.show({"image": 3, "attack": "FGSM"})
    assert live.state() == {"attack": "FGSM", "strength": 0.1, "image": 3}
    assert live.chart.values["image"] == 3
    again = explorer.live(live.state())
    assert (again.state(), again.message) == (live.state(), live.message)
    again.show("attack=PGD&strength=0.15&image=2")
    assert again.link() == "attack=PGD&strength=0.15&image=2"


def test_a_control_that_is_turned_reaches_python(live, explorer):
    browser_sets(live, strength=0.15000000000000002, image=4)
    assert live.state() == {"attack": "PGD", "strength": 0.15, "image": 4}
    assert live.message == explorer.describe({"strength": 0.15, "image": 4})
    assert 'role="status"' in live._line.value
    assert "strength 0.15" in live._line.value


def test_presets_keep_the_image(live):
    live.show({"image": 5})
    live.presets["strongest"].click()
    assert live.state() == {"attack": "PGD", "strength": 0.2, "image": 5}
    live.presets["FGSM"].click()
    assert live.state() == {"attack": "FGSM", "strength": 0.2, "image": 5}


@pytest.mark.parametrize(
    "state", [{"image": 6}, {"size": 1}, {"strength": 0.11}, {"attack": "CW"}, "image=6", "strength=x"]
)
def test_nonsense_is_refused_and_changes_nothing(live, explorer, state):
    before = live.state()
    with pytest.raises(ValueError, match="must"):
        live.show(state)
    assert live.state() == before
    with pytest.raises(ValueError, match="must"):
        explorer.live(state)


@pytest.mark.parametrize(
    ("measured", "show", "turned"),
    [("trained", show_training, {"epochs": 3, "radius": 0.0}), ("ballots", show_wnll, {"neighbors": 5, "image": 2})],
)
def test_explorers_of_training_and_votes_are_live(request, measured, show, turned):
    """Presets, controls turned in the browser, words and link, with a list of numbers among the controls."""
    explorer = show(request.getfixturevalue(measured))
    live = explorer.live()
    for name, button in live.presets.items():
        before = live.state()
        button.click()
        assert live.state() == before | explorer.presets[name]
    before = live.state()
    browser_sets(live, **turned)
    assert live.state() == before | turned
    assert live.message == explorer.describe(live.state())
    assert explorer.live(live.link()).state() == live.state()
    assert repr(live) == f"{explorer.title}: {live.message}"


def test_voila_hands_the_address_over(explorer, monkeypatch):
    monkeypatch.setenv("QUERY_STRING", "token=1&image=2&strength=0.2")
    assert explorer.live().state() == {"attack": "PGD", "strength": 0.2, "image": 2}
    assert explorer.live({}).state()["image"] == 0


def test_it_prints_the_same_everywhere(live, explorer):
    assert repr(live) == repr(explorer.live()) == f"Attacks on digits: {explorer.describe()}"
    assert not re.search(r"0x[0-9a-f]+", repr(live) + repr(live.chart))
    assert repr(live.chart) == "LiveChart(attack='PGD', strength=0.1, image=0)"


def test_a_still_twin_is_left_where_widgets_do_not_run(live):
    bundle = live._repr_mimebundle_()
    found = bundle[0] if isinstance(bundle, tuple) else bundle
    assert found["text/plain"] == live.message
    assert base64.b64decode(found["image/png"]).startswith(b"\x89PNG")
    assert len(found["image/png"]) < 54_000
    assert "application/vnd.jupyter.widget-view+json" in found


def test_the_private_traits_of_altair_are_still_there():
    """`push` and `turn` use traits that Altair made for itself: `_params` and `_py_to_js_updates`."""
    for name in ("spec", "_params", "_py_to_js_updates", "embed_options"):
        assert alt.JupyterChart.class_traits()[name].metadata["sync"]
    assert "_py_to_js_updates" in alt.JupyterChart._esm
    chart = LiveChart({"mark": "point"}, {"a": 1})
    chart.push("rows", [{"x": 1}])
    assert chart._py_to_js_updates == [{"namespace": "data", "name": "rows", "scope": [], "value": [{"x": 1}]}]
    chart.turn({"a": 2})
    assert chart.values == {"a": 2}


def test_it_needs_no_network(live):
    assert isinstance(live, LiveExplorer)
    assert live.chart._is_offline
    assert "cdn" not in live.chart._esm[:2000]
