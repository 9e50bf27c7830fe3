"""What the network computes inside: recorded layers, one row of features for each image, channel statistics."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustviz.networks.places import blocks
from robustviz.tensors import check_images, evaluating
from robustviz.types import Images, Labels


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what the layers put out at each forward pass inside the block; the latest pass replaces the one before.

    Outputs keep their gradient. The hooks leave with the block, also after an error.

    Args:
        model: Any network.
        layers: Names as in `model.named_modules()`, such as "body" for the penultimate features of a `Classifier`.

    Yields:
        The outputs by layer, empty before the first forward pass.

    Raises:
        ValueError: If the model has no layer of that name.
    """
    modules = dict(model.named_modules())
    if unknown := [layer for layer in layers if layer not in modules]:
        raise ValueError(f"layer must be one of {', '.join(filter(None, modules))}, got {', '.join(unknown)}")
    outputs: dict[str, Tensor] = {}

    def keep(layer: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs[layer] = output

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(modules[layer].register_forward_hook(partial(keep, layer)).remove)
        yield outputs


def last_stage(model: nn.Module) -> str:
    """Name the last block of a network of `models`: its output is after the last ReLU and before the last CAS mask.

    Raises:
        ValueError: If the network is not made of such blocks.
    """
    if not (names := list(blocks(model))):
        raise ValueError("model must be made of residual or convolution blocks; name the layer yourself instead")
    return names[-1]


@dataclass(frozen=True)
class FeatureSnapshot:
    """Features of many images at one layer.

    Attributes:
        layer: Name of the layer.
        condition: What was done to the images, such as "clean" or "PGD-20".
        values: One row for each image; maps (K, h, w) are averaged over their positions.
        labels: True classes.
        predictions: Decisions of the model.
        indices: Place of each image among those given, so that snapshots of two conditions can be matched.
    """

    layer: str
    condition: str
    values: Float[Tensor, "n k"]
    labels: Int[Tensor, "n"]
    predictions: Int[Tensor, "n"]
    indices: Int[Tensor, "n"]


def snapshot(
    model: nn.Module, images: Images, labels: Labels, *, layer: str, condition: str, batch_size: int = 256
) -> FeatureSnapshot:
    """Run the model in evaluation mode and keep one layer's output, averaged over positions, for each image.

    Args:
        model: Any network; left as it was.
        images: In [0, 1].
        labels: True classes.
        layer: Name as in `model.named_modules()`; `last_stage(model)` is the one for channel statistics.
        condition: What was done to the images, for tables and legends.
        batch_size: Images in one forward pass.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, labels or batch size are out of range, or the layer is unknown.
    """
    check_images(images, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    values, predictions = [], []
    with evaluating(model), torch.no_grad(), recording(model, [layer]) as outputs:
        for batch in torch.split(images, batch_size):
            predictions.append(model(batch).argmax(1))
            output = outputs[layer]
            values.append(output.flatten(2).mean(2) if output.dim() > 2 else output)
    indices = torch.arange(len(images), device=images.device)
    return FeatureSnapshot(layer, condition, torch.cat(values), labels, torch.cat(predictions), indices)


@dataclass(frozen=True)
class ChannelStats:
    """How strongly and how often each of K channels is active.

    Attributes:
        frequency: Share of the images, 0 to 1, in which the channel exceeds a small part of the image's largest one.
        magnitude: Mean over the images, in units of the layer.
    """

    frequency: Float[Tensor, "k"]
    magnitude: Float[Tensor, "k"]

    @property
    def mean_frequency(self) -> float:
        """Share of channels that are active in an average image."""
        return self.frequency.mean().item()

    @property
    def mean_magnitude(self) -> float:
        """Magnitude of an average channel."""
        return self.magnitude.mean().item()

    @property
    def above_half(self) -> int:
        """Number of channels that are active in more than half of the images."""
        return int((self.frequency > 0.5).sum())

    @property
    def uniformity(self) -> float:
        """Entropy of the frequencies, scaled to sum 1, over log K: 1 is uniform, 0 a single active channel."""
        shares = self.frequency / self.frequency.sum().clamp_min(torch.finfo(self.frequency.dtype).tiny)
        return torch.special.entr(shares).sum().item() / log(max(len(shares), 2))


def channel_stats(snapshot: FeatureSnapshot, *, threshold: float = 0.01, label: int | None = None) -> ChannelStats:
    """Compute activation frequency and magnitude of every channel, in float64.

    Args:
        snapshot: Of a layer after a ReLU.
        threshold: A channel is active in an image if it exceeds this part, 0 to 1, of the image's largest channel.
        label: Only images of this true class; None takes all.

    Raises:
        ValueError: If a value is negative or not finite, the threshold outside [0, 1), or the class has no image.

    Source: Bai et al., "Improving adversarial robustness via channel-wise activation suppressing", arXiv 2103.08307,
    activation magnitude and frequency.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    values = snapshot.values.double()
    if label is not None:
        values = values[snapshot.labels == label]
    if not len(values):
        known = ", ".join(map(str, torch.unique(snapshot.labels).tolist()))
        raise ValueError(f"label must be a class of the snapshot ({known}), got {label}")
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError(f"snapshot must be of a layer after a ReLU, but {snapshot.layer} is negative or not finite")
    active = values > threshold * values.amax(1, keepdim=True)
    return ChannelStats(active.double().mean(0), values.mean(0))
