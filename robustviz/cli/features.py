"""The command `features`: the geometry of an attack on a trained network, as a page with figures and numbers."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from robustviz import checkpoints as stored
from robustviz.cli.app import Count, Radius, Seed, app, say, unused
from robustviz.cli.target import data_name, opened, retrained
from robustviz.data import DOWNLOADS, load
from robustviz.defenses import WNLLHead
from robustviz.geometry import MAP_NEIGHBORS, Embedding, Separation, separation_rows
from robustviz.models import Classifier
from robustviz.records import RunRecord, describe, table, write_atomic
from robustviz.studies.geometry import Pair, study_pair
from robustviz.types import Norm


@app.command
def features(
    checkpoint: str,
    *,
    beside: str | None = None,
    data: str | None = None,
    layer: str = "body",
    epsilon: Radius = None,
    norm: Norm | None = None,
    strengths: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 21,
    steps: Count = 10,
    training_images: Count = 2000,
    images: Count = 200,
    umap: bool = True,
    seed: Seed = 0,
    root: Path = DOWNLOADS,
    retrain: bool = False,
    out: Path = Path("runs/features"),
    force: bool = False,
) -> None:
    """Show where an attack carries images in the feature space of a trained network.

    Writes a page with every figure, the figures as PNG, the numbers as JSON and Markdown, the maps and the ways of the
    images as safetensors. The network is shown with a softmax and with a WNLL head, each under its published attack and
    under the strongest adaptive one. A head that is missing is put on it.

    Takes about a minute on two processor cores for a small network; the first run after an installation compiles UMAP
    for 20 seconds more.

    Args:
        checkpoint: A run folder, a .safetensors file, or a name that `robustviz checkpoints` lists.
        beside: Another checkpoint, whose softmax is shown in place of the network's own.
        data: As in `robustviz train`; default: what the network was trained on.
        layer: Whose features are looked at; body is what the head sees, and only there decisions are drawn.
        epsilon: How far the attacker may go, such as 8/255; default: what the record of the network says. The ways go
            up to twice as far.
        norm: linf or l2; default: what the record says.
        strengths: How many strengths a way has, 0 included.
        steps: Steps of the gradient attacks.
        training_images: Clean images that the maps are fitted on, drawn evenly from the classes; all if there are
            fewer, and at least 16.
        images: Test images that are attacked, drawn evenly from the classes; all if there are fewer.
        umap: Also draw a UMAP map, beside PCA.
        seed: Of the maps and of random starts.
        root: Folder of downloaded data sets; default data/downloads.
        retrain: First train the network anew, by the command in its record, into runs/retrained.
        out: Folder for the results.
        force: Write into the folder although it is not empty.
    """
    unused(out, force)
    checkpoint = retrained(checkpoint, data, root) if retrain else checkpoint
    model, test_set, threat = opened(checkpoint, data, norm, epsilon, images, "cpu", root)
    if len(test_set) == len(set(test_set.labels.tolist())):
        raise ValueError(
            f"--images must give some class two test images, because the spread of the classes is measured, got "
            f"{len(test_set)} of as many classes; give more, the default is 200"
        )
    data = data_name(stored.load(checkpoint)[1], data)
    other = None if beside is None else _beside(beside, checkpoint, data, root)
    pool = load(data, "train", root=root)
    training_set = pool.subset(min(training_images, len(pool)))
    if len(training_set) <= MAP_NEIGHBORS:
        raise ValueError(
            f"--training-images must be at least {MAP_NEIGHBORS + 1}, because every point of a map is placed by its "
            f"{MAP_NEIGHBORS} nearest, got {len(training_set)}"
            + (f": {data} holds no more" if len(training_set) == len(pool) else "; give more, the default is 2000")
        )
    say(f"{checkpoint} on {len(test_set)} test images of {test_set.name}, {threat.norm}, epsilon {threat.epsilon:.4g}")
    if isinstance(model.head, WNLLHead):
        pool = stored.template_source(checkpoint, pool)
    epsilons = [2 * threat.epsilon * i / (strengths - 1) for i in range(strengths)]
    settings: dict[str, Any] = {"layer": layer, "steps": steps, "seed": seed}
    pair = study_pair(model, training_set, test_set, threat, epsilons, pool=pool, beside=other, say=say, **settings)
    maps = {studied.name: studied.mapped("pca", seed) for studied in (pair.softmax, pair.wnll)}
    everyone = maps | ({"UMAP": pair.wnll.mapped("umap", seed)} if umap else {})
    say(f"made {len(everyone)} maps of {len(training_set)} training images")
    settings |= {"checkpoint": checkpoint, "beside": beside, "data": training_set.name, "threat": describe(threat)}
    settings |= {"training_images": len(training_set), "images": len(test_set), "strengths": epsilons}
    page, grid = write_results(out, pair, everyone, settings)
    say(f"\n{grid}\n\nopen {page}")


def _beside(name: str, checkpoint: str, data: str, root: Path) -> Classifier:
    """Load the other network, which must take the images of the first one and know their classes."""
    try:
        return opened(name, data, None, None, 1, "cpu", root)[0]
    except ValueError as error:
        raise ValueError(f"--beside {name} does not suit {checkpoint}: {error}") from error


def write_results(out: Path, pair: Pair, maps: dict[str, Embedding], settings: dict[str, Any]) -> tuple[Path, str]:
    """Write page, figures, numbers, maps and ways; return the page and a table for the terminal."""
    from robustviz.pages import closeup
    from robustviz.pages import geometry as write
    from robustviz.pages.report import write_report

    flat = {name: embedding for name, embedding in maps.items() if embedding.method == "pca"}
    numbers = write.numbers_of(pair, flat)
    sections = [write.heads_section(pair, flat)]
    both = {"PCA": maps[pair.wnll.name]}
    if "UMAP" in maps:
        sections.append(write.map_section(pair, maps["UMAP"]))
        both["UMAP"] = maps["UMAP"]
    sections += [write.ways_section(pair, both), write.numbers_section(pair, numbers)]
    sections += [closeup.plane_section(pair), closeup.votes_section(pair)]
    record = RunRecord("features", settings, numbers, command=shlex.join(["robustviz", *sys.argv[1:]]))
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
    for name, way in pair.wnll.ways.items():
        way.save(out / f"way-{name.split()[0]}.safetensors")
    return page, grid
