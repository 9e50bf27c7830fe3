"""Networks with their defenses in place, described by a few plain settings that a checkpoint can hold."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from robustviz.defenses.cas import CASBlock, with_cas
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll import buffered
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.models import MODELS, Classifier


def defended(
    *,
    network: str,
    classes: int = 10,
    channels: int = 3,
    cas: bool = False,
    buffer: bool = False,
    tvm: Mapping[str, Any] | None = None,
    wnll: Mapping[str, Any] | None = None,
) -> Classifier:
    """Make an untrained network with defenses in its slots.

    Args:
        network: Name of a network of `robustviz.models`.
        classes: How many classes there are.
        channels: Of the images.
        cas: Suppress channels after the last blocks (see `with_cas`).
        buffer: End the body in a buffer block (see `buffered`); a WNLL head wants one.
        tvm: Settings of a `TVM` that purifies the images; None for none.
        wnll: Settings of a `WNLLHead`, and `size`, the number of its template points, which are all zero until weights
            are loaded or the template is refreshed; None keeps the linear head.

    Raises:
        ValueError: If the network is unknown.
    """
    if network not in MODELS:
        raise ValueError(f"network must be one of {', '.join(MODELS)}, got {network!r}")
    classifier = MODELS[network](classes=classes, channels=channels)
    if cas:
        classifier = with_cas(classifier, classes, generator=torch.default_generator)  # as all other weights
    if buffer:
        classifier = buffered(classifier)
    if tvm is not None:
        classifier = classifier.replace(purify=TVM(**tvm))
    if wnll is not None:
        linear: Any = classifier.head
        settings = dict(wnll)
        size = settings.pop("size")
        template = torch.zeros(size, linear.in_features)
        head = WNLLHead(template, torch.arange(size) % classes, classes, linear=linear, **settings)
        classifier = classifier.replace(head=head)
    return classifier


def extended(start: Classifier, build: Callable[..., Classifier]) -> Classifier:
    """Copy a trained network and add what another one has and it lacks: CAS, or the buffer block.

    A buffer as wide as the features, which are never negative, starts as the identity: all decisions stay as they are.
    Any other starts untrained, with a new linear head.

    Args:
        start: Trained; its purifier and WNLL head are left out, the linear head beside that stays.
        build: Makes the other network, untrained.

    Returns:
        A network just like that of `build`, with the weights of `start` where it has some.

    Raises:
        ValueError: If the networks differ in anything else.
    """
    wanted, head = build(), start.head
    classifier = deepcopy(start.replace(purify=None, head=head.linear if isinstance(head, WNLLHead) else head))
    linear: Any = wanted.head
    if has_cas(wanted) and not has_cas(classifier):
        classifier = with_cas(classifier, linear.out_features, generator=torch.default_generator)
    if has_buffer(wanted) and not has_buffer(classifier):
        trained: Any = classifier.head
        classifier = buffered(classifier)
        buffer: Any = classifier.body.buffer
        if trained.in_features == linear.in_features:
            nn.init.eye_(buffer[0].weight)
            classifier.head = trained
    own, other = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (wanted, classifier))
    if wrong := [name for name in {**own, **other} if own.get(name) != other.get(name)]:
        shapes = [str(of.get(wrong[0], "missing")) for of in (own, other)]
        raise ValueError(
            "start must be the same network with as many classes and channels, and without a defense that is not "
            f"trained here; but {wrong[0]} is {shapes[0]} here and {shapes[1]} there, and {len(wrong) - 1} more differ"
        )
    return classifier


def has_cas(classifier: nn.Module) -> bool:
    """Tell whether a network suppresses channels."""
    return any(isinstance(module, CASBlock) for module in classifier.modules())


def has_buffer(classifier: Classifier) -> bool:
    """Tell whether the body ends in a buffer block."""
    return isinstance(getattr(classifier.body, "buffer", None), nn.Module)


BUILDERS: dict[str, Callable[..., Classifier]] = {**MODELS, "defended": defended}
"""Everything that a checkpoint may name as the maker of its network."""
