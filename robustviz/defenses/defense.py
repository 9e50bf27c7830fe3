"""A defense is one record: whatever the rest of the program needs to know of it is in its own file or folder.

The command line, checkpoints, training, evaluation, comparison, diagnosis and features walk the records (`known`) and
name none of them. Several defenses on one network are trained together and answer together.

    class MyLayer(nn.Module): ...
    MINE = Defense("mine", "My layer", "our paper, section 3", present=has_layer, build=put_layer)
    with registered(MINE):
        ...  # train, evaluate, compare, diagnose, load checkpoints
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import Field, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustviz.data import ImageSet
from robustviz.models import Classifier
from robustviz.types import Attack, Objective, Threat

Kind = Literal["published", "adaptive"]


@dataclass(frozen=True)
class Contest:
    """One attack that a network is measured with.

    Attributes:
        attack: Settings fixed with `partial`.
        kind: `"published"` for what a paper measured its defense with, `"adaptive"` for what is made for the defense.
    """

    attack: Callable[..., Any]
    kind: Kind = "adaptive"

    def at(self, threat: Threat) -> "Contest":
        """Fix the threat of the attack, or of the attack inside an attack that is made of another one."""
        return replace(self, attack=_innermost(self.attack, {"threat": threat}))

    def with_steps(self, steps: int) -> "Contest":
        """Change the number of steps, where the innermost attack fixes one."""
        fixed = "steps" in _settings(self.attack)
        return replace(self, attack=_innermost(self.attack, {"steps": steps})) if fixed else self


def _settings(attack: Any) -> dict[str, Any]:
    """Settings that are fixed on the innermost attack."""
    keywords = getattr(attack, "keywords", {})
    return _settings(keywords["attack"]) if "attack" in keywords else keywords


def _innermost(attack: Any, settings: Mapping[str, Any]) -> Attack:
    inner = getattr(attack, "keywords", {}).get("attack")
    return partial(attack, **settings) if inner is None else partial(attack, attack=_innermost(inner, settings))


def at(contests: Mapping[str, Contest], threat: Threat) -> dict[str, Contest]:
    """Fix the threat of every contest."""
    return {name: contest.at(threat) for name, contest in contests.items()}


@runtime_checkable
class Config(Protocol):
    """What the stages of a defense may read of a `TrainConfig`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def epochs(self) -> int:
        """Passes through the training part."""

    @property
    def batch_size(self) -> int:
        """Images in one update."""

    @property
    def learning_rate(self) -> float:
        """The largest learning rate."""

    @property
    def seed(self) -> int:
        """Decides everything random."""


@dataclass(frozen=True)
class Training:
    """What learns, on what, and with which objective, attack and monitor.

    A defense is handed the training as it would be without it, and makes its stages from it.

    Attributes:
        model: The network, with the defense as `Defense.build` makes it; the stages change it in place.
        image_set: Images of both parts.
        held: Indices of the part that chooses the epoch.
        config: Optimizer, schedule, augmentation and seed.
        objective: What is lowered.
        attack: What replaces every batch; None trains on clean images.
        monitor: What measures robust accuracy on the held-out part.
        pretrained: Whether the model begins with trained weights.
        versions: How many versions of each image the training part has.
        cache: Folder for what takes long to compute and is needed again; None keeps nothing.
        within: Makes the block of code in which the stage trains, such as one that freezes a part of the model.
        before_validation: Called when an epoch's updates are done, to bring up to date what follows from the weights.
        behind: Stages of the defenses that are trained inside this one, as functions of the training.
    """

    model: Classifier
    image_set: ImageSet
    held: Tensor
    config: Config
    objective: Objective
    attack: Attack | None = None
    monitor: Attack | None = None
    pretrained: bool = False
    versions: int = 1
    cache: Path | None = None
    within: Callable[[Classifier], AbstractContextManager[Any]] = nullcontext
    before_validation: Callable[[], Any] | None = None
    behind: "Sequence[Callable[[Training], Iterator[Stage]]]" = ()

    @property
    def kept(self) -> Tensor:
        """Indices of the part that is learned from."""
        mask = torch.ones(len(self.image_set), dtype=torch.bool)
        mask[self.held] = False
        return mask.nonzero().squeeze(1)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def configured(self, **changes: Any) -> "Training":
        """Change fields of the config, such as `epochs`."""
        return replace(self, config=replace(self.config, **changes))

    def stages(self) -> "Iterator[Stage]":
        """Give the stages of the defenses behind this one; without any, the one stage of an ordinary training."""
        if self.behind:
            first, *others = self.behind
            yield from first(replace(self, behind=others))
        else:
            yield Stage("training", training=self)


@dataclass(frozen=True)
class Stage:
    """One step of a training: epochs, or a pass that gathers something and has no epochs.

    Attributes:
        name: Names the stage and the file that its interrupted training goes on from.
        title: Said when the stage begins; empty says nothing.
        training: What learns; None if nothing does.
        gather: Called once after the epochs, or in place of them, in evaluation mode and without gradients: sets what
            the model needs to know, such as statistics of its training images.
    """

    name: str
    title: str = ""
    training: Training | None = None
    gather: Callable[[], Any] | None = None


