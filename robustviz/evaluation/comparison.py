"""Comparisons: networks, attacks, strengths and seeds in; accuracies, their spread and worst cases out."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustviz.data import ImageSet
from robustviz.defenses.defense import Contest, Kind
from robustviz.evaluation import CLEAN, RobustnessTable, evaluate
from robustviz.records import describe, table, versions, write_atomic
from robustviz.tensors import seeded
from robustviz.types import Norm, Threat

PUBLISHED, WORST_OF_ALL = "worst of published", "worst of all"
"""Names of the two derived rows: what the attacks of the paper leave, and what all attacks together leave."""

RESULTS = Path("data/results")
"""Where `robustviz compare` writes, from the folder it is started in."""


@dataclass(frozen=True)
class Comparison:
    """Accuracies of several networks, attack by attack, over strengths and seeds.

    Attributes:
        name: Name of the comparison.
        accuracies: `accuracies[network][epsilon][condition]`, one number for each seed, 0 to 1. Conditions are the
            clean images, every attack, and the two worst cases, image by image.
        kinds: Kind of each attack by its name.
        remarks: Other figures by name, one number for each seed.
        settings: Data, number of images, norm, steps, seeds and the like.
        versions: Versions of the software.
    """

    name: str
    accuracies: dict[str, dict[str, dict[str, list[float]]]]
    kinds: dict[str, Kind]
    remarks: dict[str, list[float]]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def networks(self) -> list[str]:
        """Names of the networks."""
        return list(self.accuracies)

    @property
    def epsilons(self) -> list[float]:
        """Strengths in pixel units, growing."""
        return sorted(float(key) for key in next(iter(self.accuracies.values())))

    def values(self, network: str, epsilon: float, condition: str) -> list[float]:
        """Accuracy for each seed; empty if the attack does not apply to the network."""
        return self.accuracies[network][f"{epsilon:.4g}"].get(condition, [])

    def mean(self, network: str, epsilon: float, condition: str) -> float:
        """Mean accuracy over the seeds; NaN if the attack does not apply to the network."""
        found = self.values(network, epsilon, condition)
        return statistics.fmean(found) if found else float("nan")

    def attacks(self, network: str) -> list[str]:
        """Attacks that the network was measured with, and so those behind its worst case."""
        conditions = next(iter(self.accuracies[network].values()))
        return [name for name in conditions if name in self.kinds]

    def rows(self, epsilon: float) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of the table at one strength: attacks down, networks across, mean and spread in percent."""
        every = list(dict.fromkeys(a for network in self.networks for a in self.attacks(network)))
        rows = []
        for condition in [CLEAN, *every, PUBLISHED, WORST_OF_ALL]:
            kind = self.kinds.get(condition)
            cells = [spread(self.values(network, epsilon, condition)) for network in self.networks]
            rows.append([f"{condition} ({kind})" if kind else condition, *cells])
        rows.append(["attacks behind the worst case", *(str(len(self.attacks(network))) for network in self.networks)])
        return [f"accuracy % at epsilon {epsilon:g}", *self.networks], rows

    def to_markdown(self) -> str:
        """Tables of all strengths, and the remarks."""
        parts = [table(*self.rows(epsilon)) for epsilon in self.epsilons]
        if self.remarks:
            parts.append(table(["also", "%"], [[name, spread(values)] for name, values in self.remarks.items()]))
        return "\n\n".join(parts)

    def save(self, path: Path | str) -> Path:
        """Write the comparison as JSON, whole or not at all."""
        return write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "Comparison":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a comparison: {error}") from error


def spread(shares: Sequence[float]) -> str:
    """Mean and, over several seeds, standard deviation, in percent."""
    if not shares:
        return "-"
    text = f"{100 * statistics.fmean(shares):.1f}"
    return text if len(shares) == 1 else f"{text} ± {100 * statistics.stdev(shares):.1f}"


