"""Networks opened by words: a shipped name, a run folder, a file with a function, or a library's network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from robustviz.models import Classifier
from robustviz.networks.foreign import Words, built, load_weights, module_file, read_words, sha256, version
from robustviz.networks.own import Normalization, own_network
from robustviz.tensors import seeded
from robustviz.types import Images

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Let networks be opened inside the block that run code of others; False changes nothing."""
    before = _TRUSTED.set(trust or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(before)


@dataclass(frozen=True)
class Source:
    """Where a network comes from: what opens it again, and what it was made of.

    Attributes:
        spec: See `open_network`.
        weights: See `open_network`.
        settings: The other settings of `open_network` that are not None.
        shape: (c, h, w) of the images that it was opened with; None if there were none.
        sha256: Checksum of every file that was named, by the word or path that names it.
        versions: Version of every package that code came from.
    """

    spec: str
    weights: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    shape: Sequence[int] | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Source":
        """Read what `records.describe` wrote of a source.

        Raises:
            ValueError: If it is not one.
        """
        try:
            return cls(**{name: value for name, value in record.items() if name != "type"})
        except TypeError as error:
            raise ValueError(f"record must have {', '.join(f.name for f in fields(cls))}: {error}") from error

    def changed(self) -> list[str]:
        """Say what is not as it was: files that are gone or differ, packages of another version."""
        lines = []
        for name, checksum in self.sha256.items():
            if (path := _file(name)) is None:
                lines.append(f"{name} is gone")
            elif (now := sha256(path)) != checksum:
                lines.append(f"{name} was {checksum[:12]}... and is {now[:12]}... (sha256)")
        for package, before in self.versions.items():
            if (now := version(package)) != before:
                lines.append(f"{package} was {before} and is {now}")
        return lines

    def open(self, *, trust: bool = False, untrained: bool = False, seed: int | None = 0) -> Classifier:
        """Open the network again.

        Args:
            trust: See `open_network`.
            untrained: Leave the weights out, whose file may be gone then.
            seed: See `open_network`.

        Raises:
            ValueError: If a file is gone or differs, or the network cannot be opened; with what changed.
        """
        if untrained and self.weights is not None:
            kept = {name: checksum for name, checksum in self.sha256.items() if name != self.weights}
            return replace(self, weights=None, sha256=kept).open(trust=trust, seed=seed)
        changed = self.changed()
        if any(line.endswith(("(sha256)", "is gone")) for line in changed):
            raise ValueError(
                f"{self.spec} is not what it was: {'; '.join(changed)}; restore it, or open it as it is now"
            )
        images = None if self.shape is None else torch.rand(1, *self.shape, generator=seeded(0))
        try:
            return open_network(self.spec, self.weights, trust=trust, seed=seed, images=images, **self.settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{error}{''.join(f'; since then, {line}' for line in changed)}") from error


def open_network(
    spec: Path | str,
    weights: Path | str | None = None,
    *,
    trust: bool = False,
    layer: str | None = None,
    normalize: Normalization | None = None,
    output: str | int | None = None,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, int] | None = None,
    images: Images | None = None,
    seed: int | None = 0,
) -> Classifier:
    """Open a network by words.

        digits-pgd                              a network that comes with the library
        runs/mine  runs/mine/model.safetensors  one that `robustviz train` wrote
        my_networks.py:build?width=64           a function (or class) in a file, called with these arguments
        package.module:function                 one in an installed package
        torchvision:resnet18?num_classes=6      a network of torchvision
        timm:vit_tiny_patch16_224?num_classes=6 a network of timm (extra `networks`)

    Without a file of weights they are random; nothing is downloaded.

    Args:
        spec: The words.
        weights: A `.safetensors` file, or what `torch.save` wrote of a state dict; code in it is not run.
        trust: Run the code of the file or package. Read it first: it can do whatever you can. True in a block of
            `with trusting()`.
        layer: See `own_network`.
        normalize: See `own_network`.
        output: See `own_network`.
        classes: See `own_network`.
        class_map: See `own_network`.
        images: See `own_network`.
        seed: Decides random weights; None draws them from PyTorch's own generator.

    Returns:
        The network in evaluation mode on the CPU; `source` says what opens it again.

    Raises:
        FileNotFoundError: If there is no such file, folder or name.
        TypeError: If the function returns something else than a module.
        ValueError: If code is not trusted, cannot be called or raises, weights do not fit, or see `own_network`.
    """
    given = {"layer": layer, "normalize": normalize, "output": output, "classes": classes, "class_map": class_map}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    words = read_words(str(spec))
    if words is None:
        return _ours(spec, weights, settings, trust)
    if not words.ours and not (trust or _TRUSTED.get()):
        raise ValueError(
            f"{spec} runs code that is not robustviz's and can do whatever you can; read it, then pass trust=True "
            "(--trust on the command line)"
        )
    network = built(words, seed).eval()
    if weights is not None:
        load_weights(network, weights)
    if not isinstance(network, Classifier):
        network = own_network(network, images=images, **settings)
    elif settings:
        raise ValueError(f"{spec} gives a Classifier, whose slots are set already; leave out {', '.join(settings)}")
    shape = None if images is None else tuple(images.shape[1:])
    file = None if weights is None else str(weights)
    network.source = Source(str(spec), file, settings, shape, *_made_of(words, weights))
    return network


def _ours(spec: Path | str, weights: Path | str | None, settings: Mapping[str, Any], trust: bool) -> Classifier:
    """Open a checkpoint, which holds all that it needs."""
    from robustviz import checkpoints  # which is made of networks, and so of this package

    if str(spec).endswith(".py"):
        raise ValueError(f"{spec} must name a function that returns the network: {spec}:FUNCTION")
    if str(spec).endswith((".pt", ".pth", ".bin")):
        raise ValueError(f"{spec} holds weights alone; say what builds the network, and give the file as weights")
    if weights is not None or settings:
        given = ", ".join((*(["weights"] if weights is not None else []), *settings))
        raise ValueError(f"{spec} is a checkpoint, which holds all that it needs; leave out {given}")
    network = checkpoints.load(spec, trust=trust)[0]
    network.source = Source(str(spec), sha256=_checksums(str(spec)))
    return network


def _file(name: str) -> Path | None:
    """Find the file that a word or path names."""
    from robustviz import checkpoints

    path = Path(name).expanduser()
    if path.is_file():
        return path
    try:
        return checkpoints.find(name)
    except FileNotFoundError:
        return module_file(name) if all(map(str.isidentifier, name.split("."))) else None


def _checksums(*names: str) -> dict[str, str]:
    """Checksums of the files that words or paths name."""
    return {name: sha256(path) for name in names if (path := _file(name)) is not None}


def _made_of(words: Words, weights: Path | str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Checksums of the files and versions of the packages that a network was made of."""
    names = [*([] if words.ours else [words.where]), *([] if weights is None else [str(weights)])]
    package = words.where.partition(".")[0]
    return _checksums(*names), {} if words.file else {package: version(package)}
