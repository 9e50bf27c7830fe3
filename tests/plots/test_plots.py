import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robustviz.attacks import fgsm
from robustviz.evaluation import Gallery, RobustnessTable, Sweep
from robustviz.plots import COLORS, new_axes, plot_accuracy, plot_gallery
from robustviz.tensors import seeded

EPSILONS = (0.0, 0.05, 0.1, 0.2)


def swept(accuracies):
    """A sweep of 50 images with given accuracies."""
    labels = torch.zeros(50, dtype=torch.long)
    predictions = torch.stack([(torch.arange(50) >= round(50 * share)).long() for share in accuracies])[:, None]
    conditions = ("clean", *(f"epsilon {epsilon}" for epsilon in EPSILONS[1:]))
    return Sweep(EPSILONS, conditions, RobustnessTable(conditions, labels, predictions, torch.zeros(4, 50), {}))


SWEEPS = {
    ("standard", "FGSM"): swept([1.0, 0.8, 0.5, 0.3]),
    ("standard", "PGD-20"): swept([1.0, 0.6, 0.1, 0.0]),
    ("adversarially trained", "FGSM"): swept([0.96, 0.94, 0.9, 0.7]),
    ("adversarially trained", "PGD-20"): swept([0.96, 0.94, 0.88, 0.5]),
}


def galleries(digits, digits_net, count=3, names=("standard", "adversarially trained"), classes=tuple("0123456789")):
    images, labels = (part[:count] for part in digits)
    attacked = fgsm(digits_net, images, labels)
    return [Gallery.of(name, digits_net, images, attacked, labels, classes) for name in names]


