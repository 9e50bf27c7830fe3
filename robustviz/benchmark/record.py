"""Figures of trained networks, kept as records: what was measured, image by image, and what a network is."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from robustviz.data import TORCHVISION_SETS, ImageSet
from robustviz.defenses import known
from robustviz.evaluation import CLEAN, bootstrap, wilson
from robustviz.evaluation.shares import cross_fitted, lowest_set
from robustviz.fingerprint import fingerprint
from robustviz.records import RunRecord, describe, versions, write_atomic
from robustviz.types import Threat

Suite = Literal["common", "ensemble", "adaptive", "heads"]
"""`common`: clean images and the attacks of the papers, as published; `ensemble`: strong attacks that know of no
defense; `adaptive`: attacks made for the network's defense; `heads`: clean images through the other heads of WNLL, and
the assembled set of a network that answers jointly."""

CARLINI_WAGNER = "CW-L2"

ASSEMBLED = "assembled set"
"""Condition in which each image is attacked by what half of the draws chose for it; see `robustviz.evaluation.shares`."""


@dataclass(frozen=True)
class Condition:
    """Decisions of a network under one attack, image by image.

    Attributes:
        suite: What the attack belongs to.
        setting: The attack, number of images, batch size and seed: what must be the same to be kept.
        right: `1` for every image that is classified correctly, `0` for the others; several draws are parted by
            spaces.
        distances: Length of every perturbation, for attacks that look for the nearest adversarial image.
        seconds: How long it took.
    """

    suite: Suite
    setting: dict[str, Any]
    right: str
    distances: list[float]
    seconds: float

    @property
    def answers(self) -> Bool[Tensor, "d n"]:
        """Whether each answer is right; one row for each draw."""
        return torch.tensor([[digit == "1" for digit in draw] for draw in self.right.split()])

    @property
    def correct(self) -> Bool[Tensor, "n"]:
        """Whether each image is right in at least half of the draws."""
        return self.answers.double().mean(0) >= 0.5

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.right.split()[0])

    def within(self, radius: float) -> Bool[Tensor, "d n"]:
        """Whether each answer is right or the perturbation longer than `radius`."""
        return self.answers | (torch.tensor(self.distances) > radius + 1e-6)


@dataclass(frozen=True)
class NetworkResults:
    """Everything measured on one network.

    Attributes:
        name: Name of the network.
        network: What it is and how it was trained, from its checkpoint.
        data: Name of the test images, and whether they come from a folder of pictures.
        threat: Norm and radius of every attack but Carlini & Wagner's, which is judged within `l2`.
        identity: Checksums of the weights and of all test images.
        conditions: By name, in the order measured.
        versions: Versions of the software.
    """

    name: str
    network: dict[str, Any]
    data: dict[str, Any]
    threat: dict[str, Any]
    identity: dict[str, str]
    conditions: dict[str, Condition] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    def correct(self, *names: str) -> Bool[Tensor, "d n"]:
        """Whether each answer is right in the worst of the named conditions, on the images that all of them have.

        With one draw, an image must be right under all of them. With several, the worst condition is chosen on one
        half of the draws and scored on the other: image by image, or for a network that answers jointly as a whole.

        Raises:
            KeyError: If a condition was not measured.
        """
        jointly = any(self.conditions[name].setting.get("jointly") for name in names)
        if jointly and ASSEMBLED in self.conditions and set(names) >= set(self.worst_members()):
            names = (ASSEMBLED, *names)
        rows = [self.right(name) for name in sorted(names, key=CLEAN.__eq__)]  # of equals an attack is chosen
        draws, count = (min(row.shape[axis] for row in rows) for axis in (0, 1))
        right = torch.stack([row[:draws, :count] for row in rows])
        if draws == 1:
            return right.all(0)
        return lowest_set(right) if jointly else cross_fitted(right)

    def right(self, name: str) -> Bool[Tensor, "d n"]:
        """Whether each answer is right under one condition; Carlini & Wagner count within their radius."""
        condition = self.conditions[name]
        return condition.within(self.threat["l2"]) if condition.distances else condition.answers

    def members(self, *suites: Suite) -> list[str]:
        """Names of the conditions of some suites."""
        return [name for name, condition in self.conditions.items() if condition.suite in suites]

    def worst_members(self) -> list[str]:
        """Conditions behind the worst case: every attack within the threat, and the clean images."""
        return [name for name in self.members("common", "ensemble", "adaptive") if name != CARLINI_WAGNER]

    def median_distance(self) -> float:
        """Median distance of Carlini & Wagner's images over those right without attack; infinite if most withstand."""
        attacked, clean = self.conditions[CARLINI_WAGNER], self.conditions[CLEAN].correct
        distances = torch.tensor(attacked.distances).where(~attacked.correct, torch.inf)
        return distances[clean[: len(distances)]].median().item()

    def save(self, folder: Path) -> Path:
        """Write the record as `NAME.json`, whole or not at all."""
        return write_atomic(folder / f"{self.name}.json", json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "NetworkResults":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        try:
            content = json.loads(path.read_text())
            conditions = {name: Condition(**entry) for name, entry in content.pop("conditions").items()}
            return cls(**content, conditions=conditions)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no results of a network ({error!r}); measure it again with --force"
            ) from error


