"""A faster copy of a trained network: fewer operations, the same answers but for rounding.

It is made for attacks that an evaluation waits for. What is reported is decided by the network itself, and a trace is
always made on the network itself.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustviz.models import Classifier

Precision = Literal["fp32", "bf16"]


def folded(model: nn.Module, *, precision: Precision = "fp32") -> nn.Module:
    """Copy a model with every batch norm folded into the convolution before it, and pixels stored channels last.

    In evaluation mode a batch norm is linear, so a convolution can take over its work. Pairs are found where they
    stand side by side in an `nn.Sequential`, as in all networks of `robustviz.models`; any other part of a model is
    copied as it is.

    Args:
        model: Left as it was.
        precision: `"bf16"` computes the body of a `Classifier`, or the whole of any other model, in bfloat16 where
            autocast allows it: faster on processors that have such numbers, and right to three digits only.

    Returns:
        A model of the same kind, in evaluation mode, without parameter gradients.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    for module in copy.modules():
        if type(module).forward is nn.Sequential.forward:
            _fold(module)
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    if precision == "fp32":
        return copy
    if isinstance(copy, Classifier):
        return copy.replace(body=_Autocast(copy.body))
    return _Autocast(copy).eval()


def _fold(sequence: nn.Module) -> None:
    """Join the pairs of one sequence; an identity keeps the place of each batch norm."""
    for (before, convolution), (after, norm) in pairwise(list(sequence.named_children())):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            setattr(sequence, before, fuse_conv_bn_eval(convolution, norm))
            setattr(sequence, after, nn.Identity())


class _Autocast(nn.Module):
    """A module that computes in bfloat16 and answers in float32."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.inner(images).float()
