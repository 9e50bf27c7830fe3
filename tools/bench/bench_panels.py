"""Milliseconds from a key on a slider to new pixels in the browser, as a share of what is allowed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.browser.serving import CHROMIUM, NOTEBOOKS, chromium, run_lab, served, step
from tools.bench.timing import Ratio

ALLOWED = {
    "attack explorer": 0.250,
    "WNLL explorer": 0.250,
    "TVM explorer": 0.250,
    "channel explorer": 0.200,
    "feature explorer": 0.200,
}
"""Seconds for a step of the panels, in the order in which the explorer's notebook shows them."""

PRESETS = ("ten steps", "usual strength", "naive attack", "usual strength", "usual strength")
"""Buttons that bring each panel to what is measured."""

STEPS = 9


def main() -> Iterator[Ratio]:
    if not Path(CHROMIUM).exists():
        print(f"panels are left out: there is no Chromium at {CHROMIUM}; set $CHROMIUM")
        return
    seconds: dict[str, list[float]] = {}
    explorer = NOTEBOOKS / "08_explorer.ipynb"
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as context,
        served("lab", explorer, Path(folder)) as address,
    ):
        page = run_lab(context, address)
        panels = page.locator(".robustviz-panel").all()
        for name, preset, panel in zip(ALLOWED, PRESETS, panels, strict=True):
            panel.get_by_role("button", name=preset, exact=True).click()
            page.wait_for_timeout(3000)
            step(panel, "Home")
            seconds[name] = [step(panel) for _ in range(STEPS)]
    for name, allowed in ALLOWED.items():
        yield Ratio(f"{name}, 1 step", f"{1000 * allowed:.0f} ms", [taken / allowed for taken in seconds[name]], 1.0)
