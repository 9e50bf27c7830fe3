"""A defense of one's own from a Python file: `file.py:NAME`. Reading it runs the code of the file."""

import importlib.util
import sys
from pathlib import Path

from robustviz.defenses.defense import Defense


def is_foreign(word: str) -> bool:
    """Tell whether a word names a record in a file, and not one that is known."""
    return ".py:" in word


def read_record(word: str) -> Defense:
    """Run a Python file and return one of its records.

    Args:
        word: Path of the file and name of the record in it, such as `mine/clipped.py:CLIPPED`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be run, or has no record of that name.
    """
    name, _, attribute = word.rpartition(":")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a defense of your own is given as FILE.py:NAME")
    module = f"robustviz_foreign_{path.stem}"
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} must be a Python file")
    code = importlib.util.module_from_spec(spec)
    sys.modules[module] = code  # dataclasses look their module up
    try:
        spec.loader.exec_module(code)
    except Exception as error:
        del sys.modules[module]
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    record = getattr(code, attribute, None)
    if not isinstance(record, Defense):
        records = ", ".join(key for key, value in vars(code).items() if isinstance(value, Defense)) or "none"
        raise ValueError(f"{path} must have a Defense named {attribute!r}; it has {records}")
    return record
