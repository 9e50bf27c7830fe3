"""Frames: numbered without gaps, kept in a file without loss, refused over their budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustviz.explorers.frames import Frames, check_budget

GRIDS = st.dictionaries(
    st.sampled_from(["image", "attack", "strength", "class"]),
    st.lists(st.sampled_from([0, 0.5, 1, 8, "PGD", "FGSM"]), min_size=1, max_size=4, unique=True).map(tuple),
    min_size=1,
)


@given(GRIDS)
def test_number_and_state_are_inverse_and_leave_no_gap(grid):
    frames = Frames("test", grid, {}, {})
    states = [frames.state(number) for number in range(len(frames))]
    assert [frames.number(state) for state in states] == list(range(len(frames)))
    assert len({tuple(state.items()) for state in states}) == len(frames)
    last = list(grid)[-1]
    assert [state[last] for state in states[: len(grid[last])]] == list(grid[last]), "the last control changes fastest"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"attack": "PGD"}, "strength is missing"),
        ({"attack": "PGD", "strength": 0.1, "size": 1}, "size is unknown"),
        ({"attack": "CW", "strength": 0.1}, "attack must be one of PGD, FGSM, got 'CW'"),
        ({"attack": "PGD", "strength": 0.3}, "strength must be one of 0, 0.1, got 0.3"),
        ({"attack": "PGD", "strength": float("nan")}, "got nan"),
        ({"attack": "PGD", "strength": False}, "got False"),
    ],
)
def test_settings_that_were_not_measured_are_refused(state, message):
    frames = Frames("test", {"attack": ("PGD", "FGSM"), "strength": (0, 0.1)}, {}, {})
    with pytest.raises(ValueError, match=message):
        frames.number(state)


def test_long_lists_are_shortened():
    frames = Frames("test", {"image": tuple(range(100))}, {}, {})
    with pytest.raises(ValueError, match=r"image must be one of 0, 1 \.\.\. 99, got 100"):
        frames.number({"image": 100})
    with pytest.raises(IndexError, match="number must be from 0 to 99, got 100"):
        frames.state(100)


def test_a_file_holds_everything(frames, tmp_path):
    again = Frames.load(frames.save(tmp_path / "attack.safetensors"), "attack")
    assert (again.kind, again.grid, again.about) == (frames.kind, frames.grid, frames.about)
    assert again.arrays.keys() == frames.arrays.keys()
    for name, array in frames.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        torch.testing.assert_close(again.arrays[name], array, rtol=0, atol=0, equal_nan=True)


def test_other_files_are_refused(frames, tmp_path):
    path = frames.save(tmp_path / "attack.safetensors")
    with pytest.raises(ValueError, match="must hold a features frames, but holds a attack frames"):
        Frames.load(path, "features")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        Frames.load(path, "attack")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Frames.load(tmp_path / "none.safetensors", "attack")


def test_a_grid_over_its_budget_is_refused_with_the_count():
    with pytest.raises(ValueError, match=r"at most 100, got 6 images x 5 attacks x 4 strengths = 120; take fewer"):
        check_budget({"images": 6, "attacks": 5, "strengths": 4}, 100)
    with pytest.raises(ValueError, match="got no attacks"):
        check_budget({"images": 6, "attacks": 0}, 100)
    check_budget({"images": 10, "attacks": 10}, 100)
