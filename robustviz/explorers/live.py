"""An explorer in a notebook: Vega draws in the browser, and Python hears of every setting and can make one."""

import os
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

import altair as alt
import ipywidgets

from robustviz.explorers.control import Control, State, write_link
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.frames import Value
from robustviz.explorers.theme import config


class LiveChart(alt.JupyterChart):
    """A chart whose parameters and named data Python can change; it needs no network and prints the same everywhere.

    Args:
        specification: Vega-Lite, with all data.
        params: Signals that are kept in step, with their values.
        dark: For a dark page.
    """

    _css = alt.JupyterChart._css + (
        ".robustviz-explorer .vega-embed, .robustviz-explorer .chart-wrapper { display: flex; flex-direction: column; }"
        ".robustviz-explorer .vega-bindings { order: -1; display: flex; flex-wrap: wrap; gap: 4px 24px; }"
        ".robustviz-explorer .vega-bind label { display: flex; gap: 8px; align-items: center; font-size: 14px; }"
        ".robustviz-explorer .vega-bind-name { font-weight: 600; }"
        ".robustviz-explorer .vega-bind input[type=range] { width: 180px; }"
    )

    def __init__(self, specification: dict[str, Any], params: Mapping[str, Value], *, dark: bool = False):
        alt.JupyterChart.enable_offline()
        look = config(dark=dark) | {"background": "#121212" if dark else "white"}
        super().__init__(None, embed_options={"actions": False, "renderer": "canvas", "config": look})  # type: ignore[arg-type]
        with self.hold_sync():
            self.spec = specification
            self._params = dict(params)

    def _on_change_params(self, change: Any) -> None:
        """Leave Altair's own list of parameters alone; ours are read from `values`."""

    @property
    def values(self) -> dict[str, Value]:
        """What the signals are now."""
        return dict(self._params)

    def turn(self, params: Mapping[str, Value]) -> None:
        """Give signals other values; the chart follows."""
        self._params = {**self._params, **params}

    def push(self, name: str, rows: list[Row]) -> None:
        """Replace the rows of the data that the chart names so; nothing else is drawn again."""
        self._py_to_js_updates = [{"namespace": "data", "name": name, "scope": [], "value": rows}]

    def __repr__(self) -> str:
        return f"LiveChart({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


class LiveExplorer(ipywidgets.VBox):
    """An explorer in JupyterLab, Voila and VS Code: the page's chart and controls, with Python beside it.

    Args:
        explorer: What is shown.
        state: Shown first; None takes what the address asks for under Voila, else the explorer's start.
        width: Width of the layout, in pixels.
        dark: For a dark page.

    Raises:
        ValueError: If the state was not measured.
    """

    def __init__(
        self,
        explorer: Explorer,
        state: Mapping[str, Value] | str | None = None,
        *,
        width: int = 900,
        dark: bool = False,
    ):
        self.explorer = explorer
        setting = explorer.setting(os.environ.get("QUERY_STRING", "") if state is None else state)
        drawn = explorer.specification(setting, width) | {"datasets": explorer.rows()}
        self.chart = LiveChart(drawn, self._signals(setting), dark=dark)
        self.presets = {name: ipywidgets.Button(description=name) for name in explorer.presets}
        for name, button in self.presets.items():
            button.layout.width = "auto"
            button.on_click(lambda _, preset=explorer.presets[name]: self.show(preset))
        self._line = ipywidgets.HTML()
        self.chart.observe(self._follow, "_params")
        row = ipywidgets.HBox(list(self.presets.values()), layout={"flex_flow": "row wrap"})
        super().__init__([row, self.chart, self._line], layout={"padding": "0 0 0 6px"})
        self.add_class("robustviz-explorer")
        self._follow()

    def state(self) -> State:
        """Return the setting that is shown; given to `show`, or to `live` as a state, it brings it back."""
        values = self.chart.values
        return {control.name: _nearest(control, values[control.name]) for control in self.explorer.controls}

    def show(self, state: Mapping[str, Value] | str) -> None:
        """Show another setting.

        Args:
            state: Values of some controls, the others stay as they are; or a link.

        Raises:
            ValueError: If a control is unknown or its value was not measured.
        """
        whole = self.explorer.setting(state if isinstance(state, str) else self.state() | dict(state))
        self.chart.turn(self._signals(whole))

    def link(self) -> str:
        """Return the setting as the end of an address, as a page's "copy link" does."""
        return write_link(self.state())

    @property
    def message(self) -> str:
        """What the chart shows, in words."""
        return self.explorer.describe(self.state())

    def _signals(self, state: Mapping[str, Value]) -> dict[str, Value]:
        return {control.name: state[control.name] for control in self.explorer.controls}

    def _follow(self, change: Any = None) -> None:
        self._line.value = f'<div role="status">{escape(self.message)}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Put the still twin beside the widget, for places where widgets do not run, such as GitHub."""
        bundle = super()._repr_mimebundle_(**kwargs)
        found = bundle[0] if isinstance(bundle, tuple) else bundle
        if found is not None:
            still = self.explorer.still(None, self.state(), width=780)
            found |= {"text/plain": self.message, "image/png": b64encode(still).decode()}
        return bundle

    def __repr__(self) -> str:
        return f"{self.explorer.title}: {self.message}"


def _nearest(control: Control, value: Value) -> Value:
    """Return the measured value that a signal holds; a slider's numbers come back rounded."""
    if isinstance(value, str):
        return value
    return min((known for known in control.values if not isinstance(known, str)), key=lambda known: abs(known - value))
