"""Picture files with their classes, from a folder or a table: listed, cut, drawn, and only then decoded and cached."""

import csv
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm.auto import tqdm

from robustviz.data.cache import cached
from robustviz.data.image_set import ImageSet, stratified
from robustviz.data.parts import Part
from robustviz.data.pictures import SUFFIXES, Fit, as_pixels, bombs_refused, read_picture, stacked
from robustviz.tensors import seeded

PARTS = ("train", "test", "val", "valid", "validation")


@dataclass(frozen=True)
class Listing:
    """Picture files and their classes, none of them decoded yet.

    Attributes:
        files: Paths of the pictures.
        names: What each is called, independent of where the folder lies: `CLASS/PICTURE`.
        labels: Index of each picture's class.
        classes: Names of the classes.
        name: What the set is called.
    """

    files: list[Path]
    names: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    name: str

    def __getitem__(self, rows: Tensor) -> "Listing":
        numbers = rows.tolist()
        files, names, labels = ([values[i] for i in numbers] for values in (self.files, self.names, self.labels))
        return replace(self, files=files, names=names, labels=labels)

    def __add__(self, other: "Listing") -> "Listing":
        return replace(
            self, files=self.files + other.files, names=self.names + other.names, labels=self.labels + other.labels
        )

    def shuffled(self) -> "Listing":
        """Put the files into a fixed random order, that of `robustviz.data.image_set.shuffled`."""
        return self[torch.randperm(len(self.files), generator=seeded(0), device="cpu")]

    def part(self, part: Part) -> "Listing":
        """Cut by a checksum of each picture's name, so that a picture added later moves no other.

        About a fifth is for testing, at least one picture of each class and never all.

        Raises:
            ValueError: If a class has a single picture.
        """
        if part == "all":
            return self
        sums = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32 for name in self.names]
        draws = torch.tensor(sums, device="cpu")
        test, labels = draws < 0.2, torch.tensor(self.labels, device="cpu")
        for label, name in enumerate(self.classes):
            rows = (labels == label).nonzero().squeeze(1)
            if len(rows) == 1:
                raise ValueError(
                    f"{self.name}/{name} must hold at least two pictures, one to train and one to test on, got 1"
                )
            test[rows[draws[rows].argmin()]], test[rows[draws[rows].argmax()]] = True, False
        return self[(test if part == "test" else ~test).nonzero().squeeze(1)]

    def read(self, *, fit: Fit, limit: int | None = None, workers: int | None = None, cache: bool = True) -> ImageSet:
        """Draw `limit` files evenly from the classes, and decode these and no others."""
        chosen = self
        if limit is not None and limit < len(self.files):
            chosen = self[stratified(torch.tensor(self.labels, device="cpu"), limit)]
        count = len(chosen.files)

        def make() -> dict[str, Tensor]:
            return {"pixels": _decoded(chosen.files, fit, workers)}

        def fits(kept: dict[str, Tensor]) -> bool:
            return set(kept) == {"pixels"} and kept["pixels"].dtype == torch.uint8 and len(kept["pixels"]) == count

        read = cached(_cache_name(chosen, fit), make, fits) if cache else make()
        return ImageSet(read["pixels"], torch.tensor(chosen.labels, device="cpu"), self.classes, self.name)


