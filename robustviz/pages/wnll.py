"""What the report says of WNLL: the shipped networks with either head, over the strength of the attack."""

from collections.abc import Iterator

from robustviz import checkpoints
from robustviz.data import digits
from robustviz.defenses.wnll.record import linear_beside, wnll_contests
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Entry, compare
from robustviz.evaluation.suites import baseline
from robustviz.pages.report import Picture, Section
from robustviz.plots import plot_comparison
from robustviz.studies.wnll import entry


def wnll_section(seed: int) -> Section:
    """Write about the shipped networks: softmax against WNLL, published against adaptive, over epsilon."""
    test_set = digits("test").subset(100)
    names = {"digits-wnll": "standard", "digits-pgd-wnll": "adversarially trained"}

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        for checkpoint, name in names.items():
            interpolating, _record = checkpoints.load(checkpoint)
            yield f"{name}, softmax", entry(linear_beside(interpolating), baseline())
            yield f"{name}, WNLL", entry(interpolating, wnll_contests(steps=10, wide=(60, 150)))

    measured = compare("wnll", entries, test_set, seeds=[seed], epsilons=(0.05, 0.1, 0.15), settings={})
    pictures, sentences = [], []
    for name in names.values():
        softmax, interpolating = f"{name}, softmax", f"{name}, WNLL"
        gap = [
            [measured.mean(network, 0.1, condition) for condition in (PUBLISHED, WORST_OF_ALL)]
            for network in (softmax, interpolating)
        ]
        sentence = (
            f"{name[0].upper()}{name[1:]} network at epsilon 0.1: under the published attack the softmax keeps {gap[0][0]:.0%} "
            f"of the decisions right and WNLL {gap[1][0]:.0%}; under all attacks {gap[0][1]:.0%} and {gap[1][1]:.0%}."
        )
        figure = plot_comparison(measured, {softmax: "softmax", interpolating: "WNLL"}).figure
        caption = (
            f"The {name} network with either head, {len(test_set)} test images. The shaded gap is robustness that "
        )
        pictures.append(
            Picture.of(f"wnll-{name.split()[0]}", figure, sentence, caption + "only the published attack sees.")
        )
        sentences.append(sentence)
    return Section(
        "An activation that interpolates (WNLL)",
        [
            "Instead of a linear layer, the last activation interpolates the labels of a few hundred training images, the "
            "template, over a graph of nearest neighbors (Wang et al., arXiv 1809.08516). The published attack borrows the gradient "
            "of a linear head beside it. The adaptive ones take the exact gradient, wider graphs, other heads or none.",
            *sentences,
        ],
        pictures,
    )
