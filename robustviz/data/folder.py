"""Reading a folder of pictures: found, checked, decoded in parallel and cached as bytes."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm.auto import tqdm

from robustviz.data.cache import cached
from robustviz.types import Labels

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_folder(
    root: Path, *, workers: int | None, cache: bool
) -> tuple[UInt8[Tensor, "n c h w"], Labels, tuple[str, ...], list[str]]:
    """Read `root/CLASS/PICTURE` in the order of the names; see `robustviz.data.image_folder` for the rules.

    Returns:
        Pixels 0..255, labels, the names of the classes, and the name `CLASS/PICTURE` of each file.
    """
    classes, files, labels = _list_pictures(root)

    def make() -> dict[str, Tensor]:
        return {"pixels": _read_pictures(files, workers)}

    def fits(kept: dict[str, Tensor]) -> bool:
        return set(kept) == {"pixels"} and kept["pixels"].dtype == torch.uint8 and len(kept["pixels"]) == len(files)

    read = cached(_cache_name(root, files), make, fits) if cache else make()
    return read["pixels"], torch.tensor(labels), classes, [file.relative_to(root).as_posix() for file in files]


def _list_pictures(root: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if classes and set(classes) <= {"train", "test", "val", "valid", "validation"}:
        raise ValueError(
            f"{root} holds the parts {', '.join(classes)} and not classes; name one of them: {root / classes[0]}"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{root} must hold one subfolder of pictures for each of at least two classes, found {len(classes)}"
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            file for file in (root / name).iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != "."
        )
        if not found:
            raise ValueError(f"{root / name} holds no picture ({', '.join(sorted(_SUFFIXES))}); remove it or fill it")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def _cache_name(root: Path, files: list[Path]) -> str:
    key = hashlib.sha256(str(root.resolve()).encode())
    for file in files:
        state = file.stat()
        key.update(f"{file.relative_to(root)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return f"{root.resolve().name}-{key.hexdigest()[:16]}"


def _read_pictures(files: list[Path], workers: int | None) -> Tensor:
    """Decode pictures of one size to bytes (n, c, h, w)."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(_read_picture, files, chunksize=64), "reading pictures", len(files), leave=False, disable=None
        )
        arrays = list(bar)
    for file, array in zip(files, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            sizes = [f"{a.shape[1]}x{a.shape[0]} in {f}" for f, a in ((files[0], arrays[0]), (file, array))]
            raise ValueError(f"pictures must all have one size, got {sizes[0]} and {sizes[1]}; resize them first")
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[:, :, None], 3, 2) for array in arrays]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return torch.from_numpy(np.stack(arrays))[:, None]


def _read_picture(file: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            if picture.mode[0] in "IF":  # Pillow would clip these numbers at 255
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel; convert it to 8")
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error}); repair or remove it") from error