@dataclass(frozen=True)
class Entry:
    """A network of one seed with the attacks that apply to it.

    Attributes:
        model: In evaluation mode.
        contests: Makes the attacks at a threat, by name.
        remarks: Other figures by name.
    """

    model: nn.Module
    contests: Callable[[Threat], Mapping[str, Contest]]
    remarks: Mapping[str, float] = field(default_factory=dict)


def compare(
    name: str,
    entries: Callable[[int], Iterator[tuple[str, Entry]]],
    test_set: ImageSet,
    *,
    seeds: Sequence[int],
    epsilons: Sequence[float],
    settings: Mapping[str, Any],
    norm: Norm = "linf",
    batch_size: int = 256,
    say: Callable[[str], Any] = lambda message: None,
) -> Comparison:
    """Attack every network of every seed at every strength.

    Args:
        name: Name of the comparison.
        entries: Trains or loads the networks of a seed, one after the other.
        test_set: Images to attack.
        seeds: One column of figures each.
        epsilons: Strengths in pixel units, which differ in their first four digits.
        settings: What else the record should say.
        norm: Norm of the strengths.
        batch_size: Images at a time.
        say: Called with a line of text when a network has been measured.

    Raises:
        ValueError: If there is no seed or no strength, or two strengths are too close to be told apart in the record.
    """
    keys = [f"{epsilon:.4g}" for epsilon in epsilons]
    if not len(seeds) or not keys or len(set(keys)) < len(keys):
        raise ValueError(
            "epsilons must be one or more that differ in their first four digits, and seeds one or more, got "
            f"{list(epsilons)} and {list(seeds)}"
        )
    accuracies: dict[str, dict[str, dict[str, list[float]]]] = {}
    kinds: dict[str, Kind] = {}
    remarks: dict[str, list[float]] = {}
    for seed in seeds:
        for network, entry in entries(seed):
            for key, epsilon in zip(keys, epsilons, strict=True):
                contests = entry.contests(Threat(norm, epsilon))
                attacks = {label: contest.attack for label, contest in contests.items()}
                measured = evaluate(
                    entry.model,
                    test_set.images,
                    test_set.labels,
                    attacks,
                    batch_size=batch_size,
                    generator=seeded(seed),
                )
                row = accuracies.setdefault(network, {}).setdefault(key, {})
                for condition, share in _shares(measured, contests).items():
                    row.setdefault(condition, []).append(share)
                kinds |= {label: contest.kind for label, contest in contests.items()}
            for remark, share in entry.remarks.items():
                remarks.setdefault(remark, []).append(share)
            found = accuracies[network][keys[-1]]
            say(
                f"seed {seed}, {network}, epsilon {epsilons[-1]:g}: clean {found[CLEAN][-1]:.1%}, "
                f"{PUBLISHED} {found[PUBLISHED][-1]:.1%}, {WORST_OF_ALL} {found[WORST_OF_ALL][-1]:.1%}"
            )
    recorded = {"seeds": list(seeds), "images": len(test_set), "norm": norm, "batch_size": batch_size, **settings}
    return Comparison(name, accuracies, kinds, remarks, recorded)


def describe_contests(contests: Mapping[str, Contest]) -> Any:
    """Turn contests into JSON, without a threat: every strength of a comparison brings its own."""
    return _without_threat(describe(dict(contests)))


def _without_threat(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_threat(item) for key, item in value.items() if key != "threat"}
    return [_without_threat(item) for item in value] if isinstance(value, list) else value


def _shares(measured: RobustnessTable, contests: Mapping[str, Contest]) -> dict[str, float]:
    """Accuracy under each condition, and image by image under all published and under all attacks."""
    published = [CLEAN, *(label for label, contest in contests.items() if contest.kind == "published")]
    return measured.accuracies() | {PUBLISHED: measured.worst_case(published), WORST_OF_ALL: measured.worst_case()}
