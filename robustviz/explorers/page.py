"""An explorer as one self-contained page: Vega, the frames and a small script of our own; nothing is asked for."""

import base64
import gzip
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vl_convert

from robustviz.explorers.control import Control, State
from robustviz.explorers.theme import config

if TYPE_CHECKING:
    from robustviz.explorers.explorer import Explorer

HERE = Path(__file__).parent
SCRIPT = HERE / "explorer.js"
TEMPLATE = HERE / "page.html"

VEGA_LITE = "6.4"
"""Version of Vega-Lite that pages and still pictures are drawn with: that of Altair 6."""

ONE: dict[str, list[dict[str, Any]]] = {"one": [{}]}
"""Data of marks that show none."""

WIDTHS = (1200, 760, 360)
"""Widths that a page has a layout for: projector, tablet, phone."""


def written(explorer: "Explorer", state: State) -> str:
    """Return the page that shows an explorer, beginning with a state."""
    header, levels = ({}, b"") if explorer.album is None else explorer.album.packed()
    content = {
        "controls": [_control(control, state) for control in explorer.controls],
        "presets": {name: dict(preset) for name, preset in explorer.presets.items()},
        "captions": list(explorer.captions),
        "layouts": {width: explorer.specification(state, width) for width in WIDTHS},
        "tables": ONE | dict(explorer.tables),
        "themes": {"light": config(), "dark": config(dark=True)},
        "pictures": header,
    }
    parts = {
        "title": html.escape(explorer.title),
        "lead": html.escape(explorer.lead),
        "caption": html.escape(explorer.describe(state)),
        "content": _packed(json.dumps(content, separators=(",", ":"), allow_nan=False).encode()),
        "levels": _packed(levels),
        "vega": _bundle(),
        "script": SCRIPT.read_text(),
    }
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], TEMPLATE.read_text())


def _control(control: Control, state: State) -> dict[str, Any]:
    values = list(control.values)
    return {
        "name": control.name,
        "label": control.label,
        "field": control.field,
        "values": values,
        "value": state[control.name],
        "words": [control.spoken(value) for value in values],
    }


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed in a function of their own, so that they collide with no other script."""
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return "(() => {" + bundle.replace("</script", "<\\/script") + "})();"
