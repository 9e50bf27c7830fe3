"""The one reader: whatever the form of a file, what comes out is what a viewer shows; the rest is refused in words."""

import io
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import claimed
from PIL import Image

from robustviz.data.pictures import MOST_PIXELS, SUFFIXES, Fit, as_pixels, bombs_refused, read_picture, stacked

COLOR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GRAY = COLOR[:, :, 0]
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)
CLEAR = np.where(ALPHA > 127, 255, 0).astype(np.uint8)


def over_white(pixels, alpha):
    """What a viewer shows, by the formula of the PNG specification."""
    share = alpha.astype(float) / 255
    share = share if pixels.ndim == 2 else share[:, :, None]
    return share * pixels + (1 - share) * 255


def written(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def palette_of(pixels):
    return Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)


def clear_palette():
    """A picture with a palette, one of whose colors is transparent."""
    indices = Image.fromarray((ALPHA % 3).astype(np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return written(indices, "png", transparency=1)


FORMS = {
    "color PNG": (written(Image.fromarray(COLOR), "png"), COLOR),
    "gray PNG": (written(Image.fromarray(GRAY), "png"), GRAY),
    "two levels": (written(Image.fromarray(GRAY > 99), "png"), np.where(GRAY > 99, 255, 0)),
    "color with alpha": (written(Image.fromarray(np.dstack([COLOR, ALPHA])), "png"), over_white(COLOR, ALPHA)),
    "gray with alpha": (written(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), "png"), over_white(GRAY, ALPHA)),
    "palette": (written(palette_of(COLOR), "png"), np.asarray(palette_of(COLOR).convert("RGB"))),
    "palette with alpha": (
        clear_palette(),
        np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])[ALPHA % 3],
    ),
    "one clear color": (
        written(Image.fromarray(COLOR), "png", transparency=tuple(int(v) for v in COLOR[2, 3])),
        np.where((COLOR[2, 3] == COLOR).all(2, keepdims=True), 255, COLOR),
    ),
    "GIF": (written(palette_of(COLOR), "gif"), np.asarray(palette_of(COLOR).convert("RGB"))),
    "animated GIF": (
        written(palette_of(COLOR), "gif", save_all=True, append_images=[palette_of(255 - COLOR)]),
        np.asarray(palette_of(COLOR).convert("RGB")),
    ),
    "BMP": (written(Image.fromarray(COLOR), "bmp"), COLOR),
    "TIFF": (written(Image.fromarray(COLOR), "tiff"), COLOR),
    "WebP with alpha": (
        written(Image.fromarray(np.dstack([COLOR, CLEAR])), "webp", lossless=True, exact=True),
        over_white(COLOR, CLEAR),
    ),
    "CMYK": (written(Image.fromarray(COLOR).convert("CMYK"), "tiff"), COLOR),
    "gray JPEG": (written(Image.fromarray(np.full((6, 5), 77, np.uint8)), "jpeg"), np.full((6, 5), 77)),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_viewer_shows(form, tmp_path):
    content, expected = FORMS[form]
    (tmp_path / "picture").write_bytes(content)
    for source in (content, tmp_path / "picture"):
        picture = read_picture(source)
        assert picture.mode == ("L" if expected.ndim == 2 else "RGB")
        assert np.abs(np.asarray(picture).astype(float) - expected).max() <= 1


# What each EXIF orientation does to the picture that was stored, and so how a viewer shows it.
TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg", "webp"])
def test_pictures_are_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(24), 3 * np.arange(16)).astype(np.uint8) * 3
    plain = written(Image.fromarray(smooth), kind, quality=95)
    turned = written(Image.fromarray(smooth), kind, quality=95, exif=exif.tobytes() if kind != "tiff" else exif)
    expected = TURNS[orientation](np.asarray(read_picture(plain)))
    assert np.array_equal(np.asarray(read_picture(turned)), expected)


