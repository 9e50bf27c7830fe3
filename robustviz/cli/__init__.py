"""The command line: `robustviz --help` lists its commands.

This package imports no PyTorch; a command's file does, when it is called.
"""

import os
import sys
from typing import NoReturn

from robustviz.cli.app import app, run

__all__ = ["app", "main", "run"]


def main() -> None:
    """Run the command line; errors that a user can fix are one line, without a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as with `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":  # started by a launcher
            from robustviz.distributed import processes

            processes()  # a GPU for each of several processes, before any of them takes one
        try:
            run(sys.argv[1:])
        finally:
            sys.stdout.flush()  # a closed pipe is noticed here and not when Python ends
    except BrokenPipeError:
        _quiet()
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"robustviz: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("\nrobustviz: interrupted; a command that has --resume goes on with it", file=sys.stderr)
        sys.exit(130)


def _quiet() -> NoReturn:
    """End without a word, as programs do whose reader has left: `robustviz checkpoints | head -1`."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still in the buffer goes there
    sys.exit(1)
