"""How to train: the settings, and what follows from them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustviz.data import stratified
from robustviz.types import Labels

Schedule = Literal["constant", "steps", "cosine", "one-cycle"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The optimizer is stochastic gradient descent with Nesterov momentum.

    Attributes:
        epochs: Passes through the training part, at least 1.
        batch_size: Images in one update, at least 1.
        learning_rate: Largest learning rate, at least 0.
        schedule: `"constant"`; `"steps"`: divided by 10 after half and again after three quarters of the updates;
            `"cosine"`: to 0 along half a cosine; `"one-cycle"`: linearly up during the first 30 %, then down to 0.
        momentum: Momentum of the optimizer, from 0 to below 1.
        weight_decay: Factor of the L2 penalty on all parameters, at least 0.
        padding: Largest random shift in pixels; 0 for none.
        flip: Whether half of the images are mirrored.
        precision: `"bf16"` computes in bfloat16 (autocast) on maps stored channels-last, weights stay float32;
            `"fp32"` switches both off; `"auto"` is bf16 where it pays: images of at least 16 pixels on a CPU with
            bfloat16 matrix units, or on a GPU that has them.
        seed: Decides the order, the augmentation, dropout and the draws of attacks and stochastic modules; the
            validation part is the same for every seed.

    Raises:
        ValueError: If a setting is out of range.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    padding: int = 0
    flip: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("padding", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name, most in (("learning_rate", math.inf), ("momentum", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name} must be >= 0 and below {most}, got {getattr(self, name)}")
        for name, known in (("schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Learning rate at a point of training, `progress` running from 0 to 1."""
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "one-cycle":
        return config.learning_rate * min(progress / 0.3, (1 - progress) / 0.7)
    return config.learning_rate


def bf16_pays(images: Tensor, device: torch.device) -> bool:
    """Tell whether bfloat16 is faster: on pictures large enough, with matrix units made for it."""
    if min(images.shape[-2:]) < 16:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def hold_out(labels: Labels, validation: float | Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation part: a share, stratified and always the same, or as given."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    if isinstance(validation, Tensor):
        held[validation] = True
    elif 0 <= validation < 1:
        held[stratified(labels, round(validation * len(labels)))] = True
    if held.all() or not (isinstance(validation, Tensor) or 0 <= validation < 1):
        raise ValueError(
            f"validation must be a share from 0 to below 1 that leaves images to train on, got {validation}"
        )
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
