"""The command `compare`."""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from robustviz.cli.app import Count, say, writable
from robustviz.cli.defense import defenses, options_help, options_of
from robustviz.data import DOWNLOADS, load
from robustviz.data.cache import cache_folder
from robustviz.defenses import Defense
from robustviz.distributed import processes
from robustviz.evaluation.comparison import RESULTS, Comparison
from robustviz.presets import usual_augmentation, usual_device, usual_threat
from robustviz.studies.pair import Setting, compare_defense
from robustviz.training import TrainConfig


def compare(
    name: str,
    /,
    *,
    data: str | None = None,
    model: str = "small_cnn",
    epochs: Count = 15,
    training_images: Count | None = None,
    images: Count = 200,
    seeds: Count = 3,
    device: str = "auto",
    root: Path = DOWNLOADS,
    out: Path = RESULTS,
    trust: bool = False,
    force: bool = False,
    **options: Annotated[str, Parameter(help=f"Options of the defense. {options_help()}")],
) -> None:
    """Compare a defense with the undefended network, under published and adaptive attacks, over seeds.

    Trains the networks of every seed and takes many minutes. Writes the figures as JSON and prints them as tables: mean
    and standard deviation in percent, and how many attacks stand behind each worst case.

    Args:
        name: A defense as `robustviz train --defense` takes it, also FILE.py:NAME.
        data: Data set, as `robustviz train` takes it; the networks are trained naturally and adversarially, without
            and with the defense. Default: the study of the defense, on digits, where it has one of its own; else
            digits.
        model: Network, as `robustviz train` takes it.
        epochs: Passes through the training images.
        training_images: Train on this many images, drawn evenly from the classes; default: on all.
        images: Attack this many test images, or all if there are fewer.
        seeds: How many seeds, from 0.
        device: auto, cpu, cuda, cuda:1, mps ...
        root: Folder of downloaded data sets; default data/downloads.
        out: Folder for the JSON files.
        trust: Run the code of FILE.py without asking.
        force: Replace files that exist.
        **options: Options of the defense.
    """
    with defenses([name], trust) as chosen:
        if not chosen:
            raise ValueError("name must be a defense, got none: there would be nothing to compare with")
        (defense,) = chosen
        writable("--out", out)
        if existing := [file for file in out.glob(f"{defense.name}*.json") if not force]:
            raise FileExistsError(f"--out {out} holds {existing[0].name} already; choose another folder or add --force")
        usual_device(device)  # refuses what is not there, also where the study of the defense chooses by itself
        if data is None and model != "small_cnn" and own_study(defense, seeds) is not None:
            raise ValueError(f"--model is used with --data; the study of {name} has its own network, got {model!r}")
        run: Callable[[], Iterable[Comparison]] | None = own_study(defense, seeds) if data is None else None
        if run is None:
            data = data or "digits"
            training_set, test_set = (load(data, part, root=root) for part in ("train", "test"))
            setting = Setting(
                training_set.subset(min(training_images or len(training_set), len(training_set))),
                test_set.subset(min(images, len(test_set))),
                usual_threat(data),
                model,
                TrainConfig(epochs=epochs, **usual_augmentation(data)),
                options_of(chosen, options),
                usual_device(device),
                cache_folder(),
            )
            found: Iterable[Comparison] = [compare_defense(defense, setting, range(seeds), say)]
        elif options:
            raise ValueError(f"--{next(iter(options))} is used with --data; the study of {name} has its own settings")
        else:
            found = run()
        for comparison in found:
            say(f"\n{comparison.to_markdown()}\n")
            file = out / f"{comparison.name}.json"
            if processes().first:
                comparison.save(file)
            say(f"wrote {file}")


def own_study(defense: Defense, seeds: int) -> Callable[[], Iterable[Comparison]] | None:
    """Find the study of a defense: `compare_NAME(seeds, say)` in the file of its name in `studies`."""
    try:
        study: Any = import_module(f"robustviz.studies.{defense.name}")
    except ModuleNotFoundError as error:
        if error.name != f"robustviz.studies.{defense.name}":
            raise
        return None
    run = getattr(study, f"compare_{defense.name}", None)
    return None if run is None else lambda: run(range(seeds), say)
