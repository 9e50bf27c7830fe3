"""The picture of the attack explorer: a row for each network, the path of the attack, and accuracy against strength.

A color stands for a network, everywhere; right and wrong are signs, and wrong is bold.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustviz.data import ImageSet
from robustviz.evaluation import Sweep
from robustviz.plots import COLORS, MARKERS, styled
from robustviz.plots.style import judge, pixels, show_picture
from robustviz.widgets.attack_record import MARGIN, AttackRecord, Attempt

BARS = 10
"""Classes that the bars show: all of them, or the most likely."""


class AttackPicture:
    """Clean, attacked and change for each network, with bars of confidence; beside them the two curves.

    Args:
        models: Names of the networks, one row each.
        images: Give the size of the pictures and the names of the classes.
        curves: Accuracy of each network over attack strength.
    """

    @styled
    def __init__(self, models: list[str], images: ImageSet, curves: Mapping[str, Sweep]):
        self.figure = Figure(figsize=(9.6, 1.1 + 1.95 * len(models)))
        parts: Any = self.figure.subfigures(1, 2, width_ratios=(2.1, 1))
        left, right = parts
        grid = left.subplots(len(models), 4, squeeze=False, width_ratios=(1, 1, 1, 1.25))
        each = zip(grid, models, COLORS[: len(models)], strict=True)
        self.rows = [_Row(axes, model, color, images) for axes, model, color in each]
        titles = ("clean", "attacked", "change", "probability")
        for ax, title in zip(grid[0], titles, strict=True):
            ax.set_title(title)
        path, curve = right.subplots(2)
        self.path = _Path(path, models)
        self.curve = _Curve(curve, curves)

    def show(self, record: AttackRecord) -> str:
        """Move everything to a record; say in words what each network decides."""
        largest = max(float((attempt.attacked - record.image).abs().max()) for attempt in record.attempts)
        told = [row.show(record, a, largest) for row, a in zip(self.rows, record.attempts, strict=True)]
        self.path.show(record)
        self.curve.show(record)
        state = record.state
        steps = "1 step" if state.attack == "FGSM" or state.steps == 1 else f"{state.steps} steps"
        words = f"{state.attack}, {steps}"
        words += "" if record.nearest else f", epsilon {state.epsilon:.3g}"
        words += "" if state.target is None else f", towards {record.classes[state.target]}"
        words += f". {'; '.join(told)}."
        if state.own:
            size = "x".join(map(str, record.image.shape[:1:-1]))
            words += f" Your own picture, reduced to {size}, is unlike the training data: doubt every decision."
        return words


class _Row:
    """The pictures and bars of one network."""

    def __init__(self, axes: Any, model: str, color: str, images: ImageSet):
        self.axes, self.model = axes, model
        for ax in axes[:3]:
            show_picture(ax, images.images[0].cpu())
        axes[0].set_ylabel(model.replace(" ", "\n"), color=color)
        self.images = [ax.images[0] for ax in axes[:3]]
        shown = range(min(BARS, len(images.classes)))
        self.bars = axes[3].barh(shown, [0.0 for _ in shown], color=color, height=0.7)
        (self.rings,) = axes[3].plot([0.0 for _ in shown], shown, "o", color="black", markerfacecolor="none")
        axes[3].set(xlim=(-0.05, 1.05), xticks=(0, 0.5, 1), yticks=shown)
        axes[3].xaxis.label.set_fontsize("small")
        axes[3].tick_params(labelsize="small")
        axes[3].invert_yaxis()

    def show(self, record: AttackRecord, attempt: Attempt, largest: float) -> str:
        clean, attacked = attempt.clean_confidence, attempt.attacked_confidence
        change = 0.5 + (attempt.attacked - record.image) / (2 * largest or 1.0)
        for artist, image in zip(self.images, (record.image, attempt.attacked, change), strict=True):
            artist.set_data(pixels(image[0]))
        for ax, confidence in zip(self.axes, (clean, attacked), strict=False):
            judge(ax, _words(confidence, record.classes), int(confidence.argmax()) == attempt.label, colored=False)
        self.axes[2].set_xlabel(f"x {0.5 / largest:.3g}" if largest else "none")
        chosen = (clean + attacked).topk(min(BARS, len(clean))).indices.sort().values
        for bar, which in zip(self.bars, chosen.tolist(), strict=True):
            bar.set_width(attacked[which].item())
        self.rings.set_xdata(clean[chosen].numpy())
        named = [("✓ " if which == attempt.label else "") + record.classes[which] for which in chosen.tolist()]
        self.axes[3].set_yticklabels(named)
        marked = "decision before" if record.state.own else "true class"
        self.axes[3].set_xlabel(f"bar attacked, ring clean\n✓ {marked}")
        before, after = (_words(confidence, record.classes) for confidence in (clean, attacked))
        return f"{self.model}: {before}, attacked {after}, largest change {attempt.distance:.2g}"


class _Path:
    """What the attack follows, step by step."""

    def __init__(self, ax: Axes, models: list[str]):
        self.ax = ax
        self.lines = [ax.plot([0], [0], color=COLORS[i], marker=MARKERS[i])[0] for i, _ in enumerate(models)]
        ax.set(title=f"{MARGIN} raised", xlabel="steps of the attack")

    def show(self, record: AttackRecord) -> None:
        for line, attempt in zip(self.lines, record.attempts, strict=True):
            line.set_data(range(len(attempt.trace)), attempt.trace)
            line.set_markevery(max(len(attempt.trace) // 10, 1))
        verb = "raised" if record.state.target is None or record.followed == MARGIN else "lowered"
        self.ax.set_title(f"{record.followed} {verb}", loc="left", fontsize=11, fontweight="bold")
        self.ax.relim()
        self.ax.autoscale_view()


class _Curve:
    """Accuracy over attack strength, drawn once, with a mark where the attack on the screen stands."""

    def __init__(self, ax: Axes, curves: Mapping[str, Sweep]):
        self.curves = curves
        self.dots = []
        for i, (model, swept) in enumerate(curves.items()):
            ax.plot(swept.epsilons, [100 * value for value in swept.accuracies()], color=COLORS[i])
            look: dict[str, Any] = {"color": COLORS[i], "markersize": 9, "clip_on": False}
            self.dots.append(ax.plot([0], [0], MARKERS[i], label=model, **look)[0])
        self.here = ax.axvline(0, color="0.35", linestyle=":")
        ax.set(title="accuracy under PGD-10 (%)", xlabel="epsilon", ylim=(-5, 105))
        ax.set_xscale("function", functions=(np.sqrt, np.square))  # room for small strengths
        ax.set(xlim=(0, 1), xticks=(0, 0.03, 0.1, 0.25, 0.5, 1), xticklabels=("0", ".03", ".1", ".25", ".5", "1"))
        ax.legend(loc="upper right", fontsize="x-small", borderaxespad=0.2)  # where accuracies are low

    def show(self, record: AttackRecord) -> None:
        for dot, attempt, swept in zip(self.dots, record.attempts, self.curves.values(), strict=True):
            place = attempt.distance if record.nearest else record.state.epsilon
            dot.set_data([place], [100 * _between(place, swept)])
        self.here.set_visible(not record.nearest)
        self.here.set_xdata([record.state.epsilon] * 2)


def _words(confidence: Float[Tensor, "k"], classes: tuple[str, ...]) -> str:
    return f"{classes[int(confidence.argmax())]} ({confidence.max():.0%})"


def _between(epsilon: float, swept: Sweep) -> float:
    """Accuracy at a strength that may lie between those that were measured."""
    return float(np.interp(np.sqrt(epsilon), np.sqrt(swept.epsilons), swept.accuracies()))