@pytest.mark.parametrize("size", [(8001, 8001), (10_000, 9_500), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_decoding(size, monkeypatch):
    """95 million pixels lie between the sizes that Pillow warns about and those that it refuses."""
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    filters = list(warnings.filters)
    with (
        bombs_refused(),
        pytest.raises(ValueError, match=r"^huge.png has more than the 64 million pixels .* reduce it"),
    ):
        read_picture(claimed(*size), "huge.png")
    assert warnings.filters == filters


def test_bombs_are_refused_in_threads():
    said = []

    def read():
        try:
            read_picture(claimed(10_000, 9_500))
        except ValueError as error:
            said.append(str(error))

    with bombs_refused():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "64 million" in said[0]


def test_the_largest_picture_is_opened():
    with pytest.raises(ValueError, match="cannot be read"):  # its header is accepted, and then it has no pixels
        read_picture(claimed(8000, MOST_PIXELS // 8000))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_damage_is_said_or_survived(form, data):
    """A cut or changed file gives a picture, or words that name it; never another error."""
    content = bytearray(FORMS[form][0])
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        for _ in range(data.draw(st.integers(1, 4), "changes")):
            content[data.draw(st.integers(0, len(content) - 1), "place")] = data.draw(st.integers(0, 255), "value")
    mode, said = "", ""
    try:
        with bombs_refused(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow remarks on broken metadata
            mode = read_picture(bytes(content), "mine.png").mode
    except ValueError as error:
        said = str(error)
    assert mode in ("L", "RGB") or said.startswith("mine.png ")


def test_what_is_no_picture():
    deep = written(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5)), "png")
    for content, words in ((b"", "cannot be read"), (b"GIF", "cannot be read"), (deep, "more than 8 bits")):
        with pytest.raises(ValueError, match=rf"^the file .*{words}"):
            read_picture(content)


def test_fit_resizes_the_short_side_and_cuts_the_middle():
    """The oracle is Pillow's antialiased bilinear filter."""
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    fitted = Fit(20, 16)(as_pixels(picture))
    assert fitted.shape == (3, 16, 16)
    assert fitted.dtype == torch.uint8
    resized = np.asarray(picture.resize((45, 20), Image.Resampling.BILINEAR)).astype(int)
    left = round((45 - 16) / 2)
    expected = resized[2:18, left : left + 16].transpose(2, 0, 1)
    assert np.abs(fitted.numpy().astype(int) - expected).max() <= 1
    assert Fit(20)(as_pixels(picture)).shape == (3, 20, 20)
    assert Fit()(as_pixels(picture)).shape == (3, 40, 90)
    floats = Fit(60)(torch.rand(2, 1, 8, 8))
    assert floats.shape == (2, 1, 60, 60)
    assert floats.min() >= 0
    assert floats.max() <= 1


@pytest.mark.parametrize(
    ("resize", "crop", "words"),
    [
        (None, 10, "crop must come with resize.*got crop 10 alone"),
        (0, None, "resize must be >= 1 pixel, got 0"),
        (-3, None, "resize must be >= 1 pixel, got -3"),
        (10, 11, "crop must be from 1 to resize, 10, got 11"),
        (10, 0, "crop must be from 1 to resize, 10, got 0"),
    ],
)
def test_sizes_that_do_not_fit(resize, crop, words):
    with pytest.raises(ValueError, match=words):
        Fit(resize, crop)


def test_a_line_is_not_blown_up():
    with pytest.raises(ValueError, match="5000x1 are too narrow to be resized to 224"):
        Fit(224)(torch.zeros(3, 1, 5000, dtype=torch.uint8))


def test_gray_becomes_color_once_there_is_color():
    gray, color = torch.full((1, 2, 2), 7, dtype=torch.uint8), torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    mixed = stacked(iter([("a", gray), ("b", color), ("c", gray)]), 3)
    assert mixed.shape == (3, 3, 2, 2)
    assert torch.equal(mixed[0], gray.expand(3, 2, 2))
    assert torch.equal(mixed[1], color)
    assert torch.equal(mixed[2], mixed[0])
    assert stacked(iter([("a", gray), ("c", gray)]), 2).shape == (2, 1, 2, 2)


def test_endings():
    assert {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".tif", ".bmp"} <= SUFFIXES
    assert all(suffix == suffix.lower() for suffix in SUFFIXES)
