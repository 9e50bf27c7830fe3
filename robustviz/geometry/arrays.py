"""Arrays and settings in one safetensors file: the settings are JSON in its header. No pickle is involved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustviz.records import write_atomic


def write_arrays(path: Path | str, kind: str, arrays: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    """Write arrays and settings, whole or not at all; a file that is there is replaced.

    Args:
        path: File name ending in `.safetensors`.
        kind: What is stored; `read_arrays` asks for it again.
        arrays: Any tensors by name.
        settings: Anything that JSON can hold.

    Raises:
        ValueError: If the file name does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    header = {"robustviz": json.dumps({"kind": kind, **settings})}
    return write_atomic(path, save({name: a.detach().cpu().contiguous().clone() for name, a in arrays.items()}, header))


def read_arrays(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_arrays` wrote: arrays and settings.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, foreign or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["robustviz"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = settings.pop("kind")
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no {kind} of robustviz: {error!r}") from error
    if found != kind:
        raise ValueError(f"{path} must hold a {kind}, but holds a {found}")
    return arrays, settings
