"""One reader for every picture, of a folder or an upload: what comes out is what a viewer shows.

A picture lies as its camera held it (EXIF), transparent parts show white, gray stays gray, and of an animation the
first frame counts. What is too large is refused by the size in its header, before a pixel is decoded.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Endings of picture files, in small letters."""

MOST_PIXELS = 64_000_000
"""Larger pictures are refused: decoding one takes seconds, and a file of a few kilobytes may claim any size."""

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for files that are damaged, truncated, huge or no pictures."""


def read_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode a picture file.

    Call it inside `bombs_refused`.

    Args:
        source: The file, or its content.
        name: What messages call it; empty for the path.

    Returns:
        The picture as a viewer shows it, gray (mode `L`) or color (`RGB`).

    Raises:
        ValueError: If it cannot be read, has more than 8 bits a channel, or more than 64 million pixels.
    """
    name = name or (str(source) if isinstance(source, Path) else "the file")
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if picture.mode[0] in "IF":  # Pillow would clip these numbers at 255
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel; convert it to 8")
            upright = ImageOps.exif_transpose(picture)
            mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return upright.convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more than the {MOST_PIXELS // 1_000_000} million pixels that a picture may have; reduce it"
        ) from error
    except _UNREADABLE as error:
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be read as a picture ({reason}); repair or remove it") from error


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Let Pillow refuse pictures that it would only warn about, in every thread; the filters are restored after."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@dataclass(frozen=True)
class Fit:
    """How pictures of any size become pictures of one size.

    Attributes:
        resize: Length of the short side in pixels; None keeps the size.
        crop: Side of the square cut out of the middle; None is `resize`.

    Raises:
        ValueError: If a number is below 1, crop is larger than resize, or there is only crop.
    """

    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.resize is None and self.crop is not None:
            raise ValueError(f"crop must come with resize, the length of the short side, got crop {self.crop} alone")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be >= 1 pixel, got {self.resize}")
        if self.resize is not None and self.crop is not None and not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be from 1 to resize, {self.resize}, got {self.crop}")

    @property
    def side(self) -> int | None:
        """Side of the squares that come out; None if nothing is fitted."""
        return self.crop or self.resize

    def __call__(self, pixels: Tensor) -> Tensor:
        """Resize images (..., c, h, w), bytes or floats, with antialiasing, and crop them; range and kind stay.

        Raises:
            ValueError: If the images are so narrow that their long side would be out of all proportion.
        """
        if self.resize is None:
            return pixels
        from torchvision.transforms.v2 import functional as v2

        height, width = pixels.shape[-2:]
        if max(height, width) / min(height, width) * self.resize**2 > MOST_PIXELS:
            raise ValueError(f"pictures of {width}x{height} are too narrow to be resized to {self.resize}")
        assert self.side is not None
        resized = v2.center_crop(v2.resize(pixels, [self.resize], antialias=True), [self.side, self.side])
        return resized if pixels.dtype == torch.uint8 else resized.clamp(0, 1)


def stacked(pictures: Iterator[tuple[str, Tensor]], count: int) -> Shaped[Tensor, "n c h w"]:
    """Put pictures (c, h, w) of one size into one tensor as they come; gray becomes color once there is a color one.

    Args:
        pictures: Name and pixels of each, bytes or floats, with one or three channels.
        count: How many there are.

    Raises:
        ValueError: If sizes differ.
    """
    first, pattern = next(pictures)
    everything = pattern.new_empty(count, *pattern.shape)
    for row, (name, picture) in enumerate(chain([(first, pattern)], pictures)):
        if picture.shape[1:] != everything.shape[2:]:
            sizes = [f"{p.shape[-1]}x{p.shape[-2]} in {n}" for n, p in ((first, everything), (name, picture))]
            raise ValueError(
                f"pictures must all have one size, got {sizes[0]} and {sizes[1]}; resize them, for example to 224"
            )
        if len(picture) > everything.shape[1]:
            everything = everything.repeat(1, len(picture), 1, 1)
        everything[row] = picture
    return everything


def as_pixels(picture: Image.Image) -> UInt8[Tensor, "c h w"]:
    """Turn a gray or color picture of `read_picture` into bytes."""
    return torch.from_numpy(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1).copy())
