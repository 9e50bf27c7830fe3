"""Every explorer as a page, driven by keyboard and mouse: what the chart draws is what the frames hold."""

import base64
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import CHROMIUM, chromium

from robustviz import checkpoints
from robustviz.data import digits as digits_set
from robustviz.explorers import (
    channel_frames,
    feature_frames,
    show_attack,
    show_channels,
    show_features,
    show_training,
    show_wnll,
    training_frames,
    wnll_frames,
)
from robustviz.explorers.attack import ATTACKS, attack_frames
from robustviz.explorers.channels import usual_pair
from robustviz.explorers.control import write_link
from robustviz.explorers.networks import usual_networks
from robustviz.explorers.wnll_view import USUAL
from robustviz.geometry import template_source

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no Chromium at {CHROMIUM}; set $CHROMIUM"),
]

STRENGTHS = tuple(round(0.05 * step, 6) for step in range(6))
KINDS = ("attack", "channels", "features", "training", "wnll")

DRAWN = """() => {
    const found = {texts: [], images: [], points: 0};
    const walk = (mark) => mark.items.forEach((item) => {
        if (mark.marktype === 'text' && item.text !== undefined) found.texts.push(String(item.text));
        if (mark.marktype === 'image') found.images.push({url: item.url, x: item.x});
        if (mark.marktype === 'symbol' && mark.role === 'mark') found.points += 1;
        if (item.items) item.items.forEach(walk);
    });
    walk(view.scenegraph().root);
    return found;
}"""
"""All texts and pictures that Vega has drawn."""


