"""The state of a training run on disk: weights, best weights, momentum and logs in one safetensors file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustviz.distributed import processes
from robustviz.fingerprint import check_same, same
from robustviz.records import describe, write_atomic

_FORMAT = 2
"""Of the files; those without one were written by earlier versions."""


@dataclass(frozen=True)
class EpochLog:
    """What one epoch of training gave.

    Attributes:
        epoch: From 1.
        loss: Mean training objective.
        clean_accuracy: Share of the validation part that is right without attack; None without a validation part.
        robust_accuracy: Share that is right under the attack; None without one.
        seconds: Wall-clock time of the epoch.
        chosen: Whether its weights were the best until then.
    """

    epoch: int
    loss: float
    clean_accuracy: float | None
    robust_accuracy: float | None
    seconds: float
    chosen: bool

    @property
    def score(self) -> tuple[float, float]:
        """What epochs are compared by: robust accuracy, then clean accuracy."""
        return self.robust_accuracy or 0.0, self.clean_accuracy or 0.0

    @property
    def summary(self) -> str:
        """The log in a few words."""
        parts = [f"epoch {self.epoch}", f"loss {self.loss:.3f}"]
        parts += [f"clean {self.clean_accuracy:.1%}"] if self.clean_accuracy is not None else []
        parts += [f"robust {self.robust_accuracy:.1%}"] if self.robust_accuracy is not None else []
        return ", ".join(parts)


class TrainingState:
    """Keeps the best weights of a run and, if given a file, everything that is needed to go on after a stop.

    Args:
        model: The model in training.
        optimizer: Its optimizer; only momentum is kept, because every learning rate follows from the settings.
        settings: What must mean the same for a run to go on: functions and values, not their descriptions.
        path: File to keep the state in; None keeps it in memory alone.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.SGD, settings: dict[str, Any], path: Path | None):
        self.model, self.optimizer, self.settings, self.path = model, optimizer, settings, path
        self.best: dict[str, Tensor] = {}

    def restore(self) -> list[EpochLog]:
        """Read the file, if there is one, into model and optimizer.

        Raises:
            ValueError: If the file is damaged, or belongs to a run with other settings or another model.
        """
        if self.path is None or not self.path.exists():
            return []
        try:
            with safe_open(self.path, "pt") as file:
                stored = json.loads(file.metadata()["robustviz"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.path} is damaged or not a training state ({error}); remove it to start again"
            ) from error
        before = stored["settings"]
        for name in ("start", "model"):
            before.setdefault(name, self.settings[name])  # older states do not say
        if (began := before["start"]) != self.settings["start"]:
            began, wanted = (name or "new weights" for name in (began, self.settings["start"]))
            raise ValueError(
                f"{self.path} belongs to a run that began with {began}, not with {wanted}; "
                "start from the same, or remove it to start again"
            )
        if stored.get("format") != _FORMAT and not same(before["model"], self.settings["model"]):
            raise ValueError(
                f"{self.path} belongs to another model, or to this one as an earlier version of robustviz described "
                "it; it cannot go on: remove it to start again"
            )
        check_same(self.path, before, self.settings, "a run")
        try:
            self.model.load_state_dict(_part(tensors, "model"))
        except RuntimeError as error:
            raise ValueError(f"{self.path} belongs to a run with another model: {error}") from error
        self.best = _part(tensors, "best")
        momenta = _part(tensors, "momentum")
        for index, parameter in enumerate(self._trained()):
            if str(index) in momenta:
                self.optimizer.state[parameter]["momentum_buffer"] = momenta[str(index)].to(parameter.device)
        return [EpochLog(**log) for log in stored["logs"]]

    def keep(self, logs: list[EpochLog]) -> None:
        """Remember the weights if the last epoch is the best, and write the file, whole or not at all."""
        weights = {name: _packed(tensor) for name, tensor in self.model.state_dict().items()}
        if logs[-1].chosen:
            self.best = weights
        if self.path is None or not processes().first:
            return
        momenta = {
            str(index): _packed(buffer)
            for index, parameter in enumerate(self._trained())
            if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None
        }
        parts = {"model": weights, "best": self.best, "momentum": momenta}
        tensors = {f"{part}/{name}": tensor.clone() for part, named in parts.items() for name, tensor in named.items()}
        header = json.dumps(
            {"format": _FORMAT, "settings": describe(self.settings), "logs": [asdict(log) for log in logs]}
        )
        write_atomic(self.path, save(tensors, {"robustviz": header}))

    def load_best(self) -> None:
        """Put the weights of the best epoch into the model."""
        self.model.load_state_dict(self.best)

    def _trained(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _packed(tensor: Tensor) -> Tensor:
    """Copy a tensor to the memory of the CPU in plain order, as safetensors wants it."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
