"""EnResNet: Gaussian noise in every residual block, and several such networks averaged.

    x_{l+1} = relu(x_l + F(x_l) + a * std * N(0, I))                 one block, in training and in use
    logits  = mean of the logits of n networks, trained together

std is the standard deviation of the block's sum over one image, so that an answer does not depend on the batch; the
released code takes it over the whole batch (`over_batch=True`). The network answers at random: an attack must average
its gradient over draws (EOT), or transfer from the network without noise.

Source: Wang, Shi & Osher, "ResNets ensemble via the Feynman-Kac formalism to improve natural and robust
accuracies", arXiv 1811.10745.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustviz.attacks import against, apgd, eot, pgd
from robustviz.defenses.defense import Contest, Defense, Stage, Training, at
from robustviz.models import Classifier, ResidualBlock, initialized
from robustviz.networks.places import Wired, activations, rewired
from robustviz.objectives import cross_entropy
from robustviz.tensors import seeded, shared_copy
from robustviz.types import Logits

_DRAWS, _STEPS = 20, 20
"""Draws and steps of each attack that averages over the noise."""


class BlockNoise(nn.Module):
    """Add Gaussian noise to the maps of a block, in proportion to their own spread.

    It draws from the block `tensors.drawing`; outside one, every forward pass draws the same.

    Args:
        scale: The noise's standard deviation, as a multiple of that of the maps.
        over_batch: Take that standard deviation over the whole batch, as released, instead of each image.

    Raises:
        ValueError: If scale is negative or not finite.
    """

    stochastic = True

    def __init__(self, *, scale: float = 0.1, over_batch: bool = False):
        super().__init__()
        if not (isfinite(scale) and scale >= 0):
            raise ValueError(f"scale must be finite and >= 0, got {scale}")
        self.scale, self.over_batch = scale, over_batch
        self.generator: Generator | None = None

    @property
    def batch_dependent(self) -> bool:
        """Whether the answer for one image depends on the other images of its batch."""
        return self.over_batch and self.scale > 0

    def extra_repr(self) -> str:
        """Show the settings where the network is printed."""
        return f"scale={self.scale:g}, over_batch={self.over_batch}"

    def forward(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h w"]:
        """Return noisy maps of the same shape."""
        if self.scale == 0:
            return maps
        generator = seeded(0) if self.generator is None else self.generator
        noise = torch.randn(maps.shape, generator=generator, device=generator.device, dtype=maps.dtype).to(maps.device)
        std = maps.std() if self.over_batch else maps.flatten(1).std(1)[:, None, None, None]
        return maps + self.scale * std * noise


class SideBySide(nn.Module):
    """Bodies of several networks: their features one after the other.

    Args:
        bodies: Each maps normalized images to features (n, d).
    """

    def __init__(self, bodies: list[nn.Module]):
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features of all bodies."""
        return torch.cat([body(images) for body in self.bodies], 1)


class MeanOfHeads(nn.Module):
    """Heads of several networks, each on its own part of the features: the mean of their logits.

    Args:
        heads: Linear layers with as many inputs each.
    """

    def __init__(self, heads: list[nn.Linear]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return int(self.heads[0].out_features)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "n d"]) -> Logits:
        """Return logits."""
        parts = features.chunk(len(self.heads), 1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)]).mean(0)


@dataclass(frozen=True)
class EnResNetOptions:
    """How many networks there are, and how noisy their blocks.

    Attributes:
        members: How many networks are averaged (n of the paper).
        scale: Standard deviation of the noise in a block, as a multiple of that of its maps; 0 is without noise.
        over_batch: Take that standard deviation over the whole batch, as in the released code.
    """

    members: int = 1
    scale: float = 0.1
    over_batch: bool = False

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"members must be >= 1, got {self.members}")
        BlockNoise(scale=self.scale)


