"""Notebooks in JupyterLab and Voila, opened in a real Chromium that reaches nothing but this machine."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"

READY = """() => {
    const context = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    const kernel = context?.session?.kernel;
    return context?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
"""The notebook is connected to its kernel: what is run before that is lost without a message."""

DONE = f"""() => ({READY})() &&
    ![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"""

PIXELS = """panel => {
    const canvas = panel.querySelector('.jupyter-matplotlib canvas'), image = [...panel.querySelectorAll('img')].at(-1);
    if (!canvas) return image.complete ? image.src : null;
    const painted = canvas.getContext('2d').getImageData(0, 0, 1, 1).data[3];
    return painted ? canvas.toDataURL() : null;
}"""
"""A panel's picture is an image, or a canvas that hears the pointer and is empty at first; null while it is loading."""

SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # cells out of sight stay on the page
}

STRICT = r"""import warnings
warnings.filterwarnings("error", module=r"(robustviz|__main__)\b")
"""
"""Run by every kernel first: a warning about what our code or a lesson does is an error."""


@contextmanager
def served(kind, notebook, folder):
    """Serve a copy of a notebook by `"lab"` or `"voila"` from an empty folder; give its address."""
    copy = folder / "notebooks" / notebook.name
    copy.parent.mkdir(parents=True)
    shutil.copy(notebook, copy)
    for name, text in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    startup = folder / "ipython" / "profile_default" / "startup" / "strict.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(STRICT)
    homes = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = os.environ | {f"JUPYTER_{key}_DIR": str(folder / name) for key, name in homes.items()}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "IPYTHONDIR": str(folder / "ipython")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token, place = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    if kind == "lab":
        command = ["jupyter", "lab", "--ip=127.0.0.1", f"--IdentityProvider.token={token}", "--allow-root"]
        command += [f"--ServerApp.root_dir={copy.parent}", "--LabApp.expose_app_in_browser=True"]
        command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        ready, address = f"{place}/api?token={token}", f"{place}/lab/tree/{copy.name}?token={token}&reset"
    else:
        command = ["voila", str(copy), "--Voila.ip=127.0.0.1", f"--token={token}"]
        command += ["--VoilaConfiguration.show_tracebacks=True"]
        ready, address = f"{place}/voila/static/voila.js", f"{place}/?token={token}"
    here = ROOT if kind == "voila" else copy.parent  # Voila's settings, voila.json, are read where it is started
    command[0] = str(Path(sys.executable).parent / command[0])
    command += ["--no-browser", f"--port={port}"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=here)
    try:
        answers(ready, server, folder / "server.log")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(address, server, log, limit=90):
    """Wait until the server answers."""
    end = time.monotonic() + limit
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"no answer from the server: {log.read_text()[-2000:]}")


@contextmanager
def chromium():
    """Start a Chromium whose pages keep every request in `page.context.elsewhere` that leaves this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.elsewhere = []

        def refuse(route):
            context.elsewhere.append(route.request.url)
            route.abort()

        context.route(lambda address: not local(address), refuse)
        yield context
        browser.close()


def local(address):
    return address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def run_lab(context, address):
    """Open a notebook in JupyterLab, run all of it, and return the page."""
    page = context.new_page()
    page.on("websocket", lambda socket: local(socket.url) or context.elsewhere.append(socket.url))
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(READY, timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".jp-InputPrompt:has-text('*')", timeout=10_000)
    page.wait_for_function(DONE, timeout=300_000)
    return page


def run_voila(context, address):
    """Open a notebook in Voila, which runs all of it, and return the page."""
    page = context.new_page()
    page.on("websocket", lambda socket: local(socket.url) or context.elsewhere.append(socket.url))
    page.goto(address, wait_until="domcontentloaded", timeout=300_000)
    page.wait_for_selector(".robustviz-panel", timeout=300_000)
    return page


def main_slider(panel):
    """The handle of the slider that a panel is about: epsilon, or its first one."""
    sliders = panel.locator(".widget-hslider")
    named = sliders.filter(has_text="epsilon")
    return (named if named.count() else sliders).first.get_by_role("slider")


def status(panel):
    """The line of a panel."""
    return panel.locator("[role=status]")


def changed(panel, before, limit=30):
    """Wait until a panel shows other pixels than before."""
    panel.page.wait_for_function(
        f"([panel, before]) => ![null, before].includes(({PIXELS})(panel))",
        arg=[panel.element_handle(), before],
        timeout=1000 * limit,
        polling="raf",
    )


def pixels(panel):
    """What a panel shows, as text that is another when a pixel is."""
    return panel.page.wait_for_function(PIXELS, arg=panel.element_handle()).json_value()


def step(panel, key="ArrowRight"):
    """Press a key on a panel's main slider and wait for another picture; return the seconds that it took."""
    slider, before = main_slider(panel), pixels(panel)
    slider.focus()
    start = time.perf_counter()
    slider.press(key)
    changed(panel, before)
    return time.perf_counter() - start
