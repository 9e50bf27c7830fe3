"""Pictures of an explorer: clean ones in bytes, and what an attack does to them in whole gray levels.

An attacked picture is the clean one plus its change, exactly; a page carries only the two, packed, and its script adds
them up. A magnified change is gray where nothing changes, and its largest change reaches black or white.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16, Int64, UInt8
from PIL import Image
from torch import Tensor

from robustviz.types import Images


def in_bytes(images: Images) -> UInt8[Tensor, "n c h w"]:
    """Round pixels in [0, 1] to gray levels from 0 to 255, halves upwards."""
    return (images.detach().cpu().double() * 255 + 0.5).floor().to(torch.uint8)


@dataclass(frozen=True)
class Album:
    """Clean pictures, and strips of what an attack makes of them at each strength.

    A strip is one picture that holds all strengths side by side; a chart moves it behind a window, so nothing is loaded
    and nothing flickers while the slider moves. Pictures have numbers: the n clean ones come first, then two for each
    strip: attacked and magnified.

    Attributes:
        clean: Gray levels.
        changes: Attacked minus clean, in gray levels, at s strengths.
        source: Which clean picture each strip belongs to.
    """

    clean: UInt8[Tensor, "n c h w"]
    changes: Int16[Tensor, "m s c h w"]
    source: Int64[Tensor, "m"]

    def attacked(self, strip: int) -> int:
        """Number of the strip of attacked pictures."""
        return len(self.clean) + 2 * strip

    def magnified(self, strip: int) -> int:
        """Number of the strip that shows the changes alone."""
        return len(self.clean) + 2 * strip + 1

    def levels(self, number: int) -> UInt8[np.ndarray, "s c h w"]:
        """Gray levels of the pictures side by side that have a number; a clean one is alone."""
        if number < len(self.clean):
            return self.clean[number : number + 1].numpy()
        strip, magnify = divmod(number - len(self.clean), 2)
        changes = self.changes[strip].numpy().astype(np.int64)
        if magnify:
            largest = np.abs(changes).max(axis=(1, 2, 3), keepdims=True).clip(1)
            return (128 + np.floor(127 * changes / largest + 0.5)).astype(np.uint8)
        return (self.clean[int(self.source[strip])].numpy() + changes).astype(np.uint8)

    def rows(self, numbers: Iterable[int] | None = None, only: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield a row of the table of pictures for each number: `z` and the picture as a data URL of a PNG.

        Args:
            numbers: Numbers of the pictures; None takes all.
            only: Place of the one strength that is wanted; the others are left black, which takes no space.
        """
        every = range(len(self.clean) + 2 * len(self.changes))
        for number in every if numbers is None else numbers:
            levels = self.levels(number)
            if only is not None and number >= len(self.clean):
                levels = np.where(np.arange(len(levels))[:, None, None, None] == only, levels, 0).astype(np.uint8)
            yield {"z": number, "url": png_url(np.concatenate(list(levels), axis=2))}

    def packed(self) -> tuple[dict[str, Any], bytes]:
        """Return what the script of a page needs to make the same pictures: a header, and the levels behind it."""
        width = 1 if not self.changes.numel() or int(self.changes.abs().max()) < 128 else 2
        changes = self.changes.numpy().astype("<i2" if width == 2 else "i1")
        header = {
            "shape": list(self.clean.shape[1:]),
            "clean": len(self.clean),
            "strengths": self.changes.shape[1],
            "width": width,
            "source": self.source.tolist(),
        }
        return header, self.clean.numpy().tobytes() + changes.tobytes()


def png_url(pixels: UInt8[np.ndarray, "c h w"]) -> str:
    """Write a gray or color picture as the data URL of a PNG."""
    stream = io.BytesIO()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def rounded(values: Any, figures: int = 3) -> Any:
    """Round numbers to what a picture can show: significant figures; tensors become lists, NaN becomes None."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [rounded(value, figures) for value in values]
    if not math.isfinite(values):
        return None
    return float(f"{values:.{figures}g}")
