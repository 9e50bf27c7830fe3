"""Files of pictures for tests: folders of noise, tables, headers that claim any size, and what Pillow reads in them."""

import struct
import zlib

import numpy as np
from PIL import Image


def write(root, modes=("RGB",), count=4, classes=("ant", "bee"), size=(5, 4), suffixes=(".png",)):
    """Write pictures of noise, their modes and file formats by turns."""
    source, number = np.random.default_rng(0), 0
    for name in classes:
        (root / name).mkdir(parents=True)
        for _ in range(count):
            pixels = Image.fromarray(source.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            suffix = suffixes[number % len(suffixes)]
            pixels.convert(modes[number % len(modes)]).save(root / name / f"{number:02}{suffix}")
            number += 1
    return root


def by_pillow(root, mode):
    """Class and pixels of every picture, read one by one."""
    return sorted((file.parent.name, np.asarray(Image.open(file).convert(mode)).tobytes()) for file in root.glob("*/*"))


def as_read(image_set):
    pixels = (image_set.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return sorted(
        (image_set.classes[label], image.tobytes()) for label, image in zip(image_set.labels, pixels, strict=True)
    )


def tabled(root, name="labels.csv"):
    """A table of the pictures in a folder, beside it."""
    rows = [f"{file.relative_to(root.parent)},{file.parent.name}" for file in sorted(root.glob("*/*"))]
    (root.parent / name).write_text("\n".join(["Image,Label", *rows]) + "\n", encoding="utf-8-sig")
    return root.parent / name


def claimed(width, height):
    """A PNG file of a few bytes whose header claims any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
