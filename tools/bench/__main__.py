"""Run the benches `bench_*.py` beside this file, or those whose name contains NAME, and print their ratios.

`strength` compares what the attacks reach instead, takes ten minutes (CIFAR-10 half an hour more), and runs only if it
is named.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if wanted == "strength":
        chosen, heading = (
            ["strength"],
            f"{'what':<39}{'against':<16}{'ours / theirs':<18}{'excess':>7}{'at most':>8}   met",
        )
    else:
        found = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
        chosen = [name for name in found if wanted in name]
        if not chosen:
            sys.exit(f"no bench is named {wanted!r}; there are {', '.join(found)}, strength")
        heading = f"{'what':<26}{'against':<22}{'median':>7}   {'min .. max':<18}{'target':>6}   met"
    print(heading, flush=True)
    for name in chosen:
        for line in importlib.import_module(f"tools.bench.{name}").main():
            print(line.row, flush=True)


if __name__ == "__main__":
    main()
