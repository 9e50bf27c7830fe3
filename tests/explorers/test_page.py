"""Pages and still pictures: whole files, small, self-contained; the one script keeps its rules."""

import base64
import gzip
import json
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import altair as alt
import pytest
from PIL import Image

from robustviz.explorers import explorer as explorer_module
from robustviz.explorers.page import SCRIPT, WIDTHS

CODE = SCRIPT.read_text()


@pytest.fixture(scope="module")
def page(explorer, tmp_path_factory):
    return explorer.save(tmp_path_factory.mktemp("page") / "attack.html", {"image": 3})


def content(page, name):
    found = re.search(rf'id="explorer-{name}">([^<]*)</script>', page.read_text())
    return gzip.decompress(base64.b64decode(found[1]))


def test_a_page_asks_for_nothing(page):
    text = page.read_text()
    outside = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:,|#)""", outside)
    assert "{{" not in outside
    assert page.stat().st_size < 5_000_000


def test_a_page_holds_all_frames(page, explorer, frames):
    held = json.loads(content(page, "content"))
    assert held["captions"] == list(explorer.captions)
    assert {control["name"]: control["value"] for control in held["controls"]} == {
        "attack": "PGD", "strength": 0.1, "image": 3
    }  # fmt: skip
    assert [int(width) for width in held["layouts"]] == list(WIDTHS)
    clean = frames.arrays["pictures"].numpy().tobytes()
    assert content(page, "levels")[: len(clean)] == clean
    assert len(content(page, "levels")) == len(clean) + frames.arrays["changes"].numel()


@pytest.mark.parametrize("width", WIDTHS)
def test_layouts_are_vega_lite(explorer, width):
    drawn = explorer.draw(width)
    drawn.to_dict(validate=True)
    names = [param["name"] for param in explorer.specification(explorer.start, width)["params"]]
    assert names[:4] == ["attack", "strength", "image", "frame"]


def test_nothing_is_overwritten_unasked(page, explorer, tmp_path):
    with pytest.raises(FileExistsError, match="pass force"):
        explorer.save(page)
    explorer.save(page, {"image": 3}, force=True)
    with pytest.raises(ValueError, match=r"path must end in \.html"):
        explorer.save(tmp_path / "attack.htm")
    with pytest.raises(ValueError, match="image must be one of 0, 1, 2, 3, 4, 5, got 6"):
        explorer.save(tmp_path / "attack.html", {"image": 6})
    assert not list(tmp_path.iterdir())


def test_a_page_that_is_too_large_is_refused(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer_module, "LARGEST", 100_000)
    with pytest.raises(ValueError, match=r"at most 0 MB, got 0\.9 MB for 60 frames"):
        explorer.save(tmp_path / "attack.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_still_twins(explorer, tmp_path, kind, start):
    path = tmp_path / f"attack.{kind}"
    drawn = explorer.still(path, {"image": 1})
    assert path.read_bytes() == drawn
    assert drawn.startswith(start)
    if kind == "svg":
        assert "accuracy on 20 images" in drawn.decode()
        assert drawn.count(b"<image") == 6
        assert explorer.tables["rows"][0]["clean"][0] in drawn.decode()


def test_a_still_png_is_small_and_shows_its_setting(explorer):
    stills = [explorer.still(None, {"image": 1, "strength": s}, dark=dark) for s, dark in ((0.0, False), (0.2, True))]
    assert all(len(still) <= 40_000 for still in stills)
    light, dark = (Image.open(BytesIO(still)).convert("L") for still in stills)
    assert light.getpixel((2, light.height - 2)) > 200 > 60 > dark.getpixel((2, dark.height - 2))
    assert light.width > 900
    with pytest.raises(ValueError, match=r"path must end in \.png, \.svg or \.pdf, got attack\.gif"):
        explorer.still("attack.gif")


def test_the_chart_of_altair_itself_takes_the_specification(explorer):
    drawn = explorer.specification(explorer.start, WIDTHS[0]) | {"datasets": explorer.rows(explorer.start)}
    alt.Chart.from_dict(drawn).to_dict()


# --- the script -----------------------------------------------------------


def test_the_script_is_small():
    assert len(CODE.splitlines()) < 300
    assert all(len(line) <= 120 for line in CODE.splitlines())
    assert CODE.endswith("\n")
    assert not re.search(r"[ \t]+$", CODE, re.MULTILINE)


@pytest.mark.parametrize(
    "forbidden",
    [
        *(r"\bvar\b", r"[^=!]==[^=]", r"!=[^=]", r"\beval\b", r"new Function", r"innerHTML", r"document\.write"),
        *(r"console\.", r"\bfetch\(", r"XMLHttpRequest", r"WebSocket", r"sendBeacon", r"https?:", r"\balert\("),
        *(r"localStorage", r"cookie", r"\t", r"debugger", r"TODO"),
    ],
)
def test_the_script_leaves_out(forbidden):
    assert not re.search(forbidden, CODE)


def test_the_script_is_strict_and_every_function_is_used():
    assert CODE.count('"use strict"') == 1
    for name in re.findall(r"function (\w+)\(", CODE):
        assert len(re.findall(rf"\b{name}\b", CODE)) > 1, f"{name} is never called"
    for name in re.findall(r"(?:const|let) (\w+) =", CODE):
        assert len(re.findall(rf"\b{name}\b", CODE)) > 1, f"{name} is never read"


def test_the_script_can_be_parsed():
    node = shutil.which("node") or _bundled_node()
    if node is None:
        pytest.skip("there is no node, and none came with playwright")
    subprocess.run([node, "--check", SCRIPT], check=True)


def _bundled_node():
    try:
        import playwright
    except ImportError:
        return None
    found = Path(playwright.__file__).parent / "driver" / "node"
    return found if found.exists() else None
