"""Rows of pictures: clean, attacked and purified images."""

from dataclasses import dataclass
from textwrap import wrap

from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from robustviz.evaluation.gallery import Gallery
from robustviz.plots.style import judge, show_picture, styled


@styled
def plot_gallery(galleries: list[Gallery], *, figure: Figure | None = None) -> Figure:
    """Draw one row of pictures for each image: clean, then attacked and the change for every model.

    Below each picture are the decision and its probability; a wrong decision is marked with a cross and in orange.
    The change is drawn around gray (no change), magnified by the same factor everywhere.
    """
    first = galleries[0]
    count, columns = len(first.labels), 1 + 2 * len(galleries)
    figure = Figure(figsize=(1.45 * columns + 0.3, 1.62 * count + 0.5)) if figure is None else figure
    axes = figure.subplots(count, columns, squeeze=False)
    largest = max(float((g.attacked - g.images).abs().max()) for g in galleries) or 1.0
    for row in range(count):
        truth = first.classes[int(first.labels[row])]
        show_picture(axes[row, 0], first.images[row])
        axes[row, 0].set_xlabel(f"true class {truth}")
        for i, gallery in enumerate(galleries):
            attacked, change = axes[row, 1 + 2 * i], axes[row, 2 + 2 * i]
            show_picture(attacked, gallery.attacked[row])
            share, decided = gallery.attacked_confidence[row].max(0)
            judge(attacked, f"{gallery.classes[decided]} ({share:.0%})", bool(decided == gallery.labels[row]))
            show_picture(change, 0.5 + (gallery.attacked[row] - gallery.images[row]) / (2 * largest))
            was = gallery.clean_confidence[row]
            change.set_xlabel(f"was {gallery.classes[int(was.argmax())]} ({was.max():.0%})", color="0.35")
    axes[0, 0].set_title("clean")
    for i, gallery in enumerate(galleries):
        axes[0, 1 + 2 * i].set_title("\n".join([*wrap(gallery.model, 14), "attacked"]))
        axes[0, 2 + 2 * i].set_title(f"change\nx {0.5 / largest:.2g}")
    return figure


@dataclass(frozen=True)
class Purified:
    """A picture before and after total variation minimization.

    Attributes:
        name: What was done to it before.
        image: Input.
        kept: Pixels that count, one mask for all channels.
        result: Purified.
        before: Energy of the input, its dropped pixels filled in from their neighbors.
        after: Energy of the result.
    """

    name: str
    image: Float[Tensor, "c h w"]
    kept: Bool[Tensor, "1 h w"]
    result: Float[Tensor, "c h w"]
    before: float
    after: float


@styled
def plot_purified(rows: list[Purified]) -> Figure:
    """Draw one row for each picture: the input, the pixels that are kept, and what TVM makes of them."""
    figure = Figure(figsize=(6.6, 2.2 * len(rows) + 0.3))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (given, kept, result), row in zip(axes, rows, strict=True):
        for ax, image in zip((given, kept, result), (row.image, row.image * row.kept, row.result), strict=True):
            show_picture(ax, image)
        given.set_ylabel(row.name)
        kept.set_xlabel(f"E = {row.before:.1f} at the start")
        result.set_xlabel(f"E = {row.after:.1f}")
    for ax, title in zip(axes[0], ("input", "kept pixels", "purified"), strict=True):
        ax.set_title(title)
    return figure
