"""The base of every panel, on a panel that doubles a number."""

from dataclasses import dataclass
from io import BytesIO

import pytest
from matplotlib.figure import Figure
from PIL import Image

from robustviz.widgets.panel import Panel, choice_slider, chooser, slider


@dataclass(frozen=True)
class State:
    number: int = 1
    word: str | None = None


class Dot:
    def __init__(self):
        self.figure = Figure(figsize=(2, 1))
        ax = self.figure.subplots()
        (self.dot,) = ax.plot([0], [0], "o")
        ax.set_xlim(-1, 101)
        self.shown = []

    def show(self, record):
        self.dot.set_xdata([record])
        self.shown.append(record)
        return f"twice is {record}"


def doubled(state, progress):
    progress(1, 2)
    if state.number == 13:
        raise ValueError("number must not be 13")
    return 2 * state.number // (state.number != 7)


@pytest.fixture
def panel():
    controls = {"number": slider(0, 50, 1, "number"), "word": chooser([("none", None), ("a", "a"), ("b", "b")], "word")}
    return Panel(State(), controls, doubled, Dot(), presets={"nine": State(9, "b")})


def picture(panel):
    return panel.children[-1]


def test_a_control_is_followed(panel):
    before = picture(panel).value
    panel.controls["number"].value = 4
    assert (panel.state(), panel.record, panel.message) == (State(4), 8, "twice is 8")
    assert picture(panel).value != before
    assert Image.open(BytesIO(picture(panel).value)).size == (200, 100)


def test_the_words_are_the_alternative_text_too(panel):
    assert picture(panel).tooltip == panel.message
    assert f'role="status">{panel.message}<' in panel.children[-2].value


def test_the_line_holds_no_markup(panel):
    with panel.telling():
        raise ValueError("<b>&")
    assert "&lt;b&gt;&amp;" in panel.children[-2].value


def test_a_preset_moves_all_controls_and_computes_once(panel):
    panel.presets["nine"].click()
    assert panel.state() == State(9, "b")
    assert (panel.controls["number"].value, panel.controls["word"].value) == (9, "b")
    assert panel.picture.shown == [2, 18]


@pytest.mark.parametrize(("number", "told"), [(13, "number must not be 13"), (7, "ZeroDivisionError: ")])
def test_errors_land_in_the_line(panel, number, told):
    before = picture(panel).value
    panel.controls["number"].value = number
    assert panel.message.startswith(f"not possible: {told}")
    assert picture(panel).value == before
    assert panel.record == 2
    panel.controls["number"].value = 1
    assert panel.message == "twice is 2"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (State(51), "number must be from 0 to 50, got 51"),
        (State(1, "c"), "word cannot be 'c'; it must be one of None, 'a', 'b'"),
        (State("one"), "number cannot be 'one'; it must be from 0 to 50"),
    ],
)
def test_what_no_control_can_show_is_refused(panel, state, message):
    with pytest.raises(ValueError, match=message):
        panel.show(state)
    assert panel.state() == State()
    assert (panel.controls["number"].value, panel.controls["word"].value) == (1, None)


@pytest.mark.parametrize("number", [13, 7])
def test_a_refused_state_leaves_the_panel_as_it_was(panel, number):
    panel.show(State(4, "a"))
    with pytest.raises((ValueError, ZeroDivisionError)):
        panel.show(State(number, "b"))
    assert (panel.state(), panel.record, panel.message) == (State(4, "a"), 8, "twice is 8")
    assert (panel.controls["number"].value, panel.controls["word"].value) == (4, "a")


def test_a_state_that_is_impossible_at_the_start_is_raised():
    with pytest.raises(ValueError, match="13"):
        Panel(State(13), {"number": slider(0, 50, 1, "number")}, doubled, Dot())


def test_of_many_quick_changes_the_last_is_shown_and_stale_work_is_dropped():
    """While the first number is worked on, thirty more come in; one of them is impossible."""
    computed = []

    def compute(state, progress):
        computed.append(state.number)
        if state.number == 1:
            for number in range(1, 31):
                panel.controls["number"].value = number
        return doubled(state, progress)

    panel = Panel(State(0), {"number": slider(0, 50, 1, "number")}, compute, Dot())
    panel.controls["number"].value = 1
    assert computed == [0, 1, 30]
    assert panel.picture.shown == [0, 60]
    assert panel.message == "twice is 60"


def test_an_error_that_nobody_waits_for_is_not_told():
    def compute(state, progress):
        if state.number == 13:
            panel.controls["number"].value = 14
        return doubled(state, progress)

    panel = Panel(State(0), {"number": slider(0, 50, 1, "number")}, compute, Dot())
    panel.controls["number"].value = 13
    assert panel.message == "twice is 28"


def test_it_says_that_it_is_busy():
    told = []

    def compute(state, progress):
        told.append(panel.message)
        progress(1, 3)
        told.append(panel.message)
        return 0

    panel = Panel(State(), {"number": slider(0, 50, 1, "number")}, lambda state, progress: 0, Dot())
    panel.compute = compute
    panel.controls["number"].value = 2
    assert told == ["busy ...", "busy: 1 of 3 ..."]


def test_the_same_setting_is_computed_once(panel):
    panel.show(State())
    assert panel.picture.shown == [2]


def test_a_page_that_runs_nothing_shows_the_setting(panel):
    panel.controls["number"].value = 4
    assert repr(panel) == "State(number=4, word=None)"
    assert panel._repr_mimebundle_()["text/plain"] == repr(panel)
    assert eval(repr(panel)) == panel.state()
    assert panel.figure is panel.picture.figure


def test_sliders_wait_until_they_are_let_go():
    sliders = [slider(0, 9, 1, "a"), slider(0.0, 1.0, 0.1, "b"), choice_slider((0.1, 5), "c")]
    assert [type(made.value) for made in sliders] == [int, float, float]
    assert not any(made.continuous_update for made in sliders)
    assert [word for word, _ in sliders[2].options] == ["0.1", "5"]


def test_none_is_a_choice_like_any_other(panel):
    panel.show(State(9, "b"))
    panel.show(State())
    assert (panel.controls["word"].label, panel.controls["word"].index) == ("none", 0)
