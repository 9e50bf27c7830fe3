"""Records to one HTML page: a single file without outside references, readable offline."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustviz.records import RunRecord, write_atomic

_DOTS_PER_INCH = 144


@dataclass(frozen=True)
class Picture:
    """A figure in a report.

    Attributes:
        name: Name of its file, without suffix.
        png: The picture, base64-encoded.
        width: Width of the shown picture, in CSS pixels.
        alt: What a reader who cannot see it should know.
        caption: Text below it.
    """

    name: str
    png: str
    width: int
    alt: str
    caption: str

    @classmethod
    def of(cls, name: str, figure: Any, alt: str, caption: str) -> "Picture":
        """Render a matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
        width = round(figure.get_size_inches()[0] * 100)
        return cls(name, base64.b64encode(buffer.getvalue()).decode(), width, alt, caption)


@dataclass(frozen=True)
class Grid:
    """A table in a report: headers and rows of text."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of a report; its pieces are shown in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Grid] = ()
    code: str = ""


def write_report(path: Path | str, title: str, lead: str, sections: Sequence[Section], record: RunRecord) -> Path:
    """Write the page, and beside it every picture as a PNG file for slides, each whole or not at all.

    Args:
        path: The HTML file.
        title: Heading and window title.
        lead: What was done, in one paragraph.
        sections: The parts, in order.
        record: The run; its settings and versions close the page.
    """
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("report.html").read_text()
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    for picture in (picture for section in sections for picture in section.pictures):
        write_atomic(Path(path).with_name(f"{picture.name}.png"), base64.b64decode(picture.png))
    settings = json.dumps({"versions": record.versions, **record.settings}, indent=2)
    return write_atomic(path, template.render(title=title, lead=lead, sections=sections, settings=settings) + "\n")
