"""An uploaded picture: cut to the middle, reduced to the size the network reads, and kept as text in a state."""

import base64
import binascii
from io import BytesIO

from PIL import Image, ImageOps

from robustviz.data.image_set import as_floats
from robustviz.data.pictures import as_pixels, bombs_refused, read_picture
from robustviz.types import Images

Shape = tuple[int, ...]
"""Channels, height and width that a network reads."""


def shrink(content: bytes, shape: Shape, *, name: str = "the file", invert: bool = False) -> str:
    """Turn the content of a picture file into the text of a small one: cut square, reduced, gray or RGB, over white.

    Args:
        content: The file.
        shape: Channels, height and width that the network reads.
        name: What messages call the file.
        invert: Exchange black and white, for a drawing in black on white where the network knows white on black.

    Raises:
        ValueError: If the content is no picture, or one of more than 64 million pixels.
    """
    channels, height, width = shape
    with bombs_refused():
        picture = read_picture(content, name)
    small = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BOX)
    stream = BytesIO()
    (ImageOps.invert(small) if invert else small).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def unpack(text: str, shape: Shape) -> Images:
    """Return the one image that a text of `shrink` holds.

    Raises:
        ValueError: If the text holds no picture, or one of another size.
    """
    try:
        content = base64.b64decode(text, validate=True)
        with bombs_refused():
            picture = read_picture(content)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"own must be the text of a small picture or empty, got {text[:20]!r}") from error
    pixels = as_pixels(picture.convert("L" if shape[0] == 1 else "RGB"))
    if tuple(pixels.shape) != shape:
        raise ValueError(f"own must hold a picture of {shape[2]}x{shape[1]}, got {pixels.shape[2]}x{pixels.shape[1]}")
    return as_floats(pixels[None])
