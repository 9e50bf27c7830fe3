"""TVM against the same networks without it: what stops an attack that goes around the purifier, and what does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from robustviz import checkpoints
from robustviz.attacks import (
    against,
    eot,
    exact_head,
    identity_backward,
    linear_head,
    pgd,
    probability_margin,
    surrogate_head,
)
from robustviz.data import ImageSet, digits
from robustviz.defenses.tvm import TVM
from robustviz.evaluation import CLEAN, evaluate
from robustviz.evaluation.comparison import WORST, Comparison, Contest, Entry, compare, describe_contests
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, margin
from robustviz.pages.photograph import photographs, picture_sentence
from robustviz.pages.report import Grid, Picture, Section
from robustviz.plots import plot_purified, plot_strengths
from robustviz.presets import usual_threat
from robustviz.records import describe
from robustviz.tensors import seeded
from robustviz.training import TrainConfig
from robustviz.training.stages import harden

EPSILONS, SHOWN_EPSILONS = (0.1, 0.15), (0.05, 0.1, 0.15)
"""Strengths of the comparison, and of the section of the report; likewise the numbers of images below."""
STEPS = 20
AVERAGED_STEPS = 10
"""Steps of an attack that averages over masks."""
DRAWS = 30
IMAGES, SHOWN_IMAGES = 100, 50
WNLL_TRAINING = TrainConfig(epochs=2, learning_rate=0.02)
"""How a network that has been trained with TVM versions goes on with WNLL."""

PLAIN: Mapping[str, Contest] = {
    "naive": Contest(partial(pgd, steps=STEPS), "published"),
    "margin": Contest(partial(pgd, steps=STEPS, objective=margin)),
}
"""What a network without purifier is measured with; there the naive attack is PGD as it should be."""


def unpurified(model: Classifier) -> nn.Module:
    """View: the network without its purifier, which the naive attack does not know of."""
    return model.replace(purify=None)


def combined(model: Classifier, *, views: Sequence[Callable[[Any], Any]]) -> nn.Module:
    """View: one after the other."""
    for view in views:
        model = view(model)
    return model


def bpda_contests(
    steps: int = STEPS, averaged_steps: int = AVERAGED_STEPS, draws: int = DRAWS, *, wnll: bool = False
) -> dict[str, Contest]:
    """Attacks that answer the purifier: the gradient passes as if it were not there, under fresh masks.

    Args:
        steps: Of each attack with one mask for each step.
        averaged_steps: Of each attack that averages over masks.
        draws: Masks to average over.
        wnll: Whether the head is WNLL; then they follow its exact gradient, and one more transfers from the linear head.
    """
    head, objective = ([exact_head], probability_margin) if wnll else ([], cross_entropy)
    averaged: dict[str, Any] = {"steps": averaged_steps, "objective": eot(objective, draws)}
    contests = {
        "BPDA": _through(identity_backward, *head, steps=steps, objective=eot(objective, 1)),
        "BPDA + EOT": _through(identity_backward, *head, **averaged),
    }
    if wnll:
        transferred = averaged | {"objective": eot(cross_entropy, draws)}
        contests["BPDA + EOT, from the linear head"] = _through(identity_backward, linear_head, **transferred)
    return contests


def tvm_contests(
    steps: int = STEPS, averaged_steps: int = AVERAGED_STEPS, draws: int = DRAWS, *, wnll: bool = False
) -> dict[str, Contest]:
    """Attacks on a network behind TVM: one that ignores the purifier, and those that answer it; see `bpda_contests`.

    Args:
        steps: Likewise.
        averaged_steps: Likewise.
        draws: Likewise.
        wnll: Whether the head is WNLL; then the naive attack follows the published gradient of the linear head.
    """
    naive, head = ([surrogate_head], [exact_head]) if wnll else ([], [])
    objective = probability_margin if wnll else cross_entropy
    contests = {
        "naive": _through(unpurified, *naive, kind="published", steps=steps),
        **bpda_contests(steps, averaged_steps, draws, wnll=wnll),
        "unrolled gradient": _through(*head, steps=steps, objective=eot(objective, 1)),
    }
    if wnll:
        transferred: dict[str, Any] = {"steps": steps, "objective": eot(cross_entropy, 1)}
        contests["unrolled gradient, from the linear head"] = _through(linear_head, **transferred)
    return contests


def _through(*views: Callable[[Any], Any], kind: Any = "adaptive", **settings: Any) -> Contest:
    """PGD on a view of the network."""
    return Contest(partial(against, view=partial(combined, views=views), attack=partial(pgd, **settings)), kind)


def compare_tvm(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare networks on digits: purified or not, trained with TVM versions or not, and with WNLL on top of both.

    Every condition is met under masks of its own, so the worst case behind TVM also counts bad luck; the remarks say how
    much of that there is without an attack.

    Args:
        seeds: Each trains the networks anew.
        say: Called with a line of text at every step.

    Returns:
        One comparison, named `tvm`.
    """
    training_set, test_set = digits("train"), digits("test").subset(IMAGES)
    settings = {
        "data": "digits",
        "contests": describe_contests({**PLAIN, **tvm_contests()}),
        "contests, WNLL": describe_contests(tvm_contests(wnll=True)),
        "tvm": TVM().settings,
        "training": describe(TrainConfig()),
        "training, WNLL": describe(WNLL_TRAINING),
    }
    entries = partial(trained_entries, training_set, test_set)
    return [compare("tvm", entries, test_set, seeds=seeds, epsilons=EPSILONS, settings=settings, say=say)]


def trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks trained naturally, on clean images and on both versions, each without and with TVM in front."""
    settings: dict[str, Any] = {"network": "small_cnn", "config": TrainConfig(seed=seed)}
    train = partial(harden, training_set, threat=usual_threat("digits"), **settings)
    plain, augmented = train().model, train(augment="tvm").model
    both = purified(augmented)

    def behind(name: str, model: Classifier, contests: Mapping[str, Contest]) -> tuple[str, Entry]:
        draws = 1 + len(contests)
        luck = evaluate(model, test_set.images, test_set.labels, {}, repeats=draws, generator=seeded(seed, 2))
        return name, Entry(model, contests, {f"{name}: clean, right under all of {draws} masks": luck.worst_case()})

    yield "none", Entry(plain, PLAIN)
    yield behind("TVM", purified(plain), tvm_contests())
    yield "augmentation", Entry(augmented, PLAIN)
    yield behind("both", both, tvm_contests())
    yield behind("WNLL + both", with_wnll(both, training_set, seed), tvm_contests(wnll=True))


def purified(model: Classifier) -> Classifier:
    """Put TVM in front of a network; everything else is shared."""
    return model.replace(purify=TVM().eval())


def with_wnll(both: Classifier, training_set: ImageSet, seed: int) -> Classifier:
    """Train a network behind TVM on with a buffer and WNLL: one short round on purified images; TVM stays in front."""
    settings: dict[str, Any] = {"threat": usual_threat("digits"), "config": replace(WNLL_TRAINING, seed=seed)}
    return harden(training_set, network="small_cnn", defense="wnll", start=both, rounds=1, **settings).model


SHOWN = {
    "none": "standard network",
    "TVM": "behind TVM",
    "augmentation": "trained with TVM versions",
    "both": "trained with them, behind TVM",
    "WNLL + both": "the same with WNLL",
}
"""Networks of the figure and what it calls them."""


def tvm_section(seed: int) -> Section:
    """Write about TVM: what it makes of a photograph, and how far the shipped networks stand with and without it."""
    rows, few, strengths = photographs(seed), digits("test").subset(SHOWN_IMAGES), SHOWN_EPSILONS
    plain, both = (checkpoints.load(name)[0] for name in ("digits-standard", "digits-tvm"))
    short: dict[str, Any] = {"steps": 10, "averaged_steps": 5, "draws": 10}
    contests = tvm_contests(**short)

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        yield "none", Entry(plain, PLAIN)
        yield "TVM", Entry(purified(plain), contests)
        yield "augmentation", Entry(both.replace(purify=None), PLAIN)
        yield "both", Entry(both, contests)
        yield "WNLL + both", Entry(with_wnll(both, digits("train"), seed), tvm_contests(**short, wnll=True))

    measured = compare("tvm", entries, few, seeds=[seed], epsilons=strengths, settings={})
    seen, answer = picture_sentence(rows), attack_sentence(measured, strengths[-1], len(few))
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
                plot_strengths(measured, SHOWN, ("naive", "BPDA", "BPDA + EOT")),
                f"Accuracy against epsilon of networks with and without TVM, trained for it or not. {answer}",
                f"{len(few)} test images. Without a purifier there is nothing for BPDA to go around, and the naive attack is "
                "the right one. Every attack meets masks of its own, and luck with them is part of every figure.",
            ),
        ],
        [Grid(*measured.rows(strengths[-1]))],
    )


def attack_sentence(measured: Comparison, epsilon: float, count: int) -> str:
    """Say what TVM costs without and with training for it, what it seems to gain, and what the worst case leaves."""
    networks = ("none", "TVM", "both", "WNLL + both")
    clean, naive, worst = (
        [measured.mean(network, epsilon, condition) for network in networks] for condition in (CLEAN, "naive", WORST)
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
