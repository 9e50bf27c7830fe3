"""The feature explorer: a map of penultimate features on which attacked images wander as the attack grows."""

import warnings
from dataclasses import replace
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from robustviz.data import ImageSet, digits
from robustviz.geometry import MAP_NEIGHBORS
from robustviz.models import Classifier
from robustviz.presets import usual_threat
from robustviz.widgets.channel import STRENGTHS
from robustviz.widgets.feature_picture import FeaturePicture, Pointer
from robustviz.widgets.feature_record import METHODS, FeatureMeasurements, FeatureState
from robustviz.widgets.networks import single, usual_images
from robustviz.widgets.panel import Panel, choice_slider, chooser, slider


class Live:
    """A screen on which the figure itself lives, so that it hears the pointer (ipympl).

    Artists of its Axes that are animated are what moves: a step draws them alone, over a kept drawing of all the rest.

    Args:
        figure: What is shown.
    """

    def __init__(self, figure: Figure):
        from ipympl.backend_nbagg import Canvas, FigureManager

        self.figure = figure
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of how ipympl makes its toolbar
            self.widget: Any = Canvas(figure)
            manager = FigureManager(self.widget, 0)
        self.widget.manager = manager
        self.widget.header_visible = self.widget.footer_visible = False
        self.widget.toolbar_visible = False
        self.widget.resizable = False
        self._rest: Any = None
        self._size = (0, 0)
        self.widget.mpl_connect("draw_event", self._keep)

    def draw(self, text: str) -> None:
        """Draw what moves; a figure that has to be laid out again is drawn as a whole, as soon as the page is ready."""
        if isinstance(self.figure.get_layout_engine(), ConstrainedLayoutEngine):
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
            self._rest = None
        if self._rest is None or self._size != self.widget.get_width_height(physical=True):
            self.widget.draw_idle()
            return
        self.widget.restore_region(self._rest)
        self._move()
        self.widget.blit()

    def _keep(self, event: Any) -> None:
        """Keep what has been drawn, all but what moves, and add that."""
        if not event.canvas.is_saving():  # a file holds what moves already, and has a canvas of its own
            self._rest = self.widget.copy_from_bbox(self.figure.bbox)
            self._size = self.widget.get_width_height(physical=True)  # zooming the page changes it
            self._move()

    def _move(self) -> None:
        for ax in self.figure.axes:
            for artist in sorted(filter(Artist.get_animated, ax.get_children()), key=Artist.get_zorder):
                ax.draw_artist(artist)


class FeatureExplorer(Panel):
    """The panel with what a lasso selected.

    Attributes:
        selection: Numbers of the images inside the last lasso, for the next cell.
    """

    selection: tuple[int, ...] = ()

    def choose(self, image: int) -> None:
        """Show an image large, as a click on it does."""
        with self.telling():
            self.show(replace(self.state(), image=image))

    def select(self, images: list[int]) -> None:
        """Keep a selection and say how many images it holds, as a lasso does."""
        self.selection = tuple(images)
        self._tell(f"{len(images)} images selected: panel.selection holds their numbers.")


def feature_explorer(
    network: Classifier | None = None,
    training: ImageSet | None = None,
    images: ImageSet | None = None,
    state: FeatureState | None = None,
    *,
    size: int = 100,
    training_size: int = 1000,
) -> FeatureExplorer:
    """Make a panel with a map of features: clean images are dots, attacked ones crosses that move with the strength.

    Pointing at a cross shows its image, a click shows it large beside its nearest training images, and a lasso gives
    the images inside to Python as `panel.selection`. All strengths are measured at the start; the PCA map is
    immediate, the UMAP map takes up to half a minute when it is first chosen. A map shows two numbers of many, so
    distance to the data and margin stand beside it.

    Args:
        network: Any classifier; None takes the shipped standard one of digits.
        training: Clean training images that the map is fitted on; None takes those of digits.
        images: To attack and follow; None takes the test images of digits.
        state: What is shown first; None is PCA at the data set's usual radius.
        size: Images that are followed, with every class in proportion.
        training_size: Training images on the map, likewise.

    Raises:
        TypeError: If the network is no classifier.
        ValueError: If there are too few training images for a map, or the state cannot be shown.
    """
    network = single(network)
    training = digits("train") if training is None else training
    if min(training_size, len(training)) <= MAP_NEIGHBORS:
        raise ValueError(
            f"training and training_size must give at least {MAP_NEIGHBORS + 1} images, because every point of a map "
            f"is placed by its {MAP_NEIGHBORS} nearest, got {len(training)} and {training_size}"
        )
    images = usual_images() if images is None else images
    usual = usual_threat(images.name).epsilon
    strengths = tuple(round(share * usual, 6) for share in STRENGTHS)
    images = images.subset(min(size, len(images)))
    measurements = FeatureMeasurements(network, training.subset(min(training_size, len(training))), images, strengths)
    start = FeatureState(epsilon=strengths[5])
    controls = {
        "epsilon": choice_slider(strengths, "epsilon"),
        "method": chooser(METHODS, "map"),
        "image": slider(0, len(images) - 1, 1, "image"),
    }
    presets = {
        "no attack": replace(start, epsilon=0.0),
        "usual strength": start,
        "strongest": replace(start, epsilon=strengths[-1]),
        "UMAP": replace(start, method="UMAP"),
    }
    picture = FeaturePicture(measurements)
    screen = Live(picture.figure)
    panel = FeatureExplorer(
        start if state is None else state, controls, measurements.compute, picture, presets=presets, screen=screen
    )
    panel.pointer = Pointer(picture, panel.choose, panel.select)
    return panel
