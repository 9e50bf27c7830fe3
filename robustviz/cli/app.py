"""The application, the types of its options, and the places where results go.

A command is a typed function in the file of its name; cyclopts turns its signature and docstring into options and
help. The file is imported when the command is called, so that `robustviz --help` answers at once: nothing in this file
imports PyTorch. To add a command, write its file and add a line to `COMMANDS`.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isfinite
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, get_args

from cyclopts import App, CycloptsError, Parameter, convert, validators

COMMANDS = {
    "anatomy": "Take published figures apart: what the released code does otherwise, one switch at a time.",
    "attack-suite": "Measure the worst case of a trained network over a suite of attacks, image by image.",
    "certify": "Certify a trained network by randomized smoothing, and attack the same smoothed network.",
    "checkpoints": "List the trained networks that come with robustviz, their accuracy, and how each was trained.",
    "compare": "Compare a defense with the undefended network, under published and adaptive attacks, over seeds.",
    "demo": "Train a standard and an adversarially trained network on digits, attack both, and write a page about it.",
    "diagnose": "Ask whether the robustness of a trained network is real: fifteen checks, each with reason and source.",
    "evaluate": "Measure a trained network on clean and on attacked test images.",
    "explore": "Write an explorer as one page: move its controls in any browser, without Python and without a network.",
    "features": "Show where an attack carries images in the feature space of a trained network.",
    "fetch": "Download a data set with torchvision, which shows the progress and verifies the checksums.",
    "results": "Measure trained networks against the claims of the papers, and write RESULTS.md from the records.",
    "train": "Train a network, naturally or against an attack, and write it to a folder.",
}
"""Every command and the first line of its docstring (a test compares them)."""


def _option(type_: Any, tokens: Sequence[Any]) -> Any:
    """Read an option; left to itself, cyclopts rounds 1.5 to a whole number, and takes nan and nothing at all."""
    kinds = (type_, *get_args(type_))
    for token in tokens:
        if not token.value.strip() and {str, Path} & {*kinds}:
            raise ValueError("must not be empty; leave the option out, or give it a value")
        if int in kinds:
            _check(int, token.value, lambda number: abs(number) < 2**63, "a whole number below 2^63")
        if float in kinds:
            _check(float, token.value, isfinite, "a finite number")
    return convert(type_, tokens)


def _check(kind: type, text: str, fits: Callable[[Any], bool], rule: str) -> None:
    try:
        good = fits(kind(text))
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"must be {rule}, got {text!r}")


app = App(
    name="robustviz",
    help="See, attack and harden image classifiers. Start with `robustviz demo`.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() says how to go on
    default_parameter=Parameter(converter=_option),
)
for _name, _line in COMMANDS.items():
    _file = _name.replace("-", "_")
    app.command(f"robustviz.cli.{_file}:{_file}", name=_name, help=_line)


def run(words: Sequence[str]) -> None:
    """Run a command; it ends with SystemExit, as cyclopts has it.

    Raises:
        ValueError: If the words are not a command and options that it takes.
    """
    command = [word for word in words[:1] if word in COMMANDS]
    for name in command:
        app[name].help = None  # its own page shows its whole docstring
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        page = shlex.join(["robustviz", *command, "--help"])
        raise ValueError(f"{str(error).rstrip('.')}; see {page}") from error


def command_line() -> str:
    """Return what the user typed, as the records of results keep it."""
    return shlex.join(["robustviz", *sys.argv[1:]])


def _number(type_: Any, tokens: Sequence[Any]) -> float:
    """Read 0.03 as well as 8/255."""
    text = tokens[0].value
    try:
        number = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"must be a number or a fraction such as 8/255, got {text!r}") from error
    if number < 0:
        raise ValueError(f"must be >= 0 on the [0, 1] pixel scale, got {text}")
    return number


Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Radius = Annotated[float | None, Parameter(converter=_number)]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))]


def writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be created or written to, before the work whose results go there; leave no trace.

    Args:
        option: The option that names the place, such as --out.
        folder: Folder for the results; it and folders above it may be missing.

    Raises:
        ValueError: If the nearest existing folder is a file or takes no new files.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"{option} must lie in a folder that can be written to, but {folder} cannot: {reason}; choose another place"
        ) from error


def unused(option: str, folder: Path, force: bool) -> None:
    """Refuse a folder for results that cannot be written to, or that is not empty.

    Args:
        option: The option that names the folder, such as --out.
        folder: Folder for the results.
        force: Whether it may hold something.

    Raises:
        ValueError: If it cannot be written to.
        FileExistsError: If it is not empty, unless `force`.
    """
    writable(option, folder)
    if folder.exists() and not force and any(folder.iterdir()):
        raise FileExistsError(
            f"{option} {folder} is there and not empty; choose another folder, or add --force to write into it"
        )


def new_file(option: str, path: Path, force: bool, kind: str = "file") -> None:
    """Refuse a file name for results that is a folder, cannot be written, or exists.

    Raises:
        ValueError: If its folder cannot be written to.
        IsADirectoryError: If it is a folder.
        FileExistsError: If it exists, unless `force`.
    """
    writable(option, path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder; name a {kind}")
    if path.exists() and not force:
        raise FileExistsError(f"{option} {path} exists; choose another name or add --force")


def say(message: str) -> None:
    """Print above a progress bar, at once; of several processes that work together, only the first one prints."""
    from tqdm.auto import tqdm

    from robustviz.distributed import processes

    if processes().first:
        tqdm.write(message)
        sys.stdout.flush()
