"""A defense outside the package, in one file: channels clipped at a quantile that is gathered after training.

robustviz train --defense tests/defenses/clipped.py:CLIPPED --quantile 0.99 --attack pgd
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from robustviz.attacks import against, pgd
from robustviz.defenses import Contest, Defense, Stage, Training
from robustviz.networks.places import activations, rewired
from robustviz.objectives import margin
from robustviz.tensors import shared_copy


class Clip(nn.Module):
    """Clip every channel from above, at infinity until bounds are gathered."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("bounds", torch.full((channels, 1, 1), torch.inf))
        self.gradient_passes = False

    def forward(self, maps):
        clipped = torch.minimum(maps, self.bounds.reshape(-1, *[1] * (maps.dim() - 2)))
        return maps + (clipped - maps).detach() if self.gradient_passes else clipped


@dataclass(frozen=True)
class ClipOptions:
    """How channels are clipped.

    Attributes:
        quantile: Share of the training images' activations that stays below the bound of a channel.
    """

    quantile: float = 0.99


def clips(network):
    return [module for module in network.modules() if isinstance(module, Clip)]


def build(classifier):
    places = {name: place for name, place in activations(classifier).items() if name.startswith("body.")}
    return rewired(classifier, places, lambda place: Clip(place.channels), where="after")


def gather(model, images, quantile):
    seen = {}
    hooks = [
        clip.register_forward_pre_hook(
            lambda clip, inputs: seen.__setitem__(clip, inputs[0].transpose(0, 1).flatten(1))
        )
        for clip in clips(model)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    for clip, values in seen.items():
        clip.bounds.copy_(values.quantile(quantile, dim=1)[:, None, None])


def stages(training: Training, options: ClipOptions) -> Iterator[Stage]:
    yield from training.stages()
    images = training.image_set.images[training.kept][:500].to(training.device)
    yield Stage("bounds", "gathering the bounds", gather=partial(gather, training.model, images, options.quantile))


def without(classifier):
    plain = shared_copy(classifier)
    for clip in clips(plain):
        clip.bounds = torch.full_like(clip.bounds, torch.inf)
    return plain


def gradient_passed(classifier):
    view = shared_copy(classifier)
    for clip in clips(view):
        clip.gradient_passes = True
    return view


def attacks(classifier, threat):
    climb = partial(pgd, threat=threat, steps=20)
    return {
        "clipped, naive": Contest(partial(against, view=without, attack=climb), "published"),
        "clipped, own gradient": Contest(partial(climb, objective=margin)),
        "clipped, gradient passed": Contest(partial(against, view=gradient_passed, attack=climb)),
    }


CLIPPED = Defense(
    name="clipped",
    title="clipped channels",
    source="made up for a test",
    present=lambda network: bool(clips(network)),
    build=build,
    stages=stages,
    published=without,
    attacks=attacks,
    without=without,
    options=ClipOptions,
)
