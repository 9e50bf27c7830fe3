"""The picture of both bounds shows the numbers it is made from, and its text says the same."""

import re

import numpy as np

from robustviz.certificate import Bounds
from robustviz.plots.certificate import describe_bounds, plot_bounds

BOUNDS = Bounds((0.0, 0.25, 0.5), (0.8, 0.45, 0.0), (0.9, 0.7, 0.31), 0.48, 100, (1000, 5000))


def test_the_band_lies_between_both_bounds():
    ax = plot_bounds(BOUNDS)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["certified (lower bound)"].get_ydata(), [80, 45, 0])
    np.testing.assert_allclose(lines["under attack (upper bound)"].get_ydata(), [90, 70, 31])
    np.testing.assert_allclose(lines["ceiling of the draws"].get_xdata(), [0.48, 0.48])
    corners = ax.collections[0].get_paths()[0].vertices
    for radius, low, high in zip(BOUNDS.radii, (80, 45, 0), (90, 70, 31), strict=True):
        assert [radius, low] in corners.round(6).tolist()
        assert [radius, high] in corners.round(6).tolist()


def test_the_text_holds_the_numbers():
    numbers = {float(number) for number in re.findall(r"\d+\.\d+|\d+", describe_bounds(BOUNDS))}
    assert numbers == {90, 100, 80, 0.25, 45, 70, 0.5, 0, 31, 0.48}
