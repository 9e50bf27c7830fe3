"""The page that a report is, opened in a real browser without a network."""

import os
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from robustviz.pages.report import Grid, Picture, Section, write_report
from robustviz.plots import new_axes
from robustviz.records import RunRecord

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no Chromium at {CHROMIUM}; set $CHROMIUM"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything that a page can hold, some of it too wide."""
    line, wide = new_axes(), Figure(figsize=(13, 3))
    line.plot([0, 1])
    wide.subplots().plot([1, 0])
    pictures = [
        Picture.of("line", line.figure, "A line that rises.", "Rising."),
        Picture.of("wide", wide, "A wide picture of a line that falls.", "Falling."),
    ]
    headers = ["accuracy (95 % interval)", "clean", "FGSM", "IFGSM-20", "PGD-20", "worst case"]
    rows = [[name, *["97.5% (95-99)"] * 4, "96.4%"] for name in ("standard", "adversarially trained")]
    sections = [
        Section("Pictures", ["Of lines."], pictures),
        Section("Figures", tables=[Grid(headers, rows)]),
        Section("Again", code="robustviz train " + "--long-option " * 30),
    ]
    record = RunRecord("test", {"long": "word " * 100}, {})
    return write_report(tmp_path_factory.mktemp("report") / "index.html", "A report", "About lines.", sections, record)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, report):
    """The opened page, with every request and every complaint it made."""
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.requests, page.complaints = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(report.as_uri(), wait_until="networkidle")
    yield page
    page.close()


def test_every_picture_is_shown(page):
    widths = page.eval_on_selector_all("img", "images => images.map(image => [image.naturalWidth, image.width])")
    assert len(widths) == 2
    assert all(natural > 0 and 0 < shown <= 960 for natural, shown in widths)


def test_nothing_else_is_asked_for(page, report):
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.complaints == []


def test_the_page_does_not_scroll_sideways(page):
    for width in (1000, 400):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("document.querySelector('details').open = true")
        scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert scroll <= client


def test_headings_and_links(page):
    assert page.title() == "A report"
    assert page.locator("h1").all_inner_texts() == ["A report"]
    assert page.locator("h2").all_inner_texts() == ["Pictures", "Figures", "Again", "Settings"]
    page.get_by_role("link", name="Again").click()
    assert page.evaluate("window.scrollY") > 0
    assert page.get_by_role("heading", name="Again").is_visible()


def test_settings_open_on_a_click(page):
    settings = page.locator("details pre")
    assert not settings.is_visible()
    page.locator("summary").click()
    assert settings.is_visible()
    assert '"long"' in settings.inner_text()


def test_pictures_have_names_for_those_who_do_not_see_them(page):
    assert page.get_by_role("img", name="A line that rises.").count() == 1
    assert page.get_by_role("img", name="A wide picture of a line that falls.").count() == 1
