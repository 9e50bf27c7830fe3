"""One training loop for every defense: natural, adversarial, or through an objective that holds its own attack."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from robustviz.data import augment, stratified
from robustviz.objectives import cross_entropy
from robustviz.records import describe
from robustviz.resume import EpochLog, TrainingState
from robustviz.tensors import check_images, check_labels, drawing, evaluating, seeded
from robustviz.types import Attack, Images, Labels, Objective

Schedule = Literal["constant", "steps", "cosine", "one-cycle"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The optimizer is stochastic gradient descent with Nesterov momentum.

    Attributes:
        epochs: Passes through the training part.
        batch_size: Images in one update.
        learning_rate: The largest learning rate.
        schedule: `"constant"`; `"steps"`: divided by 10 after half and again after three quarters of the updates;
            `"cosine"`: to 0 along half a cosine; `"one-cycle"`: linearly up during the first 30 %, then down to 0.
        momentum: Of the optimizer.
        weight_decay: L2 penalty on all parameters.
        padding: Random shifts by up to so many pixels; 0 for none.
        flip: Mirror half of the images.
        precision: `"bf16"` computes in bfloat16 (autocast) on maps stored channels-last, weights stay float32;
            `"fp32"` switches both off; `"auto"` is bf16 where it pays: images of at least 16 pixels on a processor
            with bfloat16 matrix units, or on a GPU that has them.
        seed: Decides the validation part, the order, the augmentation and the attack's random starts.

    Raises:
        ValueError: If a setting is out of range.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    padding: int = 0
    flip: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("padding", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name, most in (("learning_rate", math.inf), ("momentum", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name} must be >= 0 and below {most}, got {getattr(self, name)}")
        for name, known in (("schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


def train(
    model: nn.Module,
    images: Images,
    labels: Labels,
    config: TrainConfig,
    *,
    objective: Objective = cross_entropy,
    attack: Attack | None = None,
    monitor: Attack | None = None,
    validation: float | Tensor = 0.1,
    resume: Path | str | None = None,
    on_epoch: Callable[[EpochLog], Any] | None = None,
) -> list[EpochLog]:
    """Train a model in place; at the end it holds the weights of the epoch that validated best.

    Parameters with `requires_grad=False` stay as they are, and a module all of whose parameters are frozen stays in
    evaluation mode, so that its batch norm statistics do not move either. On a terminal or in a notebook a progress
    bar shows loss, accuracies and the time left.

    Args:
        model: Trained in place, on the device where it is.
        images: Training images in [0, 1].
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
        on_epoch: Called after every epoch, when the state is safe on disk.

    Returns:
        One log for each epoch, those before a resumption included.

    Raises:
        ValueError: If the images or labels are unusable, nothing is trainable, the loss stops being finite, or the
            resume file is damaged or belongs to another run.
    """
    check_images(images, labels)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("model must have a parameter with requires_grad=True, else there is nothing to train")
    optimizer = torch.optim.SGD(
        trainable, config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
    )
    kept, held = hold_out(labels, validation)
    settings = {"config": asdict(config), "objective": describe(objective), "attack": describe(attack)}
    settings |= {
        "monitor": describe(monitor),
        "data": fingerprint(images, labels),
        "validation": validation.tolist() if isinstance(validation, Tensor) else validation,
    }
    state = TrainingState(model, optimizer, settings, None if resume is None else Path(resume))
    logs = state.restore()
    run = _Run(model, images, labels, config, optimizer, objective, attack, monitor or attack)
    with evaluating(model), torch.no_grad():
        check_labels(labels, len(labels), model(images[:1].to(run.device)).shape[1])
    with _training(model, run.bf16), run.progress_bar(len(logs), len(kept)) as bar:
        for epoch in range(len(logs), config.epochs):
            started = time.perf_counter()
            loss = run.epoch(epoch, kept, bar)
            clean, robust = run.validate(held)
            best = max((log.score for log in logs), default=(0.0, 0.0))
            log = EpochLog(epoch + 1, loss, clean, robust, time.perf_counter() - started, chosen=True)
            logs.append(log if log.score >= best else replace(log, chosen=False))
            state.keep(logs)
            bar.set_postfix_str(_summary(logs[-1]))
            if on_epoch is not None:
                on_epoch(logs[-1])
    state.load_best()
    return logs


def fingerprint(images: Images, labels: Labels) -> str:
    """Tell data sets apart: a checksum of shape, pixels and labels."""
    key = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        key.update(tensor.detach().cpu().contiguous().numpy().data)
    return key.hexdigest()


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Learning rate at a point of training, `progress` running from 0 to 1."""
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "one-cycle":
        return config.learning_rate * min(progress / 0.3, (1 - progress) / 0.7)
    return config.learning_rate


