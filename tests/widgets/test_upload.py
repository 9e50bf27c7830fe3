"""Uploads: reduced by area, gray or color, inverted if asked, and refused in words that name the file."""

import base64
import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustviz.widgets.upload import shrink, unpack


def file_of(pixels, kind="png", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.integers(1, 4), st.booleans())
def test_the_mean_of_each_area(seed, channels, factor, invert):
    """A picture of a whole multiple of the size is averaged square by square."""
    source = np.random.default_rng(seed)
    pixels = source.integers(0, 256, (6 * factor, 4 * factor, 3), dtype=np.uint8)
    pixels = pixels if channels == 3 else np.repeat(pixels[:, :, :1], 3, 2)
    image = unpack(shrink(file_of(pixels), (channels, 6, 4), invert=invert), (channels, 6, 4))
    means = pixels.reshape(6, factor, 4, factor, 3).mean((1, 3)).transpose(2, 0, 1)[:channels]
    expected = torch.from_numpy(255 - means if invert else means).float() / 255
    assert image.shape == (1, channels, 6, 4)
    assert (image[0] - expected).abs().max() <= 1.01 / 255


def test_only_the_middle_is_kept():
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 255
    assert unpack(shrink(file_of(pixels), (1, 5, 5)), (1, 5, 5)).min() == 1


def test_pictures_of_a_phone():
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, stored on its side
    lying = np.zeros((8, 8), np.uint8)
    lying[:, :4] = 255  # what is on the left is on top after the turn
    image = unpack(shrink(file_of(lying, exif=exif), (1, 8, 8)), (1, 8, 8))
    assert image[0, 0, :4].min() == 1
    assert image[0, 0, 4:].max() == 0


def bomb(width, height):
    """A PNG file that claims a size and is honest about nothing else."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes((width + 1) * min(height, 1000))))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 9_500), (50_000, 50_000)])
def test_huge_files_are_refused_before_they_are_decoded(size):
    content, started = bomb(*size), time.process_time()
    with pytest.raises(ValueError, match=r"^poster.png has more than the 64 million pixels"):
        shrink(content, (3, 32, 32), name="poster.png")
    assert time.process_time() - started < 0.5


def test_files_that_are_no_pictures():
    for content in (b"", b"no picture", file_of(np.zeros((9, 9), np.uint8))[:40]):
        with pytest.raises(ValueError, match=r"^notes.txt cannot be read as a picture"):
            shrink(content, (1, 8, 8), name="notes.txt")


@pytest.mark.parametrize(
    "text", ["x", "", "ä", base64.b64encode(b"no picture").decode(), base64.b64encode(bomb(10**4, 9500)).decode()]
)
def test_texts_that_hold_no_picture(text):
    with pytest.raises(ValueError, match="own must be the text of a small picture or empty, got"):
        unpack(text, (1, 8, 8))


def test_a_picture_of_another_size():
    with pytest.raises(ValueError, match="own must hold a picture of 8x8, got 4x4"):
        unpack(shrink(file_of(np.zeros((9, 9), np.uint8)), (1, 4, 4)), (1, 8, 8))
