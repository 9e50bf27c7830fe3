"""Networks with their defenses in place, described by a few plain settings that a checkpoint can hold."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from robustviz.defenses.cas import with_cas
from robustviz.defenses.tvm import TVM
from robustviz.defenses.wnll import buffered
from robustviz.defenses.wnll_head import WNLLHead
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
        classifier = with_cas(classifier, classes)
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


BUILDERS: dict[str, Callable[..., Classifier]] = {**MODELS, "defended": defended}
"""Everything that a checkpoint may name as the maker of its network."""
