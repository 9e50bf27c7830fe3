"""What must be the same for recorded work to count: fingerprints of tensors and models, settings compared by meaning.

A recorded setting and a current one mean the same if they would do the same work. So a keyword that a record lacks
means its default, and a keyword added later invalidates nothing; an algorithm or a default that changes raises its
`robustviz.records.revision`, and what was recorded with another revision counts no longer.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustviz.records import describe, is_call, read_call

RENAMED: dict[str, str] = {"small_steps": "fine_pgd"}
"""Recorded name of a function or dataclass -> its name today, for those that were renamed and do what they did."""

PLAIN_TYPES = (bool, int, float, str, tuple)
"""Types of the attributes of a module that are settings."""


def fingerprint(*values: Any) -> str:
    """Return a SHA-256 that changes with any number in tensors and modules, and with the settings of modules.

    Args:
        *values: Tensors and modules; of a `functools.partial` or a container, those inside. Anything else is passed
            over: `describe` writes it down.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for value in values:
        for item in _parts(value):
            digest.update(item)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Iterator[bytes]:
    """Write down the shape and the numbers of a tensor; images kept as bytes are the same as their floats."""
    if tensor.dim() > 1:  # the bytes alone tell the length of a vector
        yield str(tuple(tensor.shape)).encode()
    for rows in torch.split(tensor.detach(), 1024) if tensor.dim() else (tensor.detach(),):
        if rows.dim() == 4 and rows.dtype == torch.uint8:
            rows = rows.float() / 255
        yield rows.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _parts(value: Any) -> Iterator[bytes]:
    """Walk through what a fingerprint is made of."""
    if isinstance(value, Tensor):
        yield from _bytes(value)
    elif isinstance(value, nn.Module):
        yield from (line.encode() for line in settings_of(value))
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{name} {tensor.dtype}".encode()
            yield from _parts(tensor)
    elif isinstance(value, partial):
        yield from _parts([*value.args, *value.keywords.values()])
    elif isinstance(value, Mapping):
        yield from _parts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)


def settings_of(model: nn.Module) -> Iterator[str]:
    """Write down a network without its weights: name, type, revision and settings of every module.

    Settings are the public attributes that are plain, dataclasses, or dictionaries, of which the plain values count.
    """
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
        if (number := getattr(type(module), "revision", 1)) != 1:
            yield f"revision {number}"
        for key, setting in sorted(vars(module).items()):
            if key == "training" or key.startswith("_"):
                continue
            if isinstance(setting, PLAIN_TYPES):
                yield f"{key} {setting!r}"
            elif isinstance(setting, dict):
                yield f"{key} {[(name, value) for name, value in setting.items() if isinstance(value, PLAIN_TYPES)]!r}"
            elif is_dataclass(setting):
                yield f"{key} {describe(setting)!r}"


def revisions_of(model: nn.Module) -> dict[str, int]:
    """Revision of every kind of module in a network, by the name of its class; those of revision 1 are left out."""
    numbers = {type(module).__name__: getattr(type(module), "revision", 1) for module in model.modules()}
    return {name: number for name, number in sorted(numbers.items()) if number != 1}


def same(recorded: Any, setting: Any) -> bool:
    """Tell whether a setting read from JSON means the same as one of today.

    Args:
        recorded: What `describe` gave then, through JSON.
        setting: The function, partial, dataclass, container or plain value of today; not its description.

    Returns:
        False if the functions, their revisions or any setting differ, or if `recorded` has a setting that no longer
        exists. A setting that `recorded` lacks means its default.
    """
    if is_call(setting):
        call = read_call(setting)
        now = {"function": call.name, "revision": call.revision, **call.settings}
        return _same_settings(recorded, now, {"revision": 1, **call.defaults})
    if is_dataclass(setting) and not isinstance(setting, type):
        now = {
            "type": type(setting).__name__,
            **{field.name: getattr(setting, field.name) for field in fields(setting)},
        }
        defaults = {"type": type(setting).__name__, **{f.name: f.default for f in fields(setting)}}
        defaults |= {f.name: f.default_factory() for f in fields(setting) if f.default_factory is not MISSING}
        return _same_settings(recorded, now, {name: value for name, value in defaults.items() if value is not MISSING})
    if isinstance(setting, Mapping):
        named = {str(name): value for name, value in setting.items()}
        return isinstance(recorded, dict) and recorded.keys() == named.keys() and not differing(recorded, named)
    if isinstance(setting, list | tuple):
        long = isinstance(recorded, list) and len(recorded) == len(setting)
        return long and all(same(*pair) for pair in zip(recorded, setting, strict=True))
    return bool(recorded == _as_json(setting))


def differing(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Name the settings that do not mean the same, or that only one side has; in alphabetical order."""
    names = recorded.keys() | settings.keys()
    return sorted(
        name
        for name in names
        if name not in settings or name not in recorded or not same(recorded[name], settings[name])
    )


def check_same(path: Path, recorded: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """Refuse to go on from a file that was begun with other settings.

    Args:
        path: The file, for the message.
        recorded: Its settings, read from JSON.
        settings: Those of today.
        what: What the file belongs to, such as `"a run"`.

    Raises:
        ValueError: If a setting does not mean the same; what differs is named.
    """
    if changed := differing(recorded, settings):
        raise ValueError(
            f"{path} belongs to {what} with another {' and '.join(changed)}; "
            "use the settings it was started with, or remove it to start again"
        )


def _same_settings(recorded: Any, now: dict[str, Any], defaults: dict[str, Any]) -> bool:
    """Compare the settings of a function or dataclass; what `recorded` lacks has its default."""
    if not isinstance(recorded, dict) or recorded.keys() - now.keys():
        return False
    named = {key: RENAMED.get(str(recorded[key]), recorded[key]) for key in ("function", "type") if key in recorded}
    complete = {key: _as_json(default) for key, default in defaults.items()} | recorded | named
    return complete.keys() == now.keys() and not differing(complete, now)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(describe(value)))
