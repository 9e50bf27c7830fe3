"""Figures of the geometry: what is drawn where, with which shape, and that nothing is covered or cut off."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from robustviz.features import FeatureSnapshot
from robustviz.geometry import Ballot, Curves, DecisionPlane, Trajectory, embed, map_regions
from robustviz.plots import (
    MapView,
    class_color,
    new_axes,
    plot_curves,
    plot_map,
    plot_maps,
    plot_paths,
    plot_plane,
    plot_trajectories,
    plot_votes,
)
from robustviz.plots.names import NAMED, apart
from robustviz.tensors import seeded

CLASSES = ("airplane", "automobile", "bird")
LABELS = torch.arange(60) % 3


def snapshot(condition, move=0.0, count=60):
    labels = LABELS[:count]
    values = 5 * torch.eye(3, 4)[labels] + torch.randn(count, 4, generator=seeded(0)) + move
    return FeatureSnapshot("body", condition, values, labels, labels, torch.arange(count))


def way():
    values = torch.stack([snapshot("way", 2.0 * stage, 6).values for stage in range(3)])
    predictions = torch.stack([LABELS[:6], LABELS[:6], (LABELS[:6] + 1) % 3])
    images = torch.zeros(3, 6, 1, 2, 2)
    return Trajectory(
        "body", "way", "epsilon", (0.0, 0.1, 0.2), images, values, predictions, LABELS[:6], torch.arange(6)
    )


CLEAN, ATTACKED = snapshot("clean", count=12), snapshot("attacked", 1.0, 12)


@pytest.fixture(scope="module")
def embedding():
    return embed(snapshot("training"), [CLEAN, ATTACKED, way()], method="pca")


@pytest.fixture(scope="module")
def regions(embedding):
    head = torch.nn.Linear(4, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 4))
        head.bias.zero_()
    return map_regions(head, embedding, resolution=20)


def texts(figure):
    """Every text but tick labels, with its box, after drawing."""
    FigureCanvasAgg(figure).draw()
    ticks = {t for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels(which="both")}
    found = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip() and t not in ticks]
    box = matplotlib.text.Text.get_window_extent  # of a name alone, without the line to its point
    return [(t.get_text(), box(t)) for t in found if t.get_visible()]


def assert_readable(figure):
    found = texts(figure)
    assert found
    for i, (text, box) in enumerate(found):
        assert figure.bbox.x0 - 1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, text
        for other, other_box in found[:i]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width <= 1 or height <= 1, f"{text!r} and {other!r} overlap"


def test_clean_points_are_dots_and_attacked_ones_crosses_where_the_map_has_them(embedding):
    ax = plot_map(MapView("title", embedding, [CLEAN, ATTACKED]), CLASSES)
    ground, clean, halo, attacked = (c for c in ax.collections if type(c).__name__ == "PathCollection")
    np.testing.assert_allclose(ground.get_offsets(), embedding.coordinates)
    np.testing.assert_allclose(clean.get_offsets(), embedding.positions["clean"])
    for drawn in (halo, attacked):
        np.testing.assert_allclose(drawn.get_offsets(), embedding.positions["attacked"])
    assert len(clean.get_paths()[0]) > 10  # a circle
    assert len(attacked.get_paths()[0]) == 4  # two strokes
    expected = [class_color(label) for label in CLEAN.labels.tolist()]
    np.testing.assert_allclose(clean.get_facecolors()[:, :3], expected)


def test_an_arrow_with_a_head_leads_from_each_clean_image_to_the_attacked_one(embedding):
    far = replace(ATTACKED, condition="far", values=CLEAN.values + 5 * embedding.axes[0].float())
    held = embedding.extended([far])
    ax = plot_map(MapView("title", held, [CLEAN, far]), CLASSES)
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == len(CLEAN.labels)
    for arrow, *ends in zip(arrows, held.positions["clean"], held.positions["far"], strict=True):
        start, end = ax.transData.transform(np.stack(ends))
        shaft, head = (path.vertices for path in arrow._get_path_in_displaycoord()[0])
        np.testing.assert_allclose(shaft[0], start)
        assert 3 < np.hypot(*(head[:3] - end).T).min() < 12  # at the attacked end, and not below the cross


def small_names(ax):
    return [text for text in ax.texts if text.get_fontsize() < 10]


@pytest.mark.parametrize("names", [CLASSES, ("0", "1", "2")])
def test_each_cross_is_named_by_its_class_beside_it_and_no_name_covers_another(embedding, names):
    ax = plot_map(MapView("title", embedding, [CLEAN, ATTACKED]), names)
    small = small_names(ax)
    assert [text.get_text() for text in small] == [names[label] for label in ATTACKED.labels]
    for text, place in zip(small, embedding.positions["attacked"].numpy(), strict=True):
        np.testing.assert_allclose(text.xy, place)  # a line leads there
    assert_readable(ax.figure)
    for text in small:
        box = matplotlib.text.Text.get_window_extent(text)
        assert not any(box.contains(*ax.transData.transform(place)) for place in embedding.positions["attacked"])


def test_of_many_images_crosses_are_not_named():
    many = [snapshot("clean", count=NAMED + 1), snapshot("attacked", 1.0, NAMED + 1)]
    held = embed(snapshot("training"), many, method="pca")
    assert not small_names(plot_map(MapView("", held, many), CLASSES))


def test_map_names_classes_and_axes_and_says_what_shapes_mean(embedding, regions):
    ax = plot_map(MapView("title", embedding, [CLEAN, ATTACKED], regions), CLASSES)
    assert {text.get_text() for text in ax.texts} == set(CLASSES)
    first, second = embedding.explained
    assert f"({first:.0%} of the variance)" in ax.get_xlabel()
    assert f"({second:.0%} of the variance)" in ax.get_ylabel()
    said = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert said == ["clean", "attacked", "training", "background: class decided there"]
    assert_readable(ax.figure)
    legend = ax.figure.legends[0].get_window_extent()
    assert legend.y0 >= ax.get_window_extent().y1  # covers no point
    assert len(ax.images) == 1


def test_template_is_drawn_in_place_of_the_training_points(embedding):
    ground = snapshot("template", count=9)
    held = embedding.extended([ground])
    ax = plot_map(MapView("", held, [CLEAN], None, ground), CLASSES)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), held.positions["template"])
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["clean", "template"]


def test_maps_stand_in_rows_with_one_scale_and_one_legend(embedding, regions):
    view = MapView("softmax, published attack (7.5% right)", embedding, [CLEAN, ATTACKED], regions)
    figure = plot_maps([[view, view, view], [view, view]], CLASSES)
    assert len(figure.axes) == 5
    assert len(figure.legends) == 1
    assert len({ax.get_xlim() + ax.get_ylim() for ax in figure.axes}) == 1
    assert_readable(figure)


def test_ways_go_from_dot_to_cross_and_change_their_line_where_the_decision_does(embedding):
    ax = plot_trajectories(embedding, way(), CLASSES)
    places = embedding.positions["way"]
    for i in range(6):
        right, wrong = ax.lines[2 * i : 2 * i + 2]
        np.testing.assert_allclose(right.get_xydata(), places[:2, i])
        np.testing.assert_allclose(wrong.get_xydata(), places[1:, i])
    dots, crosses = ax.collections[1], ax.collections[-1]
    np.testing.assert_allclose(dots.get_offsets(), places[0])
    np.testing.assert_allclose(crosses.get_offsets(), places[-1])
    assert [text.get_text() for text in small_names(ax)] == [CLASSES[label] for label in LABELS[:6]]
    assert_readable(ax.figure)


def test_ways_on_several_maps_stand_side_by_side_with_one_legend(embedding):
    figure = plot_paths({"one": embedding, "other": embedding}, {"one": way(), "other": way()}, CLASSES)
    assert [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center") if ax.get_title(loc)] == [
        "one",
        "other",
    ]
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["epsilon 0", "epsilon 0.2", "correct", "wrong", "training"]
    assert_readable(figure)


def test_a_way_that_the_map_does_not_hold_is_placed():
    bare = embed(snapshot("training"), method="pca")
    line = plot_trajectories(bare, way(), CLASSES).lines[0]
    np.testing.assert_allclose(line.get_xydata(), bare.place(way().values[:2, 0]))


def plane():
    axis = torch.linspace(-1, 1, 41).double()
    decisions = (axis[None] > 0).long().expand(41, 41).clone()
    points = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]]).double()
    return DecisionPlane(axis, axis, decisions, torch.full((41, 41), 0.9).double(), points, ("clean", "one", "two"))


def test_plane_shows_decisions_and_its_three_images_with_a_shape_each():
    ax = plot_plane(plane(), CLASSES)
    picture = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(picture[0, 0], picture[40, 20])
    assert not np.allclose(picture[0, 0], picture[0, 40])
    strength = (1 - picture[0, 40]) / (1 - np.array(class_color(1)))
    np.testing.assert_allclose(strength, strength[0], rtol=1e-5)
    markers = [(line.get_marker(), line.get_xydata()[0].tolist()) for line in ax.lines]
    assert [place for _, place in markers] == plane().points.tolist()
    assert len({marker for marker, _ in markers}) == 3
    assert {text.get_text() for text in ax.texts} == {"airplane", "automobile"}
    for text in ax.texts:
        assert (text.get_position()[0] > 0) == (text.get_text() == "automobile")
    assert_readable(ax.figure)


def test_votes_show_image_voters_and_which_class_they_are_for():
    def ballot(condition, shares, labels):
        weights = torch.tensor([0.5, 0.3, 0.2])[: len(labels)].double()
        voters = torch.rand(len(labels), 1, 4, 4, generator=seeded(0))
        share = torch.tensor(shares).double()
        labels = torch.tensor(labels)
        return Ballot(condition, torch.zeros(1, 4, 4), 1, share, labels, voters, labels, weights)

    ballots = [ballot("clean", [0.0, 1.0, 0.0], [1, 1, 1]), ballot("attacked", [0.5, 0.3, 0.2], [0, 1])]
    figure = plot_votes(ballots, CLASSES)
    assert len(figure.axes) == 4 + 3
    below = [ax.get_xlabel() for ax in figure.axes]
    assert below[:2] == ["✓ decides automobile\n(100%)", "✓ automobile\n(50%)"]
    assert below[4:] == ["✗ decides airplane\n(50%)", "✗ airplane\n(50%)", "✓ automobile\n(30%)"]
    assert_readable(figure)


def test_course_draws_what_was_measured():
    quartiles = torch.tensor([[0.5, 1.0, 1.5], [1.0, 2.0, 2.5]]).double()
    curves = [
        Curves(
            name, "epsilon", (0.0, 0.1), torch.tensor([1.0, 0.5]), torch.tensor([0.9, 0.4]), quartiles, -quartiles / 3
        )
        for name in ("softmax, published attack", "softmax, adaptive attack", "WNLL, published attack", "WNLL, x")
    ]
    figure = plot_curves(curves)
    decided, distance, margin = figure.axes
    np.testing.assert_allclose(decided.lines[0].get_ydata(), [100, 50])
    np.testing.assert_allclose(decided.lines[1].get_ydata(), [90, 40])
    np.testing.assert_allclose(distance.lines[0].get_ydata(), [1, 2])
    np.testing.assert_allclose(margin.lines[0].get_ydata(), [-1 / 3, -2 / 3])
    looks = {(line.get_color(), line.get_linestyle()) for line in decided.lines}
    assert len({style for _, style in looks}) == len({color for color, _ in looks}) == 4
    assert_readable(figure)


def test_boxes_are_moved_apart_and_stay_inside():
    places = np.array([[0.5, 0.5], [0.5, 0.5], [0.51, 0.5], [0.99, 0.99], [0.0, 0.2]])
    size = np.array([0.1, 0.06])
    moved = apart(places, size)
    gaps = np.abs(moved[:, None] - moved[None]) >= size - 1e-9
    assert all(gaps[i, j].any() for i in range(5) for j in range(i))
    assert (moved >= size / 2).all()
    assert (moved <= 1 - size / 2).all()
    np.testing.assert_array_equal(apart(places[3:4] * 0.5, size), places[3:4] * 0.5)


def test_class_colors_differ_and_letters_are_darker():
    assert len({colors.to_hex(class_color(label)) for label in range(10)}) == 10
    assert class_color(0) == class_color(10)
    assert all(sum(class_color(label, dark=True)) < sum(class_color(label)) for label in range(10))


def test_nothing_is_set_globally_and_given_axes_are_used(embedding):
    before = dict(matplotlib.rcParams)
    ax = new_axes()
    assert plot_map(MapView("", embedding, [CLEAN]), CLASSES, ax=ax) is ax
    assert not ax.figure.legends
    assert plot_plane(plane(), CLASSES, ax=new_axes()).images
    figure = Figure()
    assert plot_trajectories(embedding, way(), CLASSES, ax=figure.subplots()).figure is figure
    assert dict(matplotlib.rcParams) == before
