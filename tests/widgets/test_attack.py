"""The attack explorer without a browser: every control at its ends, and what it shows against the library itself."""

import base64
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from robustviz.attacks import fgsm, pgd
from robustviz.data import ImageSet
from robustviz.types import Threat
from robustviz.widgets import AttackState, attack_explorer
from robustviz.widgets.attack_record import ATTACKS, MARGIN, NEAREST
from robustviz.widgets.networks import usual_images, usual_networks


@pytest.fixture(scope="module")
def shared():
    return attack_explorer(curve_size=10)


@pytest.fixture
def panel(shared):
    shared.show(AttackState())
    return shared


def picture_of(size=(30, 20), color=255, form="PNG", mode="L"):
    stream = BytesIO()
    Image.new(mode, size, color).save(stream, form)
    return stream.getvalue()


def upload(panel, content):
    panel.children[2].children[0].value = (
        {
            "name": "picture.png",
            "type": "",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(UTC),
        },
    )


@pytest.mark.parametrize(("name", "attack"), [("PGD", pgd), ("FGSM", fgsm)])
def test_it_shows_what_the_library_finds(panel, name, attack):
    panel.show(AttackState(image=7, attack=name, epsilon=0.1))
    images = usual_images()[7:8]
    for attempt, network in zip(panel.record.attempts, usual_networks().values(), strict=True):
        expected = attack(network, images.images, images.labels, threat=Threat("linf", 0.1))
        torch.testing.assert_close(attempt.attacked, expected)
        with torch.no_grad():
            torch.testing.assert_close(attempt.attacked_confidence, network(expected).softmax(1)[0])
        assert attempt.distance <= 0.1 + 1e-6
        assert len(attempt.trace) == (11 if name == "PGD" else 2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_at_its_extremes_gives_a_picture_or_a_message(shared, attack):
    for extreme in ({"epsilon": 0.0, "steps": 1}, {"epsilon": 1.0, "steps": 3, "target": 8}):
        before, state = shared.children[-1].value, AttackState(attack=attack, **extreme)
        if attack == "DeepFool" and "target" in extreme:
            with pytest.raises(ValueError, match="DeepFool takes no target"):
                shared.show(state)
            return
        shared.show(state)
        assert shared.record.state == state
        assert shared.children[-1].value != before
        assert shared.record.nearest == (attack in NEAREST)
        for attempt in shared.record.attempts:
            assert 0 <= attempt.attacked.min() <= attempt.attacked.max() <= 1
            if attack not in NEAREST:
                assert attempt.distance <= extreme["epsilon"] + 1e-6


def test_ends_of_sliders(panel):
    for control in ("image", "epsilon", "steps"):
        for end in ("min", "max"):
            panel.controls[control].value = getattr(panel.controls[control], end)
            assert panel.message.startswith("PGD")
            assert getattr(panel.record.state, control) == getattr(panel.controls[control], end)
        panel.show(AttackState())


def test_a_target_is_reached_and_cannot_be_the_true_class(panel):
    label = int(usual_images().labels[0])
    panel.show(AttackState(epsilon=1.0, target=(label + 1) % 10, steps=20))
    assert all(int(attempt.attacked_confidence.argmax()) == (label + 1) % 10 for attempt in panel.record.attempts)
    assert f"towards {(label + 1) % 10}" in panel.message
    panel.controls["target"].value = label
    assert panel.message.startswith(f"not possible: target must differ from class {label}")


def test_presets_are_all_possible(panel):
    for button in panel.presets.values():
        button.click()
        assert not panel.message.startswith("not possible"), button.description


def test_it_starts_as_it_is_told():
    images = usual_images().subset(20)
    state = AttackState(image=19, attack="APGD", epsilon=0.2, steps=3, target=None)
    panel = attack_explorer(images=images, state=state, curve_size=10)
    assert (panel.state(), panel.record.state) == (state, state)
    assert {name: control.value for name, control in panel.controls.items()} | {"own": ""} == asdict(state)


def test_a_state_comes_back(panel):
    panel.controls["attack"].value = "MI-FGSM"
    panel.controls["epsilon"].value = 0.33
    upload(panel, picture_of())
    state = panel.state()
    said, seen = panel.message, bytes(panel.children[-1].value)
    panel.show(AttackState())
    panel.show(AttackState(**json.loads(json.dumps(asdict(state)))))
    assert (panel.state(), panel.message, bytes(panel.children[-1].value)) == (state, said, seen)


def test_a_panel_without_networks_is_refused(unchecked):
    with pytest.raises(ValueError, match="networks must hold at least one network by its name, got none"):
        attack_explorer({})
    for wrong, told in (
        ([1], "must be a dict of networks by their names, got list"),
        ({"a": None}, "got NoneType for 'a'"),
    ):
        with pytest.raises(TypeError, match=told):
            attack_explorer(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image": 359}, "image must be from 0 to 358, got 359"),
        ({"attack": "FGSN"}, "attack cannot be 'FGSN'; it must be one of 'FGSM', .*'FMN'"),
        ({"epsilon": -0.1}, "epsilon must be from 0.0 to 1.0, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"steps": 0}, "steps must be"),
        ({"target": 10}, "target cannot be 10"),
        ({"own": "x"}, "own must be the text of a small picture"),
    ],
)
def test_impossible_states_are_refused(panel, wrong, told):
    with pytest.raises(ValueError, match=told):
        panel.show(replace(AttackState(), **wrong))


@pytest.mark.parametrize(
    "content",
    [
        picture_of((300, 200), (255, 0, 0), "JPEG", "RGB"),
        picture_of((1, 1), (255, 255, 255, 0), mode="RGBA"),
        picture_of((16, 16), 1, mode="1"),
    ],
    ids=("jpeg", "transparent", "black and white"),
)
def test_pictures_of_ones_own(panel, content):
    upload(panel, content)
    assert panel.record.image.shape == (1, 1, 8, 8)
    assert "unlike the training data" in panel.message
    own = Image.open(BytesIO(base64.b64decode(panel.state().own)))
    assert np.allclose(panel.record.image[0, 0].numpy() * 255, np.asarray(own))
    panel.children[2].children[1].click()
    assert panel.state() == AttackState()
    assert "unlike" not in panel.message


def test_what_is_transparent_is_white_and_may_be_inverted(panel):
    upload(panel, picture_of((9, 9), (0, 0, 0, 0), mode="RGBA"))
    assert panel.record.image.min() == 1
    panel.children[2].children[2].value = True
    upload(panel, picture_of((9, 9), (0, 0, 0, 0), mode="RGBA"))
    assert panel.record.image.max() == 0


@pytest.mark.parametrize("content", [b"", b"no picture", picture_of()[:40]], ids=("empty", "text", "cut"))
def test_files_that_are_no_pictures(panel, content):
    upload(panel, content)
    assert panel.message.startswith("not possible: picture.png cannot be read as a picture")
    assert panel.state() == AttackState()
    upload(panel, picture_of())
    assert "unlike" in panel.message


def test_color_pictures_of_another_size_and_many_classes():
    images = torch.rand(12, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12)
    data = ImageSet(images, labels, tuple(f"kind {i}" for i in range(12)), "photos")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(189, 12))
    panel = attack_explorer({"linear": network}, data)
    assert panel.state().epsilon == 8 / 255
    assert len(panel.picture.rows[0].axes[3].get_yticklabels()) == 10
    upload(panel, picture_of((50, 50), (10, 200, 30), mode="RGB"))
    assert panel.record.image.shape == (1, 3, 9, 7)
    assert "7x9" in panel.message


