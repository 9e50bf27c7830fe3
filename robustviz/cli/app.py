"""What all commands share: the application, types of options, and how a line is printed."""

import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

from cyclopts import App, Parameter, validators
from tqdm.auto import tqdm

from robustviz.distributed import processes

app = App(
    name="robustviz",
    help="See, attack and harden image classifiers. Start with `robustviz demo`.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() says how to go on
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


def say(message: str) -> None:
    """Print above a progress bar, at once; of several processes that work together, the first one alone."""
    if not processes().first:
        return
    tqdm.write(message)
    sys.stdout.flush()
