"""What took long to make is kept in the user's cache folder; a cache that cannot be used costs time, never a result."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def cache_folder() -> Path:
    """Return where decoded pictures and their TVM versions are kept: $ROBUSTVIZ_CACHE, else the user's cache."""
    place = os.environ.get("ROBUSTVIZ_CACHE")
    return Path(place).expanduser() if place else platformdirs.user_cache_path("robustviz")


def cached(name: str, make: Callable[[], Tensors], fits: Callable[[Tensors], bool] = lambda _: True) -> Tensors:
    """Return what an earlier call kept under this name, or make it and keep it.

    A file that is damaged or does not fit is replaced. Where the folder cannot be read or written, a warning says so.

    Args:
        name: File name without its ending; everything the tensors depend on is part of it.
        make: Makes the tensors.
        fits: Tells whether kept tensors are what `make` would give.
    """
    file = cache_folder() / f"{name}.safetensors"
    try:
        kept = load_file(file)
        if fits(kept):
            return kept
    except (SafetensorError, OSError):
        pass  # missing, damaged or out of reach: made again
    made = make()
    try:
        _write(file, made)
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"{file.parent} cannot be written ({reason}), so {name} is made again every time; "
            "set ROBUSTVIZ_CACHE to a folder that can",
            stacklevel=3,
        )
    return made


def _write(file: Path, tensors: Tensors) -> None:
    """Write a file that is either whole or absent, without a second copy of the tensors in memory."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        save_file(tensors, unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
