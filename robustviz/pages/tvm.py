"""What the report says of TVM: what it makes of a photograph, and the shipped networks with and without it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from robustviz import checkpoints
from robustviz.data import digits
from robustviz.defenses.defense import at
from robustviz.defenses.tvm.record import purified, tvm_contests
from robustviz.evaluation import CLEAN
from robustviz.evaluation.comparison import WORST_OF_ALL, Comparison, Entry, compare
from robustviz.pages.photograph import photographs, picture_sentence
from robustviz.pages.report import Grid, Picture, Section
from robustviz.plots import plot_purified, plot_strengths
from robustviz.studies.tvm import PLAIN, with_wnll

_EPSILONS, _IMAGES = (0.05, 0.1, 0.15), 50

_SHOWN = {
    "none": "standard network",
    "TVM": "behind TVM",
    "augmentation": "trained with TVM versions",
    "both": "trained with them, behind TVM",
    "WNLL + both": "the same with WNLL",
}
"""Networks of the figure and what it calls them."""


def tvm_section(seed: int) -> Section:
    """Write about TVM: what it makes of a photograph, and what it is worth to the shipped networks."""
    rows, few, strengths = photographs(seed), digits("test").subset(_IMAGES), _EPSILONS
    plain, both = (checkpoints.load(name)[0] for name in ("digits-standard", "digits-tvm"))
    short: dict[str, Any] = {"steps": 10, "averaged_steps": 5, "draws": 10}
    contests = tvm_contests(**short)

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        yield "none", Entry(plain, partial(at, PLAIN))
        yield "TVM", Entry(purified(plain), partial(at, contests))
        yield "augmentation", Entry(both.replace(purify=None), partial(at, PLAIN))
        yield "both", Entry(both, partial(at, contests))
        yield (
            "WNLL + both",
            Entry(with_wnll(both, digits("train"), seed), partial(at, tvm_contests(**short, exact=True))),
        )

    measured = compare("tvm", entries, few, seeds=[seed], epsilons=strengths, settings={})
    seen, answer = picture_sentence(rows), _attack_sentence(measured, strengths[-1], len(few))
    return Section(
        "Purified images (TVM)",
        [
            "Total variation minimization forgets half of the pixels and looks for the simplest picture that fits the rest "
            "(Guo et al., arXiv 1711.00117; Wang et al., arXiv 1809.08516). Its energy is half the squared distance on the kept "
            "pixels + 0.03 times the total variation. Small perturbations cost variation and vanish, and detail with them.",
            seen,
            "The naive attack does not know of the purifier. The adaptive ones let the gradient pass as if it were not there "
            "(BPDA), average that over 10 random masks (EOT), or follow the gradient through all the steps.",
            answer,
        ],
        [
            Picture.of(
                "tvm-photographs",
                plot_purified(rows),
                f"A photograph, clean and attacked at two strengths, with half of its pixels, and purified. {seen}",
                "One mask for all rows. PGD leads a network that was trained on CIFAR-10 away from its first answer; it knows no "
                "temples, so no answer is right. E is the energy, with the forgotten pixels filled in and at the end.",
            ),
            Picture.of(
                "tvm-digits",
                plot_strengths(measured, _SHOWN, ("naive", "BPDA", "BPDA + EOT")),
                f"Accuracy against epsilon of networks with and without TVM, trained for it or not. {answer}",
                f"{len(few)} test images. Without a purifier there is nothing for BPDA to go around, and the naive attack is "
                "the right one. Every attack is measured under masks of its own, and luck with them is part of every figure.",
            ),
        ],
        [Grid(*measured.rows(strengths[-1]))],
    )


def _attack_sentence(measured: Comparison, epsilon: float, count: int) -> str:
    """Say what TVM costs without and with training for it, what it seems to gain, and what the worst case leaves."""
    networks = ("none", "TVM", "both", "WNLL + both")
    clean, naive, worst = (
        [measured.mean(network, epsilon, condition) for network in networks]
        for condition in (CLEAN, "naive", WORST_OF_ALL)
    )
    gain = [100 * (shares[2] - shares[0]) for shares in (naive, worst)]
    return (
        f"Of {count} clean test digits the network reads {clean[0]:.0%}, and {clean[1]:.0%} behind TVM; trained with TVM "
        f"versions it reads {clean[2]:.0%} behind TVM. The naive attack at epsilon = {epsilon} leaves {naive[0]:.0%}, "
        f"{naive[1]:.0%} and {naive[2]:.0%}, all attacks together {worst[0]:.0%}, {worst[1]:.0%} and {worst[2]:.0%}. So TVM "
        f"with training for it changes the accuracy by {gain[0]:+.0f} points under the naive attack, and by {gain[1]:+.0f} "
        f"points in the worst case, which has {len(measured.attacks('none'))} attacks without TVM and "
        f"{len(measured.attacks('both'))} with it, each under other masks. With WNLL on top of both {naive[3]:.0%} and "
        f"{worst[3]:.0%} are left."
    )
