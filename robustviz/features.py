"""What a network computes inside: recorded layers, one row of features for each image, channel statistics."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustviz.checks import check_images, logits_of
from robustviz.networks.places import blocks
from robustviz.networks.tracing import layout_of, trace, unwrapped
from robustviz.tensors import check_model, evaluating
from robustviz.types import Images, Labels

Pool = Literal["maps", "tokens", "cls", "channels-last"] | Callable[[Any], Tensor]
"""How a layer's output becomes one row for each image: the mean over the positions of maps (n, c, h, w), over tokens
(n, tokens, c) or over positions (n, h, w, c); the first token; or a function of what the layer returns."""

_SHAPES = {"maps": "(n, c, h, w)", "tokens": "(n, tokens, c)", "cls": "(n, tokens, c)", "channels-last": "(n, h, w, c)"}


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Keep what the layers return at each forward pass inside the block; the latest call replaces the one before.

    What is kept is the layer's own output, with its gradient; if an operation in place follows, it works on a copy.
    The hooks leave with the block, also after an error.

    Args:
        model: Any network. One that is compiled or wrapped records when the network inside it is called.
        layers: Names as in `model.named_modules()`, such as "body" for the penultimate features of a `Classifier`.

    Yields:
        The outputs by layer; a layer that was not called is not in it.

    Raises:
        ValueError: If the model has no layer of that name.
    """
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))  # a layer may have several names
    if unknown := [layer for layer in layers if layer not in modules]:
        raise ValueError(f"layer must be one of {', '.join(filter(None, modules))}, got {', '.join(unknown)}")
    outputs: dict[str, Any] = {}

    def keep(layer: str, module: nn.Module, inputs: object, output: Any) -> Any:
        outputs[layer] = output
        return _copied(output)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(modules[layer].register_forward_hook(partial(keep, layer)).remove)
        yield outputs


def _copied(output: Any) -> Any:
    """Copy the tensors of what a layer returns, with their gradient; what is of another kind stays as it is."""
    if isinstance(output, Tensor):
        return output.clone()
    if type(output) in (tuple, list):
        return type(output)(map(_copied, output))
    return {key: _copied(value) for key, value in output.items()} if type(output) is dict else output


