"""WNLL against the softmax: the same networks, the published attack beside the adaptive ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator

from robustviz import checkpoints
from robustviz.attacks import (
    against,
    alone_head,
    exact_head,
    ifgsm,
    linear_head,
    pgd,
    probability_margin,
    square,
    surrogate_head,
    wide_graph,
)
from robustviz.data import ImageSet, digits
from robustviz.defenses.wnll import wnll_classifier
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import PUBLISHED, WORST, Comparison, Contest, Entry, compare, describe_contests
from robustviz.models import Classifier
from robustviz.objectives import margin
from robustviz.pages.report import Picture, Section
from robustviz.plots import plot_comparison
from robustviz.presets import usual_threat
from robustviz.records import describe
from robustviz.tensors import evaluating, seeded
from robustviz.training import TrainConfig
from robustviz.training.stages import harden
from robustviz.types import Attack, Images, Labels

EPSILONS = (0.1, 0.15)
STEPS = 20
IMAGES = 200
AMONG = 100
"""Images of the batch in which one alone is attacked."""

SOFTMAX: Mapping[str, Contest] = {
    "IFGSM": Contest(partial(ifgsm, steps=STEPS), "published"),
    "PGD": Contest(partial(pgd, steps=STEPS)),
    "PGD, margin": Contest(partial(pgd, steps=STEPS, objective=margin)),
}
"""What a network with a linear head is measured with."""


def wnll_contests(steps: int = STEPS, *, wide: Sequence[int] = (60, 150, 200)) -> dict[str, Contest]:
    """Attacks on a network with a WNLL head: the published one and those that answer it, all scored on the head.

    Args:
        steps: Of each gradient attack.
        wide: Neighbors of the wider graphs to attack through.
    """

    def through(view: Callable[[Any], Any], **settings: Any) -> Contest:
        return Contest(partial(against, view=view, attack=partial(pgd, steps=steps, random_start=False, **settings)))

    log_surrogate = partial(surrogate_head, logarithm=True)
    published = partial(against, view=surrogate_head, attack=partial(ifgsm, steps=steps))
    return {
        "surrogate gradient": Contest(published, "published"),
        "surrogate on log u": through(log_surrogate),
        "transfer from the linear head": through(linear_head),
        "transfer, margin": through(linear_head, objective=margin),
        "exact, -log u": through(exact_head),
        "exact, margin": through(exact_head, objective=probability_margin),
        "one at a time, margin": through(alone_head, objective=probability_margin),
        **{f"wide graph, K = {k}": through(wide_graph(k), objective=probability_margin) for k in wide},
    }


SQUARE = {"Square": Contest(partial(square, steps=200))}
"""The attack that needs no gradient, and so shows whether one is masked."""


def other_templates(
    model: Classifier,
    images: Images,
    labels: Labels,
    /,
    *,
    image_set: ImageSet,
    attack: Attack,
    templates: int = 2,
    generator: Generator | None = None,
) -> Images:
    """Attack the mean answer over disjoint templates drawn for this call, as one who does not know the template would.

    Args:
        model: With a WNLL head.
        images: Clean images in [0, 1].
        labels: Their classes.
        image_set: What templates are drawn from.
        attack: Made on the head that averages.
        templates: How many, each as large as the head's own where there are enough images.
        generator: Of the draw and of the attack.
    """
    head: Any = model.head
    size = min(len(head.template), len(image_set) // templates)
    generator = seeded(0) if generator is None else generator
    view = wnll_classifier(model, image_set, size=size, templates=templates, generator=generator)
    return attack(view, images, labels, generator=generator)


def other_templates_contest(image_set: ImageSet, steps: int = STEPS) -> dict[str, Contest]:
    """The attack that averages over templates (EOT), with the exact gradient of the margin."""
    attack = partial(pgd, steps=steps, objective=probability_margin)
    return {"other templates (EOT)": Contest(partial(other_templates, image_set=image_set, attack=attack))}


def compare_wnll(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare softmax and WNLL on digits: on pixels as features, and on trained networks, natural and adversarial.

    Args:
        seeds: Each trains the networks anew.
        say: Called with a line of text at every step.

    Returns:
        Two comparisons, named `wnll-pixels` and `wnll`.
    """
    training_set, test_set = digits("train"), digits("test")
    every = {**SOFTMAX, **wnll_contests(), **SQUARE, **other_templates_contest(training_set)}
    settings = {"data": "digits", "steps": STEPS, "contests": describe_contests(every)}
    pixels = compare(
        "wnll-pixels",
        partial(pixel_entries, training_set),
        test_set.subset(IMAGES),
        seeds=seeds,
        epsilons=(0.1, 0.2, 0.3),
        settings={**settings, "template": 300},
        say=say,
    )
    trained = compare(
        "wnll",
        partial(trained_entries, training_set, test_set),
        test_set.subset(IMAGES),
        seeds=seeds,
        epsilons=EPSILONS,
        settings={**settings, "training": describe(TrainConfig()), "threat": describe(usual_threat("digits"))},
        say=say,
    )
    return [pixels, trained]


