"""What every panel is: a state, controls that set it, a picture that follows, and a line that says what is shown.

A new panel brings five things of its own and nothing else: a frozen dataclass for its state, a control for each field
that a person may set, a function `compute(state, progress)` that gives a record, a `Picture` that shows the record, and
presets for class. `Panel` joins them. Whatever else happens on the screen ends in `Panel.show`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from io import BytesIO
from typing import Any, Protocol, runtime_checkable

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from traitlets import TraitError, Unicode, observe

from robustviz.types import Progress

Number = int | float

Compute = Callable[[Any, Progress], Any]
"""`(state, progress) -> record`: the same record for the same state; long work calls `progress(done, total)`."""


@runtime_checkable
class Picture(Protocol):
    """A figure that is made once and shows one record after another.

    Attributes:
        figure: Belongs to no global state.
    """

    figure: Figure

    def show(self, record: Any) -> str:
        """Move the artists of the figure to the record; return in words what they show now."""
        ...


@runtime_checkable
class Screen(Protocol):
    """A widget that shows a figure.

    Attributes:
        widget: Stands in the panel.
    """

    widget: ipywidgets.DOMWidget

    def draw(self, text: str) -> None:
        """Show the figure as it is now; the text says in words what is seen."""
        ...


class Still:
    """A screen that shows a figure as an image with an alternative text.

    Args:
        figure: What is shown.
    """

    def __init__(self, figure: Figure):
        self.figure = figure
        self.widget = _Described(format="png", layout={"max_width": "100%", "align_self": "flex-start"})

    def draw(self, text: str) -> None:
        """Draw the figure into the image."""
        self.widget.value, self.widget.tooltip = png(self.figure), text


class Panel(ipywidgets.VBox):
    """Controls, presets, a line of text and a picture.

    The state is the truth: controls follow it, and turning one asks for another state. A result that is no longer
    wanted when it is ready is thrown away. An error leaves the picture as it was. Where a person turned a control the
    line tells it and the control stays, because the next one may make the setting possible.

    Args:
        state: Frozen dataclass; what is shown first.
        controls: Widgets with a `value`, by the field of the state that they set. Fields without one are set by code.
        compute: Gives the record of a state.
        picture: Shows the record.
        presets: States to jump to, by the word on the button.
        screen: Where the figure is seen; None shows it as a still image after every change.

    Raises:
        ValueError: If a control cannot take its part of the state, or `compute` refuses the state.
    """

    def __init__(
        self,
        state: Any,
        controls: Mapping[str, Any],
        compute: Compute,
        picture: Picture,
        *,
        presets: Mapping[str, Any] | None = None,
        screen: Screen | None = None,
    ):
        self.controls, self.compute, self.picture = dict(controls), compute, picture
        self.record: Any = None
        self._wanted: Any = None
        self._shown: Any = None
        self._following = self._busy = False
        self._text = self._message = ""
        self._line = ipywidgets.HTML()
        self._screen = Still(picture.figure) if screen is None else screen
        self.presets = {name: ipywidgets.Button(description=name, layout=_FIT) for name in presets or {}}
        for name, control in self.controls.items():
            control.observe(partial(self._turned, name), "value")
        for name, preset in (presets or {}).items():
            self.presets[name].on_click(partial(self._pressed, preset))
        rows = [_row(self.presets.values()), _row(self.controls.values()), self._line, self._screen.widget]
        super().__init__([row for row in rows if row is not None], layout={"padding": "0 0 0 6px"})
        self.add_class("robustviz-panel")
        self.show(state)

    def state(self) -> Any:
        """Return the setting of the panel; given to the explorer's function or to `show`, it brings it back."""
        return self._wanted

    def show(self, state: Any) -> None:
        """Take another setting: the controls move, the record is computed, the picture follows.

        Raises:
            ValueError: If a control cannot take its part of the state, or `compute` refuses the state; the panel stays
                as it was.
        """
        before, message = self._wanted, self._message
        try:
            self._take(state)
        except BaseException:
            if before is not None:
                self._follow(before)
                self._wanted = before
            self._tell(message)
            raise

    def _take(self, state: Any) -> None:
        self._follow(state)
        self._wanted = state
        if self._busy:  # called while computing: the loop below sees that its result is stale
            return
        self._busy = True
        try:
            while self._shown != self._wanted:
                self._update(self._wanted)
            self._tell(self._text)
        finally:
            self._busy = False

    @property
    def figure(self) -> Figure:
        """The picture as a figure that stays where widgets do not run: on GitHub and in exported pages."""
        return self.picture.figure

    @property
    def message(self) -> str:
        """What the line says."""
        return self._message

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell an error of the block in the line instead of raising it: for everything that a person's hand starts."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self._tell(f"not possible: {kind}{error}. The picture shows the last setting that was possible.")

    def __repr__(self) -> str:
        return repr(self.state())

    def _update(self, state: Any) -> None:
        self._tell("busy ...")
        try:
            record = self.compute(state, lambda done, total: self._tell(f"busy: {done} of {total} ..."))
        except Exception:
            if state == self._wanted:
                raise
            return  # nobody waits for this state any more
        if state != self._wanted:
            return
        self._text = self.picture.show(record)
        self._screen.draw(self._text)
        self._shown, self.record = state, record

    def _follow(self, state: Any) -> None:
        """Move the controls to the state, or leave them all as they were."""
        self._following, before = True, {name: control.value for name, control in self.controls.items()}
        try:
            for name, control in self.controls.items():
                wanted = getattr(state, name)
                control.value = wanted
                if control.value != wanted:
                    raise ValueError(f"{name} must be {_allowed(control)}, got {wanted!r}")
        except (TraitError, ValueError) as error:
            for each, value in before.items():
                self.controls[each].value = value
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{name} cannot be {wanted!r}; it must be {_allowed(control)}") from error
        finally:
            self._following = False

    def _turned(self, name: str, change: Any) -> None:
        if not self._following:
            with self.telling():
                self._take(replace(self._wanted, **{name: change["new"]}))

    def _pressed(self, preset: Any, button: Any) -> None:
        with self.telling():
            self.show(preset)

    def _tell(self, text: str) -> None:
        self._message = text
        self._line.value = f'<div role="status">{escape(text)}</div>'


