"""The channel explorer: how strongly and how often channels respond, clean and attacked, as the attack grows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from robustviz.attacks import fgsm, pgd
from robustviz.data import ImageSet
from robustviz.features import ChannelStats, FeatureSnapshot, channel_stats, last_stage, snapshot
from robustviz.plots import plot_frequency, plot_magnitude, styled
from robustviz.presets import usual_threat
from robustviz.types import Images, Progress, Threat
from robustviz.widgets.networks import compared, usual_images
from robustviz.widgets.panel import Panel, choice_slider, chooser

ATTACKS: dict[str, Callable[..., Images]] = {"FGSM": fgsm, "PGD-10": pgd}

STRENGTHS = tuple(step / 5 for step in range(11))
"""Strengths of the slider, in units of the data set's usual radius."""


THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)
"""Of the slider; 0.01 is the published one, under which nearly every channel of a small network is active."""


@dataclass(frozen=True)
class ChannelState:
    """A setting of the channel explorer.

    Attributes:
        epsilon: Largest change of a pixel; a strength of the slider, because all of them are measured beforehand.
        attack: "FGSM" or "PGD-10".
        label: Only images of this true class; None takes all.
        threshold: A channel is active in an image if it exceeds this part, 0 to 1, of the image's largest channel.
    """

    epsilon: float = 0.15
    attack: str = "PGD-10"
    label: int | None = None
    threshold: float = 0.01


@dataclass(frozen=True)
class ChannelRecord:
    """Statistics of one layer of each network, on clean images and on the same images under attack.

    Attributes:
        state: The setting; it says which attack.
        count: Images behind the statistics.
        stats: Clean and attacked, by the name of the network.
        accuracies: Share of right decisions under attack, by the name of the network.
        top: Largest magnitude at any strength, so that the axis stands still while the slider moves.
    """

    state: ChannelState
    count: int
    stats: dict[str, tuple[ChannelStats, ChannelStats]]
    accuracies: dict[str, float]
    top: float


class ChannelMeasurements:
    """Features of every network at every strength; measured when an attack is first asked for, and kept.

    Args:
        networks: By name, made of the blocks of `models`.
        images: Behind the statistics.
        strengths: Strengths of the slider, from 0.
    """

    def __init__(self, networks: Mapping[str, nn.Module], images: ImageSet, strengths: Sequence[float]):
        self.networks, self.images, self.strengths = networks, images, tuple(strengths)
        self.measured: dict[str, dict[tuple[str, float], FeatureSnapshot]] = {}

    def compute(self, state: ChannelState, progress: Progress) -> ChannelRecord:
        """Take the statistics of a state from what was measured.

        Raises:
            ValueError: If the strength or attack is none of those that are measured, or the class has no image.
        """
        if state.attack not in ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {state.attack!r}")
        if state.epsilon not in self.strengths:
            known = ", ".join(f"{strength:g}" for strength in self.strengths)
            raise ValueError(f"epsilon must be one of {known}, got {state.epsilon}")
        snapshots = self.measure(state.attack, progress)
        every = {
            key: channel_stats(found, label=state.label, threshold=state.threshold) for key, found in snapshots.items()
        }
        rows = torch.ones_like(self.images.labels).bool() if state.label is None else self.images.labels == state.label
        attacked = {name: snapshots[name, state.epsilon] for name in self.networks}
        return ChannelRecord(
            state,
            int(rows.sum()),
            {name: (every[name, 0.0], every[name, state.epsilon]) for name in self.networks},
            {name: float((a.predictions == a.labels)[rows].double().mean()) for name, a in attacked.items()},
            max(float(stats.magnitude.max()) for stats in every.values()),
        )

    def measure(self, attack: str, progress: Progress) -> dict[tuple[str, float], FeatureSnapshot]:
        """Attack all images at all strengths, once for each attack."""
        if attack not in self.measured:
            snapshots, jobs = {}, [(name, strength) for name in self.networks for strength in self.strengths]
            images, labels = self.images.images, self.images.labels
            for done, (name, strength) in enumerate(jobs):
                progress(done, len(jobs))
                network = self.networks[name]
                attacked = ATTACKS[attack](network, images, labels, threat=Threat("linf", strength))
                layer = last_stage(network)
                snapshots[name, strength] = snapshot(network, attacked, labels, layer=layer, condition=attack)
            self.measured[attack] = snapshots
        return self.measured[attack]


