"""The TVM explorer: what total variation minimization keeps of a picture, and whether that helps."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from robustviz.attacks import against, eot, identity_backward, pgd
from robustviz.data import ImageSet
from robustviz.defenses import TVM
from robustviz.defenses.tvm import draw_kept, minimize_tv
from robustviz.models import Classifier
from robustviz.plots import COLORS, MARKERS, show_picture, styled
from robustviz.plots.style import judge, pixels
from robustviz.presets import usual_threat
from robustviz.tensors import evaluating, seeded
from robustviz.types import Images, Progress, Threat
from robustviz.widgets.networks import single, usual_images
from robustviz.widgets.panel import Panel, choice_slider, chooser, slider

ATTACKS = ("none", "naive", "BPDA")
"""`naive` is PGD-10 on the network without its purifier; `BPDA` passes the purifier as if it were the identity."""

STEPS = 100


@dataclass(frozen=True)
class TVMState:
    """A setting of the TVM explorer.

    Attributes:
        image: Which of the images, from 0.
        attack: A name of `ATTACKS`.
        epsilon: Largest change of a pixel, 0 to 1.
        keep: Probability that a pixel is kept, in (0, 1].
        weight: Price of variation against fidelity, > 0.
        draw: Number of the mask; each gives other pixels.
    """

    image: int = 0
    attack: str = "naive"
    epsilon: float = 0.15
    keep: float = 0.5
    weight: float = 0.03
    draw: int = 0


@dataclass(frozen=True)
class TVMRecord:
    """One picture on its way through the purifier, and what a network says at each station.

    Attributes:
        state: The setting.
        label: True class.
        clean: As it was.
        came: As it came, under attack.
        kept: The same with dropped pixels black.
        purified: What the network sees.
        confidences: Probability of each class for `clean`, `came` and `purified`, all seen by the bare network.
        energies: E at the start and after every step of the minimization.
    """

    state: TVMState
    label: int
    clean: Float[Tensor, "c h w"]
    came: Float[Tensor, "c h w"]
    kept: Float[Tensor, "c h w"]
    purified: Float[Tensor, "c h w"]
    confidences: Float[Tensor, "3 k"]
    energies: tuple[float, ...]


class TVMMeasurements:
    """A network before which every picture is purified.

    Args:
        network: Its own purifier, if it has one, is put aside: the state says how to purify.
        images: To choose from.
    """

    def __init__(self, network: Classifier, images: ImageSet):
        self.bare, self.images = network.replace(purify=None), images
        self.attacked = cache(self._attacked)

    def compute(self, state: TVMState, progress: Progress) -> TVMRecord:
        """Attack, purify and ask.

        Raises:
            ValueError: If the state names an image or attack that does not exist, or a setting is out of range.
        """
        if not 0 <= state.image < len(self.images):
            raise ValueError(f"image must be from 0 to {len(self.images) - 1}, got {state.image}")
        if state.attack not in ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {state.attack!r}")
        progress(1, 2)
        settings = (state.keep, state.weight) if state.attack == "BPDA" else None
        clean = self.images.images[state.image : state.image + 1]
        came = self.attacked(state.image, state.attack, state.epsilon, settings)
        kept = draw_kept(came, state.keep, generator=seeded(state.draw))
        purified, energies = _minimized(came, state)
        with evaluating(self.bare), torch.no_grad():
            confidences = self.bare(torch.cat([clean, came, purified])).softmax(1).cpu()
        one, two, three, four = (picture[0].cpu() for picture in (clean, came, came * kept, purified))
        return TVMRecord(state, int(self.images.labels[state.image]), one, two, three, four, confidences, energies)

    def _attacked(self, image: int, attack: str, epsilon: float, settings: tuple[float, float] | None) -> Images:
        """Attack one image; kept for as long as the panel lives, since sliders of the purifier do not change it."""
        images, labels = (part[image : image + 1] for part in (self.images.images, self.images.labels))
        threat = Threat("linf", epsilon)
        if attack == "none":
            return images
        if settings is None:
            return pgd(self.bare, images, labels, threat=threat)
        defended = self.bare.replace(purify=TVM(keep=settings[0], weight=settings[1], steps=STEPS).eval())
        averaged = partial(pgd, threat=threat, objective=eot(draws=1))
        # The masks are the attacker's own: the one that is then drawn for the picture is not known to it.
        return against(defended, images, labels, view=identity_backward, attack=averaged, generator=seeded(1))


class TVMPicture:
    """Four stations of the picture with what the bare network says of them, and the energy on the way down.

    Args:
        images: Give the size of the pictures and the names of the classes.
    """

    @styled
    def __init__(self, images: ImageSet):
        self.classes = images.classes
        self.figure = Figure(figsize=(10.8, 2.9))
        *stations, self.path = self.figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.5))
        self.stations = stations
        for ax, title in zip(stations, ("clean", "as it came", "kept pixels", "purified"), strict=True):
            show_picture(ax, images.images[0].cpu())
            ax.set_title(title)
        (self.line,) = self.path.plot([0], [1], color=COLORS[2], marker=MARKERS[0])
        self.path.set(title="energy", xlabel="steps of the minimization")

    def show(self, record: TVMRecord) -> str:
        """Move everything to a record; say in words what the network decides at each station."""
        pictures = (record.clean, record.came, record.kept, record.purified)
        for ax, picture in zip(self.stations, pictures, strict=True):
            ax.images[0].set_data(pixels(picture))
        told = []
        shown = (self.stations[0], self.stations[1], self.stations[3])
        for ax, confidence, word in zip(shown, record.confidences, ("clean", "as it came", "purified"), strict=True):
            decided = int(confidence.argmax())
            text = f"{self.classes[decided]} ({confidence[decided]:.0%})"
            judge(ax, text, decided == record.label)
            told.append(f"{word} {text}")
        state = record.state
        self.stations[2].set_xlabel(f"keep {state.keep:.0%}, mask {state.draw}", color="0.35")
        self.line.set_data(range(len(record.energies)), record.energies)
        self.line.set_markevery(max(len(record.energies) // 10, 1))
        self.path.relim()
        self.path.autoscale_view()
        attack = "no attack" if state.attack == "none" else f"{state.attack} PGD-10, epsilon {state.epsilon:.3g}"
        words = f"Image {state.image} of class {self.classes[record.label]}, {attack}, keep {state.keep:.0%}, "
        words += f"weight {state.weight:g}: the network says {', '.join(told)}. "
        return words + f"Energy {record.energies[0]:.3g} at the start, {record.energies[-1]:.3g} at the end."


def tvm_explorer(
    network: Classifier | None = None, images: ImageSet | None = None, state: TVMState | None = None
) -> Panel:
    """Make a panel that purifies one attacked picture and shows what is left of it and of the attack.

    Args:
        network: Asked about every station; a purifier of its own is put aside. None takes the shipped one of digits
            that was trained without TVM.
        images: To choose from; None takes the test images of digits.
        state: What is shown first; None is a naive attack at the data set's usual radius.

    Raises:
        TypeError: If the network is no classifier.
        ValueError: If the state cannot be shown.
    """
    network = single(network)
    images = usual_images() if images is None else images
    usual = usual_threat(images.name).epsilon
    start = TVMState(epsilon=usual)
    controls = {
        "image": slider(0, len(images) - 1, 1, "image"),
        "attack": chooser(ATTACKS, "attack"),
        "epsilon": slider(0.0, 1.0, 0.01 if usual > 0.1 else 1 / 255, "epsilon"),
        "keep": choice_slider((0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0), "keep"),
        "weight": choice_slider((0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "weight"),
        "draw": slider(0, 20, 1, "mask"),
    }
    presets = {
        "no attack": replace(start, attack="none"),
        "naive attack": start,
        "BPDA": replace(start, attack="BPDA"),
        "every pixel kept": replace(start, keep=1.0),
        "far too smooth": replace(start, weight=1.0),
    }
    measurements = TVMMeasurements(network, images)
    return Panel(start if state is None else state, controls, measurements.compute, TVMPicture(images), presets=presets)


def _minimized(images: Images, state: TVMState) -> tuple[Images, tuple[float, ...]]:
    """Purify one picture under the mask of the state; also give its energy after every step."""
    energies: list[float] = []
    settings: dict[str, Any] = {"weight": state.weight, "keep": state.keep, "steps": STEPS}
    purified = minimize_tv(
        images, **settings, generator=seeded(state.draw), on_step=lambda step: energies.append(step.energy.item())
    )
    return purified, tuple(energies)