def _allowed(control: Any) -> str:
    """Say which values a control takes."""
    if hasattr(control, "options"):
        return f"one of {', '.join(map(repr, control._options_values))}"
    return f"from {control.min} to {control.max}"


def slider(low: Number, high: Number, step: Number, text: str) -> ipywidgets.FloatSlider | ipywidgets.IntSlider:
    """Make a slider for arrow keys and mouse that reports when it is let go; three integers give integers."""
    whole = all(isinstance(value, int) for value in (low, high, step))
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    settings: dict[str, Any] = {} if whole else {"readout_format": ".2f" if step >= 0.01 else ".4f"}
    settings |= {"value": low, "min": low, "max": high, "step": step, "description": text}
    return kind(**settings, continuous_update=False, style=_WIDE)


def choice_slider(values: Any, text: str) -> ipywidgets.SelectionSlider:
    """Make such a slider over a few values, in any order and at any distance."""
    options = [(f"{value:g}", value) for value in values]
    return ipywidgets.SelectionSlider(options=options, description=text, continuous_update=False, style=_WIDE)


def chooser(options: Any, text: str) -> ipywidgets.Dropdown:
    """Make a list to choose from; options are values, or pairs of word and value."""
    return _Chooser(options=list(options), description=text, style=_WIDE, layout=_FIT)


def png(figure: Figure) -> bytes:
    """Draw a figure; the first drawing places its parts, and later ones, which are faster, leave them there."""
    canvas: Any = FigureCanvasAgg(figure)
    stream = BytesIO()
    canvas.draw()
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        hold(figure)
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def hold(figure: Figure) -> None:
    """Leave the parts of a figure where its first drawing placed them: looking for places takes much of the time."""
    figure.set_layout_engine("none")
    for ax in filter(Axes.get_visible, figure.axes):
        for axis in (ax.xaxis, ax.yaxis):
            place = axis.label.get_transform().transform(axis.label.get_position())
            axis.set_label_coords(*ax.transAxes.inverted().transform(place))


class _Described(ipywidgets.Image):
    """An image whose tooltip is its alternative text.

    The page looks for a description before it shows a tooltip, and fails on an Image, which has none.
    """

    description = Unicode("").tag(sync=True)


class _Chooser(ipywidgets.Dropdown):
    """A list in which None can be chosen like any other value; ipywidgets takes it for no choice and shows nothing."""

    @observe("value")
    def _propagate_value(self, change: Any) -> None:
        values, chosen = self._options_values, change["new"]
        self.index = values.index(chosen) if chosen in values else None


_FIT = {"width": "auto"}
_WIDE = {"description_width": "initial"}


def _row(items: Any) -> ipywidgets.HBox | None:
    """Set widgets side by side, on several lines where the page is narrow."""
    return ipywidgets.HBox(list(items), layout={"flex_flow": "row wrap"}) if items else None
