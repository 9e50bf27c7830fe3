"""Classifiers: functions from images in [0, 1] to logits, made of four slots that defenses may fill.

    logits = head(body(normalize(purify(images))))

Networks are those of He et al. (arXiv 1512.03385) and Simonyan & Zisserman (arXiv 1409.1556) in their usual form for
32x32 images, and a small one for handwritten digits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.types import Images, Logits


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Args:
        mean: One number for each channel, or one for all.
        std: One positive number for each channel, or one for all.

    Raises:
        ValueError: If a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | tuple[float, ...] | list[float], std: float | tuple[float, ...] | list[float]):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1))
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {std}")

    @classmethod
    def fitted(cls, images: Images) -> "Normalize":
        """Take mean and standard deviation of each channel from images; a constant channel keeps its scale."""
        values = images.double().transpose(0, 1).flatten(1)
        std = values.std(1)
        return cls(values.mean(1).tolist(), torch.where(std > 1e-6, std, torch.ones_like(std)).tolist())

    def forward(self, images: Images) -> Images:
        """Return normalized images of the same shape.

        Raises:
            ValueError: If images have other channels than there are means.
        """
        if self.mean.numel() > 1 and images.shape[-3] != self.mean.numel():
            raise ValueError(f"images must have {self.mean.numel()} channels, got {images.shape[-3]}")
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A network in four slots: `purify`, `normalize`, `body`, `head`.

    Args:
        body: Maps normalized images to features (n, d).
        head: Maps features to logits (n, K).
        normalize: First layer of the network proper, usually a `Normalize`.
        purify: Cleans images before anything else; None leaves them as they are.

    Attributes:
        classes: Names of the classes in the order of the logits; None if they are not known.
        source: What opens the network again, if `robustviz.networks.open_network` opened it.
    """

    def __init__(self, body: nn.Module, head: nn.Module, *, normalize: nn.Module, purify: nn.Module | None = None):
        super().__init__()
        self.purify = nn.Identity() if purify is None else purify
        self.normalize = normalize
        self.body = body
        self.head = head
        self.classes: tuple[str, ...] | None = None
        self.source: object = None

    def features(self, images: Images) -> Float[Tensor, "n d"]:
        """Return what the head sees: the penultimate features."""
        return self.body(self.normalize(self.purify(images)))

    def forward(self, images: Images) -> Logits:
        """Return logits."""
        return self.head(self.features(images))

    def replace(self, **slots: nn.Module | None) -> "Classifier":
        """Return a classifier with some slots changed; every other module is shared with this one.

        Args:
            **slots: `purify`, `normalize`, `body` or `head`; None empties `purify`.

        Raises:
            ValueError: If a slot is unknown.
        """
        known = ("purify", "normalize", "body", "head")
        if unknown := set(slots) - set(known):
            raise ValueError(f"slots are {', '.join(known)}, got {', '.join(sorted(unknown))}")
        parts: dict[str, Any] = {name: slots.get(name, getattr(self, name)) for name in known}
        changed = Classifier(parts["body"], parts["head"], normalize=parts["normalize"], purify=parts["purify"])
        changed.training, changed.classes = self.training, self.classes
        return changed