def build_enresnet(
    classifier: Classifier, *, members: int = 1, scale: float = 0.1, over_batch: bool = False
) -> Classifier:
    """Copy a residual network with noise in every block, and put `members` such networks side by side.

    Members beyond the first begin with weights drawn by PyTorch's own generator, as all weights of a new network are.

    Raises:
        ValueError: If the network has no residual blocks or is several side by side, or a setting is out of range.
    """
    EnResNetOptions(members, scale, over_batch)
    if isinstance(classifier.body, SideBySide):
        has = len(classifier.body.bodies)
        raise ValueError(f"members must be {has}, because the network has as many side by side, got {members}")
    blocks = [name for name, module in classifier.body.named_modules() if isinstance(module, ResidualBlock)]
    ends = [name for name, place in activations(classifier).items() if place.block.removeprefix("body.") in blocks]
    if not ends:
        raise ValueError("classifier must be a residual network, such as resnet20; its body has no residual block")
    noisy = rewired(classifier, ends, lambda place: BlockNoise(scale=scale, over_batch=over_batch), where="before")
    if members == 1:
        return noisy
    copies = [noisy] + [_drawn_again(noisy) for _ in range(members - 1)]
    body, head = SideBySide([copy.body for copy in copies]), MeanOfHeads([copy.head for copy in copies])  # type: ignore[misc]
    return classifier.replace(body=body, head=head)


def _drawn_again(network: Classifier) -> Classifier:
    """Copy a network with new weights, drawn as those of `robustviz.models`."""
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    return copy


def has_enresnet(network: nn.Module) -> bool:
    """Tell whether a network has noise in its blocks."""
    return any(isinstance(module, BlockNoise) for module in network.modules())


def without_noise(classifier: Classifier) -> Classifier:
    """Return the network without the noise in its blocks; weights are shared."""
    plain = classifier.replace(body=shared_copy(classifier.body))
    for name, module in list(plain.named_modules()):
        if isinstance(module, Wired) and isinstance(module[0], BlockNoise):
            plain.set_submodule(name, module[1])
    return plain


def enresnet_stages(training: Training, options: EnResNetOptions) -> Iterator[Stage]:
    """Put noise into the blocks and train as any other network; every update draws its own noise."""
    model = training.model
    if not has_enresnet(model) or enresnet_settings(model)["members"] != options.members:
        make = partial(build_enresnet, without_noise(model), **asdict(options))
        built = initialized(make, training.config.seed).to(training.device)
        model.body, model.head = built.body, built.head
    for module in model.modules():
        if isinstance(module, BlockNoise):
            module.scale, module.over_batch = options.scale, options.over_batch
    yield from training.stages()


def enresnet_settings(classifier: Classifier) -> dict[str, Any]:
    """Give the settings with which `build_enresnet` makes a network again."""
    noise = next(module for module in classifier.modules() if isinstance(module, BlockNoise))
    members = len(classifier.body.bodies) if isinstance(classifier.body, SideBySide) else 1
    return {"members": members, "scale": noise.scale, "over_batch": noise.over_batch}


def enresnet_contests() -> dict[str, Contest]:
    """Make the adaptive set: the gradient of the mean over draws, and transfer from the network without noise."""
    averaged = eot(cross_entropy, _DRAWS)
    return {
        "EnResNet, EOT": Contest(partial(pgd, steps=_STEPS, objective=averaged)),
        "EnResNet, APGD with EOT": Contest(partial(apgd, steps=_STEPS, objective=averaged)),
        "transfer from the network without noise": Contest(
            partial(against, view=without_noise, attack=partial(pgd, steps=2 * _STEPS))
        ),
    }


ENRESNET_DEFENSE = Defense(
    name="enresnet",
    title="EnResNet",
    source="Wang, Shi & Osher, arXiv 1811.10745",
    present=has_enresnet,
    build=build_enresnet,
    settings=enresnet_settings,
    options=EnResNetOptions,
    stages=enresnet_stages,
    attacks=lambda classifier, threat: at(enresnet_contests(), threat),
    without=without_noise,
)
"""Noise in every residual block; its paper attacked single draws of the network itself."""
