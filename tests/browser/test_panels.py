"""Every lesson with a panel, opened in JupyterLab, and the explorer in Voila too: run, moved by keyboard, looked at."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from serving import (
    CHROMIUM,
    NOTEBOOKS,
    changed,
    chromium,
    main_slider,
    pixels,
    run_lab,
    run_voila,
    served,
    status,
    step,
)

pytestmark = [
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no Chromium at {CHROMIUM}; set $CHROMIUM"),
]


def panels_in(path):
    """How many panels a notebook makes."""
    code = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    return len(re.findall(r"_explorer\(", "\n".join(code)))


LESSONS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if panels_in(path)]
EXPLORER = NOTEBOOKS / "08_explorer.ipynb"


@pytest.fixture
def context():
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium() as context:
        yield context


# One lesson belongs to `make test`; all of them are `make browser`.
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.browser] if i else [], id=path.stem) for i, path in enumerate(LESSONS)],
)
def test_panels_in_jupyterlab(path, context, tmp_path):
    with served("lab", path, tmp_path) as address:
        page = run_lab(context, address)
        assert complaints(page) == []
        for panel in use_panels(page, path.stem, panels_in(path)):
            if not panel.locator("canvas").count():
                hurry(panel)
                continue
            step(panel, "End")
            panel.page.wait_for_timeout(1000)
            slowly = pixels(panel)
            hurry(panel)
            panel.page.wait_for_timeout(1000)  # for the last of the many changes to be drawn
            assert pixels(panel) == slowly  # the page gets differences alone; none is lost
            use_pointer(panel, path.stem)
    assert context.elsewhere == []


@pytest.mark.browser
def test_the_explorer_in_voila(context, tmp_path):
    with served("voila", EXPLORER, tmp_path) as address:
        page = run_voila(context, address)
        use_panels(page, f"{EXPLORER.stem}-voila", panels_in(EXPLORER))
        assert page.get_by_text("attack_explorer(networks").count() == 0  # no code is shown
    assert context.elsewhere == []


@pytest.mark.browser
def test_warnings_of_ours_are_errors(context, tmp_path):
    """Those of other libraries about themselves are not."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for module in ("matplotlib.figure", "robustviz.widgets"):
        code = f"import warnings; warnings.warn('of {module}', DeprecationWarning)"
        notebook.cells.append(nbformat.v4.new_code_cell(f'exec("{code}", {{"__name__": "{module}"}})'))
    nbformat.write(notebook, tmp_path / "warnings.ipynb")
    with served("lab", tmp_path / "warnings.ipynb", tmp_path / "server") as address:
        (complaint,) = complaints(run_lab(context, address))
    assert "DeprecationWarning: of robustviz.widgets" in complaint


def complaints(page):
    """What stands on the page of warnings and errors."""
    kinds = ".jp-OutputArea-output[data-mime-type$='stderr'], .jp-RenderedText[data-mime-type$='error']"
    return page.locator(kinds).all_inner_texts()


def use_panels(page, name, count):
    """Move the main slider of every panel by keyboard, see the picture change, and keep what it looks like."""
    panels = page.locator(".robustviz-panel")
    assert panels.count() == count
    for number, panel in enumerate(panels.all(), 1):
        said, image = status(panel).inner_text(), panel.locator("img")
        if image.count():
            assert image.last.get_attribute("title") == said
        step(panel)
        status(panel).filter(has_not_text="busy").wait_for()
        assert status(panel).inner_text() != said
        assert "not possible" not in status(panel).inner_text()
        keep(panel, f"{name}-{number}")
    return panels.all()


def keep(panel, name):
    """Write a screenshot where $ROBUSTVIZ_SCREENSHOTS says."""
    if folder := os.environ.get("ROBUSTVIZ_SCREENSHOTS"):
        panel.screenshot(path=Path(folder) / f"{name}.png")


def hurry(panel):
    """Of many quick changes the last one is shown: the line tells where the slider stands."""
    slider = main_slider(panel)
    slider.press("Home")
    for _ in range(30):
        slider.press("ArrowRight")
    stands = (
        slider.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").locator(".widget-readout").inner_text()
    )
    status(panel).filter(has_text=re.compile(rf"epsilon {float(stands):.3g}\b")).wait_for(timeout=30_000)


def use_pointer(panel, name):
    """On a map that hears the pointer: a thumbnail on hover, a choice on click, a selection by lasso."""
    canvas, mouse = panel.locator("canvas").last, panel.page.mouse
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), pixels(panel)

    def move(across, down):
        mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])

    for place in range(60):  # somewhere in the middle of the map there is a cross
        move(0.2 + 0.004 * place, 0.55)
        panel.page.wait_for_timeout(100)
        if pixels(panel) != before:
            break
    changed(panel, before)
    keep(panel, f"{name}-hover")
    said, before = status(panel).inner_text(), pixels(panel)
    mouse.down()
    mouse.up()
    changed(panel, before)
    status(panel).filter(has_text=re.compile(r"Image [1-9]")).wait_for()
    assert status(panel).inner_text() != said
    move(0.1, 0.3)
    before = pixels(panel)
    mouse.down()
    for corner in ((0.4, 0.3), (0.4, 0.8), (0.1, 0.8)):
        move(*corner)
    changed(panel, before)
    keep(panel, f"{name}-lasso")
    mouse.up()
    status(panel).filter(has_text=re.compile(r"[1-9]\d* images selected")).wait_for()