def drawn(figure):
    """Draw a figure; return its renderer, with which artists tell their extent."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def words(figure):
    """Every text that is seen, with its bounding box; numbers of an axis beyond its ends are not."""
    renderer = drawn(figure)
    hidden = [
        text
        for ax in figure.axes
        for axis, place in ((ax.xaxis, 0), (ax.yaxis, 1))
        for text in axis.get_ticklabels()
        if not min(axis.get_view_interval()) <= text.get_position()[place] <= max(axis.get_view_interval())
    ]
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def assert_apart(figure):
    """No text covers another one or leaves the figure."""
    found = words(figure)
    frame = figure.bbox
    for i, (text, box) in enumerate(found):
        assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text
        assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, text
        for other, other_box in found[i + 1 :]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width <= 1 or height <= 1, f"{text!r} and {other!r} overlap"


def test_accuracy_draws_what_was_measured():
    ax = plot_accuracy(SWEEPS)
    assert isinstance(ax, Axes)
    for line, measured in zip(ax.lines, SWEEPS.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), EPSILONS)
        np.testing.assert_allclose(line.get_ydata(), np.array(measured.accuracies()) * 100)
    for band, measured in zip(ax.collections, SWEEPS.values(), strict=True):
        corners = band.get_paths()[0].vertices
        for epsilon, (low, high) in zip(EPSILONS, measured.intervals(), strict=True):
            heights = corners[np.isclose(corners[:, 0], epsilon), 1]
            np.testing.assert_allclose([heights.min(), heights.max()], [low * 100, high * 100])


def test_color_tells_the_model_and_line_the_attack():
    ax = plot_accuracy(SWEEPS)
    look = {
        key: (colors.to_hex(line.get_color()).upper(), line.get_linestyle(), line.get_marker())
        for key, line in zip(SWEEPS, ax.lines, strict=True)
    }
    for model, color in (("standard", COLORS[0]), ("adversarially trained", COLORS[1])):
        assert {look[model, attack][0] for attack in ("FGSM", "PGD-20")} == {color}
    for model in ("standard", "adversarially trained"):
        assert look[model, "FGSM"][1:] != look[model, "PGD-20"][1:]
    for attack in ("FGSM", "PGD-20"):
        assert look["standard", attack][1:] == look["adversarially trained", attack][1:]
    entries = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert entries == ["standard", "adversarially trained", "FGSM", "PGD-20"]


def test_axes_have_labels_with_units():
    ax = plot_accuracy(SWEEPS)
    assert "pixels in [0, 1]" in ax.get_xlabel()
    assert ax.get_ylabel() == "accuracy (%)"
    assert ax.get_ylim()[0] < 0 < 100 < ax.get_ylim()[1]


def test_many_models_and_attacks_have_a_look_each():
    sweeps = {(f"model {i}", f"attack {j}"): SWEEPS["standard", "FGSM"] for i in range(3) for j in range(4)}
    ax = plot_accuracy(sweeps)
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 12


def test_accuracy_texts_stay_apart():
    ax = plot_accuracy(SWEEPS)
    assert_apart(ax.figure)
    renderer = drawn(ax.figure)
    legend = ax.figure.legends[0].get_window_extent(renderer)
    assert legend.y0 >= ax.get_window_extent(renderer).y1 - 1


def test_accuracy_draws_into_given_axes():
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert plot_accuracy(SWEEPS, ax=right) is right
    assert not left.lines
    assert len(right.lines) == 4


def test_gallery_of_asks_the_model(digits, digits_net):
    gallery = galleries(digits, digits_net)[0]
    with torch.no_grad():
        torch.testing.assert_close(gallery.clean_confidence, digits_net(gallery.images).softmax(1))
        torch.testing.assert_close(gallery.attacked_confidence, digits_net(gallery.attacked).softmax(1))
    torch.testing.assert_close(gallery.clean_confidence.sum(1), torch.ones(3))


def test_gallery_shows_clean_attacked_and_change(digits, digits_net):
    both = galleries(digits, digits_net)
    figure = plot_gallery(both)
    assert isinstance(figure, Figure)
    axes = np.array(figure.axes).reshape(3, 5)
    largest = (both[0].attacked - both[0].images).abs().max()
    for row, shown in enumerate(axes):
        clean, attacked, change = (np.asarray(ax.images[0].get_array()) for ax in shown[:3])
        np.testing.assert_allclose(clean, both[0].images[row, 0])
        np.testing.assert_allclose(attacked, both[0].attacked[row, 0])
        np.testing.assert_allclose((change - 0.5) * 2 * largest.item(), attacked - clean, atol=1e-6)
        assert all(ax.images[0].get_clim() == (0, 1) for ax in shown)
        assert all(not len(ax.get_xticks()) and not len(ax.get_yticks()) for ax in shown)
    assert 0 <= change.min() <= change.max() <= 1


def test_gallery_says_what_the_model_decides(digits, digits_net):
    gallery = galleries(digits, digits_net)[0]
    labels = torch.tensor([0, 5, 2])  # the second one is wrong on purpose
    confidence = torch.zeros(3, 10)
    confidence[[0, 1, 2], [0, 1, 7]] = 1.0
    gallery = Gallery(
        "net", gallery.images, gallery.attacked, labels, tuple("abcdefghij"), confidence.flip(1), confidence
    )
    axes = np.array(plot_gallery([gallery]).axes).reshape(3, 3)
    assert [ax.get_xlabel() for ax in axes[:, 0]] == ["true class a", "true class f", "true class c"]
    assert [ax.get_xlabel() for ax in axes[:, 1]] == ["✓ a (100%)", "✗ b (100%)", "✗ h (100%)"]
    assert [ax.get_xlabel() for ax in axes[:, 2]] == ["was j (100%)", "was i (100%)", "was c (100%)"]
    assert [ax.xaxis.label.get_color() for ax in axes[:, 1]] == [COLORS[0], COLORS[1], COLORS[1]]
    titles = [ax.get_title(loc="left") for ax in axes[0]]
    assert titles[:2] == ["clean", "net\nattacked"]
    assert titles[2].startswith("change")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("standard", "adversarially trained"), tuple("0123456789")),
        (("standard",), tuple("0123456789")),
        (
            ("ResNet20 with WNLL", "ResNet20 with CAS", "ResNet20"),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ),
    ],
)
def test_gallery_texts_stay_apart(digits, digits_net, names, classes):
    figure = plot_gallery(galleries(digits, digits_net, names=names, classes=classes))
    assert len(words(figure)) == 3 * (1 + 2 * len(names)) + 1 + 2 * len(names)
    assert_apart(figure)


def test_gallery_of_color_images_without_any_change():
    images, labels = torch.rand(2, 3, 4, 4, generator=seeded(0)), torch.tensor([0, 1])
    confidence = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    gallery = Gallery("net", images, images, labels, ("ant", "bee"), confidence, confidence)
    figure = plot_gallery([gallery])
    change = np.asarray(figure.axes[2].images[0].get_array())
    assert change.shape == (4, 4, 3)
    np.testing.assert_allclose(change, 0.5)
    drawn(figure)


def test_gallery_draws_into_a_given_figure(digits, digits_net):
    figure = Figure(figsize=(5, 5), layout="constrained")
    assert plot_gallery(galleries(digits, digits_net), figure=figure) is figure
    assert len(figure.axes) == 15


def test_the_palette_is_that_of_okabe_and_ito():
    """The values of their page, "Color universal design", but for yellow, which is hard to see on white."""
    published = {(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0)}
    assert {tuple(round(255 * part) for part in colors.to_rgb(color)) for color in COLORS} == published


def test_nothing_is_set_globally(digits, digits_net):
    before = dict(matplotlib.rcParams)
    plot_accuracy(SWEEPS)
    plot_gallery(galleries(digits, digits_net))
    new_axes()
    with pytest.raises(IndexError):
        plot_gallery([])
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_used():
    code = (
        "import sys, torch; sys.path.insert(0, 'tests/plots'); import test_plots; "
        "test_plots.drawn(test_plots.plot_accuracy(test_plots.SWEEPS).figure); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_dollar_signs_in_class_names_are_dollar_signs(digits, digits_net):
    """In pairs they would begin a formula, and a wrong formula would raise."""
    classes = ("$5", "$5 to $10", r"$\frac$", "a_b$^2$", *"456789")
    figure = plot_gallery(galleries(digits, digits_net, count=4, classes=classes))
    drawn(figure)
    axes = [axes for part in (figure, *figure.subfigs) for axes in part.axes]
    texts = [
        text for axes in axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label) if "$" in text.get_text()
    ]
    assert len(texts) >= 4
    assert not any(text.get_parse_math() for text in texts)
