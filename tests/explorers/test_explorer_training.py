"""The training explorer: every frame is what training so long and measuring with the library gives."""

import pytest
import torch

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.evaluation import wilson
from robustviz.explorers import show_training, training_explorer, training_frames
from robustviz.explorers import training as module
from robustviz.explorers.frames import Frames
from robustviz.explorers.training import CONFIG, grids_around
from robustviz.models import initialized, small_cnn
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, train
from robustviz.types import Threat

GRID = {"radii": (0.0, 0.1), "epochs": (1, 3), "strengths": (0.0, 0.05, 0.1)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("count", [0, 1])
def test_frames_are_those_of_the_library(trained, few, some, radius, count):
    """Also a network after one epoch of three: it is the one that one epoch gives."""
    network, epochs = initialized(small_cnn, 0), trained.grid["epochs"][count]
    config = TrainConfig(epochs=epochs, batch_size=64, learning_rate=0.05, schedule="constant")

    def attack(model, images, labels, /, *, generator=None):
        settings = {"threat": Threat("linf", 0.1), "steps": 1, "step_size": 0.125}
        return pgd(model, images, labels, **settings, generator=generator)

    train(network, few.images, few.labels, config, attack=attack if radius else None, validation=0.0)
    network.eval()
    alive = network(some.images).argmax(1) == some.labels
    for place, strength in enumerate(trained.grid["strength"]):
        if strength:
            threat = Threat("linf", strength)
            left = some[alive]
            attacked = pgd(network, left.images, left.labels, threat=threat, steps=10, generator=seeded(0, 0))
            still = alive.clone()
            still[alive] = network(attacked).argmax(1) == left.labels
            alive = still
        found = trained.arrays["accuracy"][radius, count, place].item()
        assert found == pytest.approx(alive.double().mean().item(), abs=0.051), "one image of twenty, for noise"
        if not strength:
            assert found == alive.double().mean()


def test_more_strength_never_helps(trained):
    assert (trained.arrays["accuracy"].diff(dim=-1) <= 0).all()


def test_what_was_measured_is_kept_by_its_settings(trained, few, some, cache, monkeypatch):
    """A stop costs one radius, a repetition nothing; other images, epochs or seeds are measured for themselves."""
    calls, real = [], module._measured

    def counted(*arguments):
        calls.append(arguments[3])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_measured", counted)
    with pytest.raises(KeyboardInterrupt):
        training_frames(few, some, **GRID)
    assert len(list(cache.iterdir())) == 1
    again = training_frames(few, some, **GRID)
    assert calls == [0.0, 0.1, 0.1]
    assert (again.arrays["accuracy"] == trained.arrays["accuracy"]).all()
    assert (training_frames(few, some, **GRID).arrays["accuracy"] == trained.arrays["accuracy"]).all()
    assert len(calls) == 3
    quick = {**GRID, "radii": (0.0,), "epochs": (1,)}
    for number, (settings, images) in enumerate([(quick, some), (quick, some[:19]), (quick | {"seed": 1}, some)]):
        training_frames(few, images, **settings)
        assert len(calls) == 4 + number


def test_a_kept_file_that_does_not_fit_is_measured_again(few, some, cache):
    quick = {**GRID, "radii": (0.0,), "epochs": (1,)}
    first = training_frames(few, some, **quick)
    (file,) = cache.iterdir()
    file.write_bytes(b"damaged")
    assert (training_frames(few, some, **quick).arrays["accuracy"] == first.arrays["accuracy"]).all()
    assert file.read_bytes() != b"damaged"


def test_rows_and_words_hold_what_the_frames_hold(trained):
    explorer = show_training(trained)
    rows = explorer.tables["rows"]
    for k, row in enumerate(rows):
        state = trained.state(k)
        place = [trained.grid[name].index(value) for name, value in state.items()]
        assert [row["k"], row["i"], row["j"], row["s"]] == [k, *place]
        accuracy = trained.arrays["accuracy"]
        shares = {"": accuracy[tuple(place)].item(), "c": accuracy[place[0], place[1], 0].item()}
        for end, share in shares.items():
            low, high = wilson(share, 20)
            found = [row[f"low{end}"], row[end or "y"], row[f"high{end}"]]
            assert found == pytest.approx([100 * low, 100 * share, 100 * high], rel=6e-3)
        words = explorer.describe(state)
        how = "against 0.1" if state["radius"] else "on clean images"
        assert words.startswith(f"Trained {how} for {state['epochs']} epoch")
        assert f"{100 * shares['c']:.0f}% of clean images are right" in words
        assert (f"under PGD-10 of strength {state['strength']}" in words) == (state["strength"] > 0)


def test_words_name_all_that_do_best():
    accuracy = torch.tensor([[[0.9, 0.2]], [[0.9, 0.6]], [[0.8, 0.6]]], dtype=torch.float64)
    grid = {"radius": (0.0, 0.1, 0.2), "epochs": (1,), "strength": (0.0, 0.1)}
    frames = Frames("training", grid, {"accuracy": accuracy}, {"data": "digits", "images": 10})
    assert show_training(frames).describe({"radius": 0.2, "strength": 0.1}) == (
        "Trained against 0.2 for 1 epoch: 80% of clean images are right, and 60% (31 to 83%) under PGD-10 of strength "
        "0.1. After as many epochs, clean accuracy is highest with training against 0 (clean) and 0.1 (90%), attacked "
        "accuracy with training against 0.1 and 0.2 (60%)."
    )


def test_whole_gray_levels_are_said_so():
    radii, strengths = grids_around(8 / 255)
    frames = Frames(
        "training",
        {"radius": tuple(radii), "epochs": (1,), "strength": tuple(strengths)},
        {"accuracy": torch.rand(5, 1, 9, dtype=torch.float64)},
        {"data": "signs", "images": 10},
    )
    controls = show_training(frames).controls
    assert controls[0].values == (0, 4, 8, 12, 16)
    assert controls[0].spoken(8) == "8 of 255"
    assert controls[2].values == tuple(range(0, 17, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radii": (0.1, 0.1)}, "radii must be >= 0 and grow, got 0.1, 0.1"),
        ({"radii": (-0.1, 0.1)}, "radii must be >= 0 and grow"),
        ({"radii": ()}, "got no radii"),
        ({"radii": [i / 10 for i in range(7)]}, "radii must be at most 6"),
        ({"epochs": (0, 1)}, "epochs must be >= 1 and grow, got 0, 1"),
        ({"epochs": (3, 2)}, "epochs must be >= 1 and grow, got 3, 2"),
        ({"epochs": ()}, "got no epochs"),
        ({"budget": 10}, "at most 10, got 5 radii x 6 epochs x 9 strengths = 270"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(few, some, cache, settings, message):
    with pytest.raises(ValueError, match=message):
        training_frames(few, some, **settings)
    assert not cache.exists()


def test_images_must_be_those_that_networks_know(few):
    other = ImageSet(torch.rand(4, 3, 8, 8), torch.arange(4), tuple("abcd"), "other")
    with pytest.raises(ValueError, match=r"images must have the shape and classes of those trained on, got other"):
        training_frames(few, other)
    with pytest.raises(ValueError, match="training and images must be given together"):
        training_explorer(few)


def test_the_schedule_is_constant():
    """Else a network after some epochs would not be the one that so many epochs give."""
    assert CONFIG.schedule == "constant"


@pytest.mark.parametrize("width", [1200, 760, 360])
def test_layouts_are_vega_lite(trained, width):
    show_training(trained).draw(width).to_dict(validate=True)
