"""Trained classifiers on disk: weights as safetensors, everything else as JSON beside them. No pickle is involved."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import robustviz
from robustviz.defenses.assembly import BUILDERS
from robustviz.models import Classifier
from robustviz.networks import trusting
from robustviz.records import RunRecord, describe, write_atomic

SHIPPED = [Path(robustviz.__file__).parent / "shipped", Path(robustviz.__file__).parents[1] / "data" / "checkpoints"]
"""Where trained networks come with the library: in an installed package, and in a checkout of the repository."""


def save(
    path: Path | str, model: Classifier, build: Callable[..., Classifier], record: RunRecord, *, force: bool = False
) -> Path:
    """Write `path` (weights) and its JSON neighbor (what they are), each whole or not at all.

    Args:
        path: File name ending in `.safetensors`.
        model: The trained classifier.
        build: What makes the same network untrained: a network of `robustviz.models` or
            `defenses.assembly.defended`, settings fixed with `partial`.
        record: How the weights came about and what they reach.
        force: Replace files that exist.

    Returns:
        The path of the weights.

    Raises:
        FileExistsError: If a file exists and `force` is False.
        ValueError: If the file name or the builder cannot be loaded again.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    architecture = describe(build if isinstance(build, partial) else partial(build))
    if architecture["function"] not in BUILDERS:
        raise ValueError(f"build must be one of {', '.join(BUILDERS)}, got {architecture['function']}")
    if not force and (existing := [p for p in (path, path.with_suffix(".json")) if p.exists()]):
        raise FileExistsError(f"{existing[0]} exists; choose another name or pass force")
    content = save_tensors({name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()})
    signed = replace(
        record,
        settings=record.settings | {"architecture": architecture},
        results=record.results | {"sha256": hashlib.sha256(content).hexdigest()},
    )
    write_atomic(path, content)
    signed.save(path.with_suffix(".json"))
    return path


def load(name: Path | str, *, trust: bool = False) -> tuple[Classifier, RunRecord]:
    """Read a classifier and its record.

    Args:
        name: Path of the `.safetensors` file, or the name of a network that comes with the library.
        trust: Run the code of others that builds the network, if there is some (see `open_network`).

    Returns:
        The classifier in evaluation mode, on the CPU, and the record of its training.

    Raises:
        FileNotFoundError: If there is no such file or name; the known names are listed.
        ValueError: If a file is damaged, foreign, or does not fit its neighbor.
    """
    path = find(name)
    if not path.with_suffix(".json").exists():
        raise ValueError(f"{path} has no neighbor {path.stem}.json, which says what network it is; keep both together")
    record = RunRecord.load(path.with_suffix(".json"))
    content = path.read_bytes()
    try:
        architecture = {**record.settings["architecture"]}
        architecture.pop("revision", None)
        build = BUILDERS[architecture.pop("function")]
        signature = record.results.get("sha256")
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path.with_suffix('.json')} does not describe a network of robustviz: {error!r}") from error
    if hashlib.sha256(content).hexdigest() != signature:
        raise ValueError(
            f"{path} is not the file that {path.stem}.json describes: their sha256 differ; save the network again"
        )
    try:
        with torch.random.fork_rng([]), trusting(trust):
            model = build(**architecture)
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not fit {describe(build)['function']}: {error}") from error
    return model.eval(), record


def find(name: Path | str) -> Path:
    """Return the file of a checkpoint, given its path or the name of one that comes with the library.

    Raises:
        FileNotFoundError: If there is neither; the known names are listed.
    """
    path = Path(name)
    if path.suffix == ".safetensors":
        if path.exists():
            return path
    elif str(name) in (known := shipped()):
        return known[str(name)]
    elif (path / "model.safetensors").exists():
        return path / "model.safetensors"
    names = ", ".join(shipped()) or "none"
    near = "".join(f"; did you mean {known}?" for known in get_close_matches(str(name), shipped(), 1))
    raise FileNotFoundError(
        f"there is no checkpoint {name}{near or ';'} give a .safetensors file, a run folder, or a name of: {names}"
    )


def shipped() -> dict[str, Path]:
    """Name every network that comes with the library and its file, in alphabetical order."""
    found = {file.stem: file for folder in SHIPPED for file in folder.glob("*.safetensors")}
    return dict(sorted(found.items()))
