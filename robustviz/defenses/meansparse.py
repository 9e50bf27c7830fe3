"""MeanSparse: features near their channel's mean are set to it, after training and without any.

    y = mu_c   if |x - mu_c| < alpha * sigma_c,   else x                          x: a feature before its activation

mu_c and sigma_c are mean and standard deviation of channel c over the training images, gathered in one pass of the
trained network; alpha is one number for the whole network. Inside the band the gradient is zero, which hides what an
attack needs: the adaptive attacks let it pass as if nothing had been set (BPDA), or transfer from the network without.

| symbol | name in the code |
|---|---|
| mu_c, sigma_c | buffers `mean` and `deviation` of a `Sparsifier` |
| alpha | `alpha` |

Source: Amini et al., "MeanSparse: post-training robustness enhancement through mean-centered feature sparsification",
arXiv 2406.05927. The statistics are exact: averages of the variances of batches lose the variance between batches.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.attacks import against, apgd, pgd
from robustviz.checks import check_images
from robustviz.defenses.defense import Contest, Defense, Stage, Training, at
from robustviz.models import Classifier
from robustviz.networks.places import Wired, activations, rewired
from robustviz.objectives import margin
from robustviz.tensors import evaluating, shared_copy
from robustviz.types import Images

_STEPS = 40
"""Steps of each adaptive attack."""


class Sparsifier(nn.Module):
    """Set what lies within `alpha` standard deviations of its channel's mean to that mean.

    Until statistics are gathered the deviation is 0 and nothing changes.

    Args:
        channels: Channels K of the maps (n, K, ...).
        alpha: Half width of the band in standard deviations; 0 changes nothing.

    Attributes:
        mean: Mean of each channel over images and positions, (K,).
        deviation: Its standard deviation, (K,).
        passes_gradient: False: the operator's own gradient, which is zero inside the band. True, for attacks: forward
            is the same, backward is the identity.

    Raises:
        ValueError: If channels is below 1, or alpha is negative or not finite.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, *, alpha: float):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be >= 1, got {channels}")
        if not (isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be finite and >= 0, in standard deviations of a channel, got {alpha}")
        self.alpha = alpha
        self.passes_gradient = False
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.zeros(channels))

    def extra_repr(self) -> str:
        """Show the setting where the network is printed."""
        return f"alpha={self.alpha:g}"

    def forward(self, maps: Float[Tensor, "n k ..."]) -> Float[Tensor, "n k ..."]:
        """Return maps of the same shape."""
        shape = (-1, *[1] * (maps.dim() - 2))
        mean, band = (values.to(maps).view(shape) for values in (self.mean, self.alpha * self.deviation))
        sparse = torch.where((maps - mean).abs() < band, mean, maps)
        return maps + (sparse - maps).detach() if self.passes_gradient else sparse


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of each channel, put together batch by batch in float64.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, maps: Float[Tensor, "n k ..."]) -> "Moments":
        """Take them from one batch."""
        values = maps.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def plus(self, other: "Moments") -> "Moments":
        """Put two batches together."""
        count, step = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + step.square() * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), squares)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each channel over all values seen."""
        return (self.squares / self.count).sqrt()


def sparsified(classifier: Classifier, images: Images, *, alpha: float = 0.25, batch_size: int = 256) -> Classifier:
    """Copy a trained network with a `Sparsifier` before every activation, its statistics gathered in one pass.

    Args:
        classifier: Trained; it stays as it is and shares nothing with the result.
        images: Training images in [0, 1].
        alpha: Half width of the band, in standard deviations; published values are 0.15 to 0.3, and 0 changes nothing.
        batch_size: Images in one forward pass; the statistics do not depend on it but for rounding.

    Returns:
        The network with MeanSparse, in the mode of the old one.

    Raises:
        ValueError: If the network has MeanSparse already or no activation that is a module, or alpha is out of range.

    Source: Amini et al., arXiv 2406.05927, section 3.
    """
    if has_meansparse(classifier):
        raise ValueError("classifier must be without MeanSparse, but has a Sparsifier; `without_meansparse` removes it")
    sparse = build_meansparse(classifier, alpha=alpha)
    gather(sparse, images, batch_size=batch_size)
    return sparse


def build_meansparse(classifier: Classifier, *, alpha: float = 0.25) -> Classifier:
    """Put sparsifiers without statistics before every activation of the body; until `gather` they change nothing."""
    places = [name for name in activations(classifier) if name.startswith("body.")]
    if not places:
        raise ValueError("classifier must have activations that are modules in its body, got none; see `activations`")
    return rewired(classifier, places, lambda place: Sparsifier(place.channels, alpha=alpha), where="before")


@torch.no_grad()
def gather(classifier: nn.Module, images: Images, *, batch_size: int = 256) -> None:
    """Set mean and deviation of every `Sparsifier` from one pass over images, with none of them in effect.

    Args:
        classifier: With sparsifiers, which are changed in place; it runs in evaluation mode.
        images: Training images in [0, 1].
        batch_size: Images in one forward pass.
    """
    check_images(images)
    sparsifiers = [module for module in classifier.modules() if isinstance(module, Sparsifier)]
    found: dict[nn.Module, Moments] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = Moments.of(inputs[0])
        found[module] = found[module].plus(seen) if module in found else seen

    like = next(classifier.parameters())
    with ExitStack() as stack:
        stack.enter_context(evaluating(classifier))
        for module in sparsifiers:
            module.deviation.zero_()
            stack.callback(module.register_forward_pre_hook(add).remove)
        for batch in torch.split(images, batch_size):
            classifier(batch.to(like))
    for module in sparsifiers:
        module.mean.copy_(found[module].mean)
        module.deviation.copy_(found[module].deviation)


def has_meansparse(network: nn.Module) -> bool:
    """Tell whether a network has sparsifiers."""
    return any(isinstance(module, Sparsifier) for module in network.modules())


def without_meansparse(classifier: Classifier) -> Classifier:
    """Return the network without its sparsifiers; weights are shared."""
    plain = shared_copy(classifier)
    for name, module in list(plain.named_modules()):
        if isinstance(module, Wired) and isinstance(module[0], Sparsifier):
            plain.set_submodule(name, module[1])
    return plain


def identity_through_sparsifiers(classifier: nn.Module) -> nn.Module:
    """View (BPDA): features are sparsified, but the gradient passes as if they were not."""
    view = shared_copy(classifier)
    for module in view.modules():
        if isinstance(module, Sparsifier):
            module.passes_gradient = True
    return view


@dataclass(frozen=True)
class MeanSparseOptions:
    """How a network is sparsified.

    Attributes:
        alpha: Half width of the band around each channel's mean, in standard deviations.
    """

    alpha: float = 0.25

    def __post_init__(self) -> None:
        Sparsifier(1, alpha=self.alpha)


def meansparse_stages(training: Training, options: MeanSparseOptions) -> Iterator[Stage]:
    """Train as without it, unless the network is trained already; then gather the statistics in one pass."""
    model = training.model
    if not training.pretrained:
        yield from training.stages()
    if not has_meansparse(model):
        model.body = build_meansparse(model, alpha=options.alpha).body
    for module in model.modules():
        if isinstance(module, Sparsifier):
            module.alpha = options.alpha
    images = training.image_set[training.kept].images
    yield Stage("statistics", "MeanSparse: one pass gathers the statistics", gather=partial(gather, model, images))


def meansparse_contests() -> dict[str, Contest]:
    """Make the adaptive set; no single attack of it is the strongest everywhere."""
    through = partial(against, view=identity_through_sparsifiers)
    return {
        "MeanSparse, own gradient": Contest(partial(apgd, steps=_STEPS)),
        "MeanSparse, identity backward": Contest(partial(through, attack=partial(apgd, steps=_STEPS))),
        "MeanSparse, identity backward, margin": Contest(
            partial(through, attack=partial(pgd, steps=_STEPS, objective=margin))
        ),
        "transfer from the network without MeanSparse": Contest(
            partial(against, view=without_meansparse, attack=partial(pgd, steps=_STEPS))
        ),
    }


def meansparse_settings(classifier: Classifier) -> dict[str, Any]:
    """Give the settings with which `build_meansparse` makes a network again."""
    return {"alpha": next(module.alpha for module in classifier.modules() if isinstance(module, Sparsifier))}


MEANSPARSE_DEFENSE = Defense(
    name="meansparse",
    title="MeanSparse",
    source="Amini et al., arXiv 2406.05927",
    present=has_meansparse,
    build=build_meansparse,
    settings=meansparse_settings,
    options=MeanSparseOptions,
    stages=meansparse_stages,
    attacks=lambda classifier, threat: at(meansparse_contests(), threat),
    without=without_meansparse,
)
"""Features near their mean set to it, after training; its paper attacked the network itself."""
