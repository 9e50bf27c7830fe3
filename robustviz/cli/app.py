"""What all commands share: the application, types of options, places for results, and how a line is printed."""

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, get_args

from cyclopts import App, Parameter, convert, validators
from tqdm.auto import tqdm

from robustviz.distributed import processes


def _option(type_: Any, tokens: Sequence[Any]) -> Any:
    """Read an option; left to itself cyclopts rounds 1.5 where a whole number is asked for."""
    if int in (type_, *get_args(type_)):
        for token in tokens:
            _whole(token.value)
    return convert(type_, tokens)


def _whole(text: str) -> None:
    try:
        fits = abs(int(text)) < 2**63
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"must be a whole number below 2^63, got {text!r}")


app = App(
    name="robustviz",
    help="See, attack and harden image classifiers. Start with `robustviz demo`.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() says how to go on
    default_parameter=Parameter(converter=_option),
)


def _number(type_: Any, tokens: Sequence[Any]) -> float:
    """Read 0.03 as well as 8/255."""
    text = tokens[0].value
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"must be a number or a fraction such as 8/255, got {text!r}") from error


Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Radius = Annotated[float | None, Parameter(converter=_number)]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))]


def writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be written into or made, before the work whose results go there; leave no trace.

    Args:
        option: That names the place, such as --out.
        folder: Of the results; it and folders above it may be missing.

    Raises:
        ValueError: If the nearest folder that is there is a file or takes no new files.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} must lie in a folder that can be written to, but {folder} cannot: {error.strerror}; "
            "choose another place"
        ) from error


def unused(out: Path, force: bool) -> None:
    """Refuse a folder for results that cannot be written into, or holds something and is not to be written into.

    Raises:
        ValueError: If it cannot be written into.
        FileExistsError: If it is not empty, unless `force`.
    """
    writable("--out", out)
    if out.exists() and not force and any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is there and not empty; choose another folder, or add --force to write into it"
        )


def say(message: str) -> None:
    """Print above a progress bar, at once; of several processes that work together, the first one alone."""
    if not processes().first:
        return
    tqdm.write(message)
    sys.stdout.flush()
