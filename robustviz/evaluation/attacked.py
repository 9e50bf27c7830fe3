"""The attacked images behind a table, as files hold them: 8 bits for each pixel, and whether they still fool the model.

A table holds decisions and no images. Since the noise of a batch depends on the seed and its number alone, the same
attacks make the same images again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from robustviz.attacks import EightBit, round_to_8bit
from robustviz.evaluation.table import RobustnessTable
from robustviz.records import write_atomic
from robustviz.tensors import drawing, evaluating, seeded
from robustviz.types import Attack, Images, Labels, Threat


@dataclass(frozen=True)
class AttackedImages:
    """Images, and what each attack made of them, rounded to 8 bits.

    Attributes:
        clean: Gray levels 0..255 of the images themselves.
        labels: Their classes (n,).
        attacked: For each attack, by its name in the table, the rounded images and whether they fool the model.
    """

    clean: UInt8[Tensor, "n c h w"]
    labels: Labels
    attacked: dict[str, EightBit]

    def summary(self) -> str:
        """Say for each attack how many images fool the model before and after rounding, one line each."""
        return "\n".join(
            f"{name}: {int(made.before.sum())} of {len(self.labels)} images fool the network, "
            f"{int(made.after.sum())} after rounding to 8 bits"
            for name, made in self.attacked.items()
        )

    def save(self, path: Path | str) -> Path:
        """Write everything to an .npz file, or the attacked images as PNG files to a folder.

        The arrays of the file are `images` (n, c, h, w), `labels` (n,), `names` (k,), `attacked` (k, n, c, h, w),
        `fooled_before` and `fooled_after` (k, n). The folder has a subfolder for each attack, with `0000.png` ...

        Args:
            path: A name ending in .npz, or a folder.
        """
        path = Path(path)
        if path.suffix != ".npz":
            for name, made in self.attacked.items():
                made.save(path / _folder_name(name))
            return path
        arrays = {
            "images": self.clean.cpu().numpy(),
            "labels": self.labels.cpu().numpy(),
            "names": np.array([*self.attacked]),
            "attacked": self._stacked(lambda made: made.levels),
            "fooled_before": self._stacked(lambda made: made.before),
            "fooled_after": self._stacked(lambda made: made.after),
        }
        content = BytesIO()
        np.savez_compressed(content, **arrays)
        return write_atomic(path, content.getvalue())

    def _stacked(self, field: Callable[[EightBit], Tensor]) -> Any:
        return np.stack([field(made).cpu().numpy() for made in self.attacked.values()])

    @classmethod
    def load(cls, path: Path | str) -> "AttackedImages":
        """Read an .npz file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [str(name) for name in file["names"]]
                fields = [torch.from_numpy(file[key]) for key in ("attacked", "fooled_before", "fooled_after")]
                made = {name: EightBit(*parts) for name, *parts in zip(names, *fields, strict=True)}
                return cls(torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]), made)
        except FileNotFoundError:
            raise
        except (KeyError, ValueError, TypeError, OSError, AttributeError) as error:
            raise ValueError(f"{path} does not hold attacked images: {error}") from error


def _folder_name(name: str) -> str:
    """Turn the name of an attack into that of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-+=." else "_" for letter in name)


def attacked_images(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    measured: RobustnessTable,
    *,
    threat: Threat,
) -> AttackedImages:
    """Make the attacked images of a table again, round them to 8 bits and ask the model about what is left.

    Args:
        model: What was measured.
        images: Images in [0, 1] that it was measured on.
        labels: Their classes.
        attacks: By name, as they were measured.
        measured: The table; its seed and batches make the same images, of the first repeat. With `survivors_only`, an
            image that an earlier attack fools is shown as that attack left it.
        threat: What counts as success; see `round_to_8bit`.

    Raises:
        ValueError: If the attacks are not those of the table.
    """
    if [*attacks] != [*measured.conditions[1:]]:
        raise ValueError(f"attacks must be those of the table, {', '.join(measured.conditions[1:])}, got {[*attacks]}")
    seed, survivors = measured.settings["seed"], measured.settings["survivors_only"]
    batches = torch.split(torch.arange(len(labels)), measured.settings["batch_size"])
    alive = torch.ones(len(labels), dtype=torch.bool)
    made, latest = dict[str, EightBit](), images
    for condition, (name, attack) in enumerate(attacks.items()):
        latest = latest.clone() if survivors else images.clone()
        if survivors:
            alive &= measured.correct[condition, 0].cpu()
        for batch, rows in enumerate(batches):
            chosen = rows[alive[rows]].to(images.device)
            if len(chosen):
                noise = seeded(seed, 0, batch)
                with evaluating(model):
                    latest[chosen] = attack(model, images[chosen], labels[chosen], generator=noise).detach()
        made[name] = _rounded(model, images, latest, labels, batches, threat, seed)
    return AttackedImages((images * 255).round().to(torch.uint8), labels, made)


def _rounded(
    model: nn.Module,
    images: Images,
    attacked: Images,
    labels: Labels,
    batches: tuple[Tensor, ...],
    threat: Threat,
    seed: int,
) -> EightBit:
    """Round batch by batch, so that a model that answers by batches is asked about the same ones."""
    parts = []
    for number, rows in enumerate(batches):
        with drawing(model, seeded(seed, 0, number)):
            parts.append(round_to_8bit(model, images[rows], attacked[rows], labels[rows], threat=threat))
    fields = [[part.levels for part in parts], [part.before for part in parts], [part.after for part in parts]]
    return EightBit(*(torch.cat(field) for field in fields))