def test_the_line_says_what_is_followed(panel):
    for attack, followed in {"PGD": "cross-entropy raised", "Square": f"{MARGIN} raised"}.items():
        panel.show(AttackState(attack=attack))
        assert panel.picture.path.ax.get_title(loc="left") == followed
    panel.show(AttackState(target=8))
    assert panel.picture.path.ax.get_title(loc="left") == "cross-entropy lowered"


def test_a_color_is_a_network_and_signs_are_right_and_wrong(panel):
    panel.show(AttackState(epsilon=0.15))
    picture, attempts = panel.picture, panel.record.attempts
    curves = picture.figure.axes[-1].lines
    for row, line, name, attempt in zip(picture.rows, picture.path.lines, usual_networks(), attempts, strict=True):
        (dot,) = (curve for curve in curves if curve.get_label() == name)
        bars = {bar.get_facecolor() for bar in row.bars}
        assert bars == {to_rgba(line.get_color())} == {to_rgba(dot.get_color())}
        said = row.axes[1].xaxis.label
        right = int(attempt.attacked_confidence.argmax()) == attempt.label
        assert (said.get_text()[0], said.get_fontweight()) == (("✓", "normal") if right else ("✗", "bold"))
        assert said.get_color() == row.axes[0].xaxis.label.get_color() == "black"
        ticks = [tick.get_text() for tick in row.axes[3].get_yticklabels()]
        assert [tick for tick in ticks if "✓" in tick] == [f"✓ {panel.record.classes[attempt.label]}"]
    assert {row.axes[1].get_xlabel()[0] for row in picture.rows} == {"✓", "✗"}  # both are seen here
