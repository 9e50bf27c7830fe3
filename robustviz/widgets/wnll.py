"""The WNLL explorer: which template images decide about one image, before and after two attacks."""

from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import torch
from matplotlib.figure import Figure

from robustviz import checkpoints
from robustviz.data import ImageSet
from robustviz.defenses import WNLLHead
from robustviz.defenses.wnll.record import wnll_contests
from robustviz.evaluation.suites import published_name
from robustviz.geometry import Ballot, ballot
from robustviz.lessons import load_template_source
from robustviz.models import Classifier
from robustviz.plots import COLORS, show_picture, styled
from robustviz.plots.style import caption, judge, pixels
from robustviz.presets import usual_threat
from robustviz.types import Progress, Threat
from robustviz.widgets.networks import single, usual_images
from robustviz.widgets.panel import Panel, choice_slider, chooser, slider

CONTESTS = wnll_contests(steps=10, wide=(60,))
"""Attacks of the panel: the published one, and those made for the defense."""

PUBLISHED = published_name(CONTESTS)
ADAPTIVE = [name for name in CONTESTS if name != PUBLISHED]

VOTERS = 8
"""Template images that are shown for each version of the image."""


@dataclass(frozen=True)
class WNLLState:
    """A setting of the WNLL explorer.

    Attributes:
        image: Which of the images, from 0.
        epsilon: Largest change of a pixel, 0 to 1.
        attack: The adaptive attack to set beside the published one; a name of `ADAPTIVE`.
        neighbors: K, how many neighbors a point has in the graph.
        scale_neighbor: M, the neighbor whose distance is a point's own unit of length; at most K.
    """

    image: int = 5
    epsilon: float = 0.15
    attack: str = "transfer, margin"
    neighbors: int = 15
    scale_neighbor: int = 8


@dataclass(frozen=True)
class WNLLRecord:
    """The votes about one image, clean and under each of two attacks; the state says which image."""

    state: WNLLState
    ballots: tuple[Ballot, ...]


class WNLLMeasurements:
    """One network with a WNLL head that is asked about one image at a time.

    Args:
        network: With a WNLL head and the linear head beside it.
        source: Images that the template was drawn from.
        images: To ask about.
    """

    def __init__(self, network: Classifier, source: ImageSet, images: ImageSet):
        self.network, self.source, self.images = network, source, images

    def compute(self, state: WNLLState, progress: Progress) -> WNLLRecord:
        """Attack the image of a state both ways, and take the votes about all three versions.

        Raises:
            ValueError: If the state names an image or an attack that does not exist, or M exceeds K.
        """
        if not 0 <= state.image < len(self.images):
            raise ValueError(f"image must be from 0 to {len(self.images) - 1}, got {state.image}")
        if state.attack not in ADAPTIVE:
            raise ValueError(f"attack must be one of {', '.join(ADAPTIVE)}, got {state.attack!r}")
        head: Any = self.network.head
        graph = {"neighbors": state.neighbors, "scale_neighbor": state.scale_neighbor}
        network = self.network.replace(head=head.with_settings(joint=False, gradient="exact", **graph))
        one = self.images[torch.tensor([state.image])]
        versions = {"clean": one.images}
        for done, name in enumerate((PUBLISHED, state.attack), start=1):
            progress(done, 3)
            attack = CONTESTS[name].at(Threat("linf", state.epsilon)).attack
            versions[name] = attack(network, one.images, one.labels)
        return WNLLRecord(
            state,
            tuple(
                ballot(network, self.source, image[0], int(one.labels), condition=name, count=VOTERS)
                for name, image in versions.items()
            ),
        )


class WNLLPicture:
    """A row for each version of the image: itself, its heaviest voters, and the share of every class.

    Args:
        images: Give the size of the pictures and the names of the classes.
    """

    @styled
    def __init__(self, images: ImageSet):
        self.classes = images.classes
        self.figure = Figure(figsize=(11.6, 5.6))
        grid = self.figure.subplots(3, VOTERS + 2, width_ratios=[1.25, *[1.0] * VOTERS, 1.5])
        self.rows = [_Row(axes, images) for axes in grid]
        grid[0, 1].set_title("voters, heaviest first", loc="left")
        grid[0, -1].set_title("shares")

    def show(self, record: WNLLRecord) -> str:
        """Move every row to its ballot; say in words what is decided."""
        told = [row.show(b) for row, b in zip(self.rows, record.ballots, strict=True)]
        clean, *attacked = record.ballots
        still = [b.condition for b in attacked if record.state.epsilon and torch.equal(b.image, clean.image)]
        told += [f"no gradient moves the image for: {', '.join(still)}"] if still else []
        state = record.state
        truth = self.classes[record.ballots[0].label]
        words = f"Image {state.image} of class {truth}, epsilon {state.epsilon:.3g}, "
        return words + f"K = {state.neighbors}, M = {state.scale_neighbor}. {'; '.join(told)}."


