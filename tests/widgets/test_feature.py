"""The feature explorer without a browser; the pointer's events are made by hand."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import MouseEvent
from PIL import Image

from robustviz.geometry import distance_ratio, embed, margins
from robustviz.widgets import FeatureState, feature_explorer
from robustviz.widgets.networks import usual_images, usual_networks

SIZE = 30


@pytest.fixture(scope="module")
def shared():
    return feature_explorer(size=SIZE, training_size=200)


@pytest.fixture
def panel(shared):
    shared.show(FeatureState())
    shared.figure.canvas.draw()
    return shared


def on_screen(panel, image):
    place = panel.picture.artists["attacked"].get_offsets()[image]
    return panel.picture.map.transData.transform(place)


def mouse(panel, name, place):
    canvas = panel.figure.canvas
    canvas.callbacks.process(name, MouseEvent(name, canvas, *place, button=1))


def test_it_shows_what_the_library_computes(panel):
    panel.show(FeatureState(epsilon=0.09, image=7))
    record, measured = panel.record, panel.compute.__self__
    trajectory = measured.trajectory
    stage = trajectory.stages.index(0.09)
    expected = embed(measured.reference, [trajectory], method="pca")
    torch.testing.assert_close(record.attacked, expected.positions["PGD-10"][stage])
    torch.testing.assert_close(record.clean, expected.positions["PGD-10"][0])
    network, images = usual_networks()["standard"], usual_images().subset(SIZE)
    said = network(record.pair).argmax(1)
    assert said[1] == record.predictions[7]
    assert torch.equal(record.pair[0], images.images[7])
    far = distance_ratio(measured.reference, trajectory.snapshot(stage))[7]
    margin = margins(network, record.pair[1:], images.labels[7:8])[0]
    assert f"{far:.2g} times as far" in panel.message
    assert f"its margin is {margin:.2f}" in panel.message


def test_the_neighbors_are_the_nearest_training_images(panel):
    measured = panel.compute.__self__
    stage = measured.strengths.index(0.15)
    distance = (measured.reference.values - measured.trajectory.values[stage, 0]).double().norm(dim=1)
    assert panel.record.neighbors.tolist() == distance.argsort()[:5].tolist()


def test_crosses_move_and_dots_stay(panel):
    dots, crosses = (panel.picture.artists[name].get_offsets().copy() for name in ("clean", "attacked"))
    panel.controls["epsilon"].value = panel.controls["epsilon"].options[-1][1]
    assert (panel.picture.artists["clean"].get_offsets() == dots).all()
    assert (panel.picture.artists["attacked"].get_offsets() != crosses).any()
    panel.presets["no attack"].click()
    assert panel.picture.artists["attacked"].get_offsets() == pytest.approx(dots)


def test_what_moves_is_drawn_where_it_belongs(panel):
    """Drawn over a kept picture it looks as Matplotlib writes it into a file, where all is drawn in its order."""
    canvas = panel.figure.canvas
    before = np.asarray(canvas.buffer_rgba()).copy()
    panel.controls["image"].value = 7
    panel.presets["strongest"].click()
    mouse(panel, "motion_notify_event", on_screen(panel, 3))
    panel.show(replace(panel.state(), image=8))
    after, file = np.asarray(canvas.buffer_rgba()).copy(), BytesIO()
    assert (after != before).any()
    panel.figure.savefig(file, dpi=panel.figure.dpi)
    assert (after == np.asarray(Image.open(file).convert("RGBA"))).all()
    panel.figure.savefig(BytesIO(), format="pdf")
    panel.show(panel.state())
    assert (after == np.asarray(canvas.buffer_rgba())).all()  # a file leaves no trace
    mouse(panel, "motion_notify_event", (1, 1))


def test_a_new_map_is_drawn_as_a_whole(panel):
    panel.picture.embedding = None  # as if the map had not been drawn
    panel.show(replace(panel.state(), image=3))
    before = np.asarray(panel.figure.canvas.buffer_rgba()).copy()
    panel.presets["strongest"].click()
    assert (np.asarray(panel.figure.canvas.buffer_rgba()) == before).all()  # it waits for the page
    panel.figure.canvas.draw()
    panel.presets["no attack"].click()
    assert (np.asarray(panel.figure.canvas.buffer_rgba()) != before).any()


def test_a_click_chooses_the_image_under_the_pointer(panel):
    target = panel.picture.nearest(*on_screen(panel, 11))
    mouse(panel, "button_press_event", on_screen(panel, 11))
    mouse(panel, "button_release_event", on_screen(panel, 11) + 1)
    assert panel.state().image == target
    assert panel.controls["image"].value == target


def test_hovering_shows_a_thumbnail_and_leaving_takes_it_away(panel):
    assert panel.pointer.thumbnail is None
    mouse(panel, "motion_notify_event", on_screen(panel, 3))
    assert panel.pointer.thumbnail in panel.picture.map.get_children()
    mouse(panel, "motion_notify_event", (1, 1))
    assert panel.pointer.thumbnail is None


def test_hand_and_mouse_work_on_another_map(panel):
    mouse(panel, "motion_notify_event", on_screen(panel, 3))
    panel.picture.embedding = None  # as if the map had not been drawn
    panel.picture.show(panel.record)
    mouse(panel, "motion_notify_event", on_screen(panel, 4))
    assert panel.pointer.thumbnail in panel.picture.map.get_children()
    assert set(panel.pointer.lasso.artists) <= set(panel.picture.map.get_children())


def test_a_lasso_selects_what_is_inside(panel):
    low, high = panel.picture.map.bbox.min + 2, panel.picture.map.bbox.max - 2
    corners = [low, (low[0], high[1]), high, (high[0], low[1]), low]
    mouse(panel, "button_press_event", corners[0])
    for corner in corners[1:]:
        mouse(panel, "motion_notify_event", corner)
    (line,) = panel.pointer.lasso.artists
    assert line.get_visible()
    assert line.get_animated()  # it is drawn over what is kept
    mouse(panel, "button_release_event", corners[-1])
    assert panel.selection == tuple(range(SIZE))
    assert f"{SIZE} images selected" in panel.message
    assert panel.state() == FeatureState()  # where the lasso ends nothing is clicked
    mouse(panel, "button_press_event", on_screen(panel, 11))
    mouse(panel, "button_release_event", on_screen(panel, 11))
    assert len(panel.selection) == SIZE  # and a click is no lasso


def test_every_end_of_every_control(panel):
    strengths = [value for _, value in panel.controls["epsilon"].options]
    for name, values in {"epsilon": (strengths[0], strengths[-1]), "image": (0, SIZE - 1)}.items():
        for value in values:
            panel.controls[name].value = value
            assert "not possible" not in panel.message, (name, value)
            assert panel.record.state == panel.state()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (FeatureState(image=SIZE), "image must be"),
        (FeatureState(epsilon=0.1234), "epsilon cannot be"),
        (FeatureState(method="t-SNE"), "method cannot be"),
    ],
)
def test_a_state_that_does_not_exist(panel, wrong, words):
    with pytest.raises(ValueError, match=words):
        panel.show(wrong)
    assert panel.state() == FeatureState()


def test_what_gives_no_map_is_refused(unchecked):
    with pytest.raises(TypeError, match=r"network must be one robustviz.models.Classifier, got dict"):
        feature_explorer(usual_networks())
    with pytest.raises(
        ValueError, match=r"training and training_size must give at least 16 images, .* got 15 and 1000"
    ):
        feature_explorer(training=usual_images().subset(15))
