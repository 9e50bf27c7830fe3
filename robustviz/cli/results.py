"""The command `results`: measure trained networks for RESULTS.md, and write it."""

from pathlib import Path

from robustviz import checkpoints as stored
from robustviz.benchmark.measure import Effort, measure_network, plans
from robustviz.benchmark.page import TITLE, read_results, write_page
from robustviz.benchmark.record import NetworkResults, Suite, known_results
from robustviz.cli.app import Count, Seed, say, writable
from robustviz.cli.measure import progress
from robustviz.cli.target import Target, called, retrained
from robustviz.data import DOWNLOADS, TORCHVISION_SETS
from robustviz.distributed import processes
from robustviz.presets import stem, usual_threat
from robustviz.records import write_atomic

SUITES: tuple[Suite, ...] = ("common", "heads", "adaptive", "ensemble")


def results(
    *names: str,
    data: str = "cifar10",
    images: Count = 500,
    few: Count = 200,
    suites: tuple[Suite, ...] = SUITES,
    batch_size: Count = 256,
    steps: Count = 20,
    ensemble_steps: Count = 50,
    targets: Count = 4,
    square_steps: Count = 500,
    cw_steps: Count = 50,
    cw_search: Count = 5,
    draws: Count = 16,
    seed: Seed = 0,
    device: str = "auto",
    root: Path = DOWNLOADS,
    retrain: bool = False,
    out: Path | None = None,
    page: Path | None = None,
    write_only: bool = False,
    force: bool = False,
) -> None:
    """Measure trained networks against the claims of the papers, and write RESULTS.md from the records.

    Every attack is stored when it is finished. The same command measures only what is missing or was measured with
    other settings, so Ctrl-C is safe.

    Args:
        names: Networks that `robustviz checkpoints` lists, run folders or .safetensors files; default: all that come
            with the library and whose names begin like the data set's.
        data: What `robustviz train --data` takes.
        images: Test images, drawn evenly from the classes; all if there are fewer.
        few: The first of them, for Carlini & Wagner and for adaptive attacks through a purifier, which are slow.
        suites: common: the attacks of the papers, as published; heads: WNLL one image at a time, and its linear head;
            adaptive: attacks made for the defense; ensemble: Auto-PGD, its targeted form, FMN, Square.
        batch_size: Images at a time; WNLL answers jointly by these batches.
        steps: Steps of IFGSM and PGD.
        ensemble_steps: Steps of Auto-PGD and FMN.
        targets: Classes that targeted Auto-PGD tries.
        square_steps: Queries of Square.
        cw_steps: Steps of Carlini & Wagner, in each round.
        cw_search: Rounds of Carlini & Wagner.
        draws: How often a network answers that draws at random or answers a batch jointly; 1 counts luck.
        seed: Seed of the random starts.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        retrain: First train the networks again, by the commands in their records, into runs/retrained.
        out: Folder for the records, one for each network; default data/results/DATA.
        page: Where to write the page; default RESULTS.md for CIFAR-10, and OUT/RESULTS.md for other data.
        write_only: Measure nothing.
        force: Replace records that are damaged or of other weights or other images, and a page that is not of this
            command; without it they are left alone.
    """
    effort = Effort(
        images=images,
        few=few,
        batch_size=batch_size,
        steps=steps,
        ensemble_steps=ensemble_steps,
        targets=targets,
        square_steps=square_steps,
        cw_steps=cw_steps,
        cw_search=cw_search,
        seed=seed,
        draws=draws,
    )
    out = out or Path("data/results") / stem(data)
    page = page or (Path("RESULTS.md") if stem(data) == "cifar10" else out / "RESULTS.md")
    writable("--page", page.parent)
    if page.is_dir():
        raise IsADirectoryError(f"--page {page} is a folder; name a file")
    if page.exists() and not force and not page.read_bytes().startswith(f"{TITLE}\n".encode()):
        raise FileExistsError(f"--page {page} is no page of this command; choose another name or add --force")
    if not write_only:
        writable("--out", out)
        begins = f"{stem(data)}-"
        chosen = names or tuple(name for name in stored.shipped() if name.startswith(begins))
        if not chosen:
            raise ValueError(f"no network whose name begins with {begins} comes with the library; name one or more")
        for name in chosen:
            name = retrained(name, data, root) if retrain else name
            _measure(name, data, effort, suites, device, root, out, force)
    processes().wait()
    if processes().first:
        write_atomic(page, write_page(read_results(out)))
    say(f"wrote {page}")


def _measure(
    name: str, data: str, effort: Effort, suites: tuple[Suite, ...], device: str, root: Path, out: Path, force: bool
) -> None:
    """Measure one network and store its record."""
    opened = Target(name, data=data, device=device, root=root).opened(effort.images)
    test_set, threat, label = opened.images, opened.threat, called(name)
    pictures = data != "digits" and (data not in TORCHVISION_SETS or (root / data / "train").is_dir())
    radius = usual_threat(stem(data), "l2").epsilon
    known = known_results(label, opened.record, test_set, pictures, threat, radius, out, force=force)
    say(f"{label}: {len(test_set)} test images of {test_set.name}, {len(known.conditions)} conditions known")
    todo = plans(opened.model, threat, effort, suites)

    def store(found: NetworkResults) -> None:
        if processes().first:
            found.save(out)

    unfinished = out / f"{label}.unfinished"
    with progress() as advance:
        measure_network(
            opened.model, known, test_set, todo, effort, store=store, say=say, on_batch=advance, unfinished=unfinished
        )
