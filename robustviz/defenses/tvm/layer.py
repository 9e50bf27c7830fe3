"""TVM as a layer that purifies images, and a training set that holds their purified versions.

Half of the pixels dropped, small images blur, and a net that never saw such images loses accuracy on clean ones. So
the layer and the augmented training go together.

Source: Wang, Lin, Yin, Zhu, Bertozzi & Osher, "Adversarial defense via data dependent activation function and total
variation minimization", arXiv 1809.08516; the layer is that of Guo et al., arXiv 1711.00117, section 3.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Generator, nn
from tqdm.auto import tqdm

from robustviz.data import ImageSet
from robustviz.defenses.tvm.energy import check_settings, minimize_tv
from robustviz.records import write_atomic
from robustviz.tensors import draw_seed, seeded
from robustviz.types import Images

Version = Literal["clean", "tvm", "attacked", "tvm_attacked"]

_BATCH = 64
"""Images that `augment` purifies at a time; small enough for a CPU's cache."""


class TVM(nn.Module):
    """`minimize_tv` as a layer in front of the network: fills the slot `purify` of `Classifier`.

    Its masks come from the block `tensors.drawing`; outside one, every forward pass draws the same. Gradients pass
    through all the steps; an attack that approximates them replaces this layer.

    Args:
        weight: Price of variation against fidelity, > 0.
        keep: Probability that a pixel is kept, in (0, 1].
        steps: Maximum number of steps; with half of the pixels dropped, 50 come within 0.1 % of the least energy of
            photographs, taken together; nearly flat ones stay farther off.
        tolerance: When a picture is done, see `minimize_tv`.
        per_channel: Drop the channels of a pixel one by one instead of together.

    Raises:
        ValueError: If a setting is out of range.
    """

    stochastic = True
    revision = 1
    """Raised when the same settings give other pictures, so that stored ones are made again."""

    def __init__(
        self,
        *,
        weight: float = 0.03,
        keep: float = 0.5,
        steps: int = 50,
        tolerance: float = 1e-3,
        per_channel: bool = False,
    ):
        super().__init__()
        check_settings(weight, keep, steps, tolerance)
        self.settings: dict[str, Any] = {
            "weight": weight,
            "keep": keep,
            "steps": steps,
            "tolerance": tolerance,
            "per_channel": per_channel,
        }
        self.generator: Generator | None = None

    def extra_repr(self) -> str:
        """Show the settings where the network is printed."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    def forward(self, images: Images) -> Images:
        """Return pictures of the same shape, in [0, 1]."""
        return minimize_tv(images, **self.settings, generator=self.generator)


def augment(
    clean: ImageSet,
    purifier: TVM,
    *,
    parts: Sequence[Version] = ("clean", "tvm"),
    attacked: Images | None = None,
    folder: Path | str | None = None,
    generator: Generator | None = None,
) -> ImageSet:
    """Put a training set together from its images and their TVM versions, with a progress bar.

    Args:
        clean: The training set.
        purifier: Makes the TVM versions, once for each image.
        parts: Which versions, one whole set after the other: `"clean"`, `"tvm"`, `"attacked"`, `"tvm_attacked"`.
        attacked: Attacked versions of the images, in the same order, where a part needs them.
        folder: Keeps TVM versions for the next time, in files named after all settings and every pixel; None keeps
            nothing.
        generator: Source of the masks; None is a fresh one seeded 0.

    Returns:
        `len(parts)` times as many images, with their labels.

    Raises:
        ValueError: If a part is unknown, or needs attacked images that are missing or do not fit.
    """
    if not parts or set(parts) - set(get_args(Version)):
        raise ValueError(
            f"parts must be some of {', '.join(get_args(Version))}, got {', '.join(map(str, parts)) or 'none'}"
        )
    if any("attacked" in part for part in parts) and (attacked is None or attacked.shape != clean.images.shape):
        shape = None if attacked is None else tuple(attacked.shape)
        raise ValueError(f"attacked must have the shape {tuple(clean.images.shape)} of the clean images, got {shape}")
    seed = draw_seed(generator)
    images = []
    for part in parts:
        source: Any = attacked if "attacked" in part else clean.images
        images.append(_purified(source, purifier, seed, part, folder) if "tvm" in part else source)
    return replace(
        clean,
        images=torch.cat(images),
        labels=clean.labels.repeat(len(parts)),
        name=f"{clean.name} ({' + '.join(parts)})",
    )


def _purified(images: Images, purifier: TVM, seed: int, part: str, folder: Path | str | None) -> Images:
    """Read the TVM versions if they are stored whole, else make and store them."""
    pixels = images.detach().cpu().contiguous()
    settings = purifier.settings | {"seed": seed, "shape": list(images.shape), "dtype": str(images.dtype)}
    settings |= {"part": part, "batch": _BATCH, "revision": purifier.revision}
    settings["pixels"] = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    description = json.dumps(settings, sort_keys=True)
    path = None
    if folder is not None:
        path = Path(folder) / f"tvm-{hashlib.sha256(description.encode()).hexdigest()[:32]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            try:
                stored = load(path.read_bytes())["images"]
            except (SafetensorError, KeyError):
                path.unlink()
            else:
                if (stored.shape, stored.dtype) == (images.shape, images.dtype):
                    return stored.to(images.device)
    made = []
    with torch.no_grad():
        batches = torch.split(images, _BATCH)
        for batch, some in enumerate(tqdm(batches, desc=f"TVM of {part}", unit="batch", leave=False, disable=None)):
            made.append(minimize_tv(some, **purifier.settings, generator=seeded(seed, batch)))
    result = torch.cat(made)
    if path is not None:
        write_atomic(path, save({"images": result.cpu().contiguous()}, metadata={"settings": description}))
    return result
