"""The main job on handwritten digits: train two networks, attack them, and write one page about it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from robustviz.attacks import fgsm, ifgsm, pgd
from robustviz.data import ImageSet, digits
from robustviz.evaluation import Gallery, RobustnessTable, Sweep, evaluate, sweep
from robustviz.models import Classifier, initialized, small_cnn
from robustviz.pages.cas import cas_section
from robustviz.pages.geometry import geometry_section
from robustviz.pages.report import Grid, Picture, Section, write_report
from robustviz.pages.tvm import tvm_section
from robustviz.pages.wnll import wnll_section
from robustviz.plots import plot_accuracy, plot_gallery
from robustviz.records import RunRecord, describe, table
from robustviz.tensors import seeded
from robustviz.training import TrainConfig, train
from robustviz.training.state import EpochLog
from robustviz.types import Attack, Threat

THREAT = Threat("linf", 0.15)
"""On 8x8 digits with 17 gray levels, 0.15 is about two and a half levels: a person still reads every digit."""

_EPSILONS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_ATTACKS: Mapping[str, Callable[..., Any]] = {
    "FGSM": fgsm,
    "IFGSM-20": partial(ifgsm, steps=20),
    "PGD-20": partial(pgd, steps=20),
}
STANDARD, HARDENED = "standard", "adversarially trained"

SECTIONS: Mapping[str, Callable[[int], Section]] = {
    "WNLL": wnll_section,
    "the feature space of WNLL": geometry_section,
    "TVM": tvm_section,
    "CAS": cas_section,
}
"""What the page says about defenses, on networks that come with the library."""

_Say = Callable[[str], Any]


@dataclass(frozen=True)
class Trained:
    """A network of the demo and how it came about."""

    model: Classifier
    logs: list[EpochLog]


def run_demo(out: Path, *, seed: int = 0, say: _Say = lambda message: None) -> tuple[Path, str]:
    """Run the demo and write `out/index.html`, its pictures, and the tables as JSON.

    Args:
        out: Folder for the results; files of the same names are replaced.
        seed: Decides initial weights, order and random starts.
        say: Called with a line of text whenever something is done.

    Returns:
        The page, and a table for the terminal.
    """
    training_set, test_set = digits("train"), digits("test")
    networks = {
        STANDARD: train_digits(training_set, None, seed),
        HARDENED: train_digits(training_set, partial(pgd, threat=THREAT, steps=10), seed),
    }
    for name, network in networks.items():
        seconds = sum(log.seconds for log in network.logs)
        say(f"trained the {name} network: {len(network.logs)} epochs in {seconds:.0f} s")
    sweeps: dict[tuple[str, str], Sweep] = {}
    for name, network in networks.items():
        for label, attack in _ATTACKS.items():
            sweeps[name, label] = sweep(
                network.model, test_set.images, test_set.labels, attack, _EPSILONS, generator=seeded(seed)
            )
        say(f"attacked the {name} network with {', '.join(_ATTACKS)} at {len(_EPSILONS) - 1} strengths")
    tables = {name: _at_threat(network.model, test_set, seed) for name, network in networks.items()}
    record = RunRecord("demo", _settings(seed), _results(networks, tables), command=f"robustviz demo --seed {seed}")
    sections = [
        _what_was_done(networks),
        _curves(sweeps),
        _gallery(networks, test_set, seed),
        _table(tables),
    ]
    for name, section in SECTIONS.items():
        sections.append(section(seed))
        say(f"measured {name}: published against adaptive attacks")
    sections.append(_again(seed))
    page = write_report(
        out / "index.html",
        "How robust are two networks that read digits?",
        "Two equal networks learn to read handwritten digits, one from the images as they are, one from images that an "
        "attacker has changed. Then both are attacked, harder and harder.",
        sections,
        record,
    )
    record.save(out / "record.json")
    for name, measured in tables.items():
        measured.save(out / f"{name.split()[0]}.json")
    return page, table(*_rows(tables))


def train_digits(training_set: ImageSet, attack: Attack | None, seed: int) -> Trained:
    """Train the small network on digits; with an attack, adversarially (Madry et al., arXiv 1706.06083)."""
    model = initialized(partial(small_cnn, classes=10, channels=1), seed)
    logs = train(model, training_set.images, training_set.labels, TrainConfig(seed=seed), attack=attack)
    return Trained(model.eval(), logs)


def _at_threat(model: Classifier, test_set: ImageSet, seed: int) -> RobustnessTable:
    attacks = {name: partial(attack, threat=THREAT) for name, attack in _ATTACKS.items()}
    return evaluate(model, test_set.images, test_set.labels, attacks, generator=seeded(seed))


def _settings(seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "data": "digits",
        "network": describe(partial(small_cnn, classes=10, channels=1)),
        "training": asdict(TrainConfig(seed=seed)),
        "training_attack": describe(partial(pgd, threat=THREAT, steps=10)),
        "attacks": describe({name: partial(attack, threat=THREAT) for name, attack in _ATTACKS.items()}),
        "epsilons": list(_EPSILONS),
    }


def _results(networks: Mapping[str, Trained], tables: Mapping[str, RobustnessTable]) -> dict[str, Any]:
    return {
        name: {
            "accuracy": tables[name].accuracies(),
            "worst_case": tables[name].worst_case(),
            "epochs": [asdict(log) for log in networks[name].logs],
        }
        for name in networks
    }


def _what_was_done(networks: Mapping[str, Trained]) -> Section:
    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    rows = []
    for name, network in networks.items():
        best = [log for log in network.logs if log.chosen][-1]
        seconds = f"{sum(log.seconds for log in network.logs):.0f} s"
        shares = [percent(best.clean_accuracy), percent(best.robust_accuracy)]
        rows.append([name, str(len(network.logs)), str(best.epoch), *shares, seconds])
    return Section(
        "What was done",
        [
            "The data are scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,438 to learn from (a tenth of them "
            "held out to choose the epoch), 359 to test on. The network has four convolutions and 66,000 weights.",
            "The attacker may change every pixel by at most epsilon, on a scale where 0 is black and 1 is white. "
            f"Adversarial training shows the network nothing but images attacked by PGD-10 at epsilon = {THREAT.epsilon}.",
        ],
        tables=[Grid(["network", "epochs", "chosen epoch", "clean, held out", "PGD-10, held out", "time"], rows)],
    )


def _curves(sweeps: Mapping[tuple[str, str], Sweep]) -> Section:
    figure = plot_accuracy(sweeps).figure
    at = {key: dict(zip(s.epsilons, s.accuracies(), strict=True))[THREAT.epsilon] for key, s in sweeps.items()}
    standard, hardened = (at[name, "PGD-20"] for name in (STANDARD, HARDENED))
    alt = (
        f"Accuracy against attack strength for both networks and three attacks. At epsilon {THREAT.epsilon} PGD-20 leaves "
        f"{standard:.0%} of the standard and {hardened:.0%} of the adversarially trained network's decisions right."
    )
    caption = "Accuracy on 359 test images. Bands are 95 % intervals (Wilson): what so few images leave open."
    return Section(
        "Accuracy against attack strength",
        [
            "FGSM takes one large step along the sign of the gradient; IFGSM-20 takes twenty small ones; PGD-20 does the "
            "same from a random start. The further a curve falls, the better the attack. Where the iterated attacks fall "
            "below FGSM, one step was too crude to find what is there.",
            f"At epsilon = {THREAT.epsilon}, PGD-20 leaves {standard:.1%} of the standard network's decisions right and "
            f"{hardened:.1%} of the adversarially trained network's. These are upper bounds: a stronger attack may find more.",
        ],
        [Picture.of("accuracy", figure, alt, caption)],
    )


def _gallery(networks: Mapping[str, Trained], test_set: ImageSet, seed: int) -> Section:
    shown = test_set.subset(6, seeded(seed, 1))
    attack = partial(pgd, threat=THREAT, steps=20)
    galleries = []
    for name, network in networks.items():
        attacked = attack(network.model, shown.images, shown.labels, generator=seeded(seed))
        galleries.append(Gallery.of(name, network.model, shown.images, attacked, shown.labels, shown.classes))
    fooled = [int((g.attacked_confidence.argmax(1) != g.labels).sum()) for g in galleries]
    alt = (
        f"Six digits, clean and attacked, with the change and the decision. The attack fools the standard network on "
        f"{fooled[0]} of them and the adversarially trained network on {fooled[1]}."
    )
    caption = (
        f"Each network against its own attacker, PGD-20 at epsilon = {THREAT.epsilon}. Below the pictures: decision and "
        "confidence under attack (✓ right, ✗ wrong), and, below the change, what the network said before it. Gray means no change."
    )
    return Section(
        "What the attacker does",
        [
            "Every pixel moves by at most epsilon. Read the attacked digits yourself before you look at the decision: "
            "where you still see the old digit and the network does not, it is the network that fails."
        ],
        [Picture.of("gallery", plot_gallery(galleries), alt, caption)],
    )


def _table(tables: Mapping[str, RobustnessTable]) -> Section:
    headers, rows = _rows(tables)
    return Section(
        f"The figures at epsilon = {THREAT.epsilon}",
        ["The worst case counts an image as right only if it withstands every attack of the table."],
        tables=[Grid(headers, rows)],
    )


def _rows(tables: Mapping[str, RobustnessTable]) -> tuple[list[str], list[list[str]]]:
    first = next(iter(tables.values()))
    rows = []
    for name, measured in tables.items():
        cells = []
        for condition in measured.conditions:
            low, high = measured.interval(condition)
            cells.append(f"{measured.accuracy(condition):.1%} ({low * 100:.0f}-{high * 100:.0f})")
        rows.append([name, *cells, f"{measured.worst_case():.1%}"])
    return ["accuracy (95 % interval)", *first.conditions, "worst case"], rows


def _again(seed: int) -> Section:
    commands = [
        ["robustviz", "demo", "--seed", str(seed)],
        ["robustviz", "train", "--data", "digits", "--seed", str(seed), "--out", "runs/standard"],
        ["robustviz", "train", "--data", "digits", "--attack", "pgd", "--seed", str(seed), "--out", "runs/hardened"],
        ["robustviz", "evaluate", "runs/hardened"],
    ]
    return Section(
        "Again, and on your own data",
        [
            "The first command writes this page again, the next two train the same networks, the last one attacks one. "
            "Replace digits by cifar10 or by a folder with one subfolder of pictures for each class."
        ],
        code="\n".join(shlex.join(command) for command in commands),
    )
