import base64
import io
import json
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from robustviz.data import digits
from robustviz.pages import demo
from robustviz.pages.report import Grid, Picture, Section, write_report
from robustviz.records import RunRecord
from robustviz.training import TrainConfig


class Page(HTMLParser):
    """What a page refers to, shows and says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append((self.open[-1], data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, tag):
        return [text for name, text in self.words if name == tag and text.strip()]


def picture(alt="A line that rises.", caption="Rising."):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    return Picture.of("line", figure, alt, caption)


RECORD = RunRecord("test", {"steps": 20, "name": "<script>alert(1)</script>"}, {})
SECTIONS = [
    Section("First", ["One.", "Two."], [picture(), picture("A line that rises again.")]),
    Section("Second", tables=[Grid(["network", "accuracy"], [["standard", "97.5%"], ["hardened", "96.9%"]])]),
    Section("Third", code="robustviz demo --seed 0"),
]


def assert_self_contained(text):
    """No reference leaves the page: sources are data, links are anchors that exist, and style fetches nothing."""
    page = Page(text)
    identities = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            if name in {"src", "srcset", "data", "poster", "background"}:
                assert value.startswith("data:")
            if name == "href":
                assert value.startswith("#")
                assert value[1:] in identities
            assert not name.startswith("on")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for attributes in page.all("img"):
        assert len(attributes["alt"]) > 10
        kind, _, content = attributes["src"].partition(",")
        assert kind == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        assert shown.width >= int(attributes["width"])
    return page


def test_the_page_is_one_file_without_references(tmp_path):
    path = write_report(tmp_path / "new" / "index.html", "Title", "Lead.", SECTIONS, RECORD)
    page = assert_self_contained(path.read_text())
    assert len(page.all("img")) == 2
    assert page.said("title") == page.said("h1") == ["Title"]
    assert page.said("h2") == ["First", "Second", "Third", "Settings"]
    assert page.said("a") == ["First", "Second", "Third"]
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[0]["charset"] == "utf-8"


def test_everything_is_shown(tmp_path):
    page = Page(write_report(tmp_path / "index.html", "Title", "Lead.", SECTIONS, RECORD).read_text())
    assert page.said("p") == ["Lead.", "One.", "Two."]
    assert page.said("figcaption") == ["Rising.", "Rising."]
    assert [attributes["alt"] for attributes in page.all("img")] == ["A line that rises.", "A line that rises again."]
    assert page.said("th") == ["network", "accuracy"]
    assert page.said("td") == ["standard", "97.5%", "hardened", "96.9%"]
    code, settings = ("".join(page.said("code")[:1]), "".join(page.said("code")[1:]))
    assert code == "robustviz demo --seed 0"
    assert json.loads(settings) == {"versions": RECORD.versions, **RECORD.settings}


def test_text_is_escaped(tmp_path):
    evil = '<script>alert("1")</script> & "quoted" <img src=x onerror=alert(1)>'
    sections = [
        Section(evil, [evil], [picture(evil, evil)], [Grid([evil], [[evil]])], code=evil),
    ]
    page = assert_self_contained(write_report(tmp_path / "index.html", evil, evil, sections, RECORD).read_text())
    assert len(page.all("img")) == 1
    assert page.all("img")[0]["alt"] == evil
    for tag in ("title", "h1", "p", "h2", "a", "figcaption", "th", "td", "code"):
        assert "".join(page.said(tag)).startswith(evil), tag
    assert "<script>alert(1)</script>" in "".join(page.said("code"))


def test_a_picture_has_its_size():
    shown = picture()
    assert shown.width == 300
    assert Image.open(io.BytesIO(base64.b64decode(shown.png))).size == (432, 288)
    assert picture().png == shown.png


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """The demo with few images, one epoch and three strengths: folder, page and what was said."""
    out, said = tmp_path_factory.mktemp("demo"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SECTIONS", {})  # tested beside the experiments
        patch.setattr(demo, "TrainConfig", lambda **settings: TrainConfig(epochs=1, **settings))
        patch.setattr(demo, "_EPSILONS", (0.0, 0.15, 0.3))
        patch.setattr(demo, "digits", lambda part: digits(part).subset({"train": 200, "test": 40}[part]))
        page, grid = demo.run_demo(out, say=said.append)
    return out, page, grid, said


def test_the_demo_writes_one_page(demonstration):
    out, path, _, _ = demonstration
    assert path == out / "index.html"
    page = assert_self_contained(path.read_text())
    assert len(page.all("img")) >= 2
    assert len(page.said("h2")) == len(set(page.said("h2"))) >= 5
    assert all(len(text) > 20 for text in page.said("figcaption"))


def test_the_demo_tells_how_to_repeat_it(demonstration):
    _, path, grid, said = demonstration
    text = "".join(text for _, text in Page(path.read_text()).words)
    for command in ("robustviz demo --seed 0", "robustviz train", "robustviz evaluate"):
        assert command in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in grid.split("\n")]
    assert rows[0][1:] == ["clean", "FGSM", "IFGSM-20", "PGD-20", "worst case"]
    assert [row[0] for row in rows[2:4]] == [demo.STANDARD, demo.HARDENED]
    assert all(cell in text for row in rows[2:4] for cell in row)
    assert len(said) >= 4


def test_the_demo_records_what_was_done(demonstration):
    out, _, _, _ = demonstration
    record = RunRecord.load(out / "record.json")
    assert record.command == "robustviz demo --seed 0"
    assert {attack["threat"]["epsilon"] for attack in record.settings["attacks"].values()} == {demo.THREAT.epsilon}
    assert record.settings["epsilons"] == [0.0, 0.15, 0.3]
    for name in (demo.STANDARD, demo.HARDENED):
        table = json.loads((out / f"{name.split()[0]}.json").read_text())
        assert table["conditions"] == ["clean", "FGSM", "IFGSM-20", "PGD-20"]
        assert len(table["labels"]) == 40
        assert table["settings"]["attacks"]["PGD-20"]["threat"]["epsilon"] == demo.THREAT.epsilon
