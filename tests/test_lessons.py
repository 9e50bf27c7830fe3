"""What the lessons share: names to data and networks, predictions, checks, described figures."""

import io

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image

from robustviz import checkpoints, data, lessons
from robustviz.lessons import check, described, load_images, load_networks, load_template_source, predict, recorded


def test_images_and_networks_come_by_one_name():
    images = load_images("digits", size=20)
    networks = load_networks("digits", {"a": "standard", "b": "pgd"})
    assert (len(images), len(load_images("digits", "train"))) == (20, 1438)
    assert list(networks) == ["a", "b"]
    expected, _ = checkpoints.load("digits-pgd")
    with torch.no_grad():
        assert torch.equal(networks["b"](images.images), expected(images.images))


def test_a_folder_stands_for_its_set_and_has_fewer_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lessons, "usual_device", lambda name: torch.device("cpu"))
    write_pictures(tmp_path / "data/downloads/cifar10")
    monkeypatch.chdir(tmp_path)
    assert len(load_images("cifar10", size=16)) == 4
    assert len(load_images("cifar10")) == 12
    with pytest.raises(FileNotFoundError, match="there is no checkpoint cifar10-nothing"):
        load_networks("cifar10", {"it": "nothing"})


def test_a_started_lesson_finds_what_was_fetched_into_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lessons, "usual_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(lessons, "CHECKOUT", tmp_path)
    write_pictures(tmp_path / "data/downloads/cifar10")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert len(load_images("cifar10")) == 12


def test_a_set_that_was_not_fetched_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="robustviz fetch cifar10"):
        load_images("cifar10")


def write_pictures(root):
    for part in ("train", "test"):
        for label, kind in enumerate(("cat", "dog")):
            (root / part / kind).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (4, 4), (40 * number, 90 * label, 0)).save(root / part / kind / f"{number}.png")


def test_a_template_stands_in_the_images_it_was_drawn_from():
    head = load_networks("digits", {"wnll": "pgd-wnll"})["wnll"].head
    source = load_template_source("digits", "pgd-wnll")
    assert source.labels[head.template_indices].equal(head.template_labels)
    with pytest.raises(ValueError, match="digits-pgd must have a template"):
        load_template_source("digits", "pgd")


def test_other_images_than_those_of_the_template_are_refused(monkeypatch):
    train = load_images("digits", "train")
    monkeypatch.setattr(lessons, "load_images", lambda data, part: train[torch.arange(len(train)).flip(0)])
    with pytest.raises(ValueError, match="trained on other images"):
        load_template_source("digits", "wnll")


def test_recorded_results_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recorded("cas").settings["data"] == "digits"
    with pytest.raises(FileNotFoundError, match="robustviz compare nothing"):
        recorded("nothing")
    assert lessons.DOWNLOADS == data.DOWNLOADS


@pytest.mark.parametrize(
    ("choice", "asked", "told"),
    [
        (None, "not chosen yet", "b) less - you made no prediction"),
        ("a", "you predict a", "b) less - you predicted a"),
        ("b", "you predict b", "b) less - as you predicted"),
    ],
)
def test_a_prediction_is_kept_until_the_answer(capsys, choice, asked, told):
    prediction = predict("More or less?", choice=choice, a="more", b="less")
    printed = capsys.readouterr().out
    assert printed.startswith("More or less?\n  a) more\n  b) less\n")
    assert asked in printed
    prediction.explain("b")
    assert capsys.readouterr().out == told + "\n"


def test_a_prediction_is_one_of_the_options():
    with pytest.raises(ValueError, match="answer must be one of a, b, got 'z'"):
        predict("More or less?", a="more", b="less").explain("z")
    with pytest.raises(ValueError, match="choice must be one of a, b, got 'c'"):
        predict("More or less?", choice="c", a="more", b="less")


RULES = {"it must be positive": lambda answer: answer > 0, "it must be even": lambda answer: answer % 2 == 0}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "not done yet"),
        (-1, "not yet: it must be positive"),
        (3, "not yet: it must be even"),
        (2, "right"),
        (torch.tensor(2), "right"),
        ("2", "not yet: it must be positive (TypeError: '>' not supported between instances of 'str' and 'int')"),
    ],
)
def test_a_check_says_the_first_thing_that_is_wrong(capsys, answer, told):
    check(answer, RULES)
    assert capsys.readouterr().out == told + "\n"


def test_a_figure_has_its_description_wherever_it_is_shown():
    text = "A line that falls from the upper left to the lower right."
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([2, 1])
    shown, metadata = DisplayFormatter().format(described(figure, text))
    assert Image.open(io.BytesIO(shown["image/png"])).size == (2 * lessons.DOTS_PER_INCH, lessons.DOTS_PER_INCH)
    assert shown["text/plain"] == f"Figure: {text}"
    assert metadata["image/png"] == {"alt": text}
    assert described(axes, text) == described(figure, text)


def test_a_small_picture_looks_the_same():
    figure = Figure(figsize=(2, 2))
    gradient = torch.linspace(0, 1, 64).repeat(64, 1)
    figure.subplots().imshow(gradient.numpy(), cmap="viridis", interpolation="bilinear")
    text = "A square that turns from violet on the left to yellow on the right."
    large, small = (described(figure, text, small=small) for small in (False, True))
    assert len(small.png) < len(large.png)
    one, other = (torch.tensor(list(Image.open(io.BytesIO(d.png)).convert("RGB").tobytes())) for d in (large, small))
    assert (one - other).abs().float().mean() < 4


def test_a_description_is_a_sentence():
    with pytest.raises(ValueError, match="text must be a sentence"):
        described(Figure(), "a plot")
