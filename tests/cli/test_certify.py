"""`robustviz certify`: a page whose numbers are those of the library, resumable, and nothing overwritten unasked."""

import pytest

from robustviz import checkpoints, cli
from robustviz.certificate import Certificate, certify
from robustviz.data import digits
from robustviz.tensors import seeded

WORDS = ["certify", "digits-pgd", "--images", "12", "--n0", "10", "--n", "40", "--alpha", "0.05", "--steps", "2"]
WORDS += ["--draws", "2", "--radii", "0.05", "--radii", "0.1"]


def run(*words):
    with pytest.raises(SystemExit) as end:
        cli.app([*WORDS, *map(str, words)])
    assert not end.value.code


def test_the_page_and_the_numbers(tmp_path, capsys):
    out = tmp_path / "page.html"
    run("--out", out)
    images = digits("test").subset(12).images
    expected = certify(
        checkpoints.load("digits-pgd")[0], images, sigma=0.25, n0=10, n=40, alpha=0.05, generator=seeded(0)
    )
    found = Certificate.load(tmp_path / "page.json")
    assert found.decisions.equal(expected.decisions)
    assert found.radii.equal(expected.radii)
    printed, page = capsys.readouterr().out, out.read_text()
    assert "| 0.1 " in printed
    assert "lower bound" in page
    assert "Reproduce this page" in page
    assert f"{expected.ceiling:.3g}" in page
    assert not list(tmp_path.glob("*.state.json"))
    with pytest.raises(FileExistsError, match="--force"):
        run("--out", out)
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page.json", "page.png"}


def test_nothing_beside_the_page_is_overwritten(tmp_path):
    picture, folder = tmp_path / "page.png", tmp_path / "page"
    picture.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"page\.png exists"):
        run("--out", tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        run("--out", folder)
    assert picture.read_bytes() == b"mine"
    assert not folder.exists()


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    out, state = tmp_path / "page.html", tmp_path / "page.state.json"

    def stop(*words, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustviz.cli.certify.both_bounds", stop)
    with pytest.raises(KeyboardInterrupt):
        run("--out", out)
    assert state.exists()
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="--resume"):
        run("--out", out)
    run("--out", out, "--resume")
    assert out.exists()
    assert not state.exists()
