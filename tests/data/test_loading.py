"""Pictures by what a person types: limits, sizes and tables."""

import numpy as np
import pytest
import torch
from picture_files import as_read, tabled, write
from PIL import Image

from robustviz.data import image_folder, load
from robustviz.data.pictures import Fit, as_pixels, read_picture

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("layout", ["one", "parts", "table"])
@pytest.mark.parametrize("part", ["all", "train", "test"])
def test_a_limit_draws_what_subset_draws_and_decodes_no_more(tmp_path, reads, layout, part):
    root = tmp_path / "set"
    if layout == "parts":
        write(root / "train", ["L"], count=12)
        write(root / "test", ["L"], count=6)
    else:
        write(root, ["L"], count=20)
    data = str(tabled(root) if layout == "table" else root)
    whole = load(data, part)
    before = len(reads)
    assert before == len(whole)
    few = load(data, part, limit=5)
    assert len(reads) - before == 5
    expected = whole.subset(5)
    assert torch.equal(few.pixels, expected.pixels)
    assert torch.equal(few.labels, expected.labels)
    assert torch.equal(load(data, part, limit=5000).pixels, whole.pixels)


def test_pictures_of_many_sizes_are_fitted(tmp_path, cache):
    root = write(tmp_path / "set", size=(30, 20))
    Image.fromarray(np.zeros((50, 40), np.uint8)).save(root / "ant" / "other.png")
    with pytest.raises(ValueError, match="resize them, for example to 224"):
        image_folder(root)
    read = image_folder(root, resize=16, crop=12)
    assert read.pixels.shape == (9, 3, 12, 12)
    assert image_folder(root, resize=16).shape == load(str(root), resize=16).shape == (3, 16, 16)
    one, black = (
        Fit(16, 12)(as_pixels(read_picture(root / "ant" / "00.png"))),
        torch.zeros(3, 12, 12, dtype=torch.uint8),
    )
    assert any(torch.equal(pixels, one) for pixels in read.pixels)
    assert any(torch.equal(pixels, black) for pixels in read.pixels)
    assert len(list(cache.iterdir())) == 2  # each size has its own


def test_a_table_of_pictures(tmp_path):
    root = write(tmp_path / "set")
    (tmp_path / "elsewhere").mkdir()
    table = tabled(root).rename(tmp_path / "elsewhere" / "labels.csv")
    read = load(str(table), pictures=tmp_path)
    assert as_read(read) == as_read(image_folder(root))
    assert (read.name, read.classes) == ("labels", ("ant", "bee"))
    assert len(load(str(table), "train", pictures=tmp_path)) + len(load(str(table), "test", pictures=tmp_path)) == 8
    with pytest.raises(
        FileNotFoundError, match=r"8 of 8 pictures of .*labels.csv are not in .*elsewhere, the first is set"
    ):
        load(str(table))


def test_numbers_as_classes_are_in_their_order(tmp_path):
    root = write(tmp_path / "set", classes=("10", "9"))
    assert load(str(tabled(root))).classes == ("9", "10")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must have a column for files .* got no line"),
        ("a,b\n1,2\n", r"must have a column for files .*and one for classes \(label, class\), got a, b"),
        ("file,label\nset/ant/00.png,\n", r"line 2: must name a file and its class, got 'set/ant/00.png,'"),
        ("file,label\nset/ant/00.png\n", r"line 2: must name"),
        ("file,label\nset/ant/00.png,x\n", "must name at least two classes, got 1"),
        ("file,label\n", "must name at least two classes, got 0"),
        (b"file,label\n\xff\xfe,x\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_what_is_no_table(tmp_path, content, words):
    write(tmp_path / "set")
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        load(str(tmp_path / "t.csv"))


def test_what_cannot_be_loaded(tmp_path):
    (tmp_path / "set.tar").write_text("no set")
    with pytest.raises(ValueError, match=r"set.tar must be a folder of pictures, a .npz or a .csv file"):
        load(str(tmp_path / "set.tar"))
    with pytest.raises(ValueError, match=r"pictures must come with a table such as labels\.csv, but data is digits"):
        load("digits", pictures=tmp_path)
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit must be >= 1 image, got {limit}"):
            load("digits", limit=limit)
