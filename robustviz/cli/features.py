"""The command `features`: the geometry of an attack on a trained network, as a page with figures and numbers."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from robustviz.cli.app import Count, Seed, command_line, say, unused
from robustviz.cli.target import Opened, Target, knows_defenses
from robustviz.geometry import MAP_NEIGHBORS, Embedding, Separation, separation_rows
from robustviz.models import Classifier
from robustviz.records import RunRecord, describe, table, write_atomic
from robustviz.studies.geometry import Pair, pool_of, study_pair


@knows_defenses
def features(
    target: Target,
    *,
    beside: str | None = None,
    layer: str = "body",
    strengths: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 21,
    steps: Count = 10,
    training_images: Count = 2000,
    umap: bool = True,
    seed: Seed = 0,
    out: Path = Path("runs/features"),
    force: bool = False,
) -> None:
    """Show where an attack carries images in the feature space of a trained network.

    Writes a page with every figure, the figures as PNG, the numbers as JSON and Markdown, the maps and the paths of the
    images as safetensors. The network is shown with a softmax and with a WNLL head, each under its published attack and
    under the strongest adaptive one. A head that is missing is put on it.

    Takes about a minute on two CPU cores for a small network; the first run after an installation compiles UMAP
    for 20 seconds more.

    Args:
        target: What is shown; the paths of the images go up to twice epsilon.
        beside: Another checkpoint, whose softmax is shown in place of the network's own.
        layer: Layer whose features are shown; body is what the head sees, and only there decisions are drawn.
        strengths: How many strengths a path has, 0 included; it ends at twice epsilon.
        steps: Steps of the gradient attacks.
        training_images: Clean images that the maps are fitted on, drawn evenly from the classes; all if there are
            fewer, and at least 16.
        umap: Also draw a UMAP map, next to PCA.
        seed: Seed of the maps and of random starts.
        out: Folder for the results.
        force: Write into the folder although it is not empty.
    """
    unused("--out", out, force)
    opened = target.opened(200)
    name, model, test_set, threat = opened.name, opened.model, opened.images, opened.threat
    if len(test_set) == len(set(test_set.labels.tolist())):
        raise ValueError(
            f"--images must give some class two test images, because the spread of the classes is measured, got "
            f"{len(test_set)} of as many classes; give more, the default is 200"
        )
    other = None if beside is None else _beside(beside, opened, target)
    pool = target.load(opened.data, "train")
    training_set = pool.subset(min(training_images, len(pool)))
    if len(training_set) <= MAP_NEIGHBORS:
        raise ValueError(
            f"--training-images must be at least {MAP_NEIGHBORS + 1}, because every point of a map is placed by its "
            f"{MAP_NEIGHBORS} nearest, got {len(training_set)}"
            + (
                f": {opened.data} holds no more"
                if len(training_set) == len(pool)
                else "; give more, the default is 2000"
            )
        )
    say(str(opened))
    pool = pool_of(model, name, pool)
    epsilons = [2 * threat.epsilon * i / (strengths - 1) for i in range(strengths)]
    settings: dict[str, Any] = {"layer": layer, "steps": steps, "seed": seed}
    pair = study_pair(model, training_set, test_set, threat, epsilons, pool=pool, beside=other, say=say, **settings)
    maps = {studied.name: studied.mapped("pca", seed) for studied in pair.networks}
    everyone = maps | ({"UMAP": pair.networks[1].mapped("umap", seed)} if umap else {})
    say(f"made {len(everyone)} maps of {len(training_set)} training images")
    settings |= {"checkpoint": name, "beside": beside, "data": training_set.name, "threat": describe(threat)}
    settings |= {"training_images": len(training_set), "images": len(test_set), "strengths": epsilons}
    page, grid = _write_results(out, pair, everyone, settings)
    say(f"\n{grid}\n\nopen {page}")


def _beside(name: str, opened: Opened, target: Target) -> Classifier:
    """Load the other network, which must take the images of the first one and know their classes."""
    try:
        return target.beside(name, opened.data).opened(1).model
    except ValueError as error:
        raise ValueError(f"--beside {name} does not suit {opened.name}: {error}") from error


def _write_results(out: Path, pair: Pair, maps: dict[str, Embedding], settings: dict[str, Any]) -> tuple[Path, str]:
    """Write page, figures, numbers, maps and paths of the images; return the page and a table for the terminal."""
    from robustviz.pages import closeup
    from robustviz.pages import geometry as write
    from robustviz.pages.report import write_report

    flat = {name: embedding for name, embedding in maps.items() if embedding.method == "pca"}
    numbers = write.numbers_of(pair, flat)
    sections = [write.heads_section(pair, flat)]
    both = {"PCA": maps[pair.networks[1].name]}
    if "UMAP" in maps:
        sections.append(write.map_section(pair, maps["UMAP"]))
        both["UMAP"] = maps["UMAP"]
    sections += [write.ways_section(pair, both), write.numbers_section(pair, numbers)]
    sections += [closeup.plane_section(pair), closeup.votes_section(pair)]
    record = RunRecord("features", settings, numbers, command=command_line())
    title, lead = "Where attacks carry images", f"The feature space of {settings['checkpoint']}, clean and attacked."
    page = write_report(out / "index.html", title, lead, sections, record)
    record.save(out / "record.json")
    write_atomic(out / "numbers.json", json.dumps(numbers, indent=2) + "\n")
    grid = table(*separation_rows([Separation(**row) for row in numbers["conditions"]]))
    differ = [[name, f"{share:.1%}"] for name, share in pair.differ.items()]
    differing = table(["images", "decided differently by the two networks"], differ)
    write_atomic(out / "numbers.md", f"{grid}\n\n{differing}\n")
    for name, embedding in maps.items():
        embedding.save(out / f"map-{name.lower()}.safetensors")
    for name, way in pair.networks[1].ways.items():
        way.save(out / f"way-{name.split()[0]}.safetensors")
    return page, grid
