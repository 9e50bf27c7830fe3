"""Pictures: bytes that lose nothing, and the rounding of numbers."""

import base64
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustviz.explorers.pictures import Album, in_bytes, png_url, rounded


@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_an_album_gives_back_the_attacked_levels(seed, channels, size, strengths):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (2, channels, size, size + 1), generator=generator, dtype=torch.uint8)
    attacked = torch.randint(0, 256, (3, strengths, *clean.shape[1:]), generator=generator, dtype=torch.uint8)
    source = torch.tensor([0, 1, 1])
    album = Album(clean, attacked.short() - clean[source][:, None].short(), source)
    assert [row["z"] for row in album.rows()] == list(range(2 + 2 * 3))
    for strip in range(3):
        assert (album.levels(album.attacked(strip)) == attacked[strip].numpy()).all()
        magnified = album.levels(album.magnified(strip)).astype(int)
        changes = album.changes[strip].numpy()
        assert (np.sign(magnified - 128) == np.sign(changes))[np.abs(magnified - 128) > 0].all()
        assert np.abs(magnified - 128).max() == (127 if changes.any() else 0)
    for row in album.rows():
        assert (decoded(row["url"]) == np.concatenate(list(album.levels(row["z"])), axis=2)).all()


def decoded(url):
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


def test_one_strength_alone_is_drawn_where_it_belongs():
    clean = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    album = Album(
        clean, torch.tensor([1, 2, 3], dtype=torch.int16).view(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2), torch.tensor([0])
    )
    (row,) = album.rows([1], only=1)
    assert decoded(row["url"])[0].tolist() == [[0, 0, 102, 102, 0, 0]] * 2


@pytest.mark.parametrize(("largest", "width", "code"), [(127, 1, "b"), (-127, 1, "b"), (128, 2, "h"), (-255, 2, "h")])
def test_packing_takes_as_many_bytes_as_changes_need(largest, width, code):
    clean = torch.tensor([[[[255 if largest < 0 else 0, 7]]]], dtype=torch.uint8)
    changes = torch.tensor([[[[[largest, 1]]]]], dtype=torch.int16)
    header, content = Album(clean, changes, torch.tensor([0])).packed()
    assert header == {"shape": [1, 1, 2], "clean": 1, "strengths": 1, "width": width, "source": [0]}
    assert content[:2] == bytes(clean.flatten().tolist())
    assert struct.unpack(f"<2{code}", content[2:]) == (largest, 1)


def test_bytes_are_rounded_half_up_and_stay_in_range():
    levels = torch.tensor([0.0, 0.5 / 255, 0.49 / 255, 127.5 / 255, 1.0]).view(1, 1, 1, -1)
    assert in_bytes(levels).flatten().tolist() == [0, 1, 0, 128, 255]
    every = torch.arange(256).view(1, 1, 16, 16) / 255
    assert in_bytes(every).flatten().tolist() == list(range(256))


def test_rounding():
    values = torch.tensor([[0.123456, 1234.5], [torch.nan, torch.inf]])
    assert rounded(values) == [[0.123, 1230.0], [None, None]]
    assert rounded(0.0) == 0.0
    assert rounded(2 / 3, 1) == 0.7


def test_color_pictures_keep_their_channels():
    levels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert (decoded(png_url(levels)) == levels).all()
