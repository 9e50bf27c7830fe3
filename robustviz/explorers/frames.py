"""Frames: everything an explorer shows over a grid of settings, measured once and kept in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from robustviz.geometry.arrays import read_arrays, write_arrays

Value = str | int | float
"""A value of a control."""

BUDGET = 6_000
"""Settings in one grid; a page with more is slow to make, to send and to open."""


@dataclass(frozen=True)
class Frames:
    """Everything an explorer shows: one frame for each setting of its controls.

    Attributes:
        kind: The explorer that shows them, such as "attack".
        grid: Values of each control, by its name. The last control changes fastest: frames are numbered so.
        arrays: What was measured, by name. Pictures are bytes, and changes of pictures whole gray levels, so that
            nothing is lost on the way to the screen.
        about: Names of networks, classes and data, settings of the measurement; anything that JSON can hold.
    """

    kind: str
    grid: Mapping[str, tuple[Value, ...]]
    arrays: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return prod(map(len, self.grid.values()))

    def number(self, state: Mapping[str, Value]) -> int:
        """Return the number of the frame that shows a setting.

        Args:
            state: A value for every control.

        Raises:
            ValueError: If a control is missing or unknown, or its value was not measured.
        """
        check_state(self.grid, state)
        number = 0
        for name, values in self.grid.items():
            number = number * len(values) + values.index(state[name])
        return number

    def state(self, number: int) -> dict[str, Value]:
        """Return the setting that a frame shows; the inverse of `number`.

        Raises:
            IndexError: If there is no such frame.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"number must be from 0 to {len(self) - 1}, got {number}")
        state: dict[str, Value] = {}
        for name in reversed(list(self.grid)):
            number, place = divmod(number, len(self.grid[name]))
            state[name] = self.grid[name][place]
        return {name: state[name] for name in self.grid}

    def save(self, path: Path | str) -> Path:
        """Write everything to one safetensors file, whole or not at all; the grid is JSON in its header."""
        grid = {name: list(values) for name, values in self.grid.items()}
        return write_arrays(path, f"{self.kind} frames", self.arrays, {"grid": grid, "about": dict(self.about)})

    @classmethod
    def load(cls, path: Path | str, kind: str) -> "Frames":
        """Read frames.

        Args:
            path: A file that `save` wrote.
            kind: Kind of the explorer that is to show them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        arrays, settings = read_arrays(path, f"{kind} frames")
        try:
            grid = {name: tuple(values) for name, values in settings["grid"].items()}
            return cls(kind, grid, arrays, settings["about"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no whole frames of robustviz: {error!r}") from error


def check_state(grid: Mapping[str, tuple[Value, ...]], state: Mapping[str, Value], *, whole: bool = True) -> None:
    """Refuse a setting that the grid does not hold.

    Args:
        grid: Values of each control.
        state: Values by control.
        whole: Every control must have a value.

    Raises:
        ValueError: If a control is missing or unknown, or its value was not measured.
    """
    missing = [name for name in grid if name not in state] if whole else []
    if missing or (unknown := [name for name in state if name not in grid]):
        named = ", ".join(missing or unknown)
        raise ValueError(
            f"state must give values of {', '.join(grid)}; {named} is {'missing' if missing else 'unknown'}"
        )
    for name, value in state.items():
        if isinstance(value, bool) or value not in grid[name]:
            values = grid[name]
            known = ", ".join(map(str, values)) if len(values) < 12 else f"{values[0]}, {values[1]} ... {values[-1]}"
            raise ValueError(f"{name} must be one of {known}, got {value!r}")


def check_budget(counts: Mapping[str, int], budget: int = BUDGET) -> None:
    """Refuse a grid of more settings than a page can carry, before anything is measured.

    Args:
        counts: How many of each thing the grid combines, by its name in the plural.
        budget: Most settings.

    Raises:
        ValueError: If there is none of something, or the product exceeds the budget.
    """
    if empty := [name for name, count in counts.items() if count < 1]:
        raise ValueError(f"frames must have at least one of {', '.join(counts)}, got no {', '.join(empty)}")
    size = prod(counts.values())
    if size > budget:
        said = " x ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"frames must number at most {budget:,}, got {said} = {size:,}; take fewer, or raise budget")
