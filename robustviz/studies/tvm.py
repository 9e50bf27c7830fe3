"""TVM against the same networks without it: what stops an attack that goes around the purifier, and what does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from robustviz.data import ImageSet, digits
from robustviz.defenses import TVM, TVM_DEFENSE, WNLL_DEFENSE
from robustviz.defenses.defense import Contest, at
from robustviz.defenses.tvm.record import purified, tvm_contests
from robustviz.evaluation.comparison import Comparison, Entry, compare, describe_contests
from robustviz.evaluation.suites import baseline
from robustviz.models import Classifier
from robustviz.presets import usual_threat
from robustviz.records import describe
from robustviz.training import TrainConfig
from robustviz.training.stages import harden

_EPSILONS = (0.1, 0.15)
_IMAGES = 100
WNLL_TRAINING = TrainConfig(epochs=2, learning_rate=0.02)
"""How a network that has been trained with TVM versions goes on with WNLL."""

AUGMENTED = {"augment": "tvm", "in_front": False}
"""Options of TVM: a network trained with TVM versions, without the purifier in front."""

PLAIN: Mapping[str, Contest] = {
    "naive": replace(baseline()["PGD"], kind="published"),
    "margin": baseline()["PGD, margin"],
}
"""What a network without purifier is measured with; there the naive attack is PGD as it should be."""


def compare_tvm(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare networks on digits: purified or not, trained with TVM versions or not, and with WNLL on top of both.

    Behind TVM every image is answered under several masks, and the worst case is that of shares
    (`robustviz.evaluation.shares`).

    Args:
        seeds: Each trains all networks again.
        say: Called with a line of text at every step.

    Returns:
        One comparison, named `tvm`.
    """
    training_set, test_set = digits("train"), digits("test").subset(_IMAGES)
    settings = {
        "data": "digits",
        "contests": describe_contests({**PLAIN, **tvm_contests()}),
        "contests, WNLL": describe_contests(tvm_contests(exact=True)),
        "tvm": TVM().settings,
        "training": describe(TrainConfig()),
        "training, WNLL": describe(WNLL_TRAINING),
    }
    entries = partial(trained_entries, training_set, test_set)
    return [compare("tvm", entries, test_set, seeds=seeds, epsilons=_EPSILONS, settings=settings, say=say)]


def trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks trained naturally, on clean images and on both versions, each without and with TVM in front."""
    settings: dict[str, Any] = {"network": "small_cnn", "config": TrainConfig(seed=seed)}
    train = partial(harden, training_set, threat=usual_threat("digits"), **settings)
    plain, augmented = train().model, train(defenses=[TVM_DEFENSE], options=AUGMENTED).model
    both = purified(augmented)

    yield "none", Entry(plain, partial(at, PLAIN))
    yield "TVM", Entry(purified(plain), partial(at, tvm_contests()))
    yield "augmentation", Entry(augmented, partial(at, PLAIN))
    yield "both", Entry(both, partial(at, tvm_contests()))
    yield "WNLL + both", Entry(with_wnll(both, training_set, seed), partial(at, tvm_contests(exact=True)))


def with_wnll(both: Classifier, training_set: ImageSet, seed: int) -> Classifier:
    """Train a network behind TVM on with a buffer and WNLL: one short round on purified images; TVM stays in front."""
    settings: dict[str, Any] = {"threat": usual_threat("digits"), "config": replace(WNLL_TRAINING, seed=seed)}
    settings |= {"network": "small_cnn", "defenses": [WNLL_DEFENSE], "options": {"rounds": 1}}
    return harden(training_set, start=both, **settings).model
