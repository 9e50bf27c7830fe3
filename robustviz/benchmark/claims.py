"""What the papers claim on CIFAR-10, and a rule that says of each claim whether the measured networks bear it out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustviz.benchmark.record import CARLINI_WAGNER, NetworkResults
from robustviz.evaluation import CLEAN

RULE = (
    "A gain is borne out if it is at least half of the claimed one and the 95 % interval of the difference, image by "
    "image, lies above 0. A claim is **reproduced** if the gain is borne out under the attack of the paper and in the "
    "worst case of all attacks within the L-inf radius (clean images have none); **reproduced only under the published attack** if it "
    "is not borne out in the worst case; **not reproduced** if not even under the attack of the paper; **not tested** "
    "if a network is missing. Where the paper's network is a larger one, the verdict is of ResNet20 instead."
)
"""The rule of `verdict`, in words."""


@dataclass(frozen=True)
class Claim:
    """A paper says that a defense raises an accuracy.

    Attributes:
        source: Paper and place.
        what: In words.
        network: That the paper measured, as `robustviz train` calls it; None if the place names none.
        before: Name of the network without the defense.
        after: Name of the network with it.
        condition: Under which both are measured.
        gain: In points; None if no figure of the paper is known, and then any gain will do.
        figures: The paper's own words or numbers.
    """

    source: str
    what: str
    network: str | None
    before: str
    after: str
    condition: str
    gain: float | None
    figures: str


@dataclass(frozen=True)
class _Verdict:
    """What came out of a claim.

    Attributes:
        text: By the rule.
        published: Gain in points under the attack of the claim, with its 95 % interval; None if not tested.
        worst: The same in the worst case; None if not tested, or for clean images.
    """

    text: str
    published: tuple[float, float, float] | None = None
    worst: tuple[float, float, float] | None = None


WNLL_2018 = "Wang et al., arXiv 1802.00168, results on CIFAR-10"
WNLL_FIRST = "Wang et al., arXiv 1809.08516, first version (2018), abstract"
WNLL_LAST = "Wang et al., arXiv 1809.08516, abstract"
CAS = "Bai et al., arXiv 2103.08307, abstract"

ERRORS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "resnet20": {"50k": (9.06, 7.09), "10k": (12.83, 9.96), "1k": (34.90, 29.91)},
    "resnet56": {"50k": (7.24, 5.61), "10k": (9.83, 7.61), "1k": (37.83, 28.18)},
    "resnet110": {"50k": (6.41, 4.98), "10k": (8.91, 7.13), "1k": (42.94, 28.28)},
}
"""Errors in percent that the paper prints, softmax and WNLL, by network and number of training images."""


def _generalization(network: str, size: str) -> Claim:
    """WNLL lowers the error on clean images."""
    softmax, wnll = ERRORS[network][size]
    stem = "-".join(["cifar10", *([network] if network != "resnet20" else []), *([size] if size != "50k" else [])])
    before, after = (f"{stem}-standard" if size == "50k" else stem), f"{stem}-wnll"
    what = f"WNLL lowers the error with {size} training images"
    return Claim(WNLL_2018, what, network, before, after, CLEAN, softmax - wnll, f"{softmax:.2f} % -> {wnll:.2f} %")


def claims(steps: int = 20) -> list[Claim]:
    """Give every claim whose figures could be read, or whose direction is stated, in the order of the table.

    Args:
        steps: Steps of IFGSM and PGD, which are part of the conditions' names.
    """
    ifgsm, pgd = f"IFGSM-{steps}", f"PGD-{steps}"
    both, every = "WNLL + TVM + augmentation", "cifar10-tvm-wnll"
    plain = "cifar10-standard"
    return [
        Claim(
            WNLL_LAST,
            "WNLL makes an adversarially trained network more robust",
            "resnet20",
            "cifar10-pgd",
            "cifar10-pgd-wnll",
            ifgsm,
            23.0,
            "~46 % -> ~69 %",
        ),
        Claim(WNLL_LAST, f"{both} against IFGSM", "resnet56", plain, every, ifgsm, 38.9, "+38.9"),
        Claim(WNLL_FIRST, f"{both} against FGSM", None, plain, every, "FGSM", 20.6, "up to +20.6"),
        Claim(WNLL_FIRST, f"{both} against IFGSM", None, plain, every, ifgsm, 50.7, "up to +50.7"),
        Claim(WNLL_FIRST, f"{both} against CW-L2", None, plain, every, CARLINI_WAGNER, 68.7, "up to +68.7"),
        *(_generalization(network, size) for network in ERRORS for size in ERRORS[network]),
        Claim(
            CAS,
            "CAS makes an adversarially trained network more robust",
            "resnet18",
            "cifar10-pgd",
            "cifar10-pgd-cas",
            pgd,
            None,
            "no figure could be read",
        ),
    ]


def verdict(claim: Claim, measured: Mapping[str, NetworkResults]) -> _Verdict:
    """Hold a claim against what was measured; the rule is `RULE`."""
    needed = (claim.before, claim.after)
    if missing := [name for name in needed if name not in measured]:
        return _Verdict(f"not tested ({' and '.join(missing)} not trained here: a matter of hours without a GPU)")
    before, after = (measured[name] for name in needed)
    if (before.identity["images"], before.threat) != (after.identity["images"], after.threat):
        return _Verdict("not tested (both networks must be measured on the same images, within the same threat)")
    if unmeasured := [entry.name for entry in (before, after) if claim.condition not in entry.conditions]:
        return _Verdict(f"not tested ({claim.condition} was not measured on {' and '.join(unmeasured)})")
    published = difference(*(entry.right(claim.condition).double().mean(0) for entry in (before, after)))
    worst = None
    if claim.condition != CLEAN:
        worst = difference(*(entry.correct(*entry.worst_members()).double().mean(0) for entry in (before, after)))
    if not borne_out(published, claim.gain):
        text = "not reproduced"
    elif worst is None or borne_out(worst, claim.gain):
        text = "reproduced"
    else:
        text = "reproduced only under the published attack"
    used = after.network["network"]
    return _Verdict(
        text if claim.network in (used, None) else f"tested on {TITLES[used]} instead: {text}", published, worst
    )


TITLES = {
    "resnet20": "ResNet20",
    "resnet56": "ResNet56",
    "resnet110": "ResNet110",
    "resnet18": "ResNet18",
    "vgg16": "VGG16",
    "small_cnn": "the small CNN",
}
"""How networks are written."""


def difference(before: Float[Tensor, "m"], after: Float[Tensor, "n"]) -> tuple[float, float, float]:
    """Gain in points and its 95 % interval: mean and standard error of the differences, image by image.

    Args:
        before: For each image the share of right answers, from 0 to 1.
        after: The same of the other network.
    """
    count = min(len(before), len(after))
    gains = 100 * (after[:count] - before[:count])
    half = 1.959964 * gains.std(correction=1).item() / math.sqrt(count) if count > 1 else torch.inf
    mean = gains.mean().item()
    return mean, mean - half, mean + half


def borne_out(gain: tuple[float, float, float], claimed: float | None) -> bool:
    """Whether a gain is at least half of the claimed one, and more than chance."""
    return gain[0] >= (claimed or 0.0) / 2 and gain[1] > 0
