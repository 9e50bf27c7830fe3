"""Several processes that train or evaluate together, started by a launcher; without one nothing is different.

    torchrun --nproc-per-node 2 -m robustviz.cli train ...
    accelerate launch --multi_gpu --num_processes 2 -m robustviz.cli train ...

Every process holds all images and takes its share of each batch (training), or the batches in turn (evaluation), so
that a batch-dependent model answers by the same batches as in a single process. The engine is Hugging Face accelerate
on PyTorch's distributed package: gloo on CPUs, nccl on GPUs. Several machines must share the folder that is written
to. On CPUs set OMP_NUM_THREADS to the cores that each process may use.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Processes:
    """The processes that work together, as one of them sees them.

    Attributes:
        rank: Number of this process, from 0.
        count: How many processes there are.
        accelerator: The `Accelerator` of Hugging Face accelerate; None for a single process.
    """

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def silent(self) -> bool | None:
        """What tqdm takes as `disable`: True hides the bar, None shows it on a terminal."""
        return None if self.first else True

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, never empty: with fewer rows than processes some serve twice."""
        if self.count == 1:
            return batch
        return batch[torch.arange(max(len(batch), self.count)).tensor_split(self.count)[self.rank] % len(batch)]

    def weight(self, own: int, batch: int) -> float:
        """Weight of the mean over a share, with which the mean over the processes is that over the batch."""
        return own * self.count / max(batch, self.count)

    def wrapped(self, step: nn.Module) -> Callable[..., Tensor]:
        """Wrap a module so that its gradient becomes the mean over the processes; a single process gets it back."""
        return step if self.accelerator is None else self.accelerator.prepare_model(step, device_placement=False)

    def work(self, items: Iterable[Item], answer: Callable[[Item], Answer]) -> Iterator[tuple[Item, Answer]]:
        """Go through items in order; the processes take turns at answering and tell each other what they found.

        An answer may rest on those given before, but not on those to the `count - 1` items before it.

        Args:
            items: The same in every process.
            answer: Returns numbers or tensors in the memory of the CPU.
        """
        if self.accelerator is None:
            yield from ((item, answer(item)) for item in items)
            return
        from accelerate.utils import gather_object

        remaining = iter(items)
        while block := list(islice(remaining, self.count)):
            mine = answer(block[self.rank]) if self.rank < len(block) else None
            yield from zip(block, gather_object([mine]), strict=False)

    def total(self, number: float | int) -> float:
        """Add up a number over the processes."""
        if self.accelerator is None:
            return float(number)
        summed = self.accelerator.reduce(torch.tensor(number, dtype=torch.float64, device=self.accelerator.device))
        return float(summed)

    def wait(self) -> None:
        """Wait until every process is here; what the first one wrote before is then there to be read."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def agree(self, model: nn.Module) -> None:
        """Give every process the buffers of the first one, such as batch norm's statistics."""
        if self.accelerator is None:
            return
        from accelerate.utils import broadcast

        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.contiguous()))


@cache
def processes() -> Processes:
    """Return the processes that a launcher has started, or the only one there is.

    Raises:
        ImportError: If a launcher has started several and accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("several processes need accelerate: pip install 'robustviz[distributed]'") from error
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    atexit.register(accelerator.end_training)
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator)
