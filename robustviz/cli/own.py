"""Networks of the user's own on the command line: words for options of `open_network`, and clear refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustviz.cli.defense import ask
from robustviz.data import ImageSet
from robustviz.models import Classifier
from robustviz.networks import check_classes, open_network
from robustviz.networks.foreign import read_words

WEIGHTS = (".pt", ".pth", ".bin")


def is_own(checkpoint: str) -> bool:
    """Whether words name a network that robustviz did not train, or try to: code, or weights without code."""
    return read_words(checkpoint) is not None or checkpoint.endswith((".py", *WEIGHTS))


def permit(checkpoint: str, trust: bool) -> None:
    """Ask whether the code of a network may run, before anything is loaded.

    Raises:
        ValueError: If it may not, or the words do not say what builds the network.
    """
    words = read_words(checkpoint)
    if words is None:
        open_network(checkpoint)  # says what is missing
    elif not words.ours:
        ask(checkpoint, trust, "that file" if words.file else "that package")


def own_model(
    checkpoint: str,
    test_set: ImageSet,
    *,
    weights: Path | None = None,
    head: str | None = None,
    normalize: str | None = None,
    output: str | None = None,
    class_map: Sequence[str] = (),
) -> Classifier:
    """Open a network that robustviz did not train, which has a permit; the other arguments are options of `Target`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an option cannot be read, or the network cannot answer the images or has other classes.
    """
    mapping = _class_map(class_map)
    settings: dict[str, Any] = {
        "layer": head,
        "normalize": None if normalize is None else _normalization(normalize),
        "output": int(output) if output is not None and output.isdecimal() else output,
        "class_map": mapping or None,
        "classes": test_set.classes if mapping else None,
    }
    image = test_set[:1].images
    try:
        model = open_network(checkpoint, weights, trust=True, images=image, **settings)
        with torch.no_grad():
            outputs = model(image).shape[1]
    except (RuntimeError, AssertionError, IndexError) as error:
        shape, said = list(image.shape[1:]), str(error).strip().split("\n")[0]
        raise ValueError(
            f"{checkpoint} cannot answer images of shape {shape}: {said}; --resize and --crop change their size"
        ) from error
    count = len(test_set.classes)
    if outputs != count:
        raise ValueError(
            f"--data has {count} classes, but {checkpoint} answers with {outputs} logits; give a network of "
            f"{count}, or --class-map NAME=OUTPUT once for each class"
        )
    check_classes(model, test_set.classes)
    return model


def _class_map(pairs: Sequence[str]) -> dict[str, int]:
    """Read `cat=281`."""
    mapping = {}
    for pair in pairs:
        name, _, output = pair.rpartition("=")
        if not name or not output.isdecimal():
            raise ValueError(f"--class-map must be NAME=OUTPUT, such as cat=281, got {pair!r}")
        mapping[name] = int(output)
    return mapping


def _normalization(text: str) -> Any:
    """Read `imagenet`, `0.5/0.25` or `0.5,0.4,0.4/0.2,0.2,0.2`."""
    if text == "imagenet":
        return text
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError as error:
        raise ValueError(
            f"--normalize must be imagenet or MEAN/STD, such as 0.5/0.25 or 0.5,0.4,0.4/0.2,0.2,0.2, got {text!r}"
        ) from error
    return (mean[0], std[0]) if len(mean) == len(std) == 1 else (mean, std)
