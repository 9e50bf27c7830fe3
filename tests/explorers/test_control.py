"""Controls: links go there and back, and Vega's expressions find the frame that Python finds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustviz.explorers.control import Control, frame_number, read_link, write_link

CONTROLS = (
    Control("attack", "Attack", ("PGD", "random noise", "C&W=#"), "PGD"),
    Control("strength", "Strength", tuple(round(0.015 * i, 6) for i in range(21)), 0.15),
    Control("image", "Image", tuple(range(30)), 0, tuple(f"image {i}" for i in range(30))),
)


@given(*(st.sampled_from(control.values) for control in CONTROLS))
def test_links_there_and_back(attack, strength, image):
    state = {"attack": attack, "strength": strength, "image": image}
    assert read_link(CONTROLS, write_link(state)) == state
    assert read_link(CONTROLS, "#" + write_link(state)) == state
    assert read_link(CONTROLS, f"?token=abc&{write_link(state)}") == state


@pytest.mark.parametrize("link", ["", "#", "voila=1", "strength=0.15", "strength=.1500", "strength=15e-2"])
def test_what_a_link_leaves_out_has_its_start(link):
    assert read_link(CONTROLS, link) == {"attack": "PGD", "strength": 0.15, "image": 0}


@pytest.mark.parametrize("link", ["strength=0.151", "strength=", "strength=nan", "strength=-1", "image=30", "image=x",
                                  "attack=pgd", "image=1e400", "attack="])  # fmt: skip
def test_nonsense_in_a_link_is_a_clear_line(link):
    with pytest.raises(ValueError, match=f"{link.split('=')[0]} must be one of"):
        read_link(CONTROLS, link)


def test_evenly_spaced_numbers_have_a_slider_and_others_a_list():
    assert CONTROLS[1].step == 0.015
    assert CONTROLS[1].param(0.15)["bind"] == {
        "input": "range", "min": 0.0, "max": 0.3, "step": 0.015, "name": "Strength "
    }  # fmt: skip
    assert CONTROLS[0].step is None
    for values in ((0.1, 0.2, 0.4), (1,), (2, 1, 0), (1, "all")):
        control = Control("a", "A", values, values[0])
        assert control.step is None
        assert control.param(values[0])["bind"]["options"] == list(values)
    assert "bind" not in CONTROLS[0].param("PGD", bound=False)


def test_words():
    assert CONTROLS[2].spoken(3) == "image 3"
    assert CONTROLS[1].spoken(0.15) == "0.15"
    with pytest.raises(ValueError, match="words must be one for each of 2 values, got 1"):
        Control("a", "A", (1, 2), 1, ("one",))
    for name in ("class", "frame", "my name"):
        with pytest.raises(ValueError, match="name must be one that Vega can compute with"):
            Control(name, "A", (1, 2), 1)
    with pytest.raises(ValueError, match="a must be one of 1, 2, got 3"):
        Control("a", "A", (1, 2), 3)


def test_the_expression_is_what_javascript_can_read():
    expression = frame_number(CONTROLS)
    assert json.dumps(list(CONTROLS[0].values)) in expression
    places = {"attack": 2, "strength": 0.045, "image": 7}
    as_python = expression.replace(f"indexof({json.dumps(list(CONTROLS[0].values))}, attack)", "attack")
    assert eval(as_python, {"round": round, **places}) == (2 * 21 + 3) * 30 + 7
