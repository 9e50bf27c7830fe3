"""The command `compare`."""

from pathlib import Path
from typing import Literal

from robustviz.cli.app import Count, say, writable
from robustviz.evaluation.comparison import RESULTS


def compare(
    name: Literal["wnll", "cas", "tvm"],
    /,
    *,
    seeds: Count = 3,
    out: Path = RESULTS,
    force: bool = False,
) -> None:
    """Compare a defense with the undefended network, under published and adaptive attacks, over seeds.

    Trains the networks of every seed and takes many minutes. Writes the figures as JSON and prints them as tables: mean
    and standard deviation in percent, and how many attacks stand behind each worst case.

    Args:
        name: wnll: the interpolating activation against the softmax; cas: suppressing channels against not doing so;
            tvm: purified images, and training that has seen them, against neither.
        seeds: How many seeds, from 0.
        out: Folder for the JSON files.
        force: Replace files that exist.
    """
    from robustviz.studies.cas import compare_cas
    from robustviz.studies.tvm import compare_tvm
    from robustviz.studies.wnll import compare_wnll

    run = {"wnll": compare_wnll, "cas": compare_cas, "tvm": compare_tvm}[name]
    writable("--out", out)
    if existing := [file for file in out.glob(f"{name}*.json") if not force]:
        raise FileExistsError(f"--out {out} holds {existing[0].name} already; choose another folder or add --force")
    for comparison in run(range(seeds), say):
        say(f"\n{comparison.to_markdown()}\n")
        comparison.save(file := out / f"{comparison.name}.json")
        say(f"wrote {file}")