def list_folder(root: Path) -> Listing:
    """List the pictures in one subfolder for each class, folders inside them included, in the order of their names.

    Files with other endings are left out, and a warning counts them.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no classes, or a class has no pictures.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    classes = class_folders(root)
    if classes and set(classes) <= set(PARTS):
        raise ValueError(
            f"{root} holds the parts {', '.join(classes)} and not classes; name one of them: {root / classes[0]}"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{root} must hold one subfolder of pictures for each of at least two classes, found {len(classes)}"
        )
    files: list[Path] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    for label, name in enumerate(classes):
        found = sorted(_walk(root / name))
        pictures = [file for file in found if file.suffix.lower() in SUFFIXES]
        skipped.update(file.suffix.lower() or file.name for file in found if file.suffix.lower() not in SUFFIXES)
        if not pictures:
            raise ValueError(f"{root / name} holds no picture ({', '.join(sorted(SUFFIXES))}); remove it or fill it")
        files += pictures
        labels += [label] * len(pictures)
    if skipped:
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(skipped.items()))
        warnings.warn(
            f"{root}: {skipped.total()} of {skipped.total() + len(files)} files are no pictures, left out: {kinds}",
            stacklevel=2,
        )
    return Listing(files, [file.relative_to(root).as_posix() for file in files], labels, classes, root.resolve().name)


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, hidden ones left out, in their order."""
    return tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones left out; links to folders are followed, each folder once."""
    seen = set()
    for place, inside, files in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        if (here := os.path.realpath(place)) in seen:
            inside.clear()
            continue
        seen.add(here)
        yield from (Path(place) / name for name in files if not name.startswith("."))


_FILE, _LABEL = ("file", "filename", "path", "image", "picture"), ("label", "class")


def list_table(table: Path, pictures: Path | None = None) -> Listing:
    """List the pictures that a CSV file names, with their classes.

    Its first line names the columns; one of `file`, `filename`, `path`, `image`, `picture` holds the files and one of
    `label`, `class` the classes, in any words; other columns are not read.

    Args:
        table: The CSV file.
        pictures: Folder that its file names start from; None is the folder of the CSV file.

    Raises:
        FileNotFoundError: If there is no such table, or a picture is missing.
        ValueError: If it is no such table.
    """
    root = table.parent if pictures is None else pictures
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            columns = [name.strip().lower() for name in rows.fieldnames or ()]
            found = [
                next((columns.index(name) for name in names if name in columns), None) for names in (_FILE, _LABEL)
            ]
            if None in found:
                raise ValueError(
                    f"{table} must have a column for files ({', '.join(_FILE)}) and one for classes "
                    f"({', '.join(_LABEL)}), got {', '.join(columns) or 'no line'}"
                )
            keys = [(rows.fieldnames or ())[column] for column in found if column is not None]
            pairs = [tuple((row[key] or "").strip() for key in keys) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read as a CSV file in UTF-8 ({error})") from error
    for number, pair in enumerate(pairs, 2):
        if not all(pair):
            raise ValueError(f"{table}, line {number}: must name a file and its class, got {','.join(pair)!r}")
    missing = [name for name, _ in pairs if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} pictures of {table} are not in {root}, the first is {missing[0]}"
        )
    names = {name for _, name in pairs}
    classes = tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
    if len(classes) < 2:
        raise ValueError(f"{table} must name at least two classes, got {len(classes)}")
    labels = [classes.index(label) for _, label in pairs]
    return Listing([root / name for name, _ in pairs], [name for name, _ in pairs], labels, classes, table.stem)


def _cache_name(listing: Listing, fit: Fit) -> str:
    key = hashlib.sha256(f"{fit}\n".encode())
    for file in listing.files:
        state = file.stat() if file.exists() else None  # a broken link is refused when it is read
        size, changed = (state.st_size, state.st_mtime_ns) if state else (0, 0)
        key.update(f"{file.resolve()}\0{size}\0{changed}\n".encode())
    return f"{listing.name}-{key.hexdigest()[:16]}"


def _decoded(files: list[Path], fit: Fit, workers: int | None) -> UInt8[Tensor, "n c h w"]:
    """Decode pictures, several at a time, and fit them to one size."""

    def read(file: Path) -> tuple[str, Tensor]:
        try:
            return str(file), fit(as_pixels(read_picture(file)))
        except ValueError as error:
            raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error

    if fit.resize is not None:
        import torchvision.transforms.v2  # noqa: F401  # once, and not by several threads at a time
    with bombs_refused(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(pool.map(read, files, chunksize=64), "reading pictures", len(files), leave=False, disable=None)
        try:
            return stacked(iter(bar), len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