@pytest.fixture(scope="module")
def explorers(tmp_path_factory):
    networks, images = usual_networks("digits"), digits_set("test").subset(20)
    attack = attack_frames(networks, images, attacks={"PGD": ATTACKS["PGD"]}, strengths=STRENGTHS, shown=5)
    features = feature_frames(
        networks["standard"], digits_set("train").subset(120), images, maps=("PCA",), strengths=STRENGTHS
    )
    channels = channel_frames(usual_pair(), images, strengths=STRENGTHS)
    source = template_source(USUAL, digits_set("train"))
    graphs = {"neighbors": (2, 15), "strengths": STRENGTHS, "shown": 5}
    wnll = wnll_frames(checkpoints.load(USUAL)[0], source, images, **graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        small = {"radii": (0.0, 0.1, 0.2), "epochs": (1, 2, 3), "strengths": STRENGTHS}
        training = training_frames(digits_set("train").subset(96), images, **small)
    return {
        "attack": show_attack(attack),
        "features": show_features(features),
        "channels": show_channels(channels),
        "training": show_training(training),
        "wnll": show_wnll(wnll),
    }


@pytest.fixture(scope="module")
def pages(explorers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorers")
    return {kind: explorer.save(folder / f"{kind}.html") for kind, explorer in explorers.items()}


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium() as context:
        yield context


@pytest.fixture
def opened(browser, pages):
    """Open a page of an explorer; at the end, no request has left and nobody has complained."""
    made, complaints, requests = [], [], []

    def open_page(kind, link="", width=1280, height=720, scheme="light"):
        page = browser.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        browser.unroute_all()  # files may be opened here
        page.goto(pages[kind].as_uri() + link)
        page.wait_for_selector("body[data-ready=yes]")
        made.append(page)
        return page

    yield open_page
    for page in made:
        page.close()
    files = {path.as_uri() for path in pages.values()}
    assert [url for url in requests if not url.startswith("data:") and url.split("#")[0] not in files] == []
    assert complaints == []


def settled(page):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


def shows(page, explorer, state):
    """Words, address, controls and the number of the frame are those of a setting."""
    settled(page)
    assert page.evaluate("view.signal('frame')") == explorer.frames.number(state)
    assert page.locator("#said").inner_text() == explorer.describe(state)
    assert explorer.setting(page.evaluate("location.hash")) == state
    for control in explorer.controls:
        words = control.spoken(state[control.name])
        if control.step is not None:
            slider = page.get_by_role("slider", name=control.label)
            assert slider.get_attribute("aria-valuetext") == words
            assert slider.locator("xpath=../output").inner_text() == words
        else:
            assert page.get_by_role("combobox", name=control.label).input_value() == str(state[control.name])


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_keys_move_the_strength(opened, explorers, kind):
    page, explorer = opened(kind), explorers[kind]
    shows(page, explorer, explorer.start)
    slider = page.get_by_role("slider", name="Strength")
    slider.focus()
    slider.press("ArrowRight")
    shows(page, explorer, explorer.start | {"strength": 0.2})
    slider.press("Home")
    shows(page, explorer, explorer.start | {"strength": 0.0})
    slider.press("End")
    shows(page, explorer, explorer.start | {"strength": 0.25})


@pytest.mark.parametrize("kind", KINDS)
def test_the_mouse_drags_the_strength(opened, explorers, kind):
    page, explorer = opened(kind), explorers[kind]
    box = page.get_by_role("slider", name="Strength").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.6 * box["width"], y)
    page.mouse.down()
    frames = []
    for share in (0.8, 0.99, 0.2, 0.01):
        page.mouse.move(box["x"] + share * box["width"], y, steps=3)
        settled(page)
        frames.append(page.evaluate("view.signal('frame')"))
    assert len(set(frames)) == 4, "the picture follows while the mouse is down"
    page.mouse.up()
    shows(page, explorer, explorer.start | {"strength": 0.0})


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_opens_its_setting(opened, explorers, kind):
    explorer, draw = explorers[kind], random.Random(kind)
    state = explorer.frames.state(draw.randrange(len(explorer.frames)))
    page = opened(kind, "#" + "&".join(f"{name}={value}" for name, value in reversed(state.items())))
    shows(page, explorer, state)
    other = explorer.frames.state(draw.randrange(len(explorer.frames)))
    page.evaluate("(hash) => { location.hash = hash; }", "&".join(f"{name}={value}" for name, value in other.items()))
    shows(page, explorer, other)


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_in_a_link_is_said_and_not_shown(opened, explorers, kind):
    page, explorer = opened(kind, "#strength=7&image=&attack=%3Cb%3E&label=x&map=1e400"), explorers[kind]
    shows(page, explorer, explorer.start)
    problem = page.get_by_role("alert").inner_text()
    assert problem.startswith("The link asks for ")
    assert "strength=7" in problem


def test_the_attack_page_draws_what_the_frames_hold(opened, explorers):
    explorer = explorers["attack"]
    page, album, draw = opened("attack"), explorer.album, random.Random(0)
    for number in draw.sample(range(len(explorer.frames)), 8):
        state = explorer.frames.state(number)
        page.evaluate("(hash) => { location.hash = hash; }", "&".join(f"{k}={v}" for k, v in state.items()))
        settled(page)
        drawn, rows = page.evaluate(DRAWN), explorer.tables["rows"][number :: len(explorer.frames)]
        for row in rows:
            assert {row["clean"], row["attacked"], row["change"]} <= set(drawn["texts"])
        stage = list(explorer.frames.grid["strength"]).index(state["strength"])
        expected = []
        for strip in range(state["image"], 10, 5):
            for z in (state["image"], album.attacked(strip), album.magnified(strip)):
                levels = album.levels(z)
                expected.append(levels[stage if len(levels) > 1 else 0].tobytes())
        assert [window(image, 8) for image in drawn["images"]] == expected


def window(image, side):
    """Return the gray levels of the picture that a window on a strip shows."""
    content = base64.b64decode(image["url"].partition(",")[2])
    levels = np.asarray(Image.open(io.BytesIO(content)))
    assert (levels[..., 0] == levels[..., 2]).all()
    place = 0 if levels.shape[1] == side else round(-image["x"] / 152)
    return levels[:, place * side : (place + 1) * side, 0].tobytes()


def test_all_pictures_of_the_page_are_those_of_the_album(opened, explorers):
    """The script makes the same pictures from packed changes that Python makes."""
    for kind in ("attack", "features", "wnll"):
        page, album = opened(kind), explorers[kind].album
        rows = page.evaluate("view.data('pictures').map(({z, url}) => ({z, url}))")
        assert [row["z"] for row in rows] == list(range(len(album.clean) + 2 * len(album.changes)))
        for row in random.Random(0).sample(rows, 20):
            content = base64.b64decode(row["url"].partition(",")[2])
            levels = np.asarray(Image.open(io.BytesIO(content)))[..., 0]
            assert (levels == np.concatenate(list(album.levels(row["z"])), axis=2)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_the_numbers_of_the_explorer(opened, explorers, kind):
    page = opened(kind)
    for name in ("rows", *{"features": ["points"], "training": []}.get(kind, ["curves"])):
        rows = explorers[kind].tables[name]
        held = json.loads(page.evaluate(f"JSON.stringify(view.data('{name}'))"))
        assert len(held) == len(rows)
        for place in random.Random(1).sample(range(len(rows)), min(15, len(rows))):
            assert held[place] == rows[place]


def apart(one, other):
    return (one["x"] - other["x"]) ** 2 + (one["y"] - other["y"]) ** 2


def test_a_click_on_a_mark_chooses_its_image(opened, explorers):
    page, explorer = opened("features"), explorers["features"]
    spots = page.evaluate("""() => {
        const found = [];
        const walk = (mark, x, y) => mark.items.forEach((item) => {
            if (mark.marktype === 'symbol' && item.datum && item.datum.r) {
                found.push({i: item.datum.i, x: x + item.x, y: y + item.y});
            }
            if (item.items) item.items.forEach((inner) => walk(inner, x + (item.x || 0), y + (item.y || 0)));
        });
        const [x, y] = view.origin();
        walk(view.scenegraph().root, x + view.padding().left, y + view.padding().top);
        return found;
    }""")
    assert {spot["i"] for spot in spots} == set(range(20))
    far = max(spots, key=lambda one: min(apart(one, other) for other in spots if other != one))
    box = page.locator("#chart canvas").bounding_box()
    page.mouse.click(box["x"] + far["x"], box["y"] + far["y"])
    shows(page, explorer, explorer.start | {"image": far["i"]})


@pytest.mark.parametrize("kind", KINDS)
def test_presets_keep_what_they_do_not_name(opened, explorers, kind):
    explorer = explorers[kind]
    held = {name: values[-2:][0] for name, values in explorer.frames.grid.items()}
    page = opened(kind, f"#{write_link(held)}")
    for name, preset in explorer.presets.items():
        held |= preset
        page.get_by_role("button", name=name, exact=True).click()
        shows(page, explorer, held)


@pytest.mark.parametrize("kind", KINDS)
def test_copy_link_gives_the_address(opened, explorers, kind):
    page, explorer = opened(kind, "#strength=0.2"), explorers[kind]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="copy link").click()
    page.wait_for_function("document.getElementById('copied').textContent !== ''")
    if page.locator("#link").is_visible():
        address = page.locator("#link").input_value()
    else:
        address = page.evaluate("navigator.clipboard.readText()")
    assert explorer.setting(address.partition("#")[2]) == explorer.start | {"strength": 0.2}


@pytest.mark.parametrize("kind", KINDS)
def test_controls_and_picture_fit_a_projector(opened, kind):
    page = opened(kind)
    box = page.locator("#chart canvas").bounding_box()
    assert box["x"] + box["width"] <= 1280
    assert box["y"] + box["height"] <= 720
    assert page.evaluate("document.documentElement.scrollHeight") <= 720


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [400, 800])
def test_narrow_pages_do_not_scroll_sideways(opened, explorers, kind, width):
    page, explorer = opened(kind, "#strength=0.1", width=width), explorers[kind]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box, room = page.locator("#chart canvas").bounding_box(), page.locator("#chart").bounding_box()
    assert box["width"] <= room["width"] + 1
    page.set_viewport_size({"width": 1280, "height": 720})
    page.wait_for_function("document.querySelector('#chart canvas').getBoundingClientRect().width > 900")
    shows(page, explorer, explorer.start | {"strength": 0.1})


