"""The work of an evaluation, turn by turn: a batch is attacked and answered, or answered again in another order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal
from zlib import crc32

import torch
from torch import Generator, Tensor, nn

from robustviz.evaluation.answers import attack_batch, checked_model, decisions, norm_of
from robustviz.evaluation.shares import choices, halves
from robustviz.evaluation.state import Position, Tally
from robustviz.evaluation.table import CLEAN, WORST
from robustviz.tensors import distances, seeded
from robustviz.types import Attack, Images, Labels


@dataclass(frozen=True)
class Turn:
    """A piece of work that one process does.

    Attributes:
        kind: `"attack"`: attack a batch and, unless the model answers jointly, let it answer; `"answer"`: let a joint
            model answer all images once, in new batches; `"assemble"`: the same for the assembled set.
        condition: Name of the condition.
        repeat: Number of the repeat.
        number: Number of the batch to attack, or of the draw to answer in.
        images: How many images it passes.
    """

    kind: Literal["attack", "answer", "assemble"]
    condition: str
    repeat: int
    number: int
    images: int

    @property
    def place(self) -> Position:
        """Where its attacked images are kept."""
        return self.condition, self.repeat, self.number


@dataclass(frozen=True)
class Found:
    """What a turn found, in the memory of the CPU.

    Attributes:
        rows: Which images.
        decided: Decision for each draw and image; None if the images are still to be answered.
        distances: How far they moved; None if they did not.
        differing: On how many of them the fast copy and the model decided differently.
        attacked: The attacked images, if they are still to be answered.
    """

    rows: Tensor
    decided: Tensor | None = None
    distances: Tensor | None = None
    differing: int = 0
    attacked: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """What stays the same during an evaluation; the arguments are those of `evaluate`.

    Attributes:
        copy: The fast copy that is attacked instead of the model, if there is one.
        joint: Whether the model answers an image by its batch.
        seed: Decides all noise.
        tally: Where answers are kept.
    """

    model: nn.Module
    copy: nn.Module | None
    images: Images
    labels: Labels
    attacks: Mapping[str, Attack]
    batch_size: int
    draws: int
    joint: bool
    survivors_only: bool
    seed: int
    tally: Tally

    @cached_property
    def conditions(self) -> list[str]:
        """Names, the clean images first."""
        return [CLEAN, *self.attacks]

    @cached_property
    def batches(self) -> Sequence[Tensor]:
        """Images of each batch."""
        return torch.split(torch.arange(len(self.labels)), self.batch_size)

    @property
    def reshuffles(self) -> bool:
        """Whether answers are given apart from the attacks, in other batches."""
        return self.joint and self.draws > 1

    @property
    def assembles(self) -> bool:
        """Whether each image is also scored under what the draws choose for it, all answered together."""
        return self.reshuffles and bool(self.attacks)

    def turns(self, repeats: int) -> list[Turn]:
        """List all work in the order in which it is done."""
        made, count = list[Turn](), len(self.labels)
        for name in self.conditions:
            if not (self.reshuffles and name == CLEAN):
                batches = list(enumerate(self.batches))
                made += [Turn("attack", name, r, batch, len(rows)) for r in range(repeats) for batch, rows in batches]
            if self.reshuffles:
                made += [Turn("answer", name, r, draw, count) for r in range(repeats) for draw in range(self.draws)]
        if self.assembles:
            made += [Turn("assemble", WORST, 0, draw, count) for draw in range(self.draws)]
        return made

    def take(self, turn: Turn) -> Found:
        """Do one turn; nothing is noted yet."""
        if turn.kind == "attack":
            return self._attack(turn)
        return self._answer(turn, self._assembled(turn) if turn.kind == "assemble" else self._attacked(turn))

    def note(self, turn: Turn, found: Found) -> None:
        """Note what a turn found, and write it down."""
        if turn.kind == "assemble":
            assert found.decided is not None
            self.tally.assembled[turn.number] = found.decided[0]
        else:
            condition = self.conditions.index(turn.condition)
            if self.survivors_only and condition:
                self.tally.inherit(condition, turn.repeat, self.batches[turn.number], self.labels.cpu())
            draws = slice(turn.number, turn.number + 1) if turn.kind == "answer" else slice(None)
            answers = found.rows, found.decided, found.distances, found.differing
            self.tally.add(condition, turn.repeat, *answers, draws=draws)
            if found.attacked is not None:
                self.tally.keep_images(turn.place, found.attacked)
        self.tally.keep()

    def take_up(self, done: Sequence[Turn]) -> None:
        """Read back the attacked images of the turns that are done."""
        for turn in done if self.reshuffles else ():
            if turn.kind == "attack":
                self.tally.read_images(turn.place, self.images[self.batches[turn.number]])

    def _attack(self, turn: Turn) -> Found:
        rows, attack = self.batches[turn.number], self.attacks.get(turn.condition)
        if self.survivors_only and attack is not None:
            rows = self.tally.inherit(self.conditions.index(turn.condition), turn.repeat, rows, self.labels.cpu())
        if not len(rows):
            return Found(rows)
        images, labels, noise = self.images[rows], self.labels[rows], seeded(self.seed, turn.repeat, turn.number)
        safe = None if attack is None else partial(checked_model, name=turn.condition, attack=attack)
        attacked, decided, differing = attack_batch(self.model, self.copy, images, labels, safe, noise)
        moved = distances(images, attacked.detach(), norm_of(attack)).float().cpu()
        if self.reshuffles:
            return Found(rows, None, moved, differing, attacked.detach().cpu())
        if self.draws > 1:
            streams = [self._noise(turn, draw) for draw in range(self.draws)]
            decided = torch.stack([decisions(self.model, attacked, labels, stream) for stream in streams])
        elif decided is None:
            decided = decisions(self.model, attacked, labels, noise)
        return Found(rows, decided.view(self.draws, -1).cpu(), moved, differing)

    def _answer(self, turn: Turn, attacked: Images) -> Found:
        """Let the model answer all images once, in batches of a random order."""
        noise = self._noise(turn, turn.number)
        order = torch.randperm(len(self.labels), generator=noise)
        decided = torch.empty(1, len(order), dtype=torch.long)
        for rows in torch.split(order, self.batch_size):
            images, labels = attacked[rows].to(self.images.device), self.labels[rows]
            decided[0, rows] = decisions(self.model, images, labels, noise).cpu()
        return Found(torch.arange(len(order)), decided)

    def _attacked(self, turn: Turn) -> Images:
        """All images under the condition of a turn."""
        if turn.condition == CLEAN:
            return self.images
        return self.tally.all_images(turn.condition, turn.repeat, len(self.batches))

    def _assembled(self, turn: Turn) -> Images:
        """Each image under the attack that is lowest for it on the half of the draws that this turn is not in."""
        candidates = self.tally.predictions.roll(-1, 0) == self.labels.cpu()  # the clean images come last
        repeats = candidates.shape[1]
        on_first, on_second = choices(candidates.flatten(0, 1))
        chosen = on_second if turn.number < halves(self.draws)[0].stop else on_first
        images = self.images.cpu().clone()
        for candidate in set(chosen.tolist()):
            condition, repeat = divmod(candidate, repeats)
            if condition < len(self.attacks):
                rows = chosen == candidate
                images[rows] = self.tally.all_images(self.conditions[condition + 1], repeat, len(self.batches))[rows]
        return images

    def _noise(self, turn: Turn, draw: int) -> Generator:
        """What one answer draws: another stream for every condition, whatever its attack has drawn."""
        batch = turn.number if turn.kind == "attack" else 0
        return seeded(self.seed, turn.repeat, batch, draw, crc32(turn.condition.encode()))
