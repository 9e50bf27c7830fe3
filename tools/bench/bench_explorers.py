"""Explorers as pages in headless Chromium, as shares of what is allowed.

Allowed are 50 ms from an input event to the second painted frame while the slider is dragged, 2 s to the first picture,
and 5 MB for a page of digits, 12 MB for others.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from robustviz.explorers import (
    Explorer,
    attack_explorer,
    channels_explorer,
    features_explorer,
    training_explorer,
    wnll_explorer,
)
from robustviz.explorers.networks import usual_images, usual_networks
from tests.browser.serving import ARGUMENTS, CHROMIUM
from tools.bench.timing import Ratio

DRAG = """async () => {
    const slider = document.querySelector('#controls input[name=strength]');
    const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const lags = [];
    for (let step = 0; step < 40; step += 1) {
        slider.value = (step % 2 ? 1 - step / 40 : step / 40) * slider.max;
        const start = performance.now();
        slider.dispatchEvent(new Event('input', {bubbles: true}));
        await painted();
        lags.push(performance.now() - start);
    }
    return lags;
}"""

EXPLORERS: dict[str, tuple[float, Callable[[], Explorer]]] = {
    "attack on digits": (5e6, lambda: attack_explorer(usual_networks("digits"), usual_images(100, "digits"))),
    "attack": (12e6, attack_explorer),
    "channels": (5e6, channels_explorer),
    "features": (12e6, features_explorer),
    "training": (5e6, training_explorer),
    "wnll": (5e6, wnll_explorer),
}
"""Bytes that are allowed, and what measures the explorer."""


def main() -> Iterator[Ratio]:
    if not Path(CHROMIUM).exists():
        print(f"explorers are left out: there is no Chromium at {CHROMIUM}; set $CHROMIUM")
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, (allowed, measure) in EXPLORERS.items():
            path = measure().save(Path(folder) / "page.html", force=True)
            firsts = []
            for _ in range(3):
                page = browser.new_page(viewport={"width": 1280, "height": 720})
                start = time.perf_counter()
                page.goto(path.as_uri())
                page.wait_for_selector("body[data-ready=yes]")
                firsts.append(time.perf_counter() - start)
            lags = page.evaluate(DRAG)
            yield Ratio(f"{name}, dragged", "50 ms", [lag / 50 for lag in lags], 1.0)
            yield Ratio(f"{name}, first picture", "2 s", [first / 2 for first in firsts], 1.0)
            yield Ratio(f"{name}, page", f"{allowed / 1e6:.0f} MB", [path.stat().st_size / allowed], 1.0)
        browser.close()
