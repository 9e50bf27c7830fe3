"""The steps by which `variation.minimize_tv` finds its minimum, and the proof of how near it is.

Source: Chambolle & Pock, "A first-order primal-dual algorithm for convex problems", 2011, algorithm 1, for the steps;
Pock & Chambolle, "Diagonal preconditioning for first order primal-dual algorithms in convex optimization", 2011, for
lengths that differ from pixel to pixel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustviz.types import Images

Maps = Float[Tensor, "h w n c"]
State = tuple[Maps, Maps, Maps]
"""Pictures, and the two dual maps that go with their differences downwards and to the right."""

RELAXATION = 1.9
"""How far a step is thrown; with steps of constant length, any value in (0, 2) reaches the same minimum."""

CONTRAST = 0.8
"""How much of the weight counts as contrast where a picture is flat; tuned on photographs."""


@dataclass(frozen=True)
class Problem:
    """Pictures to be found, laid out (h, w, n, c) so that neighbors are whole runs of memory apart.

    The energy is the largest value, over dual maps with every pixel's pair in the unit disk, of

        1/2 * sum over kept pixels of (z - observed)^2 + weight * <differences(z), dual>.

    Its least value over z in [low, high], the range of the kept pixels, which no minimum leaves, is a lower bound of
    the minimum for any such dual maps.

    Attributes:
        weight: Price of variation.
        observed: Kept pixels as they are, dropped ones filled in.
        kept: 1 where a pixel counts, 0 where it does not.
        push: Lengths of the steps of dual maps.
        pull: Lengths of the steps of pixels, times the weight.
        stay: Lengths of the steps of kept pixels; 0 for dropped ones.
        low: Smallest kept pixel.
        high: Largest kept pixel.
    """

    weight: float
    observed: Maps
    kept: Maps
    push: Maps
    pull: Maps
    stay: Maps
    low: Float[Tensor, "1 1 n c"]
    high: Float[Tensor, "1 1 n c"]

    @classmethod
    def of(cls, images: Images, kept: Bool[Tensor, "n k h w"], weight: float) -> "Problem":
        """Set a problem up: fill dropped pixels in, and choose the lengths of the steps."""
        known = kept.to(images.dtype).expand_as(images)
        observed, known = (maps.permute(2, 3, 0, 1).contiguous() for maps in (images, known))
        start = _filled(observed, known)
        low, high = (start + (1 - known)).amin((0, 1), keepdim=True), (start * known).amax((0, 1), keepdim=True)
        # Where neighbors differ by much, pixels take long steps and dual maps short ones.
        down, right = _differences(start)
        push = 1 / (_around(down.abs() + right.abs()) / 9 + CONTRAST * weight).clamp_min(torch.finfo(start.dtype).eps)
        # A pixel's step, times twice the sum of those of its four differences, may be 1.
        sides = 2 * push
        sides[1:] += push[:-1]
        sides[:, 1:] += push[:, :-1]
        pull = 1 / (2 * sides)
        return cls(weight, start, known, push, pull, pull * known / weight, low.detach(), high.detach())

    def select(self, rows: Bool[Tensor, "n"]) -> "Problem":
        """Go on with some of the pictures."""
        tensors = (self.observed, self.kept, self.push, self.pull, self.stay, self.low, self.high)
        return Problem(self.weight, *(values[:, :, rows] for values in tensors))

    def step(self, point: Maps, down: Maps, right: Maps, haste: float) -> tuple[State, State]:
        """Take one step from a state; return the next state, which over-relaxation throws ahead, and what was found.

        Pixels move `haste` times as far as `pull` allows, dual maps as many times less than `push`.
        """
        moved = torch.addcmul(point, _divergence(down, right), self.pull, value=haste)
        # A kept pixel ends this share of the way from what was observed to where it would go without.
        nearer = torch.lerp(self.observed, moved, 1 / (1 + haste * self.stay))
        steeper, wider = _differences(torch.lerp(point, nearer, 2.0))
        steeper = torch.addcmul(down, steeper, self.push, value=1 / haste)
        wider = torch.addcmul(right, wider, self.push, value=1 / haste)
        inside = torch.addcmul(steeper * steeper, wider, wider).clamp_min(1).rsqrt()
        found = (nearer, steeper * inside, wider * inside)
        point, down, right = (torch.lerp(*pair, RELAXATION) for pair in zip((point, down, right), found, strict=True))
        return (point, down, right), found

    @torch.no_grad()
    def energy(self, point: Maps) -> Float[Tensor, "n"]:
        """Energy of each picture, brought into its range."""
        point = point.clamp(self.low, self.high)
        down, right = _differences(point)
        lengths = torch.addcmul(down * down, right, right).sqrt()
        return (self.kept * (point - self.observed).square() / 2 + self.weight * lengths).sum((0, 1)).sum(1)

    @torch.no_grad()
    def bound(self, down: Maps, right: Maps) -> Float[Tensor, "n"]:
        """What the energy of no picture can fall below, by its dual maps; far below it where pixels are dropped."""
        slope = -self.weight * _divergence(down, right)
        least = (self.observed - slope).clamp(self.low, self.high)
        fixed = slope * least + (least - self.observed).square() / 2
        free = torch.minimum(slope * self.low, slope * self.high)
        return torch.lerp(free, fixed, self.kept).sum((0, 1)).sum(1)


def _filled(observed: Maps, kept: Maps) -> Maps:
    """Give dropped pixels the mean of their known neighbors, ring by ring; kept pixels stay, the rest is ignored."""
    filled, known = observed * kept, kept
    for _ in range(max(observed.shape[:2])):
        if known.min() == 1:
            break
        count = _around(known)
        filled = torch.lerp(_around(filled) / count.clamp_min(1), filled, known)
        known = count.clamp_max(1)
    return filled


def _around(maps: Maps) -> Maps:
    """Sum of each pixel and its up to eight neighbors."""
    rows = maps.clone()
    rows[1:] += maps[:-1]
    rows[:-1] += maps[1:]
    total = rows.clone()
    total[:, 1:] += rows[:, :-1]
    total[:, :-1] += rows[:, 1:]
    return total


def _differences(maps: Maps) -> tuple[Maps, Maps]:
    """Downwards and to the right, 0 beyond the edge."""
    return maps.diff(dim=0, append=maps[-1:]), maps.diff(dim=1, append=maps[:, -1:])


def _divergence(down: Maps, right: Maps) -> Maps:
    """Minus the adjoint of the forward differences; the last row of `down` and column of `right` are always 0."""
    total = down + right
    total[1:] -= down[:-1]
    total[:, 1:] -= right[:, :-1]
    return total


def rows_of(state: State, rows: Bool[Tensor, "n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Take some of the pictures with their dual maps."""
    point, down, right = (maps[:, :, rows] for maps in state)
    return point, down, right
