"""The command that writes an explorer as a page."""

import re

import pytest

from robustviz.cli.explore import explore


def test_a_page_of_the_shipped_networks(tmp_path, capsys):
    out = tmp_path / "made" / "page.html"
    explore("attack", "digits-standard", "digits-pgd", images=10, shown=2, out=out)
    text = out.read_text()
    assert "Attacks on digits" in text
    assert re.search(r"digits-standard ✓ \d \(\d+%\), attacked", text)
    said = capsys.readouterr().out
    assert "digits-standard, digits-pgd on 10 test images of digits" in said
    assert f"open {out}" in said


def test_one_network_for_features(tmp_path):
    with pytest.raises(ValueError, match="features shows one network, got 2: digits-standard, digits-pgd"):
        explore("features", "digits-standard", "digits-pgd", out=tmp_path / "page.html")
    with pytest.raises(ValueError, match="--norm must be linf with channels, got l2"):
        explore("channels", norm="l2", images=10, out=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "page.txt"}, r"--out must end in \.html"),
        ({"out": "there.html"}, "is there; choose another name, or add --force"),
        ({"out": "folder.html"}, "is a folder"),
        ({"out": "there.html/page.html"}, "folder that can be written to"),
        ({"names": ["digits-standard", "cifar10-pgd"], "data": "digits"}, "classes"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, arguments, message):
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    names = arguments.pop("names", ["digits-standard"])
    out = tmp_path / arguments.pop("out", "new.html")
    with pytest.raises((ValueError, FileExistsError), match=message):
        explore("attack", *names, out=out, images=10, **arguments)
    assert (tmp_path / "there.html").read_text() == "mine"
    assert not (tmp_path / "new.html").exists()
