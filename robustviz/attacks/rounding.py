"""Attacked images as files hold them: rounded to 8 bits, with their success checked again.

A perturbation much smaller than a gray level disappears when an image is saved, and the attack with it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor, nn

from robustviz.checks import check_images
from robustviz.tensors import evaluating, norms
from robustviz.types import LINF_8, Images, Labels, Threat


@dataclass(frozen=True)
class EightBit:
    """Attacked images after rounding.

    Attributes:
        levels: Gray levels 0..255.
        before: Whether the model was wrong before rounding, within the threat.
        after: Whether it is wrong on what is saved, within the threat.
    """

    levels: UInt8[Tensor, "n c h w"]
    before: Bool[Tensor, "n"]
    after: Bool[Tensor, "n"]

    @property
    def images(self) -> Images:
        """The rounded images, in [0, 1], as a reader of the files sees them."""
        return self.levels.float() / 255

    def save(self, folder: str | Path) -> list[Path]:
        """Write one PNG file per image, `0000.png` and so on, and return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{index:04d}.png" for index in range(len(self.levels))]
        for levels, path in zip(self.levels.cpu(), paths, strict=True):
            Image.fromarray(levels.permute(1, 2, 0).squeeze(2).numpy()).save(path)
        return paths


def round_to_8bit(
    model: nn.Module, images: Images, attacked: Images, labels: Labels, /, *, threat: Threat = LINF_8
) -> EightBit:
    """Round attacked images to the nearest of 256 gray levels within the threat and ask the model again.

    In L-infinity a pixel on the edge of the ball is rounded inwards: 0.1 is 25.5 levels, and 26 would be outside. In L2
    every pixel is rounded to the nearest level.

    Args:
        model: Maps images in [0, 1] to logits; asked in evaluation mode.
        images: Clean images in [0, 1].
        attacked: What an attack made of them.
        labels: True classes.
        threat: What counts as success: a wrong decision no further away than this. A thousandth of a gray level is
            forgiven.

    Raises:
        TypeError: If images or labels are not tensors of the right kind.
        ValueError: If images, attacked or labels are out of range.
    """
    check_images(images, labels)
    check_images(attacked)
    levels = (attacked * 255).round()
    if threat.norm == "linf":
        low = ((images - threat.epsilon) * 255 - 1e-3).ceil().clamp(min=0)
        high = ((images + threat.epsilon) * 255 + 1e-3).floor().clamp(max=255)
        inside = (attacked - images).abs() * 255 <= threat.epsilon * 255 + 1e-3
        levels = torch.where(inside & (low <= high), levels.clamp(low, high), levels)  # a small ball may hold no level
    levels = levels.to(torch.uint8)

    def success(points: Images) -> Tensor:
        near = norms(points - images, threat.norm) <= threat.epsilon + 1e-3 / 255
        return near & (model(points).argmax(1) != labels)

    with evaluating(model), torch.no_grad():
        return EightBit(levels, success(attacked), success(levels.to(images.dtype) / 255))
