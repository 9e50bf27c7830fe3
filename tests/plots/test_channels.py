"""The two figures of channel activation: what is drawn, in which order, and that it can be read."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg

from robustviz.features import ChannelStats
from robustviz.plots import COLORS, new_axes, plot_frequency, plot_magnitude, plot_panels

CLEAN = ChannelStats(
    torch.tensor([0.2, 0.9, 0.6, 0.9], dtype=torch.float64), torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
)
ATTACKED = ChannelStats(
    torch.tensor([0.4, 0.8, 0.1, 0.7], dtype=torch.float64), torch.tensor([3.0, 0.2, 0.3, 0.5], dtype=torch.float64)
)


def profiles(ax):
    """Heights and color of the clean outline, and of the attacked crosses."""
    outline = next(patch for patch in ax.patches if not patch.get_fill())
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    return [
        (outline.get_data().values, colors.to_hex(outline.get_edgecolor()).upper()),
        (crosses.get_ydata(), colors.to_hex(crosses.get_color()).upper()),
    ]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_magnitudes_are_sorted_each_on_its_own_as_in_the_paper():
    ax = plot_magnitude(CLEAN, ATTACKED)
    (clean, blue), (attacked, orange) = profiles(ax)
    np.testing.assert_array_equal(clean, [2.0, 1.0, 0.5, 0.1])
    np.testing.assert_array_equal(attacked, [3.0, 0.5, 0.3, 0.2])
    assert (blue, orange) == COLORS[:2]
    assert legend(ax) == ["clean: mean 0.900", "attacked: mean 1.00"]
    assert ax.get_xlabel()
    assert "units" in ax.get_ylabel()
    assert (ax.get_xlim(), ax.get_ylim()[0]) == ((0, 4), 0)


def test_magnitudes_in_the_order_of_the_clean_ones_keep_a_channel_at_its_place():
    ax = plot_magnitude(CLEAN, ATTACKED, by_channel=True)
    (clean, _), (attacked, _) = profiles(ax)
    np.testing.assert_array_equal(clean, [2.0, 1.0, 0.5, 0.1])
    np.testing.assert_array_equal(attacked, [0.2, 0.3, 3.0, 0.5])  # channels 1, 2, 0, 3
    assert "clean" in ax.get_xlabel() != plot_magnitude(CLEAN, ATTACKED).get_xlabel()


@pytest.mark.parametrize("draw", [plot_magnitude, plot_frequency])
def test_color_is_not_the_only_code_and_crosses_stand_over_their_step(draw):
    ax = draw(CLEAN, ATTACKED)
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert crosses.get_linestyle() == "None"
    assert crosses.get_xdata().tolist() == [0.5, 1.5, 2.5, 3.5]
    assert len(ax.patches) == 2


@pytest.mark.parametrize("scales", [(1, 7, 2), (7, 2, 1)])
def test_no_panel_is_cut_off_by_the_scale_of_another(scales):
    panels = {str(scale): (CLEAN, ChannelStats(CLEAN.frequency, scale * ATTACKED.magnitude)) for scale in scales}
    figure = plot_panels(plot_magnitude, panels)
    assert all(ax.get_ylim()[1] > 7 * 3.0 for ax in figure.axes)


def test_frequencies_keep_the_order_of_the_clean_ones():
    ax = plot_frequency(CLEAN, ATTACKED)
    (clean, _), (attacked, _) = profiles(ax)
    np.testing.assert_allclose(clean, [90, 90, 60, 20])
    np.testing.assert_allclose(attacked, [80, 70, 10, 40])  # channels 1, 3, 2, 0: of equals the first comes first
    assert legend(ax) == ["clean: mean 65%, 3 above 50 %", "attacked: mean 50%, 2 above 50 %"]
    assert ax.get_xlabel()
    assert "%" in ax.get_ylabel()
    assert ax.get_yticks().tolist() == [0, 25, 50, 75, 100]


@pytest.mark.parametrize("draw", [plot_magnitude, plot_frequency])
def test_axes_that_are_given_are_used_and_nothing_is_set_globally(draw):
    before = dict(matplotlib.rcParams)
    ax = new_axes()
    assert draw(CLEAN, ATTACKED, ax=ax) is ax
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", [plot_magnitude, plot_frequency])
def test_panels_have_one_scale_and_words_that_neither_meet_nor_leave_the_figure(draw):
    many = [ChannelStats(torch.rand(64).double(), scale * torch.rand(64).double()) for scale in (1, 2, 7, 3, 1, 1)]
    names = ("standard", "adversarial training", "AT + CAS")
    figure = plot_panels(draw, dict(zip(names, zip(many[::2], many[1::2], strict=True), strict=True)))
    FigureCanvasAgg(figure).draw()
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(names)
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert [bool(ax.get_ylabel()) for ax in figure.axes] == [True, False, False]
    assert all(ax.get_xlabel() for ax in figure.axes)
    texts = [text for ax in figure.axes for text in (ax.xaxis.label, ax._left_title, *ax.get_legend().get_texts())]
    boxes = [text.get_window_extent() for text in [*texts, figure.axes[0].yaxis.label]]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)
    assert all(figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("draw", [plot_magnitude, plot_frequency])
def test_the_legend_covers_no_profile(draw):
    full = ChannelStats(torch.ones(8).double(), torch.ones(8).double())
    ax = draw(full, full)
    FigureCanvasAgg(ax.figure).draw()
    lowest = ax.transData.inverted().transform(ax.get_legend().get_window_extent())[0, 1]
    assert lowest > max(max(heights) for heights, _ in profiles(ax))
