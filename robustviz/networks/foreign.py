"""Networks that somebody else wrote: built from a few words, with weights that are read without running their code."""

import hashlib
import importlib
import inspect
import pickle
import sys
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

LIBRARIES = {"torchvision": "torchvision", "timm": "the extra `networks` of robustviz (pip install timm)"}
"""Packages whose networks are known by name, and what installs them."""

_DOWNLOADS = {
    "pretrained",
    "weights",
    "weights_backbone",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}
"""Arguments of their builders that would fetch or read files; weights are given as a file of their own."""

NESTED = ("state_dict", "model_state_dict", "model", "net", "network")
"""Where training scripts put the weights inside a dictionary."""


@dataclass(frozen=True)
class Words:
    """A network in words: `where:name?key=value&key=value`.

    Attributes:
        where: "torchvision", "timm", a file that ends in .py, or a package.module.
        name: A network of that library, or a function (or class) in the file or module.
        arguments: What it is called with.
    """

    where: str
    name: str
    arguments: dict[str, Any]

    @property
    def ours(self) -> bool:
        """Whether the code belongs to a library that this one knows."""
        return self.where in LIBRARIES

    @property
    def file(self) -> Path | None:
        """The file, if it is one."""
        return Path(self.where).expanduser() if self.where.endswith(".py") else None


def read_words(spec: str) -> Words | None:
    """Take a spec apart; None if it is none of these, such as the name of a checkpoint."""
    left, _, query = spec.partition("?")
    library = left.partition(":")[0] in LIBRARIES
    where, colon, name = left.partition(":") if library else left.rpartition(":")
    module = where.endswith(".py") or all(part.isidentifier() for part in where.split("."))
    if not (colon and name) or not (library or (module and name.isidentifier())):
        return None
    return Words(where, name, {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)})


def _value(text: str) -> Any:
    """Read a number, a truth value, None or a tuple; anything else is text."""
    try:
        return literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def built(words: Words, seed: int | None = 0) -> nn.Module:
    """Make the network with random weights; nothing is downloaded.

    Args:
        words: What to build.
        seed: Decides the weights, whatever was drawn before; None draws them from PyTorch's own generator.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the function returns something else than a module.
        ValueError: If the library, network or function is unknown, needs other arguments, or raises.
    """
    spec = f"{words.where}:{words.name}"
    if words.ours and (asked := _DOWNLOADS & words.arguments.keys()):
        raise ValueError(f"{spec} must not have {sorted(asked)[0]}: nothing is downloaded; give a file of weights")
    with _importing(words.file):
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            function = _function(words)
        if isinstance(function, nn.Module):
            return function
        try:
            inspect.signature(function).bind(**words.arguments)
        except TypeError as error:
            raise ValueError(
                f"{spec} cannot be called with the arguments {words.arguments}: {error}; give them as "
                f"{spec}?name=value&name=value, or as defaults"
            ) from error
        try:
            with torch.random.fork_rng([], enabled=seed is not None):
                if seed is not None:
                    torch.default_generator.manual_seed(seed)
                network = function(**words.arguments)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{spec} raises {_said(error)}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"{spec} must return a torch.nn.Module, got {type(network).__name__}")
    return network


def _function(words: Words) -> Any:
    """Find what builds the network."""
    if words.where == "torchvision":
        models = importlib.import_module("torchvision.models")
        _check_name(words, models.list_models(module=models))
        return models.get_model_builder(words.name)
    if words.where == "timm":
        try:
            timm = importlib.import_module("timm")
        except ModuleNotFoundError as error:
            raise ValueError(f"timm:{words.name} needs {LIBRARIES['timm']}") from error
        _check_name(words, timm.list_models())
        return timm.model_entrypoint(words.name)
    try:
        module = importlib.import_module(words.where) if words.file is None else _loaded(words.file)
    except FileNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{words.where} cannot be imported: it raises {_said(error)}") from error
    if not callable(found := getattr(module, words.name, None)):
        known = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ValueError(f"{words.where} has no function {words.name}; it has {', '.join(sorted(known)) or 'none'}")
    return found


def _check_name(words: Words, names: list[str]) -> None:
    if words.name not in names:
        close = ", ".join(get_close_matches(words.name, names, 3)) or "none that is close"
        raise ValueError(f"{words.where} has no network for classification called {words.name!r}; it has: {close}")


def _loaded(path: Path) -> ModuleType:
    """Run a file as a module."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a network of your own is given as FILE.py:FUNCTION")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importing(path: Path | None) -> Iterator[None]:
    """Let a file import its neighbors inside the block."""
    before = list(sys.path)
    try:
        if path is not None:
            sys.path.insert(0, str(path.resolve().parent))
        yield
    finally:
        sys.path[:] = before


def _said(error: BaseException) -> str:
    """Name an error and the last line of code that it passed through."""
    trail = error.__traceback__
    while trail is not None and trail.tb_next is not None:
        trail = trail.tb_next
    where = "" if trail is None else f" (line {trail.tb_lineno} of {Path(trail.tb_frame.f_code.co_filename).name})"
    return f"{type(error).__name__}: {error}{where}"


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict; code in the file is not run.

    Args:
        path: A `.safetensors` file, or what `torch.save` wrote of tensors, also inside a dictionary (`state_dict`).

    Returns:
        Tensors by name, on the CPU, without the prefixes of `DataParallel` and `torch.compile`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or no state dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    content: object
    try:
        if path.suffix == ".safetensors":
            content = load_tensors(path.read_bytes())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled code, which is not run, or is not a file of weights; save "
            "`model.state_dict()` alone, best as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(inner := content.get(key), Mapping):
            content = inner
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors; save `model.state_dict()`")
    tensors = {str(name): tensor for name, tensor in content.items()}
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Read weights into a network that must have exactly these.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is unreadable, or names or shapes differ; the first three are named.
    """
    tensors, own = read_weights(path), network.state_dict()
    missing, unexpected = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    problems = [
        f"{len(names)} {kind} ({_first([name for name in (*own, *tensors) if name in names])})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit the network: its keys are {' and '.join(problems)}")
    if other := [name for name in own if own[name].shape != tensors[name].shape]:
        shapes = [f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}" for name in other]
        raise ValueError(
            f"{path} does not fit the network: {_first(shapes)} have other shapes; if they belong to the head, the "
            "number of classes differs: build the network with that of the weights"
        )
    network.load_state_dict(tensors)


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def sha256(path: Path | str) -> str:
    """Return the checksum of a file, 64 hexadecimal digits."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def module_file(name: str) -> Path | None:
    """Find the file of a package.module without running it; None if it has none."""
    first, *others = name.split(".")
    found = find_spec(first)
    if found is None or not others:
        return None if found is None or found.origin is None else Path(found.origin)
    for folder in found.submodule_search_locations or ():
        path = Path(folder).joinpath(*others)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def version(package: str) -> str:
    """Return the version of an installed package, "none" if it has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