class ChannelPicture:
    """Magnitude above, frequency below, a column for each network.

    Args:
        classes: Names of the classes.
        record: What is drawn first.
    """

    @styled
    def __init__(self, classes: tuple[str, ...], record: ChannelRecord):
        self.classes = classes
        self.figure = Figure(figsize=(4.6 * len(record.stats), 5.6))
        self.axes = self.figure.subplots(2, len(record.stats), squeeze=False, sharey="row")
        for (above, below), (name, (clean, attacked)) in zip(self.axes.T, record.stats.items(), strict=True):
            plot_magnitude(clean, attacked, ax=above).set_title(name)
            plot_frequency(clean, attacked, ax=below)
        for ax in self.axes[:, 1:].flat:
            ax.set_ylabel("")

    def show(self, record: ChannelRecord) -> str:
        """Move the profiles to a record; say in words how many channels the attack wakes up."""
        told = []
        for (above, below), (name, pair) in zip(self.axes.T, record.stats.items(), strict=True):
            clean, attacked = pair
            _move(above, [stats.magnitude.sort(descending=True).values for stats in pair])
            above.set_ylim(0, 1.3 * record.top)  # the legend stands above
            order = clean.frequency.argsort(descending=True, stable=True)
            _move(below, [100 * stats.frequency[order] for stats in pair])
            for ax, texts in ((above, _magnitudes(pair)), (below, _frequencies(pair))):
                for label, text in zip(ax.get_legend().get_texts(), texts, strict=True):
                    label.set_text(text)
            told.append(
                f"{name}: {clean.above_half} channels are active in more than half of the clean images, "
                f"{attacked.above_half} under attack, accuracy {record.accuracies[name]:.0%}"
            )
        state = record.state
        which = "images" if state.label is None else f"images of class {self.classes[state.label]}"
        return f"{record.count} {which}, {state.attack}, epsilon {state.epsilon:.3g}: {'; '.join(told)}."


def channel_explorer(
    networks: Mapping[str, nn.Module] | None = None,
    images: ImageSet | None = None,
    state: ChannelState | None = None,
    *,
    size: int = 200,
) -> Panel:
    """Make a panel that shows how the channels of each network respond as an attack grows.

    All strengths are measured at the start, which takes seconds; afterwards the slider only looks them up. Another
    attack is measured when it is first chosen, and the line counts.

    Args:
        networks: By the names in the picture; None takes the shipped standard and adversarially trained digits.
        images: To measure on; None takes the test images of digits.
        state: What is shown first; None is PGD-10 at the data set's usual radius on all classes.
        size: Images that are measured, with every class in proportion.

    Raises:
        TypeError: If the networks are no dict of networks.
        ValueError: If there is no network, the state cannot be shown, or a network is not made of the blocks of
            `models`.
    """
    networks = compared(networks)
    images = usual_images() if images is None else images
    usual = usual_threat(images.name).epsilon
    strengths = [round(share * usual, 6) for share in STRENGTHS]
    measurements = ChannelMeasurements(networks, images.subset(min(size, len(images))), strengths)
    start = ChannelState(epsilon=strengths[5])
    state = start if state is None else state
    controls = {
        "epsilon": choice_slider(strengths, "epsilon"),
        "attack": chooser(ATTACKS, "attack"),
        "label": chooser([("all", None), *((name, i) for i, name in enumerate(images.classes))], "class"),
        "threshold": choice_slider(THRESHOLDS, "active above"),
    }
    presets = {
        "no attack": replace(start, epsilon=0.0),
        "usual strength": start,
        "strongest": replace(start, epsilon=strengths[-1]),
        "one class": replace(start, label=0),
        "strict threshold": replace(start, threshold=0.2),
    }
    picture = ChannelPicture(images.classes, measurements.compute(state, lambda done, total: None))
    return Panel(state, controls, measurements.compute, picture, presets=presets)


def _move(ax: Axes, heights: list[Tensor]) -> None:
    """Give the profiles of a plot other heights: the clean one is a filled shape and its outline, the other crosses."""
    for patch in ax.patches:
        patch.set_data(heights[0].cpu().numpy())  # type: ignore[attr-defined]
    ax.lines[0].set_ydata(heights[1].cpu().numpy())


def _magnitudes(pair: tuple[ChannelStats, ChannelStats]) -> list[str]:
    words = zip(("clean", "attacked"), pair, strict=True)
    return [f"{word}: mean {stats.mean_magnitude:#.3g}" for word, stats in words]


def _frequencies(pair: tuple[ChannelStats, ChannelStats]) -> list[str]:
    words = zip(("clean", "attacked"), pair, strict=True)
    return [f"{word}: mean {stats.mean_frequency:.0%}, {stats.above_half} above 50 %" for word, stats in words]