def share(right: Bool[Tensor, "d n"]) -> tuple[float, tuple[float, float]]:
    """Accuracy and its 95 % interval: Wilson's with one draw, a bootstrap over images and draws with several."""
    accuracy = right.double().mean().item()
    return accuracy, wilson(accuracy, right.shape[1]) if len(right) == 1 else bootstrap(right)


def known_results(
    name: str,
    record: RunRecord,
    test_set: ImageSet,
    pictures: bool,
    threat: Threat,
    radius: float,
    folder: Path,
    *,
    force: bool = False,
) -> NetworkResults:
    """Read what is known of a network, or start with nothing if there is nothing about these weights and images.

    Args:
        name: Name of the network.
        record: Record of its checkpoint.
        test_set: Images to measure on.
        pictures: Whether they come from a folder of pictures.
        threat: Threat of the attacks.
        radius: Euclidean distance within which Carlini & Wagner must succeed.
        folder: Where the records are.
        force: Start again although there is a record that is damaged or of other weights or images.

    Raises:
        ValueError: If there is a damaged record.
        FileExistsError: If there is a record of other weights or images.
    """
    identity = {"weights": record.results["sha256"], "images": fingerprint(test_set.images, test_set.labels)}
    data = {"name": test_set.name, "pictures": pictures}
    began = NetworkResults(name, how_trained(record), data, describe(threat) | {"l2": radius}, identity)
    if (path := folder / f"{name}.json").exists():
        try:
            found = NetworkResults.load(path)
        except ValueError:
            if not force:
                raise
            return began
        if (found.identity, found.threat) == (identity, began.threat):
            return replace(began, conditions=found.conditions)
        if not force:
            raise FileExistsError(
                f"{path} is about other weights, images or limits of the attacker; choose another folder or add --force"
            )
    return began


def how_trained(record: RunRecord) -> dict[str, Any]:
    """What a checkpoint's record says about network and training."""
    settings, made = record.settings, record.settings["architecture"]
    attack = settings.get("attack") or settings.get("objective", {}).get("attack")
    config = settings.get("training", {})
    return {
        "network": made.get("network", made["function"]),
        "defenses": [defense.name for defense in known() if made.get(defense.name)],
        "augmented": settings.get("augment", "none") != "none",
        "attack": attack and {key: attack.get(key) for key in ("function", "steps", "step_size", "threat")},
        "images": settings.get("training_images"),
        "data": Path(str(settings.get("data"))).name,
        "pictures": settings.get("data") not in ("digits", *TORCHVISION_SETS),
        "start": (settings.get("start") or {}).get("name"),
        "epochs": len(record.results.get("epochs", [])),
        "seconds": sum(log["seconds"] for log in record.results.get("epochs", [])),
        **{key: config.get(key) for key in ("schedule", "batch_size", "learning_rate", "precision", "seed")},
        "command": record.command,
    }
