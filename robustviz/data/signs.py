"""Road signs: an embedded set of color pictures that no camera took.

Ten faces are drawn once (`robustviz.data.sign_faces`); then every picture puts one into a scene of its own, hundreds at
a time: turned and tilted, near or far, on a post before sky and ground, in sun, dusk or shade, out of focus and with
the noise of a sensor. What a person tells apart at a glance is told apart here: the signs differ in shape, color and
symbol, and half of the pairs that an attack exchanges mean the opposite.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from robustviz.data.cache import cached
from robustviz.data.image_set import ImageSet
from robustviz.data.parts import Part, check_part
from robustviz.data.sign_faces import SIGNS, faces
from robustviz.tensors import seeded
from robustviz.types import Images, Labels

_SIZES = {"train": 6000, "test": 1000}
"""How many pictures each part has; every sign has a tenth."""

_SIZE, _CHUNK = 32, 500


def signs(part: Part = "all") -> ImageSet:
    """Road signs: 7,000 color pictures of 32x32 pixels in ten classes, **drawn by this library and not photographed**.

    They are drawn when they are first asked for, which takes a few seconds, and kept in the user's cache folder; they
    are the same on every run.

    Args:
        part: `"train"` (6,000), `"test"` (1,000) or both.
    """
    check_part(part)
    parts = [part] if part != "all" else list(_SIZES)
    with torch.device("cpu"):
        pixels = cached(f"signs-{_version()}", _draw)
        labels = torch.cat([_labels(name) for name in parts])
        return ImageSet(torch.cat([pixels[name] for name in parts]), labels, SIGNS, "signs")


def _version() -> str:
    """A checksum of the code that draws, so that pictures of older code are not taken for those of this one."""
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in ("signs.py", "sign_faces.py"))
    return hashlib.sha256(code).hexdigest()[:16]


def _draw() -> dict[str, UInt8[Tensor, "n 3 32 32"]]:
    drawn = {}
    for number, part in enumerate(_SIZES):
        chunks = torch.split(_labels(part), _CHUNK)
        pictures = [scenes(labels, seeded(number, chunk)) for chunk, labels in enumerate(chunks)]
        drawn[part] = torch.cat(pictures).mul(255).round().byte()
    return drawn


def _labels(part: str) -> Labels:
    """Every sign equally often, in a fixed shuffled order."""
    count = _SIZES[part]
    return (torch.arange(count) % len(SIGNS))[torch.randperm(count, generator=seeded(list(_SIZES).index(part)))]


def scenes(labels: Labels, generator: Generator) -> Images:
    """Draw a picture of each sign, at twice the size and then averaged.

    Args:
        labels: Which signs, as indices into `SIGNS`.
        generator: Source of everything that differs from picture to picture.
    """
    draw = _Draw(len(labels), generator)
    across, down = _placed(draw)
    sign = F.grid_sample(faces()[labels], torch.stack([across, down], 3), align_corners=False)
    post = (0.5 + (draw(0.05, 0.09) - across.abs()) * _SIZE / 2).clamp(0, 1) * (down > 0)
    gray = (draw(0.3, 0.75) - 2.5 * across).clamp(0.15, 0.9)  # a tube, lighter on the left
    layers = F.avg_pool2d(_over(sign, torch.stack([gray * post, gray * post, gray * post, post], 1)), 2)
    picture = _over(layers, _background(draw))[:, :3]
    return _photographed(_lit(picture, draw), draw)


class _Draw:
    """Uniform random numbers for a batch, one for each picture unless a shape says otherwise."""

    def __init__(self, count: int, generator: Generator):
        self.count, self.generator = count, generator

    def __call__(self, low: int | float, high: int | float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *(shape or (1, 1)), generator=self.generator)


def _over(front: Tensor, back: Tensor) -> Tensor:
    """Lay layers over others; colors are multiplied by the fourth channel, which covers from 0 to 1."""
    return front + (1 - front[:, 3:]) * back


def _axis(size: int) -> Tensor:
    """Pixel centers from -1 to 1."""
    return (torch.arange(size) + 0.5) * 2 / size - 1


def _placed(draw: _Draw) -> tuple[Tensor, Tensor]:
    """Coordinates on the sign, x and y, of every pixel of pictures of twice the size: moved, turned and tilted."""
    centers = _axis(2 * _SIZE)
    size = draw(0.6, 0.96)
    x = (centers - draw(-1, 1) * (1.03 - size)) / size  # the sign stays in the picture
    y = (centers[:, None] - draw(-1, 1) * (1.03 - size)) / size
    angle, yaw, pitch = draw(-0.2, 0.2), draw(-0.6, 0.6), draw(-0.35, 0.35)
    across, down = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    away = 1 + 0.25 * (yaw.sin() * across + pitch.sin() * down)
    return across / (away * yaw.cos()), down / (away * pitch.cos())


_SKY = ((0.42, 0.62, 0.90), (0.62, 0.78, 0.95), (0.78, 0.80, 0.83), (0.93, 0.76, 0.62))
_FAR = ((0.16, 0.30, 0.14), (0.27, 0.40, 0.20), (0.42, 0.32, 0.27), (0.55, 0.53, 0.50))
_NEAR = ((0.34, 0.34, 0.36), (0.30, 0.45, 0.20), (0.45, 0.38, 0.28), (0.52, 0.52, 0.50))


def _background(draw: _Draw) -> Float[Tensor, "n 4 32 32"]:
    """Sky, what rises before it (trees, houses) and ground, each in a color of its own, none of them smooth."""
    y = _axis(_SIZE)[:, None]

    def color(choices: tuple[tuple[float, float, float], ...]) -> Tensor:
        shares = draw(0, 1, len(choices)) ** 3
        return (shares / shares.sum(1, keepdim=True) @ torch.tensor(choices))[:, :, None, None]

    def outline(low: int | float, high: int | float, rough: float) -> Tensor:
        bends = F.interpolate(draw(-rough, rough, 1, 7), size=_SIZE, mode="linear")
        return ((y - draw(low, high) - bends) * _SIZE / 3).clamp(0, 1)[:, None]

    clouds = F.interpolate(draw(-0.12, 0.12, 1, 5, 5), size=_SIZE, mode="bicubic", align_corners=False)
    leaves = F.interpolate(draw(-0.14, 0.14, 3, 16, 16), size=_SIZE, mode="bilinear", align_corners=False)
    picture = color(_SKY) + clouds - 0.1 * y
    for cover, shade in ((outline(-0.8, 0.9, 0.5), color(_FAR)), (outline(0.2, 1.1, 0.08), color(_NEAR))):
        picture = picture + cover * (shade + leaves - picture)
    return F.pad(picture, (0, 0, 0, 0, 0, 1), value=1)


def _lit(pictures: Images, draw: _Draw) -> Images:
    """Sun or dusk, a tint, haze, and the soft edge of a shadow that falls across the picture."""
    y, x = torch.meshgrid(_axis(_SIZE), _axis(_SIZE), indexing="ij")
    angle, edge, soft, dark = draw(0, 6.283), draw(-1.2, 1.2), draw(1, 12), draw(0, 0.5)
    shadow = 1 - dark * torch.sigmoid(soft * (angle.cos() * x + angle.sin() * y - edge))
    light = draw(0.55, 1.15, 1, 1, 1) * draw(0.93, 1.07, 3, 1, 1) * shadow[:, None]
    haze = draw(0, 0.2, 1, 1, 1)
    return pictures * light * (1 - haze) + 0.75 * haze


def _photographed(pictures: Images, draw: _Draw) -> Images:
    """Out of focus by up to 0.8 pixels, with the noise of a sensor."""
    spread = draw(0.2, 0.8, 1, 1, 1)
    for along in (2, 3):
        weights = [torch.exp(-0.5 * (offset / spread) ** 2) for offset in range(3)]
        total = weights[0] + 2 * weights[1] + 2 * weights[2]
        size = pictures.shape[along]
        padded = F.pad(pictures, (0, 0, 2, 2) if along == 2 else (2, 2, 0, 0), mode="replicate")
        shifted = [padded.narrow(along, offset, size) for offset in range(5)]
        pictures = (
            weights[0] * shifted[2] + weights[1] * (shifted[1] + shifted[3]) + weights[2] * (shifted[0] + shifted[4])
        ) / total
    noise = torch.randn(pictures.shape, generator=draw.generator) * draw(0.004, 0.03, 1, 1, 1)
    return (pictures + noise).clamp(0, 1)