class _Row:
    """One version of the image and the votes about it."""

    def __init__(self, axes: Any, images: ImageSet):
        self.image, *self.voters, self.shares = axes
        self.classes = images.classes
        for ax in axes[:-1]:
            show_picture(ax, images.images[0].cpu())
        self.bars = self.shares.barh(range(len(self.classes)), [0.0] * len(self.classes), color="0.75", height=0.7)
        self.shares.set(xlim=(0, 1.02), xticks=(0, 0.5, 1), yticks=range(len(self.classes)), yticklabels=self.classes)
        self.shares.tick_params(labelsize="x-small")
        self.shares.invert_yaxis()
        self.shares.set_axisbelow(True)

    def show(self, ballot: Ballot) -> str:
        decided, share = self.classes[ballot.decision], float(ballot.shares.max())
        self.image.images[0].set_data(pixels(ballot.image))
        self.image.set_ylabel("\n".join(wrap(ballot.condition, 14)))
        judge(self.image, f"{decided} ({share:.0%})", ballot.decision == ballot.label)
        for place, ax in enumerate(self.voters):
            ax.set_visible(place < len(ballot.weights))
            if ax.get_visible():
                label = int(ballot.labels[place])
                ax.images[0].set_data(pixels(ballot.voters[place]))
                judge(ax, caption(self.classes[label], float(ballot.weights[place])), label == ballot.label)
        for label, (bar, value) in enumerate(zip(self.bars, ballot.shares.tolist(), strict=True)):
            bar.set_width(value)
            bar.set_color(COLORS[0] if label == ballot.label else COLORS[1])
        against = sum(ballot.weights[ballot.labels != ballot.label].tolist())
        return (
            f"{ballot.condition}: decides {decided} ({share:.0%}), the voters shown give {against:.0%} to other classes"
        )


def wnll_explorer(
    network: Classifier | None = None,
    source: ImageSet | None = None,
    images: ImageSet | None = None,
    state: WNLLState | None = None,
) -> Panel:
    """Make a panel that shows which template images decide about one image, clean and under two attacks.

    The image is asked about alone, so that the votes are its own. The published attack follows the linear head beside
    the activation; the other one answers the activation.

    Args:
        network: With a WNLL head; None takes the shipped one of digits.
        source: Images that its template was drawn from; None those of the shipped one.
        images: To ask about; None takes the test images of digits.
        state: What is shown first; None takes the K and M of the network's own head.

    Raises:
        TypeError: If the network is no classifier.
        ValueError: If the network has no WNLL head, the source does not fit it, or the state cannot be shown.
    """
    if network is None:
        network, source = checkpoints.load("digits-pgd-wnll")[0], load_template_source("digits", "pgd-wnll")
    if source is None:
        raise ValueError("source must be given with a network: the images that its template was drawn from")
    network = single(network)
    if not isinstance(network.head, WNLLHead):
        raise ValueError(
            f"network must have a WNLLHead, got {type(network.head).__name__}; `wnll_classifier` puts one there"
        )
    images = usual_images() if images is None else images
    usual = usual_threat(images.name).epsilon
    head: Any = network.head
    most = min(60, len(head.template) - 1)
    start = WNLLState(
        min(WNLLState.image, len(images) - 1), usual, neighbors=head.neighbors, scale_neighbor=head.scale_neighbor
    )
    neighbors = sorted({*(k for k in (1, 2, 5, 8, 10, 15, 20, 30, 60) if k <= most), head.neighbors})
    scales = sorted({*(k for k in (1, 2, 4, 8, 15, 30) if k <= most), head.scale_neighbor})
    controls = {
        "image": slider(0, len(images) - 1, 1, "image"),
        "epsilon": slider(0.0, 1.0, 0.01 if usual > 0.1 else 1 / 255, "epsilon"),
        "attack": chooser(ADAPTIVE, "adaptive attack"),
        "neighbors": choice_slider(neighbors, "neighbors K"),
        "scale_neighbor": choice_slider(scales, "scale neighbor M"),
    }
    presets = {
        "no attack": replace(start, epsilon=0.0),
        "usual strength": start,
        "exact gradient": replace(start, attack="exact, margin"),
        "wider graph for the attack": replace(start, attack=ADAPTIVE[-1]),
        "few neighbors": replace(start, neighbors=2, scale_neighbor=1),
        "wide graph": replace(start, neighbors=neighbors[-1]),
    }
    measurements = WNLLMeasurements(network, source, images)
    return Panel(
        start if state is None else state, controls, measurements.compute, WNLLPicture(images), presets=presets
    )
