"""Networks with their defenses in place, described by a few plain settings that a checkpoint can hold."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from robustviz.defenses.defense import known, named, present
from robustviz.models import MODELS, Classifier
from robustviz.networks import Source
from robustviz.networks.foreign import read_words


def defended(*, network: str | Mapping[str, Any], classes: int = 10, channels: int = 3, **defenses: Any) -> Classifier:
    """Make an untrained network with defenses.

    Args:
        network: Name of a network of `robustviz.models`, or anybody's: words that `open_network` takes, or the
            description of its `Source`.
        classes: Number of classes.
        channels: Channels of the images.
        **defenses: For each defense, by its name, the settings of its `build`; True is no settings, None and False are
            no defense. A setting may also be given beside them, as records of early versions have it (`buffer`).

    Raises:
        ValueError: If the network or a defense is unknown.
    """
    classifier = _network(network, classes, channels)
    settings = _by_defense(defenses)
    for defense in known():
        if defense.name in settings:
            classifier = defense.build(classifier, **settings[defense.name])
    return classifier


def _network(network: str | Mapping[str, Any], classes: int, channels: int) -> Classifier:
    """Make the network itself; random weights come from PyTorch's own generator."""
    if isinstance(network, str) and network in MODELS:
        return MODELS[network](classes=classes, channels=channels)
    if isinstance(network, str) and read_words(network) is None:
        raise ValueError(
            f"network must be one of {', '.join(MODELS)}, or words such as FILE.py:FUNCTION, got {network!r}"
        )
    source = Source(network) if isinstance(network, str) else Source.read(network)
    classifier = source.open(untrained=True, seed=None)
    if (outputs := getattr(classifier.head, "out_features", classes)) != classes:
        raise ValueError(f"network must have {classes} outputs, one for each class, but {source.spec} has {outputs}")
    return classifier


def _by_defense(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the settings of each defense that a network has."""
    wanted = {name: value for name, value in given.items() if value is not None and value is not False}
    names = [defense.name for defense in known()]
    settings = {name: {} if value is True else dict(value) for name, value in wanted.items() if name in names}
    for name, value in wanted.items():
        if name not in names:
            owners = [defense.name for defense in known() if name in signature(defense.build).parameters]
            settings.setdefault(named(owners[0] if owners else name).name, {})[name] = value
    return settings


def architecture(
    classifier: Classifier, *, network: str | Mapping[str, Any], classes: int, channels: int
) -> partial[Classifier]:
    """Describe a network: what makes it again, untrained, as `defended` with the settings of every defense it has."""
    settings = {defense.name: dict(defense.settings(classifier)) for defense in present(classifier)}
    return partial(defended, network=network, classes=classes, channels=channels, **settings)


def check_same_shape(start: Classifier, build: Callable[..., Classifier]) -> None:
    """Refuse a trained network whose weights do not fit another one.

    Raises:
        ValueError: If the networks differ in their modules or the shapes of their weights.
    """
    own, other = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (build(), start))
    if wrong := [name for name in {**own, **other} if own.get(name) != other.get(name)]:
        shapes = [str(of.get(wrong[0], "missing")) for of in (own, other)]
        raise ValueError(
            "start must be the same network with as many classes and channels; but "
            f"{wrong[0]} is {shapes[0]} here and {shapes[1]} there, and {len(wrong) - 1} more differ"
        )


BUILDERS: dict[str, Callable[..., Classifier]] = {**MODELS, "defended": defended}
"""Everything that a checkpoint may name as the maker of its network."""