def test_the_votes_page_draws_the_voters(opened, explorers):
    """Words below the pictures and the pictures themselves, for some settings."""
    explorer = explorers["wnll"]
    page, rows, size = opened("wnll"), explorer.tables["rows"], len(explorer.frames.grid["image"])
    for number in random.Random(0).sample(range(len(rows)), 6):
        page.evaluate("(hash) => { location.hash = hash; }", write_link(explorer.frames.state(number)))
        shows(page, explorer, explorer.frames.state(number))
        row = rows[number]
        before, drawn = rows[number - row["s"] * size], page.evaluate(DRAWN)
        urls = page.evaluate("Object.fromEntries(view.data('pictures').map(({z, url}) => [z, url]))")
        strip = next(one["z"] for one in explorer.tables["strips"] if one["g"] == strip_of(explorer, number))
        expected = [before["i"], *before["z"], strip, *row["z"]]
        assert [image["url"] for image in drawn["images"]] == [urls[str(z)] for z in expected]
        assert {before["said"], row["said"], *row["c"], *row["w"], *before["c"]} <= set(drawn["texts"])


def strip_of(explorer, number):
    """The number of the strip of changes that a frame shows."""
    attack, graph, _, image = (
        values.index(explorer.frames.state(number)[name]) for name, values in explorer.frames.grid.items()
    )
    return (attack * len(explorer.frames.grid["neighbors"]) + graph) * len(explorer.frames.grid["image"]) + image


def test_light_and_dark_keep_the_setting(opened, explorers):
    page, explorer = opened("attack", "#strength=0.25&image=4", scheme="dark"), explorers["attack"]
    corner = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(corner) == "rgb(18, 18, 18)"
    page.evaluate("() => { window.before = view; }")
    page.emulate_media(color_scheme="light")
    page.wait_for_function("window.view !== window.before")
    assert page.evaluate(corner) == "rgb(255, 255, 255)"
    shows(page, explorer, explorer.start | {"strength": 0.25, "image": 4})


@pytest.mark.parametrize("kind", KINDS)
def test_everything_has_a_name(opened, explorers, kind):
    page, explorer = opened(kind), explorers[kind]
    assert page.get_by_role("img", name=explorer.describe()).count() == 1
    assert page.get_by_role("group", name="Controls").count() == 1
    nameless = page.evaluate("""() => [...document.querySelectorAll('input:not([hidden]), select, button')]
        .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim())).length""")
    assert nameless == 0
    sizes = page.evaluate("""() => [...document.querySelectorAll('main *')].filter((one) => one.innerText)
        .map((one) => parseFloat(getComputedStyle(one).fontSize))""")
    assert min(sizes) >= 14
