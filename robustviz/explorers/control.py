"""The controls of an explorer: a name, the values that were measured, and the words that each is spoken with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isclose
from typing import Any
from urllib.parse import parse_qsl, urlencode

from robustviz.explorers.frames import Value, check_state

State = dict[str, Value]
"""A value for each control, by its name."""


_RESERVED = ("class", "default", "delete", "function", "in", "new", "switch", "this", "typeof", "var", "with", "frame")
"""Words that JavaScript or an explorer keeps for itself."""


@dataclass(frozen=True)
class Control:
    """One control: a slider where the values are evenly spaced numbers, else a list.

    Attributes:
        name: In states and links.
        label: On the screen, and read aloud.
        values: What was measured.
        start: Shown first.
        words: What a screen reader says for each value; empty for the values themselves.
        field: Column of the rows that a click on a page's chart takes the value from; empty if clicks set nothing.

    Raises:
        ValueError: If the name cannot be used, the start is none of the values, or their words are not as many.
    """

    name: str
    label: str
    values: tuple[Value, ...]
    start: Value
    words: tuple[str, ...] = ()
    field: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _RESERVED:
            raise ValueError(f"name must be one that Vega can compute with, got {self.name!r}; choose another")
        check_state({self.name: self.values}, {self.name: self.start})
        if self.words and len(self.words) != len(self.values):
            raise ValueError(f"words must be one for each of {len(self.values)} values, got {len(self.words)}")

    @cached_property
    def step(self) -> int | float | None:
        """Distance of neighboring values; None for a list."""
        numbers = [value for value in self.values if not isinstance(value, str)]
        if len(numbers) < max(2, len(self.values)):
            return None
        gaps = [after - before for before, after in pairwise(numbers)]
        return gaps[0] if gaps[0] > 0 and all(isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps) else None

    @property
    def place(self) -> str:
        """Vega's expression for the place of the value among `values`."""
        if self.step is not None:
            return f"round(({self.name} - {self.values[0]!r}) / {self.step!r})"
        return f"indexof({json.dumps(list(self.values))}, {self.name})"

    def spoken(self, value: Value) -> str:
        """What a screen reader says for a value."""
        return self.words[self.values.index(value)] if self.words else str(value)

    def param(self, value: Value, *, bound: bool = True) -> dict[str, Any]:
        """Return the Vega-Lite parameter that holds the value, with its input element if `bound`."""
        bind: dict[str, Any] = {"input": "select", "options": list(self.values), "name": f"{self.label} "}
        if self.step is not None:
            bind |= {"input": "range", "min": self.values[0], "max": self.values[-1], "step": self.step}
            del bind["options"]
        return {"name": self.name, "value": value} | ({"bind": bind} if bound else {})


def in_levels(radii: Sequence[Value], norm: str) -> tuple[tuple[Value, ...], str]:
    """Return strengths as a person reads them, and their unit: whole gray levels of 255 where all of them are such.

    Args:
        radii: In pixel units of [0, 1].
        norm: In which they are measured.
    """
    levels = [255 * float(radius) for radius in radii]
    whole = norm == "linf" and all(abs(round(level) - level) < 1e-6 for level in levels)
    if whole and 0 < max(levels) < 100:
        return tuple(round(level) for level in levels), " of 255"
    return tuple(round(float(radius), 6) for radius in radii), ""


def strength_control(strengths: tuple[Value, ...], unit: str) -> Control:
    """Make the control of an attack's strength, which begins in the middle."""
    words = tuple(f"{strength}{unit}" for strength in strengths)
    return Control("strength", "Strength", strengths, strengths[len(strengths) // 2], words)


def strength_presets(strengths: tuple[Value, ...]) -> dict[str, State]:
    """Name the strengths that a lecturer jumps to."""
    named = {"no attack": strengths[0], "usual strength": strengths[len(strengths) // 2], "strongest": strengths[-1]}
    return {name: {"strength": strength} for name, strength in named.items()}


def frame_number(controls: tuple[Control, ...]) -> str:
    """Vega's expression for the number of the frame that the controls ask for, as `Frames.number` counts."""
    expression = "0"
    for control in controls:
        expression = f"({expression}) * {len(control.values)} + {control.place}"
    return expression


def write_link(state: Mapping[str, Value]) -> str:
    """Write a state as the end of an address: "image=7&attack=PGD&strength=0.15"."""
    return urlencode(state)


def read_link(controls: tuple[Control, ...], link: str) -> State:
    """Read what `write_link` wrote; controls that it does not name have their start.

    Args:
        controls: Controls of the explorer.
        link: The end of an address, with or without "#" or "?". Names that no control has are left alone, because a
            server may have added its own.

    Raises:
        ValueError: If a value was not measured.
    """
    state: State = {control.name: control.start for control in controls}
    given = dict(parse_qsl(link.strip().lstrip("#?"), keep_blank_values=True))
    for control in controls:
        if control.name in given:
            state[control.name] = _value(control, given[control.name])
    return state


def _value(control: Control, text: str) -> Value:
    for value in control.values:
        if text == str(value):
            return value
        if not isinstance(value, str):
            try:
                if isclose(float(text), value, rel_tol=1e-9, abs_tol=1e-12):
                    return value
            except ValueError:
                break
    check_state({control.name: control.values}, {control.name: text})
    raise ValueError(f"{control.name} must be one of its values, got {text!r}")
