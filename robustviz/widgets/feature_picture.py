"""The picture of the feature explorer: a map that a pointer can ask, the chosen image, and numbers against strength."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.path import Path
from matplotlib.widgets import LassoSelector

from robustviz.plots import COLORS, MapView, class_color, plot_map, show_picture, styled
from robustviz.plots.style import pixels
from robustviz.widgets.feature_record import SHOWN_NEIGHBORS, FeatureMeasurements, FeatureRecord

REACH = 12
"""How near the pointer must come to a cross, in pixels of the screen."""

STILL = 4
"""How far the pointer may move in a click, in pixels of the screen; beyond that it draws a lasso."""

QUARTERS = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


class FeaturePicture:
    """The map on the left; the chosen image with its neighbors and its numbers on the right.

    What differs from record to record is animated (see `Live`); another map is drawn from scratch, with all that stays.

    Args:
        measured: Features, distances and margins at every strength.
    """

    @styled
    def __init__(self, measured: FeatureMeasurements):
        self.measured, self.classes = measured, measured.images.classes
        self.figure = Figure(figsize=(9.3, 5.4), dpi=90)  # as wide as a cell on a screen of 1280 points
        left, right = _split(self.figure, 1, 2, width_ratios=(1.25, 1))
        self.map = left.subplots()
        self.artists: dict[str, Any] = {}
        self.on_map: Callable[[], None] = lambda: None  # called when another map has been drawn
        self.embedding: Any = None
        self.shown: Any = None
        pictures, numbers = _split(right, 2, 1, height_ratios=(1, 1.1))
        pair, neighbors = _split(pictures, 2, 1, height_ratios=(1.35, 1))
        neighbors.suptitle("nearest training images, in feature space", fontsize="medium")
        self.pair = [_Frame(ax, measured.images.images[0]) for ax in pair.subplots(1, 2)]
        self.neighbors = [_Frame(ax, measured.images.images[0]) for ax in neighbors.subplots(1, SHOWN_NEIGHBORS)]
        self.courses = [
            _Course(ax, measured.strengths, values, name)
            for ax, values, name in zip(
                numbers.subplots(2, 1, sharex=True),
                (measured.distance, measured.margin),
                ("distance\nto data", "margin"),
                strict=True,
            )
        ]
        self.courses[-1].ax.set_xlabel("epsilon")

    def show(self, record: FeatureRecord) -> str:
        """Move everything to a record; say in words how far the chosen image is from the data."""
        self.shown = record
        if self.embedding is not record.embedding:
            self._draw_map(record)
        state, labels = record.state, self.measured.images.labels
        self.artists["attacked"].set_offsets(record.attacked.numpy())
        self.artists["chosen"].set_data(*record.attacked[state.image][:, None].numpy())
        self.artists["way"].set_data(*torch.stack([record.clean[state.image], record.attacked[state.image]]).T.numpy())
        label, decided = int(labels[state.image]), int(record.predictions[state.image])
        sign = "✓" if decided == label else "✗"
        texts = (f"image {state.image}, class {self.classes[label]}", f"{sign} decided {self.classes[decided]}")
        for frame, image, text in zip(self.pair, record.pair, texts, strict=True):
            frame.show(image, text)
        training = self.measured.training
        for frame, row in zip(self.neighbors, record.neighbors.tolist(), strict=True):
            frame.show(training[row].images[0], self.classes[int(training.labels[row])])
        distance, margin = (course.show(record) for course in self.courses)
        return (
            f"{state.method}, epsilon {state.epsilon:.3g}: {record.fallen:.0%} of {len(labels)} images are decided "
            f"wrongly. Image {state.image} of class {self.classes[label]}, decided {self.classes[decided]}, is "
            f"{distance:.2g} times as far from the data as a training image; its margin is {margin:.2f}."
        )

    def nearest(self, x: Any, y: Any, *, attacked: bool = True) -> int | None:
        """Tell which image lies under a point of the screen, None for none."""
        offsets = self.artists["attacked" if attacked else "clean"].get_offsets()
        distance = np.hypot(*(self.map.transData.transform(offsets) - (x, y)).T)
        return int(distance.argmin()) if distance.min() <= REACH else None

    @styled
    def _draw_map(self, record: FeatureRecord) -> None:
        """Draw another map: the training features stay where they are, what moves is laid over them."""
        self.embedding = record.embedding
        self.figure.set_layout_engine("constrained")  # numbers on the axes may be longer
        self.map.clear()
        plot_map(MapView("", record.embedding), self.classes, ax=self.map).grid(color="0.9", linewidth=0.8)
        labels = self.measured.images.labels.tolist()
        self.map.set_title(f"{record.state.method} of {len(labels)} images, dots clean, crosses attacked")
        look: dict[str, Any] = {"zorder": 3, "linewidths": 0.6, "edgecolors": "0.1", "s": 24}
        self.artists["clean"] = self.map.scatter(
            *record.clean.T.numpy(), c=[class_color(i) for i in labels], marker="o", **look
        )
        self.artists["attacked"] = self.map.scatter(
            *record.attacked.T.numpy(), c=[class_color(i, dark=True) for i in labels], marker="x", s=34, zorder=4
        )
        (self.artists["way"],) = self.map.plot([0], [0], color="black", linewidth=1.5, zorder=5)
        (self.artists["chosen"],) = self.map.plot(
            [0], [0], "o", color="black", markersize=13, markerfacecolor="none", markeredgewidth=2, zorder=6
        )
        for artist in (*map(self.artists.get, ("attacked", "way", "chosen")), *self.map.texts):  # names stay above
            artist.set_animated(True)
        self.on_map()


class _Frame:
    """An image with a line of text below."""

    def __init__(self, ax: Any, image: torch.Tensor):
        show_picture(ax, image)
        (self.image,) = ax.images
        self.image.set_animated(True)
        below: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        self.text = ax.text(0.5, -0.04, "", **below, fontsize="small", animated=True)

    def show(self, image: torch.Tensor, text: str) -> None:
        self.image.set_data(pixels(image))
        self.text.set_text(text)


class _Course:
    """One number against strength: the middle half of all images as a band, the chosen image as a line."""

    def __init__(self, ax: Any, strengths: tuple[float, ...], values: list[torch.Tensor], name: str):
        self.ax, self.values = ax, torch.stack(list(values)).double().cpu()
        low, middle, high = self.values.quantile(QUARTERS, dim=1)
        ax.fill_between(strengths, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label="middle half")
        ax.plot(strengths, middle, color=COLORS[0], linestyle="--", label="median")
        if name == "margin":
            ax.axhline(0, color="0.35", linewidth=1, linestyle=":")
        (self.line,) = ax.plot(strengths, self.values[:, 0], color="black", label="chosen image", animated=True)
        (self.dot,) = ax.plot([0], [0], "o", color="black", animated=True)
        ax.set_ylabel(name)
        if name == "margin":
            ax.set_ylim(-1.05, 1.05)
        else:
            ax.set_ylim(0, 1.08 * float(self.values.max()))
            above: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 1.32), "borderaxespad": 0}
            ax.legend(**above, ncols=3, handlelength=1.4, columnspacing=1.5)

    def show(self, record: FeatureRecord) -> float:
        values = self.values[:, record.state.image]
        self.line.set_ydata(values)
        self.dot.set_data([record.state.epsilon], [values[record.stage]])
        return float(values[record.stage])


class Pointer:
    """What hand and mouse do on the map: a thumbnail on hover, a choice on click, a selection by lasso.

    Args:
        picture: Whose figure has a live canvas.
        choose: Called with the image that was clicked.
        select: Called with the images inside the lasso.
    """

    def __init__(self, picture: FeaturePicture, choose: Callable[[int], Any], select: Callable[[list[int]], Any]):
        self.picture, self.choose, self.select = picture, choose, select
        picture.figure.canvas.mpl_connect("motion_notify_event", self.hover)
        picture.on_map = self.attach
        self.lasso: LassoSelector | None = None
        self.attach()

    def attach(self) -> None:
        """Start again on a map that has just been drawn: what was laid over the last one is gone."""
        if self.lasso is not None:
            self.lasso.disconnect_events()
        self.thumbnail: AnnotationBbox | None = None
        props = {"color": "black", "zorder": 8}
        self.lasso = LassoSelector(self.picture.map, self.drawn, useblit=False, props=props)
        for line in self.lasso.artists:
            line.set_animated(True)

    def hover(self, event: Any) -> None:
        """Show the image under the pointer, and take it away when the pointer leaves."""
        if self.thumbnail is not None:
            self.thumbnail.remove()
            self.thumbnail = None
            event.canvas.draw_idle()
        picture = self.picture
        found = picture.nearest(event.x, event.y) if event.inaxes is picture.map else None
        if found is None:
            return
        thumbnail = pixels(picture.measured.trajectory.images[picture.shown.stage, found])
        box = OffsetImage(thumbnail, zoom=48 / thumbnail.shape[0], cmap="gray", interpolation="nearest")
        place = picture.artists["attacked"].get_offsets()[found]
        self.thumbnail = AnnotationBbox(box, place, xybox=(40, 40), boxcoords="offset points", pad=0.2)
        self.thumbnail.set(zorder=10, animated=True)
        picture.map.add_artist(self.thumbnail)
        event.canvas.draw_idle()

    def drawn(self, corners: list[tuple[float, float]]) -> None:
        """Choose the image under a click, attacked or else clean; of a lasso, select the attacked images inside."""
        picture = self.picture
        way = picture.map.transData.transform(corners)
        if np.ptp(way, axis=0).max() >= STILL:
            inside = Path(corners).contains_points(picture.artists["attacked"].get_offsets())
            self.select(np.flatnonzero(inside).tolist())
            return
        found = picture.nearest(*way[-1])
        found = picture.nearest(*way[-1], attacked=False) if found is None else found
        if found is not None:
            self.choose(found)


def _split(figure: Any, rows: int, columns: int, **ratios: Any) -> Any:
    return figure.subfigures(rows, columns, **ratios)