def pixel_entries(training_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """WNLL on the pixels themselves, with logistic regression on the same template of 300 digits beside it."""
    from sklearn.linear_model import LogisticRegression

    template = training_set.subset(300, seeded(seed))
    fitted = LogisticRegression(C=1e4, max_iter=2000).fit(template.images.flatten(1).numpy(), template.labels.numpy())
    linear = torch.nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.coef_))
        linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    plain = Classifier(torch.nn.Flatten(), linear, normalize=torch.nn.Identity()).eval()
    yield "pixels, softmax", Entry(plain, {**SOFTMAX, **SQUARE})
    yield "pixels, WNLL", Entry(wnll_classifier(plain, template, size=300), {**wnll_contests(), **SQUARE})


def trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks trained for WNLL, each with its linear head and with its WNLL head, jointly and one at a time."""
    for name, attack in (("standard", "none"), ("adversarial", "pgd")):
        hardened = harden(
            training_set,
            network="small_cnn",
            config=TrainConfig(seed=seed),
            threat=usual_threat("digits"),
            attack=attack,  # type: ignore[arg-type]
            defense="wnll",
        )
        interpolating = hardened.model
        head: Any = interpolating.head
        softmax = interpolating.replace(head=head.linear)
        contests = {**wnll_contests(), **SQUARE, **other_templates_contest(training_set)}
        yield f"{name}, softmax", Entry(softmax, {**SOFTMAX, **SQUARE})
        remarks = {f"{name}: {key}": share for key, share in _remarks(softmax, interpolating, test_set).items()}
        yield f"{name}, WNLL", Entry(interpolating, contests, remarks)
        alone = interpolating.replace(head=head.with_settings(joint=False))
        yield f"{name}, WNLL one at a time", Entry(alone, {**wnll_contests(wide=(60,)), **SQUARE})


def _remarks(softmax: Classifier, interpolating: Classifier, test_set: ImageSet) -> dict[str, float]:
    """Mutual classification, vanished gradients, and what remains when one attacked image stands among clean ones.

    Images are attacked and decided on in one batch, because WNLL answers by the batch.
    """
    threat = usual_threat("digits")
    published = partial(ifgsm, threat=threat, steps=STEPS)
    on_wnll = partial(against, view=surrogate_head, attack=published)
    exact = partial(published, objective=probability_margin)

    def right(model: Classifier, some: ImageSet, attacked_on: Classifier, attack: Attack) -> float:
        attacked = attack(attacked_on, some.images, some.labels)
        return evaluate(model, attacked, some.labels, {}, batch_size=len(some)).accuracy("clean")

    few, at = test_set.subset(AMONG), f"epsilon {threat.epsilon}"
    return {
        f"softmax decides on images attacked on softmax, {at}": right(softmax, test_set, softmax, published),
        f"WNLL decides on images attacked on softmax, {at}": right(interpolating, test_set, softmax, published),
        f"softmax decides on images attacked on WNLL, {at}": right(softmax, test_set, interpolating, on_wnll),
        f"WNLL decides on images attacked on WNLL, {at}": right(interpolating, test_set, interpolating, on_wnll),
        "images with zero exact gradient, jointly": zero_gradients(interpolating, test_set),
        "images with zero exact gradient, one at a time": zero_gradients(alone_head(interpolating), test_set),
        f"right: all {len(few)} attacked (exact, margin), {at}": right(interpolating, few, interpolating, exact),
        f"right: each of these {len(few)} among the others, clean, {at}": among_clean(interpolating, few, exact),
    }


def zero_gradients(model: torch.nn.Module, test_set: ImageSet) -> float:
    """Share of images whose margin of probabilities has no gradient at all with respect to the pixels."""
    images = test_set.images.clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        values = probability_margin(model, images, test_set.labels)
        gradient = torch.autograd.grad(values.sum(), images)[0]
    return (gradient.flatten(1).abs().amax(1) == 0).double().mean().item()


def among_clean(model: Classifier, some: ImageSet, attack: Attack) -> float:
    """Share of images, all attacked together, that are right when each stands among the other images left clean."""
    attacked, right = attack(model, some.images, some.labels), 0
    with evaluating(model), torch.no_grad():
        for index, label in enumerate(some.labels):
            batch = some.images.clone()
            batch[index] = attacked[index]
            right += int(model(batch)[index].argmax() == label)
    return right / len(some)


def wnll_section(seed: int) -> Section:
    """Write about the shipped networks: softmax against WNLL, published against adaptive, over epsilon."""
    test_set = digits("test").subset(100)
    names = {"digits-wnll": "standard", "digits-pgd-wnll": "adversarially trained"}

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        for checkpoint, name in names.items():
            interpolating, _record = checkpoints.load(checkpoint)
            head: Any = interpolating.head
            yield f"{name}, softmax", Entry(interpolating.replace(head=head.linear), SOFTMAX)
            yield f"{name}, WNLL", Entry(interpolating, wnll_contests(steps=10, wide=(60, 150)))

    measured = compare("wnll", entries, test_set, seeds=[seed], epsilons=(0.05, 0.1, 0.15), settings={})
    pictures, sentences = [], []
    for name in names.values():
        softmax, interpolating = f"{name}, softmax", f"{name}, WNLL"
        gap = [
            [measured.mean(network, 0.1, condition) for condition in (PUBLISHED, WORST)]
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
