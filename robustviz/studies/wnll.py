"""WNLL against the softmax: the same networks, published against adaptive attacks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator

from robustviz.attacks import against, alone_head, ifgsm, pgd, probability_margin, square, surrogate_head
from robustviz.data import ImageSet, digits
from robustviz.defenses import WNLL_DEFENSE
from robustviz.defenses.defense import Contest, at
from robustviz.defenses.wnll import wnll_classifier
from robustviz.defenses.wnll.record import linear_beside, wnll_contests
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import Comparison, Entry, compare, describe_contests
from robustviz.evaluation.suites import PUBLISHED_STEPS, baseline
from robustviz.models import Classifier
from robustviz.presets import TrainingAttack, usual_threat
from robustviz.records import describe
from robustviz.tensors import evaluating, seeded
from robustviz.training import TrainConfig
from robustviz.training.stages import harden
from robustviz.types import Attack, Images, Labels

_EPSILONS = (0.1, 0.15)
_IMAGES = 200
AMONG = 100
"""Images of the batch in which one alone is attacked."""

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
        generator: Source of the draw and of the attack's noise.
    """
    head: Any = model.head
    size = min(len(head.template) // head.templates, len(image_set) // templates)
    generator = seeded(0) if generator is None else generator
    view = wnll_classifier(model, image_set, size=size, templates=templates, generator=generator)
    return attack(view, images, labels, generator=generator)


def other_templates_contest(image_set: ImageSet, steps: int = PUBLISHED_STEPS) -> dict[str, Contest]:
    """The attack that averages over templates (EOT), with the exact gradient of the margin."""
    attack = partial(pgd, steps=steps, objective=probability_margin)
    return {"other templates (EOT)": Contest(partial(other_templates, image_set=image_set, attack=attack))}


def compare_wnll(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare softmax and WNLL on digits: on pixels as features, and on trained networks, natural and adversarial.

    Args:
        seeds: Each trains all networks again.
        say: Called with a line of text at every step.

    Returns:
        Two comparisons, named `wnll-pixels` and `wnll`.
    """
    training_set, test_set = digits("train"), digits("test")
    every = {**baseline(), **wnll_contests(), **SQUARE, **other_templates_contest(training_set)}
    settings = {"data": "digits", "steps": PUBLISHED_STEPS, "contests": describe_contests(every)}
    pixels = compare(
        "wnll-pixels",
        partial(pixel_entries, training_set),
        test_set.subset(_IMAGES),
        seeds=seeds,
        epsilons=(0.1, 0.2, 0.3),
        settings={**settings, "template": 300},
        say=say,
    )
    trained = compare(
        "wnll",
        partial(_trained_entries, training_set, test_set),
        test_set.subset(_IMAGES),
        seeds=seeds,
        epsilons=_EPSILONS,
        settings={**settings, "training": describe(TrainConfig()), "threat": describe(usual_threat("digits"))},
        say=say,
    )
    return [pixels, trained]


def entry(model: Classifier, contests: Mapping[str, Contest], remarks: Mapping[str, float] | None = None) -> Entry:
    """Make an entry whose contests are the same at every threat."""
    return Entry(model, partial(at, contests), remarks or {})


def pixel_entries(training_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """WNLL on the pixels themselves, and logistic regression on the same template of 300 digits."""
    from sklearn.linear_model import LogisticRegression

    template = training_set.subset(300, seeded(seed))
    fitted = LogisticRegression(C=1e4, max_iter=2000).fit(template.images.flatten(1).numpy(), template.labels.numpy())
    linear = torch.nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.coef_))
        linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    plain = Classifier(torch.nn.Flatten(), linear, normalize=torch.nn.Identity()).eval()
    yield "pixels, softmax", entry(plain, {**baseline(), **SQUARE})
    yield "pixels, WNLL", entry(wnll_classifier(plain, template, size=300), {**wnll_contests(), **SQUARE})


def _trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks trained for WNLL, each with its linear head and with its WNLL head, jointly and one at a time."""
    trainings: Mapping[str, TrainingAttack] = {"standard": "none", "adversarial": "pgd"}
    for name, attack in trainings.items():
        hardened = harden(
            training_set,
            network="small_cnn",
            config=TrainConfig(seed=seed),
            threat=usual_threat("digits"),
            attack=attack,
            defenses=[WNLL_DEFENSE],
        )
        interpolating = hardened.model
        head: Any = interpolating.head
        softmax = linear_beside(interpolating)
        contests = {**wnll_contests(), **SQUARE, **other_templates_contest(training_set)}
        yield f"{name}, softmax", entry(softmax, {**baseline(), **SQUARE})
        remarks = {f"{name}: {key}": share for key, share in _remarks(softmax, interpolating, test_set).items()}
        yield f"{name}, WNLL", entry(interpolating, contests, remarks)
        alone = interpolating.replace(head=head.with_settings(joint=False))
        yield f"{name}, WNLL one at a time", entry(alone, {**wnll_contests(wide=(60,)), **SQUARE})


def _remarks(softmax: Classifier, interpolating: Classifier, test_set: ImageSet) -> dict[str, float]:
    """Mutual classification, vanished gradients, and what remains when one attacked image is among clean ones.

    Images are attacked and decided on in one batch, because WNLL answers by the batch.
    """
    threat = usual_threat("digits")
    published = partial(ifgsm, threat=threat, steps=PUBLISHED_STEPS)
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
    """Share of images, all attacked together, that are right when each is among the other images, left clean."""
    attacked, right = attack(model, some.images, some.labels), 0
    with evaluating(model), torch.no_grad():
        for index, label in enumerate(some.labels):
            batch = some.images.clone()
            batch[index] = attacked[index]
            right += int(model(batch)[index].argmax() == label)
    return right / len(some)
