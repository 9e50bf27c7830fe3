"""How to train: the settings, and what follows from them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from robustviz.types import Images

Schedule = Literal["constant", "steps", "cosine", "one-cycle"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The optimizer is stochastic gradient descent with Nesterov momentum.

    Attributes:
        epochs: Passes through the training part.
        batch_size: Images in one update.
        learning_rate: The largest learning rate.
        schedule: `"constant"`; `"steps"`: divided by 10 after half and again after three quarters of the updates;
            `"cosine"`: to 0 along half a cosine; `"one-cycle"`: linearly up during the first 30 %, then down to 0.
        momentum: Of the optimizer.
        weight_decay: L2 penalty on all parameters.
        padding: Random shifts by up to so many pixels; 0 for none.
        flip: Mirror half of the images.
        precision: `"bf16"` computes in bfloat16 (autocast) on maps stored channels-last, weights stay float32;
            `"fp32"` switches both off; `"auto"` is bf16 where it pays: images of at least 16 pixels on a processor
            with bfloat16 matrix units, or on a GPU that has them.
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


def bf16_pays(images: Images, device: torch.device) -> bool:
    """Tell whether bfloat16 is faster: on pictures large enough, with matrix units made for it."""
    if min(images.shape[-2:]) < 16:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