@dataclass(frozen=True)
class NoOptions:
    """Options of a defense that has none."""


def itself(classifier: Classifier) -> nn.Module:
    """View: the network itself."""
    return classifier


def _ordinary(training: Training, options: Any) -> Iterator[Stage]:
    """Train a network with the defense as any other."""
    return training.stages()


def _no_settings(classifier: Classifier) -> dict[str, Any]:
    return {}


def _no_contests(classifier: Classifier, threat: Threat) -> dict[str, Contest]:
    return {}


@dataclass(frozen=True)
class Defense:
    """Everything that the rest of the program needs to know of a defense.

    Attributes:
        name: The word of the command line, of checkpoints and files: lower-case letters, digits and underscores.
        title: For tables and pages.
        source: The paper.
        present: Whether a network has the defense.
        build: `(classifier, **settings) -> classifier`: puts the defense on a network that lacks it. Called without
            settings before training, on a new or a trained network, and with `settings` before weights are loaded.
        settings: The settings with which `build` makes the network again; plain values that JSON can hold.
        options: Frozen dataclass of what may be set for training, each field with a default; the command line makes an
            option of every field.
        stages: `(training, options) -> stages`: how a network is trained with the defense. `training.stages()` are the
            stages without it. What follows the last stage is run too.
        published: The view of the network that the defense's paper attacked; `itself` if that is the network.
        attacks: Attacks made for the defense, by name, at a threat. Behind a purifier that draws at random they are
            those of the purifier's defense, which follow the exact gradient of the head.
        without: The same network without the defense; None where taking it out breaks the network.

    Raises:
        ValueError: If the name cannot be one, or the options are no frozen dataclass with defaults.
    """

    name: str
    title: str
    source: str
    present: Callable[[nn.Module], bool]
    build: Callable[..., Classifier]
    stages: Callable[..., Iterator[Stage]] = _ordinary
    published: Callable[[Classifier], nn.Module] = itself
    attacks: Callable[[Classifier, Threat], dict[str, Contest]] = _no_contests
    without: Callable[[Classifier], Classifier] | None = None
    settings: Callable[[Classifier], dict[str, Any]] = _no_settings
    options: type[Any] = field(default=NoOptions)

    def __post_init__(self) -> None:
        plain = self.name.replace("_", "a")
        if not (plain.isascii() and plain.isalnum() and plain.islower() and self.name[0].isalpha()):
            raise ValueError(f"name must be of lower-case letters, digits and underscores, got {self.name!r}")
        if self.name in RESERVED:
            raise ValueError(f"name must be another word than {', '.join(sorted(RESERVED))}, got {self.name!r}")
        if not getattr(getattr(self.options, "__dataclass_params__", None), "frozen", False):
            raise ValueError(f"options must be a frozen dataclass, got {self.options!r}")
        self.options()  # every field needs a default

    def configured(self, given: Mapping[str, Any], network: Classifier | None = None) -> Any:
        """Make options of the given ones; others are as in a network that has the defense, else the defaults."""
        own = self.settings(network) if network is not None and self.present(network) else {}
        given = {**own, **given}
        return self.options(**{name: given[name] for name in self.option_names if name in given})

    @property
    def option_names(self) -> tuple[str, ...]:
        """Names of the fields of the options."""
        return tuple(each.name for each in fields(self.options))


RESERVED = frozenset({"none", "network", "classes", "channels", "function"})
"""Words that a checkpoint or the command line uses for something else."""

_REGISTERED: list[Defense] = []


def known() -> tuple[Defense, ...]:
    """Every defense, those inside a network before those in front of it, and those registered now at the end."""
    from robustviz.defenses import DEFENSES  # which is made of records, and so of this file

    return (*DEFENSES, *_REGISTERED)


def named(name: str) -> Defense:
    """Find a defense by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    for defense in known():
        if defense.name == name:
            return defense
    raise ValueError(
        f"defense must be one of {', '.join(defense.name for defense in known())}, got {name!r}; one of your own needs "
        "`with registered(...)`, or --defense FILE.py:NAME on the command line"
    )


def present(network: nn.Module) -> tuple[Defense, ...]:
    """Find the defenses that a network has, in the order of `known`."""
    return tuple(defense for defense in known() if defense.present(network))


@contextmanager
def registered(record: Defense) -> Iterator[Defense]:
    """Make a defense of one's own known inside the block of code.

    Raises:
        ValueError: If its name is taken.
    """
    if record.name in [defense.name for defense in known()]:
        raise ValueError(f"name must be new, but there is a defense {record.name!r} already; give yours another name")
    _REGISTERED.append(record)
    try:
        yield record
    finally:
        _REGISTERED[:] = [defense for defense in _REGISTERED if defense is not record]
