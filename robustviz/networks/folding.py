"""A faster copy of a trained network: fewer operations, the same answers but for rounding.

It is made for attacks that an evaluation waits for. What is reported is decided by the network itself, and a trace is
always made on the network itself.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from operator import is_
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustviz.models import Classifier
from robustviz.networks.tracing import Call, agree, example, trace, untouched
from robustviz.types import Images

CopyPrecision = Literal["fp32", "bf16"]


def folded(model: nn.Module, *, precision: CopyPrecision = "fp32", images: Images | None = None) -> nn.Module:
    """Copy a model with every batch norm folded into the convolution before it, and pixels stored channels last.

    In evaluation mode a batch norm is linear, so a convolution can take over its work. That is done for the two types
    of PyTorch themselves, side by side in an `nn.Sequential` as in all networks of `robustviz.models`, if both are
    called in turn and nowhere else. What has hooks, parametrizations or a forward method of its own stays as it is.
    Then the copy answers the same images as the model. If it answers otherwise than rounding explains, or none could be
    made, the result is a plain copy.

    Args:
        model: Left as it was.
        precision: `"bf16"` computes the body of a `Classifier`, or the whole of any other model, in bfloat16 where
            autocast allows it: faster on CPUs that have such numbers, and right to three digits only.
        images: At least one image (n, c, h, w); model and copy are compared on all. None makes one (see `example`).

    Returns:
        A model of the same kind, in evaluation mode, without parameter gradients.
    """
    copy = _folded(model, images) or _copied(model)
    if precision == "fp32":
        return copy
    if isinstance(copy, Classifier):
        return copy.replace(body=_Autocast(copy.body))
    return _Autocast(copy).eval()


def _folded(model: nn.Module, images: Images | None) -> nn.Module | None:
    """Make the copy; None if it does not answer as the model does, or there is no image to tell."""
    if images is None:
        try:
            images = example(model)
        except ValueError:
            return None
    expected, copy = _answer(model, images), _copied(model)
    for sequence, before, after in list(_pairs(copy, trace(copy, images[:1]))):
        setattr(sequence, before, fuse_conv_bn_eval(getattr(sequence, before), getattr(sequence, after)))
        setattr(sequence, after, nn.Identity())  # keeps the place of the batch norm
    for module in copy.modules():
        if type(module) is nn.Conv2d:
            module.to(memory_format=torch.channels_last)
    try:
        found = _answer(copy, images)
    except Exception:  # a forward method may use the parts of a sequence as it likes
        return None
    return copy if agree(expected, found) else None


def _copied(model: nn.Module) -> nn.Module:
    return deepcopy(model).eval().requires_grad_(False)


def _pairs(network: nn.Module, calls: Sequence[Call]) -> Iterator[tuple[nn.Module, str, str]]:
    """Find what can be folded: a sequence, and the names of a convolution and of the batch norm behind it."""
    for sequence in [m for m in network.modules() if type(m).forward is nn.Sequential.forward]:
        for (before, convolution), (after, norm) in pairwise(list(sequence.named_children())):
            if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
                continue
            given = [call.output for call in calls if call.module is convolution]
            taken = [call.inputs[0] for call in calls if call.module is norm and call.inputs]
            in_turn = 0 < len(given) == len(taken) and all(map(is_, given, taken))
            if in_turn and _untampered(convolution) and _untampered(norm):
                yield sequence, before, after


def _untampered(module: nn.Module) -> bool:
    """Tell whether a module does what its type says: no hooks, and no forward method of its own."""
    return not any((name.endswith("_hooks") and value) or name == "forward" for name, value in vars(module).items())


def _answer(network: nn.Module, images: Images) -> object:
    """Answer without the purifier, which is the same in model and copy."""
    network = network.replace(purify=None) if isinstance(network, Classifier) else network
    with untouched(network):
        return network(images.clone())


class _Autocast(nn.Module):
    """A module that computes in bfloat16 and answers in float32."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.inner(images).float()
