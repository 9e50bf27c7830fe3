"""A picture of one's own: cut to the middle, reduced to the size the network reads, and kept as text in a state."""

import base64
import binascii
import warnings
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from robustviz.types import Images

Shape = tuple[int, ...]
"""Channels, height and width that a network reads."""


def shrink(content: bytes, shape: Shape) -> str:
    """Turn the content of a picture file into the text of a small one: square cut, reduced, gray or RGB, over black.

    Raises:
        ValueError: If the content is no picture, or one of more than 89 million pixels.
    """
    channels, height, width = shape
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content)) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            whole = ImageOps.exif_transpose(picture).convert("RGBA")
    except _UNREADABLE as error:
        raise ValueError(f"the file cannot be read as a picture ({error}); choose a PNG or JPEG file") from error
    flat = Image.alpha_composite(Image.new("RGBA", whole.size, "black"), whole)
    stream = BytesIO()
    ImageOps.fit(flat.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BOX).save(
        stream, "PNG"
    )
    return base64.b64encode(stream.getvalue()).decode()


def unpack(text: str, shape: Shape) -> Images:
    """Return the one image that a text of `shrink` holds.

    Raises:
        ValueError: If the text holds no picture, or one of another size.
    """
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True))) as picture:
            pixels = np.atleast_3d(np.asarray(picture.convert("L" if shape[0] == 1 else "RGB")))
    except (binascii.Error, *_UNREADABLE) as error:
        raise ValueError(f"own must be the text of a small picture or empty, got {text[:20]!r}") from error
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    if tuple(image.shape) != shape:
        raise ValueError(f"own must hold a picture of {shape[2]}x{shape[1]}, got {image.shape[2]}x{image.shape[1]}")
    return image[None]


_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
