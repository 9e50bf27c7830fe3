"""One training loop for every defense: natural, adversarial, or through an objective that holds its own attack."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from robustviz.checks import check_labels, logits_of
from robustviz.data import shift_and_mirror
from robustviz.data.image_set import Bytes, as_floats, check_pixels
from robustviz.distributed import Processes, processes
from robustviz.fingerprint import fingerprint, settings_of
from robustviz.objectives import cross_entropy
from robustviz.tensors import check_model, drawing, evaluating, seeded
from robustviz.training.config import TrainConfig, bf16_pays, hold_out, learning_rate
from robustviz.training.state import EpochLog, TrainingState
from robustviz.types import Attack, Images, Labels, Objective, PerImage


def train(
    model: nn.Module,
    images: Images | Bytes,
    labels: Labels,
    config: TrainConfig,
    *,
    objective: Objective = cross_entropy,
    attack: Attack | None = None,
    monitor: Attack | None = None,
    validation: float | Tensor = 0.1,
    resume: Path | str | None = None,
    origin: str | None = None,
    before_validation: Callable[[], Any] | None = None,
    on_epoch: Callable[[EpochLog], Any] | None = None,
) -> list[EpochLog]:
    """Train a model in place; at the end it holds the weights of the epoch that validated best.

    Parameters with `requires_grad=False` stay as they are, and a module all of whose parameters are frozen stays in
    evaluation mode, so that its batch norm statistics do not move either. On a terminal or in a notebook a progress
    bar shows loss, accuracies and the time left.

    Several processes (see `robustviz.distributed`) share every batch, and their mean gradient is that of the batch;
    batch norm alone takes its statistics from each process's share, and the first process's are kept. Order and
    augmentation are those of a single process; attacks, dropout and stochastic modules draw their own noise in each.

    A last batch of one image (with several processes: of less than two for each) is added to the batch before it,
    because batch norm cannot be trained on it.

    Args:
        model: Trained in place, on the device where it is.
        images: Training images in [0, 1], or their bytes 0..255, which become floats batch by batch.
        labels: Their classes.
        config: Optimizer, schedule, augmentation, precision and seed.
        objective: What is lowered, averaged over the batch.
        attack: Replaces every batch by attacked images, made in evaluation mode (Madry et al., arXiv 1706.06083);
            None trains on clean images, or on what the objective makes of them.
        monitor: The attack that measures robust accuracy on the validation part; None is `attack`. A stronger
            one shows when training against a fast attack collapses (catastrophic overfitting).
        validation: Share of the images, of every class alike, that is held out and chooses the epoch: by robust
            accuracy if there is an attack, then by clean accuracy. 0 trains on everything and keeps the last epoch.
            Or the indices of the images to hold out.
        resume: File that holds the state after every epoch. If it exists, training goes on from there and
            ends as if it had never stopped. The caller removes it.
        origin: Says which trained network's weights `model` begins with; a run goes on only from the same.
        before_validation: Called when an epoch's updates are done, to bring up to date what follows from the weights.
        on_epoch: Called after every epoch, when the state is safe on disk.

    Returns:
        One log for each epoch, those before a resumption included.

    Raises:
        TypeError: If the model is not a module.
        ValueError: If the images or labels are unusable, the model does not return logits, nothing is trainable, the
            loss stops being finite, or the resume file is damaged or belongs to another run.
    """
    check_model(model)
    check_pixels(images, labels)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("model must have a parameter with requires_grad=True, else there is nothing to train")
    optimizer = torch.optim.SGD(
        decayed_apart(model, config.weight_decay), config.learning_rate, config.momentum, nesterov=config.momentum > 0
    )
    kept, held = hold_out(labels, validation)
    settings: dict[str, Any] = {"config": config, "objective": objective, "attack": attack}
    settings |= {
        "monitor": monitor,
        "data": fingerprint(images, labels),
        "validation": validation.tolist() if isinstance(validation, Tensor) else validation,
        "start": origin,
        "model": list(settings_of(model)),
    }
    if processes().count > 1:
        settings["processes"] = processes().count
    state = TrainingState(model, optimizer, settings, None if resume is None else Path(resume))
    processes().wait()
    logs = state.restore()
    run = _Run(model, images, labels, config, optimizer, objective, attack, monitor or attack)
    with evaluating(model), torch.no_grad():
        check_labels(labels, len(labels), logits_of(model, as_floats(images[:1]).to(run.device)).shape[1])
    with _training(model, run.bf16), run.progress_bar(len(logs), len(kept)) as bar:
        for epoch in range(len(logs), config.epochs):
            started = time.perf_counter()
            loss = run.epoch(epoch, kept, bar)
            if before_validation is not None:
                before_validation()
            clean, robust = run.validate(held)
            best = max((log.score for log in logs), default=(0.0, 0.0))
            log = EpochLog(epoch + 1, loss, clean, robust, time.perf_counter() - started, chosen=True)
            logs.append(log if log.score >= best else replace(log, chosen=False))
            state.keep(logs)
            bar.set_postfix_str(logs[-1].summary)
            if on_epoch is not None:
                on_epoch(logs[-1])
    state.load_best()
    return logs


@dataclass(frozen=True)
class _Run:
    """What stays the same while a model is trained, and the two halves of an epoch."""

    model: nn.Module
    images: Images | Bytes
    labels: Labels
    config: TrainConfig
    optimizer: torch.optim.SGD
    objective: Objective
    attack: Attack | None
    monitor: Attack | None
    together: Processes = field(default_factory=processes)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def bf16(self) -> bool:
        precision = self.config.precision
        return precision == "bf16" or (precision == "auto" and bf16_pays(self.images, self.device))

    @cached_property
    def step(self) -> Callable[..., PerImage]:
        """The objective as one module, whose gradient the processes share; attacks see the model inside it."""
        return self.together.wrapped(_Step(self.model, self.objective))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def progress_bar(self, epochs_done: int, count: int) -> tqdm:
        steps = len(self.batches(torch.arange(count)))
        total, done = self.config.epochs * steps, epochs_done * steps
        silent = self.together.silent
        return tqdm(total=total, initial=done, desc="training", unit="batch", leave=False, disable=silent)

    def epoch(self, epoch: int, kept: Tensor, bar: tqdm) -> float:
        """Go once through the training part; return the mean objective.

        All randomness follows from (seed, epoch, batch), so that a resumed run repeats what it would have done.
        """
        seed, total, count = self.config.seed, 0.0, 0
        self.reseed(int(self.own(seeded(seed, epoch), epoch).initial_seed()))
        rows = self.batches(kept[torch.randperm(len(kept), generator=seeded(seed, epoch))])
        for step, chosen in enumerate(rows):
            common = seeded(seed, epoch, step)
            noise = self.own(common, epoch, step)
            images, labels = self.batch(chosen, common, noise)
            rate = learning_rate(self.config, (epoch + (step + 0.5) / len(rows)) / self.config.epochs)
            loss = self.update(images, labels, rate, noise, self.together.weight(len(labels), len(chosen)))
            if not math.isfinite(loss):
                raise ValueError(f"loss must stay finite, got {loss} in epoch {epoch + 1}; lower learning_rate")
            total, count = total + loss * len(labels), count + len(labels)
            bar.update()
        self.together.agree(self.model)
        return self.together.total(total) / self.together.total(count)

    def batches(self, rows: Tensor) -> list[Tensor]:
        """Cut the images of an epoch into updates; a last one that batch norm cannot use joins the one before.

        Batch norm needs two values for each channel, which a single image may not have.
        """
        parts = list(torch.split(rows, self.config.batch_size))
        if len(parts) > 1 and len(parts[-1]) < 2 * self.together.count:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def own(self, common: Generator, *numbers: int) -> Generator:
        """Noise of this process; a single one goes on with the common one."""
        if self.together.count == 1:
            return common
        return seeded(self.config.seed, *numbers, self.together.rank, self.together.count)

    def reseed(self, seed: int) -> None:
        """Seed the generators that dropout draws from: those of the CPU and of the model's GPU, no other."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def chosen(self, rows: Tensor) -> tuple[Images, Labels]:
        """Fetch images as floats, and their labels, to the model's device."""
        return as_floats(self.images[rows].to(self.device)), self.labels[rows].to(self.device)

    def batch(self, rows: Tensor, common: Generator, noise: Generator) -> tuple[Images, Labels]:
        """Fetch and shift_and_mirror the images of one update, take this process's share and attack it."""
        images, labels = self.chosen(rows)
        images = shift_and_mirror(images, padding=self.config.padding, flip=self.config.flip, generator=common)
        images, labels = self.together.share(images), self.together.share(labels)
        if self.bf16:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.attack is not None:
            with evaluating(self.model), self.autocast():
                images = self.attack(self.model, images, labels, generator=noise)
        return images, labels

    def update(self, images: Images, labels: Labels, rate: float, noise: Generator, weight: float = 1.0) -> float:
        """Make one step of the optimizer; return the mean objective before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with drawing(self.model, noise), self.autocast():
            values = self.step(images, labels, noise)
            loss = values.to(torch.promote_types(values.dtype, torch.float32)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def validate(self, held: Tensor) -> tuple[float | None, float | None]:
        """Measure clean accuracy and, if there is an attack, robust accuracy on the held-out part."""
        if not len(held):
            return None, None
        batches = list(enumerate(torch.split(held, 256)))
        right = [found for _, found in self.together.work(batches, self.right)]
        clean, robust = (sum(counts) / len(held) for counts in zip(*right, strict=True))
        return clean, robust if self.monitor is not None else None

    def right(self, numbered: tuple[int, Tensor]) -> tuple[int, int]:
        """Count how many images of a batch are classified correctly, clean and under the monitoring attack."""
        batch, rows = numbered
        images, labels = self.chosen(rows)
        with evaluating(self.model), self.autocast():
            with torch.no_grad():
                logits = self.model(images)
            if logits.isnan().any():
                raise ValueError("the network returns NaN: its training has diverged; lower learning_rate")
            clean = int((logits.argmax(1) == labels).sum())
            if self.monitor is None:
                return clean, 0
            images = self.monitor(self.model, images, labels, generator=seeded(self.config.seed, batch))
            with torch.no_grad():
                return clean, int((self.model(images).argmax(1) == labels).sum())


class _Step(nn.Module):
    """What an update lowers, as a module: it holds the model."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Images, labels: Labels, noise: Generator) -> PerImage:
        return self.objective(self.model, images, labels, generator=noise)


def decayed_apart(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sort what is trained into parameters with weight decay and those that a module names in `no_weight_decay`."""
    named = [(module, name) for module in model.modules() for name in getattr(module, "no_weight_decay", ())]
    spared = {getattr(module, name) for module, name in named}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = ([p for p in trainable if p not in spared], weight_decay), ([p for p in trainable if p in spared], 0.0)
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


@contextmanager
def _training(model: nn.Module, bf16: bool) -> Iterator[None]:
    """Training mode except for frozen modules; afterwards modes, memory layout and random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(device.index for device in devices)):
            model.train()
            for module in model.modules():
                if not any(p.requires_grad for p in module.parameters()) and any(True for _ in module.parameters()):
                    module.eval()
            if bf16:
                model.to(memory_format=torch.channels_last)
            yield
    finally:
        if bf16:
            model.to(memory_format=torch.contiguous_format)
        for module, training in modes:
            module.training = training
