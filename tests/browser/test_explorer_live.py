"""The attack explorer in Voila: the picture follows the keys, and Python hears of it."""

from pathlib import Path

import nbformat
import pytest
from serving import CHROMIUM, chromium, run_lab, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no Chromium at {CHROMIUM}; set $CHROMIUM"),
]

CODE = """from robustviz.data import digits
from robustviz.explorers import attack_explorer
from robustviz.explorers.attack import ATTACKS
from robustviz.explorers.networks import usual_networks
images, attacks = digits("test").subset(20), {"PGD": ATTACKS["PGD"]}
explorer = attack_explorer(usual_networks("digits"), images, attacks=attacks, strengths=(0.0, 0.1, 0.2), shown=4)
live = explorer.live()
live"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "explorer.ipynb"
    cell = nbformat.v4.new_code_cell(CODE)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
    return path


@pytest.mark.parametrize("kind", ["voila"])  # in JupyterLab the slider does not yet move the picture by keyboard
def test_the_picture_follows_and_python_hears(kind, notebook, tmp_path):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with served(kind, notebook, tmp_path) as address, chromium() as context:
        if kind == "lab":
            page, link = run_lab(context, address), ""
        else:
            page, link = context.new_page(), "&strength=0.2&image=2"
            page.goto(address + link, wait_until="domcontentloaded", timeout=300_000)
        panel = page.locator(".robustviz-explorer")
        panel.locator("canvas").wait_for(timeout=120_000)
        said = panel.locator("[role=status]")
        start = ("0.1", "Image 0") if not link else ("0.2", "Image 2")
        assert said.inner_text().startswith(start[1])
        assert f"strength {start[0]}" in said.inner_text()
        slider = panel.locator("input[type=range][name=strength]")
        assert slider.bounding_box()["y"] < panel.locator("canvas").bounding_box()["y"], "controls are above"
        before = panel.locator("canvas").evaluate("canvas => canvas.toDataURL()")
        slider.focus()
        slider.press("ArrowLeft")
        page.wait_for_function(
            "([canvas, before]) => canvas.toDataURL() !== before",
            arg=[panel.locator("canvas").element_handle(), before],
        )
        said.filter(has_text="strength 0.0" if not link else "strength 0.1").wait_for(timeout=20_000)
        panel.get_by_role("button", name="strongest").click()
        said.filter(has_text="strength 0.2").wait_for(timeout=20_000)
        assert float(slider.input_value()) == 0.2
        assert context.elsewhere == []
