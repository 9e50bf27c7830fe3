"""`python -m robustviz.cli` is `robustviz`."""

from robustviz.cli import main

main()