def last_stage(model: nn.Module, images: Images | None = None) -> str:
    """Name the last block that ends in an activation with positions: before pooling, and before the last CAS mask.

    Args:
        model: Any network whose activations are modules.
        images: At least one image that it accepts; None makes one.

    Raises:
        ValueError: If there is no such block.
    """
    if not (names := list(blocks(model, images))):
        raise ValueError("model must have an activation that is a module, on maps or tokens; name the layer yourself")
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
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    layer: str,
    condition: str,
    batch_size: int = 256,
    pool: Pool | None = None,
) -> FeatureSnapshot:
    """Run the model in evaluation mode and keep one row of features for each image.

    Args:
        model: Any network of logits; left as it was, and so are the images, also if it writes into them.
        images: In [0, 1].
        labels: True classes.
        layer: Name as in `model.named_modules()`; `last_stage(model)` is the one for channel statistics. Names in a
            compiled or wrapped model are those of the network inside. If a layer is called several times, the last
            call counts.
        condition: What was done to the images, for tables and legends.
        batch_size: Images in one forward pass.
        pool: How maps or tokens become one row. None takes the mean over the positions of maps and over tokens, and
            refuses what may be either, and maps with channels last.

    Raises:
        TypeError: If model, images or labels are not of the right kind.
        ValueError: If images, labels or batch size are out of range, the layer is unknown, not called, or gives what
            `pool` does not fit, or the model's answers are not logits.
    """
    check_model(model)
    check_images(images, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    network = unwrapped(model)
    values, predictions = [], []
    with evaluating(network), torch.no_grad(), recording(network, [layer]) as outputs:
        for batch in torch.split(images, batch_size):
            predictions.append(logits_of(network, batch).argmax(1))
            if layer not in outputs:
                raise ValueError(f"layer {layer} is not called when the model answers, so it has no features")
            output = outputs[layer]
            if pool is None:
                pool = _usual_pool(network, layer, output, images[:1])
            values.append(_pooled(output, len(batch), layer, pool))
    indices = torch.arange(len(images), device=images.device)
    return FeatureSnapshot(layer, condition, torch.cat(values), labels, torch.cat(predictions), indices)


def _usual_pool(network: nn.Module, layer: str, output: Any, image: Images) -> Pool | None:
    """Choose what fits a layer; None where there is nothing to pool, or what `_pooled` refuses."""
    if not isinstance(output, Tensor) or output.dim() <= 2:
        return None
    module, calls = network.get_submodule(layer), trace(network, image)
    index = max((i for i, call in enumerate(calls) if call.module is module), default=None)
    layout = None if index is None else layout_of(calls, index)
    if layout in ("maps", "tokens"):
        return layout
    shape = ("n", *map(str, output.shape[1:]))
    raise ValueError(
        f"features of layer {layer} have shape ({', '.join(shape)}), "
        + ("with the channels last; " if layout else "and nothing says where its channels are; ")
        + "choose pool="
        + ", ".join(f"{name!r} for {form}" for name, form in _SHAPES.items())
        + ", or a function"
    )


def _pooled(output: Any, count: int, layer: str, pool: Pool | None) -> Float[Tensor, "n k"]:
    """Make one row of each image, or say why it cannot be done."""
    if callable(pool):
        output, dims = pool(output), 2
    elif not isinstance(output, Tensor):
        raise ValueError(
            f"layer {layer} returns a {type(output).__name__} and no tensor; name a layer inside it, or give pool, a "
            "function that makes a tensor (n, channels) of it"
        )
    else:
        dims = 2 if pool is None else len(_SHAPES[pool].split(","))
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"features of layer {layer} must be floating-point numbers, got {kind}")
    if (output.dim() < 3 if pool == "maps" else output.dim() != dims) or len(output) != count:
        wanted = _SHAPES.get(pool, "(n, c)") if isinstance(pool, str) else "(n, c)"
        raise ValueError(
            f"features of layer {layer} must have shape {wanted} with n = {count} images, got {tuple(output.shape)}; "
            "give another pool, or a function"
        )
    if pool == "maps":
        return output.flatten(2).mean(2)
    if pool == "cls":
        return output[:, 0]
    return output if pool is None or callable(pool) else output.flatten(1, -2).mean(1)


@dataclass(frozen=True)
class ChannelStats:
    """How strongly and how often each of K channels is active.

    Attributes:
        frequency: Share of the images, 0 to 1, in which the channel exceeds a small part of the image's largest one.
        magnitude: Mean size over the images, in units of the layer.
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

    The paper looks at layers after a ReLU, whose features are never negative. After any other activation the size
    |value| takes the place of the value, so that a channel far below zero counts as active too.

    Args:
        snapshot: Features of a layer after an activation.
        threshold: A channel is active in an image if it exceeds this part, 0 to 1, of the image's largest channel.
        label: Only images of this true class; None takes all.

    Raises:
        ValueError: If a value is not finite, the threshold outside [0, 1), or the class has no image.

    Source: Bai et al., "Improving adversarial robustness via channel-wise activation suppressing", arXiv 2103.08307,
    activation magnitude and frequency.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    values = snapshot.values.double().abs()
    if label is not None:
        values = values[snapshot.labels == label]
    if not len(values):
        known = ", ".join(map(str, torch.unique(snapshot.labels).tolist()))
        raise ValueError(f"label must be a class of the snapshot ({known}), got {label}")
    if wrong := int((~values.isfinite()).sum()):
        raise ValueError(f"features must be finite, but {wrong} of layer {snapshot.layer} are not")
    active = values > threshold * values.amax(1, keepdim=True)
    return ChannelStats(active.double().mean(0), values.mean(0))