def bf16_pays(images: Images, device: torch.device) -> bool:
    """Tell whether bfloat16 is faster: on pictures large enough, with matrix units made for it."""
    if min(images.shape[-2:]) < 16:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@dataclass(frozen=True)
class _Run:
    """What stays the same while a model is trained, and the two halves of an epoch."""

    model: nn.Module
    images: Images
    labels: Labels
    config: TrainConfig
    optimizer: torch.optim.SGD
    objective: Objective
    attack: Attack | None
    monitor: Attack | None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def bf16(self) -> bool:
        precision = self.config.precision
        return precision == "bf16" or (precision == "auto" and bf16_pays(self.images, self.device))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def progress_bar(self, epochs_done: int, count: int) -> tqdm:
        steps = math.ceil(count / self.config.batch_size)
        total, done = self.config.epochs * steps, epochs_done * steps
        return tqdm(total=total, initial=done, desc="training", unit="batch", leave=False, disable=None)

    def epoch(self, epoch: int, kept: Tensor, bar: tqdm) -> float:
        """Go once through the training part; return the mean objective.

        All randomness follows from (seed, epoch, batch), so that a resumed run repeats what it would have done.
        """
        seed, total = self.config.seed, 0.0
        self.reseed(int(seeded(seed, epoch).initial_seed()))
        rows = torch.split(kept[torch.randperm(len(kept), generator=seeded(seed, epoch))], self.config.batch_size)
        for step, chosen in enumerate(rows):
            noise = seeded(seed, epoch, step)
            images, labels = self.batch(chosen, noise)
            rate = learning_rate(self.config, (epoch + (step + 0.5) / len(rows)) / self.config.epochs)
            loss = self.update(images, labels, rate, noise)
            if not math.isfinite(loss):
                raise ValueError(f"loss must stay finite, got {loss} in epoch {epoch + 1}; lower learning_rate")
            total += loss * len(chosen)
            bar.update()
        return total / len(kept)

    def reseed(self, seed: int) -> None:
        """Seed the generators that dropout draws from: the processor's and that of the model's GPU, no other."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def batch(self, rows: Tensor, noise: Generator) -> tuple[Images, Labels]:
        """Fetch, augment and attack the images of one update."""
        images, labels = self.images[rows].to(self.device), self.labels[rows].to(self.device)
        images = augment(images, padding=self.config.padding, flip=self.config.flip, generator=noise)
        if self.bf16:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.attack is not None:
            with self.autocast():
                images = self.attack(self.model, images, labels, generator=noise)
        return images, labels

    def update(self, images: Images, labels: Labels, rate: float, noise: Generator) -> float:
        """Make one step of the optimizer; return the mean objective before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with drawing(self.model, noise), self.autocast():
            loss = self.objective(self.model, images, labels, generator=noise).float().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def validate(self, held: Tensor) -> tuple[float | None, float | None]:
        """Measure clean accuracy and, if there is an attack, robust accuracy on the held-out part."""
        if not len(held):
            return None, None
        right = {"clean": 0, "robust": 0}
        for batch, rows in enumerate(torch.split(held, 256)):
            images, labels = self.images[rows].to(self.device), self.labels[rows].to(self.device)
            with evaluating(self.model), self.autocast():
                with torch.no_grad():
                    logits = self.model(images)
                    if logits.isnan().any():
                        raise ValueError("the network returns NaN: its training has diverged; lower learning_rate")
                    right["clean"] += int((logits.argmax(1) == labels).sum())
                if self.monitor is not None:
                    images = self.monitor(self.model, images, labels, generator=seeded(self.config.seed, batch))
                    with torch.no_grad():
                        right["robust"] += int((self.model(images).argmax(1) == labels).sum())
        return right["clean"] / len(held), right["robust"] / len(held) if self.monitor is not None else None


def hold_out(labels: Labels, validation: float | Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation part: a share, stratified and always the same, or as given."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    if isinstance(validation, Tensor):
        held[validation] = True
    elif 0 <= validation < 1:
        held[stratified(labels, round(validation * len(labels)))] = True
    if held.all() or not (isinstance(validation, Tensor) or 0 <= validation < 1):
        raise ValueError(
            f"validation must be a share from 0 to below 1 that leaves images to train on, got {validation}"
        )
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


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


def _summary(log: EpochLog) -> str:
    parts = [f"epoch {log.epoch}", f"loss {log.loss:.3f}"]
    parts += [f"clean {log.clean_accuracy:.1%}"] if log.clean_accuracy is not None else []
    parts += [f"robust {log.robust_accuracy:.1%}"] if log.robust_accuracy is not None else []
    return ", ".join(parts)
