"""Anybody's network as a `Classifier`: features, head and logits of a module that was not written for this library.

    network = own_network(torchvision.models.resnet18(), normalize="imagenet")

The module is neither copied nor changed: the body runs it and takes what goes into its head, the head is its own layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.models import Classifier, Normalize
from robustviz.networks.tracing import Call, agree, example, trace, untouched, unwrapped
from robustviz.types import Images, Logits

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that most networks trained on ImageNet expect."""

Normalization = Sequence[float | Sequence[float]] | str
"""(mean, std), each one number or one for each channel; or "imagenet"."""


class UpTo(nn.Module):
    """A module up to the input of one of its layers: what goes in there are the features.

    Args:
        network: The whole module; it works on a copy of the images, so it may write into them.
        layer: Name of the layer in it, which it calls once.
    """

    def __init__(self, network: nn.Module, layer: str):
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images: Images) -> Float[Tensor, "n ..."]:
        """Return features, and run what comes after them for nothing."""
        given: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], settings: dict[str, Any]) -> None:
            given.append([*inputs, *settings.values()][0])

        layer = self.network.get_submodule(self.layer)
        handle = layer.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
        try:
            self.network(images.clone())
        finally:
            handle.remove()
        if len(given) != 1:
            raise ValueError(
                f"layer must be called once in a forward pass, but {self.layer} is called {len(given)} times"
            )
        return given[0]


class ChosenLogits(nn.Module):
    """A head of which some outputs are the logits, or whose one output z becomes the logits (0, z).

    Args:
        layer: The head.
        outputs: Which outputs are the logits, in their order; None for the one output z.
    """

    def __init__(self, layer: nn.Module, outputs: tuple[int, ...] | None = None):
        super().__init__()
        self.layer, self.outputs = layer, outputs
        self.in_features: int | None = getattr(layer, "in_features", None)
        self.out_features = 2 if outputs is None else len(outputs)

    def forward(self, features: Float[Tensor, "n d"]) -> Logits:
        """Return logits."""
        logits = self.layer(features)
        if self.outputs is not None:
            return logits[:, list(self.outputs)]
        return torch.cat([torch.zeros_like(logits), logits], 1)


def own_network(
    module: nn.Module,
    *,
    layer: str | None = None,
    normalize: Normalization | None = None,
    output: str | int | None = None,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, int] | None = None,
    images: Images | None = None,
) -> Classifier:
    """Make a `Classifier` of any module; its logits are checked to be those of the module on one image.

    Args:
        module: Is shared, not copied; modes, hooks and parametrizations stay. Of a compiled or wrapped one
            (`torch.compile`, `DataParallel`) the module inside is used.
        layer: Name of the head, such as "fc" or "heads.head"; None takes the last linear layer that runs. What goes
            into it are the features, (n, d).
        normalize: (mean, std) of the images, one number or one for each channel; "imagenet"; or None if the module
            normalizes by itself.
        output: Key or index of the logits, if the module returns a dictionary or tuple.
        classes: Names of the classes in the order of the logits, two for a module with one output z, which becomes
            the logits (0, z).
        class_map: Which output means which of the classes, by name, if there are more outputs or another order; then
            these outputs alone are the logits.
        images: At least one image that the module accepts; None makes one (see `robustviz.networks.example`).

    Returns:
        The classifier, in the mode of the module; `features` and `replace(head=...)` work.

    Raises:
        TypeError: If the module is a function, or a scripted or exported program.
        ValueError: If its answers are not logits, the head cannot be found, something runs after the head, or the
            classes do not fit the logits.
    """
    network = unwrapped(_checked(module))
    if isinstance(network, Classifier):
        if any(setting is not None for setting in (layer, normalize, output, classes, class_map)):
            raise ValueError("module is a Classifier already; change its slots by `replace` and leave out settings")
        return network
    images = example(network) if images is None else images[:1]
    normalizer = _normalizer(normalize).to(images)
    normalized = normalizer(images)
    calls = trace(network, normalized)
    logits = _logits(calls[-1].output, output)
    layer = _head(calls) if layer is None else layer
    if layer not in dict(network.named_modules()) or not layer:
        raise ValueError(
            f"layer must be one of {', '.join(filter(None, dict(network.named_modules())))}, got {layer!r}"
        )
    body, head = UpTo(network, layer), network.get_submodule(layer)
    classifier = Classifier(body, head, normalize=normalizer)
    with untouched(classifier):
        features = body(normalized)
        if not isinstance(features, Tensor) or features.dim() != 2:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"what goes into the head must have shape (n, features), but {layer} gets {shape}")
        answer = head(features)
    if not (isinstance(answer, Tensor) and agree(logits, answer)):
        raise ValueError(
            f"logits must come straight from the head, but after {layer} the module runs {_after(calls, layer)}; leave "
            "that out of the module, or name another layer"
        )
    classifier.head, classifier.classes = _named(head, logits.shape[1], classes, class_map)
    for new in set(classifier.modules()) - set(network.modules()):
        new.training = network.training
    return classifier