def conv_block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    if channels_in < 1:
        raise ValueError(f"channels must be >= 1, got {channels_in}")
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, added before the last ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Stride of the first convolution.
        projection: Where shapes differ, the shortcut is a 1x1 convolution with batch norm (option B, ResNet18);
            otherwise every stride-th pixel with zeros for the new channels (option A, no parameters, ResNet20-110).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, *, projection: bool):
        super().__init__()
        self.first = conv_block(channels_in, channels_out, stride)
        self.second = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = (
                nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))
                if projection
                else ZeroPadded(channels_out - channels_in, stride)
            )
        self.activation = nn.ReLU()

    def forward(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k2 h2 w2"]:
        """Return maps of the new shape."""
        return self.activation(self.second(self.first(maps)) + self.shortcut(maps))


class ZeroPadded(nn.Module):
    """Shortcut without parameters: every stride-th pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k2 h2 w2"]:
        """Return maps of the new shape."""
        before = self.new_channels // 2
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


def pooled(*stages: nn.Module) -> nn.Sequential:
    """Put stages of convolutions in a row and average their last maps over the picture: (n, c, h, w) to (n, d)."""
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _classifier(body: nn.Module, width: int, classes: int, channels: int) -> Classifier:
    """Initialize as He et al. (arXiv 1502.01852) and add a linear head; normalization maps [0, 1] to [-2, 2]."""
    if classes < 2:
        raise ValueError(f"classes must be >= 2, got {classes}")
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(body, nn.Linear(width, classes), normalize=Normalize([0.5] * channels, [0.25] * channels))


def small_cnn(classes: int = 10, channels: int = 1) -> Classifier:
    """Four convolutions (32, 32, 64, 64 channels) for small pictures such as 8x8 digits; about 66,000 parameters."""
    body = pooled(conv_block(channels, 32), conv_block(32, 32), conv_block(32, 64, 2), conv_block(64, 64))
    return _classifier(body, 64, classes, channels)


def _cifar_resnet(blocks: int, classes: int, channels: int) -> Classifier:
    """Three stages of 16, 32 and 64 channels with `blocks` blocks each: depth 6 * blocks + 2."""
    stages = []
    for before, after in ((16, 16), (16, 32), (32, 64)):
        first = ResidualBlock(before, after, after // before, projection=False)
        stages.append(nn.Sequential(first, *(ResidualBlock(after, after, projection=False) for _ in range(blocks - 1))))
    return _classifier(pooled(conv_block(channels, 16), *stages), 64, classes, channels)


def resnet20(classes: int = 10, channels: int = 3) -> Classifier:
    """ResNet20 for 32x32 images, 0.27 million parameters. Source: He et al., arXiv 1512.03385, section 4.2."""
    return _cifar_resnet(3, classes, channels)


def resnet56(classes: int = 10, channels: int = 3) -> Classifier:
    """ResNet56 for 32x32 images, 0.85 million parameters. Source: He et al., arXiv 1512.03385, section 4.2."""
    return _cifar_resnet(9, classes, channels)


def resnet110(classes: int = 10, channels: int = 3) -> Classifier:
    """ResNet110 for 32x32 images, 1.7 million parameters. Source: He et al., arXiv 1512.03385, section 4.2."""
    return _cifar_resnet(18, classes, channels)


def resnet18(classes: int = 10, channels: int = 3) -> Classifier:
    """ResNet18 whose first convolution is 3x3 without pooling, as usual for 32x32 images; 11.2 million parameters.

    Source: He et al., arXiv 1512.03385, table 1.
    """
    stages = []
    for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
        first = ResidualBlock(before, after, after // before, projection=True)
        stages.append(nn.Sequential(first, ResidualBlock(after, after, projection=True)))
    return _classifier(pooled(conv_block(channels, 64), *stages), 512, classes, channels)


def vgg16(classes: int = 10, channels: int = 3) -> Classifier:
    """VGG16 with batch norm and one linear layer, for 32x32 images; 14.7 million parameters.

    Source: Simonyan & Zisserman, arXiv 1409.1556, configuration D.
    """
    groups, before = [], channels
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        convolutions = [conv_block(before if i == 0 else width, width) for i in range(depth)]
        # Ceiling mode lets pictures smaller than 32x32 through.
        groups.append(nn.Sequential(*convolutions, nn.MaxPool2d(2, ceil_mode=True)))
        before = width
    return _classifier(pooled(*groups), 512, classes, channels)


MODELS: dict[str, Callable[..., Classifier]] = {
    network.__name__: network for network in (small_cnn, resnet20, resnet56, resnet110, resnet18, vgg16)
}
"""Every network of this file by its name, for the command line and for checkpoints."""


def initialized(build: Callable[..., Classifier], seed: int) -> Classifier:
    """Make a network whose random weights depend on the seed alone; the global random state stays as it was.

    Args:
        build: A network of this file, settings fixed with `functools.partial`.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()
