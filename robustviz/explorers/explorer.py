"""What an explorer is: frames, controls that choose one, and a chart that shows it live, as a page or as a picture."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vl_convert
from PIL import Image

from robustviz.explorers import page
from robustviz.explorers.control import Control, State, frame_number, read_link
from robustviz.explorers.frames import Frames, Value, check_state
from robustviz.explorers.page import ONE, VEGA_LITE
from robustviz.explorers.pictures import Album
from robustviz.explorers.theme import FONT, config
from robustviz.records import write_atomic

if TYPE_CHECKING:
    from robustviz.explorers.live import LiveExplorer

Row = dict[str, Any]

LARGEST = 12_000_000
"""Bytes of a page; a larger one is slow to send and to open."""

STILL = 40_000
"""Bytes of a still PNG, so that notebooks stay small."""


@dataclass(frozen=True)
class Explorer:
    """Frames and the one definition of how they are shown.

    The definition names its data and is drawn for a width; the same serves a live chart, a page without a kernel and a
    still picture. In it, the signal `frame` is the number of the frame that the controls ask for.

    Attributes:
        title: Heading.
        lead: What is to be seen, in a sentence or two.
        frames: What is shown.
        controls: One for each part of the grid, in its order.
        presets: Partial states by the word on their button; what they leave out stays as it is.
        captions: What each frame shows, in words made from its numbers.
        tables: Rows of the data that the chart names.
        draw: Makes a Vega-Lite specification, without parameters and data, for a width in pixels.
        album: Pictures of the table "pictures"; None if there are none.
        signals: More values that the chart needs, as Vega's expressions.
        shown: Gives for the number of a frame the numbers of its pictures, and the place of its strength in the strips.
    """

    title: str
    lead: str
    frames: Frames
    controls: tuple[Control, ...]
    presets: Mapping[str, State]
    captions: Sequence[str]
    tables: Mapping[str, list[Row]]
    draw: Callable[[int], Any]
    album: Album | None = None
    signals: Mapping[str, str] = field(default_factory=dict)
    shown: Callable[[int], tuple[Iterable[int], int]] = lambda frame: ((), 0)

    @property
    def start(self) -> State:
        """The setting that is shown first."""
        return {control.name: control.start for control in self.controls}

    def setting(self, state: Mapping[str, Value] | str | None) -> State:
        """Return a whole setting from a part of one, a link or nothing.

        Raises:
            ValueError: If a control is unknown or its value was not measured.
        """
        if isinstance(state, str):
            return read_link(self.controls, state)
        check_state(self.frames.grid, state or {}, whole=False)
        return self.start | dict(state or {})

    def describe(self, state: Mapping[str, Value] | str | None = None) -> str:
        """Say in words what the chart shows at a setting.

        Args:
            state: Values of some controls, or the end of a link; the others have their start.

        Raises:
            ValueError: If a control is unknown or its value was not measured.
        """
        return self.captions[self.frames.number(self.setting(state))]

    def specification(self, state: State, width: int, *, bound: bool = True) -> dict[str, Any]:
        """Return the Vega-Lite specification for a setting and a width, without data."""
        drawn: dict[str, Any] = self.draw(width).to_dict(validate=False)
        drawn.pop("config", None)
        held = [control.param(state[control.name], bound=bound) for control in self.controls]
        named = {"frame": frame_number(self.controls), **self.signals}
        drawn["params"] = [
            *held,
            *({"name": name, "expr": expression} for name, expression in named.items()),
            *drawn.get("params", []),
        ]
        return drawn | {"usermeta": {"embedOptions": {"actions": False}}}

    def rows(self, state: State | None = None) -> dict[str, list[Row]]:
        """Return all data of the chart; with a state, only the pictures that it shows."""
        tables = ONE | dict(self.tables)
        if self.album is not None:
            numbers, only = (None, None) if state is None else self.shown(self.frames.number(state))
            tables["pictures"] = list(self.album.rows(numbers, only))
        return tables

    def save(self, path: Path | str, state: Mapping[str, Value] | str | None = None, *, force: bool = False) -> Path:
        """Write one self-contained page that shows everything without a kernel and asks for nothing.

        Args:
            path: File name ending in `.html`.
            state: What is shown first.
            force: Replace a file that exists.

        Raises:
            FileExistsError: If the file exists and `force` is False.
            ValueError: If the file name has another ending, the state was not measured, or the page would exceed
                12 MB.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"path must end in .html, got {path}")
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; choose another name, or pass force")
        content = page.written(self, self.setting(state)).encode()
        if len(content) > LARGEST:
            raise ValueError(
                f"a page must have at most {LARGEST / 1e6:.0f} MB, got {len(content) / 1e6:.1f} MB for "
                f"{len(self.frames):,} frames; measure fewer images, attacks or strengths"
            )
        return write_atomic(path, content)

    def still(
        self,
        path: Path | str | None = None,
        state: Mapping[str, Value] | str | None = None,
        *,
        width: int = 1200,
        dark: bool = False,
    ) -> bytes:
        """Draw one frame as a picture, without a browser.

        Args:
            path: File name ending in `.png`, `.svg` or `.pdf`, which is replaced; None writes nothing and draws a PNG.
            state: The setting that is shown.
            width: Width of the layout, in pixels; a PNG of more than 40 kB is drawn smaller.
            dark: For a dark page.

        Returns:
            The content of the file.

        Raises:
            ValueError: If the ending is another one, or the state was not measured.
        """
        kind = "png" if path is None else Path(path).suffix.lstrip(".").lower()
        if kind not in ("png", "svg", "pdf"):
            raise ValueError(f"path must end in .png, .svg or .pdf, got {path}")
        setting = self.setting(state)
        drawn = self.specification(setting, width, bound=False) | {"datasets": self.rows(setting)}
        look = config(dark=dark, font=FONT) | {"background": "#121212" if dark else "white"}
        content = _converted(kind, drawn, look)
        if path is not None:
            write_atomic(path, content)
        return content

    def live(self, state: Mapping[str, Value] | str | None = None, *, width: int = 900) -> "LiveExplorer":
        """Show the explorer in a notebook; see `live.LiveExplorer`."""
        from robustviz.explorers.live import LiveExplorer

        return LiveExplorer(self, state, width=width)


@cache
def _find_font() -> None:
    """Let the converter know Matplotlib's font, without importing Matplotlib."""
    if (found := find_spec("matplotlib")) and found.origin:
        vl_convert.register_font_directory(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"))


def _converted(kind: str, drawn: dict[str, Any], look: dict[str, Any]) -> bytes:
    _find_font()
    common: dict[str, Any] = {"vl_version": VEGA_LITE, "config": look}
    if kind == "svg":
        return vl_convert.vegalite_to_svg(drawn, **common).encode()
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(drawn, **common)
    return _small(vl_convert.vegalite_to_png(drawn, scale=1, **common))


def _small(content: bytes) -> bytes:
    """Write a PNG again with fewer colors, and smaller where that does not do, until it is small enough."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for colors, scale in ((256, 1.0), (96, 1.0), (64, 0.85), (48, 0.7), (32, 0.55), (16, 0.4)):
        size = (round(scale * picture.width), round(scale * picture.height))
        stream = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).quantize(colors).save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= STILL:
            break
    return stream.getvalue()