def _checked(module: Any) -> nn.Module:
    """Refuse what cannot be looked into, with what to do instead."""
    if isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise TypeError(
            "module must be built in Python, got a scripted program; build the network and load its weights"
        )
    if isinstance(module, torch.export.ExportedProgram):
        raise TypeError(
            "module must be built in Python, got an exported program; build the network and load its weights"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, got {type(module).__name__}; call a function in the forward method of "
            "a module that has its layers"
        )
    return module


def _normalizer(normalize: Normalization | None) -> nn.Module:
    if normalize is None:
        return nn.Identity()
    if normalize == "imagenet":
        normalize = IMAGENET
    if isinstance(normalize, str) or len(normalize) != 2:
        raise ValueError(f"normalize must be (mean, std), 'imagenet' or None, got {normalize!r}")
    mean, std = (list(part) if isinstance(part, Sequence) else part for part in normalize)
    return Normalize(mean, std)


def _logits(answer: Any, output: str | int | None) -> Float[Tensor, "n k"]:
    """Take the logits (n, K) out of what a module returns for one image; one output may be (n,)."""
    if output is not None:
        try:
            answer = answer[output]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"output must be a key or index of what the module returns, got {output!r}") from error
    if not isinstance(answer, Tensor):
        known = ", ".join(map(repr, answer)) if isinstance(answer, Mapping) else None
        known = f"0 to {len(answer) - 1}" if isinstance(answer, Sequence) else known
        remedy = f"; give output, one of {known}" if known else ""
        raise ValueError(f"module must return a tensor of logits, got {type(answer).__name__}{remedy}")
    if answer.numel() == 1:
        answer = answer.reshape(1, 1)
    if answer.dim() != 2 or len(answer) != 1 or not answer.is_floating_point():
        raise ValueError(f"module must return logits of shape (n, classes), got {tuple(answer.shape)} for one image")
    if wrong := int((~answer.isfinite()).sum()):
        raise ValueError(f"logits must be finite, but {wrong} of {answer.numel()} are not; are the weights damaged?")
    return answer


def _head(calls: Sequence[Call]) -> str:
    """Name the last linear layer that ran."""
    linear = [call.name for call in calls if isinstance(call.module, nn.Linear) and call.name]
    if not linear:
        raise ValueError("module must call a linear layer as its head, but calls none; name the head by `layer`")
    return linear[-1]


def _after(calls: Sequence[Call], layer: str) -> str:
    """Name what runs after the head, but for the modules around it."""
    last = max((i for i, call in enumerate(calls) if call.name == layer), default=len(calls))
    later = [c for c in calls[last + 1 :] if c.name and not layer.startswith(f"{c.name}.")]
    named = [f"{call.name} ({type(call.module).__name__})" for call in later]
    return ", ".join(named[:3]) or "an operation that is no module, such as a softmax or a factor in `forward`"


def _named(
    head: nn.Module, outputs: int, classes: Sequence[str] | None, class_map: Mapping[str, int] | None
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Hold the names of the classes against the outputs."""
    if class_map is not None:
        classes = tuple(class_map) if classes is None else classes
        if lost := [name for name in classes if name not in class_map]:
            raise ValueError(f"class_map must name an output for every class, but lacks {', '.join(lost[:3])}")
        chosen = tuple(class_map[name] for name in classes)
        if len(set(chosen)) < len(chosen) or len(chosen) < 2 or not all(0 <= index < outputs for index in chosen):
            raise ValueError(f"class_map must name different outputs from 0 to {outputs - 1}, got {list(chosen)}")
        return ChosenLogits(head, chosen), tuple(classes)
    count = max(outputs, 2)
    if classes is not None and (len(classes) != count or len(set(classes)) != count):
        raise ValueError(
            f"classes must be {count} different names, one for each logit, got {len(classes)}; class_map says which "
            "output means which class"
        )
    return (ChosenLogits(head) if outputs == 1 else head), (None if classes is None else tuple(classes))


def check_classes(network: nn.Module, classes: Sequence[str]) -> None:
    """Refuse images of other classes than those of the network, as far as its classes are known.

    Raises:
        ValueError: If names or their order differ.
    """
    own = getattr(network, "classes", None)
    if own is not None and tuple(own) != tuple(classes):
        raise ValueError(
            f"images must have the classes of the network ({', '.join(own[:5])} ...); give a class_map, because they "
            f"have {', '.join(classes[:5])} ..."
        )
