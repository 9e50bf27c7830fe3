"""The command `demo`."""

from pathlib import Path

from robustviz.cli.app import Seed, say, unused


def demo(*, out: Path = Path("runs/demo"), seed: Seed = 0, force: bool = False) -> None:
    """Train a standard and an adversarially trained network on digits, attack both, and write a page about it.

    Takes about a minute on two CPU cores. The page is one file that loads nothing from the internet.

    Args:
        out: Folder for the page and the tables.
        seed: Decides weights, order and random starts.
        force: Replace the page if there is one.
    """
    from robustviz.pages.demo import run_demo

    unused("--out", out, force)
    page, grid = run_demo(out, seed=seed, say=say)
    say(f"\n{grid}\n\nopen {page}")
