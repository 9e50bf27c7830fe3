"""What was done, written down: settings read from functions and partials, and files written atomically."""

import dataclasses
import functools
import inspect
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

PER_CALL = ("generator", "on_step", "on_batch", "on_epoch")
"""Keywords that differ from call to call and are no settings."""


def revision(number: int) -> Callable[[Decorated], Decorated]:
    """Number the revision of an attack, an objective, or the class of a defense; without this decorator it is 1.

    Raise it when the algorithm is mended or a default changes: what was recorded with another revision is then
    measured again. A new keyword whose default changes nothing needs no new revision.

    Args:
        number: The revision, from 1.

    Raises:
        ValueError: If the number is below 1.
    """
    if number < 1:
        raise ValueError(f"number must be >= 1, got {number}")

    def decorate(function: Decorated) -> Decorated:
        function.revision = number  # type: ignore[attr-defined]
        return function

    return decorate


@dataclass(frozen=True)
class CallSettings:
    """What calling a function or partial would do, arguments of the single call left out.

    Attributes:
        name: Name of the function.
        revision: Its revision.
        settings: Every setting that has a value, by name.
        defaults: Default of every keyword that has one.
    """

    name: str
    revision: int
    settings: dict[str, Any]
    defaults: dict[str, Any]


def is_call(value: Any) -> bool:
    """Whether a value is a function or a partial, which `read_call` reads."""
    return isinstance(value, functools.partial) or inspect.isfunction(value)


def read_call(value: Callable[..., Any]) -> CallSettings:
    """Read the settings of a function or (nested) partial; a default that is not overridden is a setting too."""
    given: dict[str, Any] = {}
    positional: tuple[Any, ...] = ()
    while isinstance(value, functools.partial):
        given, positional = {**value.keywords, **given}, (*value.args, *positional)
        value = value.func
    parameters = inspect.signature(value).parameters
    given = dict(zip(parameters, positional, strict=False)) | given
    keywords = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in PER_CALL
    }
    defaults = {name: default for name, default in keywords.items() if default is not inspect.Parameter.empty}
    settings = {name: given.get(name, defaults.get(name)) for name in keywords if name in given or name in defaults}
    name = getattr(value, "__name__", type(value).__name__)
    return CallSettings(name, getattr(value, "revision", 1), settings | given, defaults)


def describe(value: Any) -> Any:
    """Turn settings into JSON: a function or partial becomes its name with every setting, defaults included.

    So `describe(partial(pgd, steps=20))` holds the step size and the threat too, and a recorded run can be reproduced
    from its record alone. A `revision` other than 1 is written too. Arguments that differ from call to call (model,
    images, labels, generator, callbacks) are left out. `robustviz.fingerprint.same` compares a description with a
    setting of today.

    Args:
        value: A function, partial, dataclass, container, tensor, module, path or plain value.

    Returns:
        Dictionaries, lists, strings, numbers, booleans and None.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_call(value):
        call = read_call(value)
        numbered = {} if call.revision == 1 else {"revision": call.revision}
        return {"function": call.name, **numbered, **{name: describe(item) for name, item in call.settings.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.item() if value.dim() == 0 else {"type": "Tensor", "shape": list(value.shape)}
    if isinstance(value, torch.nn.Module | torch.Generator):
        return type(value).__name__
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)


def versions() -> dict[str, str]:
    """Name what a result may depend on: the versions of Python, PyTorch, NumPy and this library, and the machine."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("robustviz", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write a file that is either whole or absent: under a temporary name first, then moved into place.

    A file that is there already is replaced; callers that must not do so ask before. Every process that calls this
    writes; where several work together, `robustviz.distributed.processes().first` says which one should.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, neighbor = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode that any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        Path(neighbor).chmod(0o666 & ~mask)
        Path(neighbor).replace(path)
    except BaseException:
        Path(neighbor).unlink(missing_ok=True)
        raise
    return path


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out as a Markdown table whose columns line up in plain text: first column left, others right."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


@dataclass(frozen=True)
class RunRecord:
    """One run: what was set, what came out, and with which versions.

    Attributes:
        kind: What was run, such as `"train"` or `"evaluate"`.
        settings: Every setting, as `describe` gives it.
        results: Every figure.
        command: The command that reproduces it; empty if there is none.
        versions: As `versions` gives them.
    """

    kind: str
    settings: dict[str, Any]
    results: dict[str, Any]
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)

    def save(self, path: Path | str) -> Path:
        """Write the record as JSON, whole or not at all."""
        return write_atomic(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "RunRecord":
        """Read a record.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a record.
        """
        try:
            content = json.loads(Path(path).read_text())
            return cls(**content)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a record of robustviz: {error}") from error
