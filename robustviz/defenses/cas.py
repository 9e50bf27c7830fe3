"""Channel-wise activation suppressing (CAS): an auxiliary classifier inside the network weighs its channels.

A `CASBlock` pools its maps to z, scores the classes by M z + b, and multiplies the channels by the row of M that
belongs to one class: the true one while training, otherwise the one with the highest score. The network stays a
function from images to logits; `cas_outputs` also gives the scores, and `joint` makes an objective count them.

The choice of the highest score has no gradient, and an attack on the final logits alone does not see it. Such an attack
overrates the defense: raise `joint` or `auxiliary`, and let the gradient pass a soft choice (`mask_temperature`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from math import isfinite, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from robustviz.attacks import against, pgd, soft_mask
from robustviz.checks import check_labels
from robustviz.defenses.defense import Contest, Defense, Stage, Training, at
from robustviz.models import Classifier
from robustviz.networks.places import activations, blocks, rewired
from robustviz.objectives import cross_entropy, margin, over_heads, trades
from robustviz.tensors import seeded
from robustviz.types import LINF_8, Attack, Images, Labels, Logits, Objective, Threat


class CASBlock(nn.Module):
    """Multiply each channel by its weight for one class in an auxiliary linear classifier of the pooled channels.

    The weight is used as it is and may be negative; the classifier's bias has no part in it.

    Args:
        channels: Channels K of the maps.
        classes: Classes of the auxiliary classifier.

    Attributes:
        auxiliary: The classifier, with weight (classes, K); its output is the channel logits.
        labels: The classes whose weights are used; None means the class with the highest channel logit. Set by
            `cas_outputs` for the length of one call.
        mask_temperature: None: the choice of the class has no gradient, as published. A number T > 0, for attacks:
            forward is the same, backward goes through the mean of the weights under softmax(channel logits / T).

    Source: Bai et al., "Improving adversarial robustness via channel-wise activation suppressing", arXiv 2103.08307,
    the CAS module.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.auxiliary = nn.Linear(channels, classes)
        self.labels: Labels | None = None
        self.mask_temperature: float | None = None

    def forward(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h w"]:
        """Return the weighted maps."""
        logits = self.auxiliary(maps.mean((2, 3)))
        weight = self.auxiliary.weight
        if self.labels is not None:
            mask = weight[self.labels]
        else:
            mask = weight[logits.argmax(1)]
            if self.mask_temperature is not None:
                soft = (logits / self.mask_temperature).softmax(1) @ weight
                mask = mask.detach() + (soft - soft.detach())
        return maps * mask[:, :, None, None]


@dataclass(frozen=True)
class CASOutput:
    """Every decision of a network with CAS.

    Attributes:
        logits: Logits of the network itself.
        channel_logits: Logits of the auxiliary classifiers, from the first block to the last.
    """

    logits: Logits
    channel_logits: tuple[Logits, ...]

    @property
    def agrees(self) -> Bool[Tensor, "n"]:
        """Whether the final decision is that of the last auxiliary classifier."""
        return self.logits.argmax(1) == self.channel_logits[-1].argmax(1)


def cas_outputs(model: nn.Module, images: Images, labels: Labels | None = None) -> CASOutput:
    """Run the model once, as it is, and return logits and channel logits.

    Args:
        model: A network with `CASBlock`s; its mode is neither asked nor changed.
        images: In [0, 1].
        labels: Classes whose weights mask the channels in this one call; None leaves the choice to the network.

    Raises:
        TypeError: If labels are not an int64 tensor.
        ValueError: If the model has no `CASBlock`, or labels do not fit images and classes.
    """
    modules = [module for module in model.modules() if isinstance(module, CASBlock)]
    if not modules:
        raise ValueError("model must have a CASBlock in its body, got none; with_cas(model, classes) inserts them")
    if labels is not None:
        check_labels(labels, len(images), modules[0].auxiliary.out_features)
    seen: list[Logits] = []
    with ExitStack() as stack:
        for module in modules:
            hook = module.auxiliary.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            stack.callback(hook.remove)
            stack.callback(setattr, module, "labels", module.labels)
            module.labels = labels
        logits = model(images)
    return CASOutput(logits, tuple(seen))


def cas_heads(model: nn.Module, images: Images, labels: Labels, /, *, beta: float = 2.0) -> list[tuple[float, Logits]]:
    """Give the final decision with weight 1 and each of S auxiliary ones with beta / S, from one forward pass.

    In train mode the labels choose the masks, in evaluation mode, where attacks run, the network itself does.
    """
    output = cas_outputs(model, images, labels if model.training else None)
    share = beta / len(output.channel_logits)
    return [(1.0, output.logits), *((share, logits) for logits in output.channel_logits)]


def auxiliary_heads(model: nn.Module, images: Images, labels: Labels, /) -> list[tuple[float, Logits]]:
    """Give each of S auxiliary decisions with weight 1 / S, and not the final one."""
    return cas_heads(model, images, labels, beta=1.0)[1:]


def joint(objective: Objective = cross_entropy, beta: float = 2.0) -> Objective:
    """Make the CAS objective, for trainer and attacker: objective + (beta / S) * its sum over S auxiliary classifiers.

    Args:
        objective: An objective of the logits, such as `cross_entropy` or `margin`, or one that takes `heads`, such as
            `partial(trades, attack=...)`, whose own attack then raises the joint objective too. `eot` goes around the
            result: `eot(joint(objective), draws)`.
        beta: Weight of the auxiliary classifiers; the paper's is 2, and attacks may sweep it.

    Raises:
        ValueError: If beta is negative or not finite, or the objective is one that `eot` made.

    Source: Bai et al., arXiv 2103.08307, training with the CAS loss.
    """
    if not (isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and >= 0, got {beta}")
    heads = partial(cas_heads, beta=beta)
    if "heads" in signature(objective).parameters:
        return partial(objective, heads=heads)
    return partial(over_heads, objective=_of_logits(objective), heads=heads)


def auxiliary(objective: Objective = cross_entropy) -> Objective:
    """Make the mean of an objective of the logits over the auxiliary classifiers alone: an attack on the masks.

    Raises:
        ValueError: If the objective is one that `eot` made; it goes around the result here too.
    """
    return partial(over_heads, objective=_of_logits(objective), heads=auxiliary_heads)


def _of_logits(objective: Objective) -> Objective:
    """Refuse an objective that draws: on logits that are there already it would average the same number."""
    if "draws" in signature(objective).parameters:
        raise ValueError("objective must be one of the logits, got one of several draws; put eot around: eot(joint())")
    return objective


def with_cas(
    classifier: Classifier, classes: int, *, generator: Generator | None = None, images: Images | None = None
) -> Classifier:
    """Copy a convolutional network with a new `CASBlock` after each of its last blocks.

    Residual networks get one after each of their last two blocks. Networks of plain blocks get them in their last
    stage, two or three: the small CNN after its last two convolutions, VGG16 after the three of its last group.

    Args:
        classifier: Stays as it is, and shares nothing with the result.
        classes: Classes of the auxiliary classifiers.
        generator: Source of their first weights, which are spread as those of any `nn.Linear`; None is a fresh one
            seeded 0.
        images: At least one image that the network accepts; None makes one (see `robustviz.networks.example`).

    Returns:
        The copy. Each of those blocks has become a pair of the block ("0") and its `CASBlock` ("1").

    Raises:
        ValueError: If the body has fewer than two blocks that end in an activation on maps, or has CAS already.

    Source: Bai et al., arXiv 2103.08307, experimental settings; the small CNN and ResNet20-110 are our choice.
    """
    generator = seeded(0) if generator is None else generator
    if any(isinstance(module, CASBlock) for module in classifier.modules()):
        raise ValueError("classifier must not have CAS yet; place a further CASBlock by hand")
    places = activations(classifier, images)
    known = [name for name, p in blocks(classifier, images).items() if p.layout == "maps" and name.startswith("body.")]
    if len(known) < 2:
        raise ValueError(
            f"classifier must have two blocks in its body that end in an activation on maps, got {len(known)}; "
            "place CASBlock by hand"
        )
    inside = {name: [place for inner, place in places.items() if f"{inner}.".startswith(f"{name}.")] for name in known}
    residual = sum(len(place.widths) for place in inside[known[-1]]) > 1
    final = [name for name in known if inside[name][-1].stage == inside[known[-1]][-1].stage]
    count = 2 if residual else min(max(len(final), 2), 3)
    return rewired(
        classifier,
        known[-count:],
        lambda place: _drawn(place.channels, classes, generator),
        where="after",
        images=images,
    )


def _drawn(channels: int, classes: int, generator: Generator) -> CASBlock:
    """Make a block as its constructor does, number for number, but from a generator of one's own."""
    with torch.device("meta"):
        block = CASBlock(channels, classes)
    linear = block.to_empty(device=generator.device).auxiliary
    nn.init.kaiming_uniform_(linear.weight, a=sqrt(5), generator=generator)
    nn.init.uniform_(linear.bias, -1 / sqrt(channels), 1 / sqrt(channels), generator=generator)
    return block


def has_cas(network: nn.Module) -> bool:
    """Tell whether a network suppresses channels."""
    return any(isinstance(module, CASBlock) for module in network.modules())


def build_cas(classifier: Classifier) -> Classifier:
    """Insert untrained blocks, drawn as all other weights of a new network are: from PyTorch's own generator."""
    head: Any = classifier.head
    classes = head.out_features if isinstance(head, nn.Linear) else head.classes
    return with_cas(classifier, classes, generator=torch.default_generator)


def cas_stages(training: Training, options: Any) -> Iterator[Stage]:
    """Train with the joint objective for trainer, attacker and monitor, and TRADES with the factor 4 instead of 6.

    Source: Bai et al., arXiv 2103.08307, experimental settings.
    """
    objective = training.objective
    if getattr(objective, "func", None) is trades:
        objective = partial(objective, factor=4.0)
    attack, monitor = (_on_joint(player) for player in (training.attack, training.monitor))
    return replace(training, objective=joint(objective), attack=attack, monitor=monitor).stages()


def _on_joint(attack: Attack | None) -> Attack | None:
    """Let an attack raise the joint objective."""
    raised: Any = attack
    return raised and partial(raised, objective=joint())


def fine_pgd(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 40,
    objective: Objective = cross_entropy,
    generator: Generator | None = None,
) -> Images:
    """Run PGD with steps of a tenth of epsilon, at any epsilon; arguments, result and errors are those of `pgd`."""
    step_size = threat.epsilon / 10
    settings: dict[str, Any] = {"steps": steps, "step_size": step_size, "objective": objective}
    return pgd(model, images, labels, threat=threat, **settings, generator=generator)


def cas_contests() -> dict[str, Contest]:
    """Make attacks that know of the auxiliary classifiers; soft masks are BPDA with temperature 1."""
    contests = {f"joint, beta = {beta:g}": joint(beta=beta) for beta in (0.5, 2.0, 10.0, 100.0)}
    softly = {"final logits": cross_entropy, "joint": joint(), "margin": margin}
    return {
        **{name: Contest(partial(fine_pgd, objective=objective)) for name, objective in contests.items()},
        "auxiliary only": Contest(partial(fine_pgd, objective=auxiliary())),
        **{
            f"soft mask, {name}": Contest(
                partial(against, view=soft_mask(1.0), attack=partial(fine_pgd, objective=objective))
            )
            for name, objective in softly.items()
        },
    }


CAS_DEFENSE = Defense(
    name="cas",
    title="CAS blocks",
    source="Bai et al., arXiv 2103.08307",
    present=has_cas,
    build=build_cas,
    stages=cas_stages,
    attacks=lambda classifier, threat: at(cas_contests(), threat),
)
"""Channels suppressed by an auxiliary classifier inside the network; masks are trained in and cannot be left out."""
