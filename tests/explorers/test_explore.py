"""The command that writes an explorer as a page."""

import re
from functools import partial

import pytest

from robustviz import explorers
from robustviz.cli import explore as explore_module
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
    with pytest.raises(ValueError, match="wnll shows one network, got 2"):
        explore("wnll", "digits-wnll", "digits-pgd-wnll", out=tmp_path / "page.html")
    with pytest.raises(ValueError, match="digits-pgd must have a template, but its head is a Linear"):
        explore("wnll", "digits-pgd", images=5, out=tmp_path / "page.html")
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


def test_training_makes_its_own_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(explore_module, "TRAINED", 64)
    monkeypatch.setattr(explorers, "training_explorer", partial(explorers.training_explorer, epochs=(1, 2)))
    explore("training", images=10, epsilon=0.1, out=tmp_path / "page.html")
    said = capsys.readouterr().out
    assert "networks trained on 64 images of digits, measured on 10 test images" in said
    assert "90 settings measured" in said
    assert "Trained against 0.1 for 1 epoch: " in (tmp_path / "page.html").read_text()
    for settings, message in (({"norm": "l2"}, "--norm must be linf with training, got l2"), ({"epsilon": 0.2}, "")):
        names = () if message else ("digits-pgd",)
        with pytest.raises(ValueError, match=message or "takes no checkpoints, got digits-pgd"):
            explore("training", *names, **settings, images=10, out=tmp_path / "new.html")
    assert not (tmp_path / "new.html").exists()


def test_votes_of_a_network_with_a_template(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explorers, "wnll_explorer", partial(explorers.wnll_explorer, neighbors=(15,)))
    explore("wnll", "digits-wnll", images=6, shown=2, out=tmp_path / "page.html")
    said = capsys.readouterr().out
    assert "digits-wnll on 6 test images of digits" in said
    assert f"{4 * 9 * 2} settings measured" in said
    assert "K = 15, attack by surrogate gradient" in (tmp_path / "page.html").read_text()
