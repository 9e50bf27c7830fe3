"""The command line: `robustviz --help` lists its commands.

Every command is a typed function; cyclopts turns its signature and docstring into options and help.
"""

import sys

from robustviz.cli import attack_suite, compare, diagnose, evaluate, features, fetch, results, train
from robustviz.cli.app import app
from robustviz.distributed import processes

__all__ = ["app", "attack_suite", "compare", "diagnose", "evaluate", "features", "fetch", "main", "results", "train"]


def main() -> None:
    """Run the command line; errors a user can mend are one line, without a traceback."""
    try:
        processes()  # a GPU for each of several processes, before any of them takes one
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"robustviz: {error}")
    except KeyboardInterrupt:
        print("\nrobustviz: interrupted; a command that has --resume goes on with it", file=sys.stderr)
        sys.exit(130)
