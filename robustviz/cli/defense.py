"""Defenses on the command line: by name, or from a file of the user's own, and their options."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from cyclopts import CoercionError, convert
from docstring_parser import parse

from robustviz.defenses import Defense, known, named, registered
from robustviz.defenses.foreign import is_foreign, read_record


@contextmanager
def defenses(words: Iterable[str], trust: bool) -> Iterator[list[Defense]]:
    """Find the defenses that words name; those from files are known inside the block.

    Args:
        words: `none`, names of known defenses, or `FILE.py:NAME`.
        trust: Run the code of such files without asking.

    Raises:
        ValueError: If a word names none, or the code of a file is not to be run.
    """
    with ExitStack() as stack:
        found = []
        for word in words:
            if is_foreign(word):
                ask(f"--defense {word}", trust)
                found.append(stack.enter_context(registered(read_record(word))))
            elif word != "none":
                found.append(named(word))
        yield list({defense.name: defense for defense in found}.values())


def ask(what: str, trust: bool, place: str = "that file") -> None:
    """Ask at a terminal whether foreign code may run.

    Args:
        what: What the user typed that needs the code.
        trust: Run it without asking.
        place: Where the code is.

    Raises:
        ValueError: If it may not, or there is nobody to ask.
    """
    if trust:
        return
    question = f"{what} runs the code of {place}. Do you trust it? [y/N] "
    if not sys.stdin.isatty() or input(question).strip().lower() not in ("y", "yes"):
        raise ValueError(f"{what} runs the code of {place}; read it, and add --trust if you trust it")


def options_of(chosen: Sequence[Defense], given: Mapping[str, str]) -> dict[str, Any]:
    """Read the options of defenses from the words of the command line.

    Args:
        chosen: The defenses.
        given: Words by the names of the options.

    Raises:
        ValueError: If an option belongs to none of the defenses, or a word is no value of it.
    """
    kinds: dict[str, Any] = {}
    for defense in chosen:
        kinds |= {name: kind for name, kind in get_type_hints(defense.options).items() if name in defense.option_names}
    read: dict[str, Any] = {}
    for key, word in given.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise ValueError(f"--{key} is no option of train{_owners(name, chosen)}; see robustviz train --help")
        try:
            read[name] = int(word) if kinds[name] is int else convert(kinds[name], [word])
        except (CoercionError, ValueError) as error:
            raise ValueError(f"--{key} must be {_kind(kinds[name])}, got {word!r}") from error
    return read


def _owners(name: str, chosen: Sequence[Defense]) -> str:
    """Say whose option it is, if it is one of another defense, or which option is meant."""
    owners = [defense.name for defense in known() if name in defense.option_names]
    if owners:
        return f" without --defense {' or '.join(owners)}"
    near = get_close_matches(name, [each for defense in chosen for each in defense.option_names], 1)
    return f" (--{near[0].replace('_', '-')} is)" if near else ""


def _kind(kind: Any) -> str:
    """Say in words what an option takes."""
    if get_origin(kind) is not None and all(isinstance(value, str) for value in get_args(kind)):
        return " or ".join(get_args(kind))
    return {int: "a whole number", float: "a number", bool: "yes or no"}.get(kind, "of another kind")


def defenses_help() -> str:
    """List the defenses, for the help of a command."""
    listed = ", ".join(f"{defense.name} ({defense.title})" for defense in known())
    return f"none, {listed}, or FILE.py:NAME for a record of your own; give the option once for each defense."


def options_help() -> str:
    """Describe the options of every known defense, for the help of a command."""
    return " ".join(_help_of(defense) for defense in known() if defense.option_names)


def _help_of(defense: Defense) -> str:
    hints = get_type_hints(defense.options)
    described = {each.arg_name: each.description for each in parse(defense.options.__doc__ or "").params}
    told = [
        f"--{each.name.replace('_', '-')} ({_kind(hints[each.name])}; default "
        f"{'yes' if each.default is True else 'no' if each.default is False else each.default}): "
        f"{' '.join((described.get(each.name) or '').split())}"
        for each in fields(defense.options)
    ]
    return f"With --defense {defense.name}: {' '.join(told)}"
