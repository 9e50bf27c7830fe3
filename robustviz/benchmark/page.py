"""RESULTS.md: the tables of all measured networks and a verdict on every claim, written from the records alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path
from typing import Any

from robustviz.benchmark.claims import RULE, TITLES, claims, verdict
from robustviz.benchmark.record import CARLINI_WAGNER, NetworkResults, Suite, share
from robustviz.checkpoints import shipped
from robustviz.evaluation import CLEAN
from robustviz.records import table

Measured = Mapping[str, NetworkResults]


TITLE = "# Results on CIFAR-10"
"""First line of the page; the command `results` replaces no other page unasked."""


def read_results(folder: Path) -> dict[str, NetworkResults]:
    """Read every record of a folder, in alphabetical order.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = {path.stem: NetworkResults.load(path) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise FileNotFoundError(f"{folder} holds no results; measure some networks first")
    return found


def write_page(measured: Measured, command: str = "robustviz results --write-only") -> str:
    """Lay the results out as Markdown.

    Args:
        measured: By the names of the networks.
        command: What writes the page again.
    """
    parts = [
        TITLE,
        f"Written by `{command}` from the records in `data/results`; no number is typed by hand. "
        f"{_data(measured)} Figures in parentheses are 95 % intervals (Wilson) for the finite number of images. "
        "Robust accuracy is an upper bound: a stronger attack may find more.",
        "## Claims of the papers",
        RULE,
        _claims(measured),
        "## Accuracy in percent",
        _common(measured),
        _reading(measured),
        "## Every attack",
        "`common`: as published; `adaptive`: made for the defense; `ensemble`: strong attacks that know of none; `heads`: "
        "WNLL answering one image at a time, and the linear head beside it. Where attacks of the ensemble follow each "
        "other, a figure is what the attack and those before it leave.",
        *(_every(entry) for entry in measured.values()),
        "## How the networks were trained",
        _training(measured),
        _missing(measured)
        + "Given again by:\n\n"
        + "\n".join(f"    {entry.network['command']}" for entry in measured.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _data(measured: Measured) -> str:
    sets = sorted({source(entry.data["name"], entry.data["pictures"]) for entry in measured.values()})
    counts = sorted({entry.conditions[CLEAN].count for entry in measured.values() if CLEAN in entry.conditions})
    threats = sorted({f"{entry.threat['norm']}, epsilon {entry.threat['epsilon']:.4g}" for entry in measured.values()})
    return (
        f"The images are {' and '.join(sets)}: {' or '.join(map(str, counts))} test images for a network, drawn "
        f"evenly from the classes. The attacker's limits are {'; '.join(threats)}."
    )


def source(name: str, pictures: bool) -> str:
    """Say what images are: those that torchvision fetches, or a folder of pictures."""
    title = {"cifar10": "CIFAR-10"}.get(name, name)
    return f"JPEG-decoded {title} pictures" if pictures else title


def _claims(measured: Measured) -> str:
    rows, absent, count = list[list[str]](), list[str](), Counter[str]()
    names = [name for entry in measured.values() for name in entry.conditions]
    steps = next((int(name.removeprefix("IFGSM-")) for name in names if name.startswith("IFGSM-")), 20)
    for claim in claims(steps):
        outcome = verdict(claim, measured)
        network = TITLES[claim.network] if claim.network else "no network named"
        if outcome.text.startswith("not tested"):
            absent.append(
                f"{claim.what} ({network}; {claim.figures}; {claim.source}): {outcome.text.removeprefix('not tested (').removesuffix(')')}"
            )
            continue
        count[outcome.text.rpartition(": ")[2]] += 1
        figures = [bare(measured.get(name), claim.condition) for name in (claim.before, claim.after)]
        rows.append(
            [
                claim.what,
                f"{network}; {claim.source}",
                claim.figures,
                " -> ".join(figures) if all(figures) else "-",
                gain(outcome.published),
                gain(outcome.worst),
                outcome.text,
            ]
        )
    headers = [
        "claim",
        "network and source",
        "paper",
        "here",
        "gain, attack of the paper",
        "gain, worst case",
        "verdict",
    ]
    tested = ", ".join(f"{number} {text}" for text, number in sorted(count.items())) or "none"
    words = f"In short: of {len(rows) + len(absent)} claims, {tested}; {len(absent)} not tested."
    listed = ["Not tested:\n\n" + "\n".join(f"- {line}" for line in absent)] if absent else []
    return "\n\n".join([words, *([table(headers, rows)] if rows else []), *listed])


def gain(value: tuple[float, float, float] | None) -> str:
    """Write a gain in points with its interval."""
    return "-" if value is None else f"{value[0]:+.1f} ({value[1]:+.1f} to {value[2]:+.1f})"


def bare(entry: NetworkResults | None, condition: str) -> str:
    """Write an accuracy as the papers do: the error without attack, else what is right; empty if not measured."""
    if entry is None or condition not in entry.conditions:
        return ""
    accuracy = 100 * share(entry.right(condition))[0]
    return f"{100 - accuracy:.1f} % error" if condition == CLEAN else f"{accuracy:.1f} %"


def percent(entry: NetworkResults, names: Sequence[str]) -> str:
    """Write what is right under all named conditions, in percent, with its interval."""
    if not names or any(name not in entry.conditions for name in names):
        return "-"
    accuracy, (low, high) = share(entry.correct(*names))
    return f"{100 * accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _common(measured: Measured) -> str:
    names = list(dict.fromkeys(name for entry in measured.values() for name in entry.members("common")))
    headers = ["network", *names, "CW-L2, median distance", "ensemble", "adaptive attacks", "worst case", "attacks"]
    return table(headers, [_row(entry, names) for entry in measured.values()])


def _row(entry: NetworkResults, names: Sequence[str]) -> list[str]:
    distance = entry.median_distance() if CARLINI_WAGNER in entry.conditions else None
    written = "-" if distance is None else "none found" if isinf(distance) else f"{distance:.3f}"
    cells = [percent(entry, [name]) for name in names] + [written]
    suites: list[Suite] = ["ensemble", "adaptive"]
    for suite in suites:
        members = entry.members(suite)
        cells.append(percent(entry, [CLEAN, *members]) if members else "-")
    behind = entry.worst_members()
    attacks = len(behind) - 1  # clean images are one of them
    return [entry.name, *cells, percent(entry, behind) if attacks else "-", str(attacks)]


def _reading(measured: Measured) -> str:
    draws = any("draws" in each.setting for entry in measured.values() for each in entry.conditions.values())
    few = [entry.conditions[CARLINI_WAGNER] for entry in measured.values() if CARLINI_WAGNER in entry.conditions]
    counts = " or ".join(str(count) for count in sorted({condition.count for condition in few})) or "no"
    radii = " or ".join(f"{radius:g}" for radius in sorted({entry.threat["l2"] for entry in measured.values()}))
    return (
        "FGSM, IFGSM, PGD and CW-L2 are made as the papers made them: on the gradient of the linear head beside WNLL, on "
        f"the final logits of CAS, on the network without its TVM purifier. CW-L2 stands for {counts} images and counts "
        f"as a success only within an L2 distance of {radii}; its median distance is over the images that are right "
        "without attack. The ensemble (Auto-PGD, its targeted form, FMN, Square) knows of no defense, but follows the "
        "exact gradient of WNLL and passes TVM as the identity; each attack gets what those before left right, except "
        "with WNLL, where a batch is answered as a whole. The adaptive attacks are made for the defense. The worst case "
        "counts an image as right if it withstands all attacks but CW-L2; how many there are stands beside it, because "
        "a longer list finds more. " + (_SHARES if draws else _ONE_DRAW)
    )


_ONE_DRAW = "Behind TVM every attack is answered with other masks, so the worst case also counts bad luck."

_SHARES = (
    "A network that draws at random answers every image several times, and WNLL in several batches: figures are shares "
    "of these answers, and the worst case is chosen on one half of them and scored on the other."
)


def _every(entry: NetworkResults) -> str:
    rows = [
        [
            name,
            condition.suite,
            ", ".join(f"{key} {value}" for key, value in cost(condition.setting["attack"]).items()) or "-",
            percent(entry, [name]),
            str(condition.count),
            f"{condition.seconds:.0f}",
        ]
        for name, condition in entry.conditions.items()
    ]
    return f"### {entry.name}\n\n{table(['condition', 'kind', 'settings', 'accuracy', 'images', 'seconds'], rows)}"


def cost(attack: Mapping[str, Any] | None) -> dict[str, Any]:
    """Find what decides how much an attack costs, in its description and in those of its parts."""
    found: dict[str, Any] = {}
    for key, value in (attack or {}).items():
        if isinstance(value, Mapping):
            found |= cost(value)
        elif key in ("steps", "search_steps", "targets", "restarts", "draws") and value != 1:
            found[key.replace("_", " ")] = value
    return found


def _training(measured: Measured) -> str:
    headers = ["network", "what", "attack", "images", "data", "epochs", "schedule", "precision", "minutes"]
    return table(headers, [[entry.name, *_trained(entry)] for entry in measured.values()])


def _missing(measured: Measured) -> str:
    """Say which networks a reader has to train."""
    absent = [name for name in measured if name not in shipped()]
    return f"These do not come with the library: {', '.join(absent)}. " if absent else ""


def _trained(entry: NetworkResults) -> list[str]:
    network = entry.network
    what = [TITLES[network["network"]], *(name.upper() for name in network["defenses"])]
    what += ["TVM versions in training"] if network["augmented"] else []
    what[-1] += f", begun with {network['start']}" if network["start"] else ""
    attack, rate = network["attack"], network["learning_rate"]
    steps = f"{attack['function'].upper()}-{attack['steps']}" if attack else "none"
    pictures = network["pictures"] or (network["data"] == entry.data["name"] and entry.data["pictures"])
    return [
        " + ".join(what),
        "FGSM with random start" if attack and attack["steps"] == 1 else steps,
        str(network["images"] or "-"),
        source(network["data"], pictures),
        str(network["epochs"]),
        f"{network['schedule']}, rate {rate}, batch {network['batch_size']}",
        str(network["precision"]),
        f"{network['seconds'] / 60:.1f}",
    ]
