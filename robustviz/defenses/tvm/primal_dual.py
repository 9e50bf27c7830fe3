"""The primal-dual method by which `minimize_tv` finds its minimum, and the proof of how near it is.

The energy is a maximum over dual maps p, one pair of numbers (down, right) for every pixel and channel:

    E(z) = max over |p| <= 1 of   1/2 * sum over kept pixels of (z - images)^2  +  weight * <D z, p>

D z are the forward differences. Chambolle & Pock (algorithm 1) repeat, for K = weight * D,

    z'    = prox of tau * fidelity at  z - tau K* p          a step down in the picture
    z_bar = z' + theta (z' - z),  theta = 1                  extrapolation
    p'    = projection of  p + sigma K z_bar  to |p| <= 1    a step up in the dual maps

and over-relaxation by rho throws both further: (z, p) + rho ((z', p') - (z, p)). With tau and sigma of each pixel
(Pock & Chambolle), tau sigma times the differences that meet in it may be 1.

    symbol          in the code
    z, p            picture, (down, right)      the fields of `_State`
    tau * weight    primal_step                 the step of pixels, which the dual maps pull at with the weight
    tau * kept      fidelity_step               the step of kept pixels towards what was observed
    sigma * weight  dual_step                   the step of dual maps
    theta           1
    rho             RELAXATION

Steps change on the way: tau is multiplied by `ratio`, sigma divided by it.

Source: Chambolle & Pock, "A first-order primal-dual algorithm for convex problems with applications to imaging", 2011,
algorithm 1; Pock & Chambolle, "Diagonal preconditioning for first order primal-dual algorithms in convex optimization",
2011, for steps of each pixel; Condat, "A primal-dual splitting method for convex optimization", 2013, for rho.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustviz.types import Images, PerImage

Maps = Float[Tensor, "h w n c"]

RELAXATION = 1.9
"""rho, over-relaxation; with constant steps, any value in (0, 2) reaches the same minimum."""

FLAT_DIFFERENCE = 0.8
"""The difference between neighbors, in units of the weight, that steps are made for where a picture is flat; tuned on
photographs."""


class _State(NamedTuple):
    """Pictures z, and the dual maps p of their differences downwards and to the right."""

    picture: Maps
    down: Maps
    right: Maps

    def select(self, rows: Bool[Tensor, "n"]) -> "_State":
        """Keep some of the pictures with their dual maps."""
        return _State(*(maps[:, :, rows] for maps in self))


@dataclass(frozen=True)
class Problem:
    """Pictures to be found, laid out (h, w, n, c) so that neighbors are whole runs of memory apart.

    No minimum leaves [low, high], the range of the kept pixels.

    Attributes:
        weight: Price of variation.
        observed: Kept pixels as they are, dropped ones filled in.
        kept: 1 where a pixel counts, 0 where it does not.
        dual_step: sigma * weight.
        primal_step: tau * weight.
        fidelity_step: tau for kept pixels, 0 for dropped ones.
        low: Smallest kept pixel.
        high: Largest kept pixel.
    """

    weight: float
    observed: Maps
    kept: Maps
    dual_step: Maps
    primal_step: Maps
    fidelity_step: Maps
    low: Float[Tensor, "1 1 n c"]
    high: Float[Tensor, "1 1 n c"]

    @classmethod
    def of(cls, images: Images, kept: Bool[Tensor, "n k h w"], weight: float) -> "Problem":
        """Set a problem up: fill dropped pixels in, and choose the steps."""
        known = kept.to(images.dtype).expand_as(images)
        observed, known = (maps.permute(2, 3, 0, 1).contiguous() for maps in (images, known))
        start = _filled(observed, known)
        low, high = (start + (1 - known)).amin((0, 1), keepdim=True), (start * known).amax((0, 1), keepdim=True)
        # Where neighbors differ by much, pixels take long steps and dual maps short ones.
        down, right = _differences(start)
        differences = _around(down.abs() + right.abs()) / 9 + FLAT_DIFFERENCE * weight
        dual_step = 1 / differences.clamp_min(torch.finfo(start.dtype).eps)
        # A pixel's step, times twice the sum of those of its four differences, may be 1.
        meeting = 2 * dual_step
        meeting[1:] += dual_step[:-1]
        meeting[:, 1:] += dual_step[:, :-1]
        primal_step = 1 / (2 * meeting)
        fidelity_step = primal_step * known / weight
        return cls(weight, start, known, dual_step, primal_step, fidelity_step, low.detach(), high.detach())

    def select(self, rows: Bool[Tensor, "n"]) -> "Problem":
        """Go on with some of the pictures."""
        steps = (self.dual_step, self.primal_step, self.fidelity_step)
        tensors = (self.observed, self.kept, *steps, self.low, self.high)
        return Problem(self.weight, *(values[:, :, rows] for values in tensors))

    def step(self, state: _State, ratio: float) -> tuple[_State, _State]:
        """Take one step from (z, p); return the next (z, p), which over-relaxation throws ahead, and (z', p')."""
        picture, down, right = state
        moved = torch.addcmul(picture, _divergence(down, right), self.primal_step, value=ratio)
        # The proximal map of the fidelity: a kept pixel ends this share of the way from what was observed.
        picture = torch.lerp(self.observed, moved, 1 / (1 + ratio * self.fidelity_step))
        steeper, wider = _differences(torch.lerp(state.picture, picture, 2.0))
        steeper = torch.addcmul(down, steeper, self.dual_step, value=1 / ratio)
        wider = torch.addcmul(right, wider, self.dual_step, value=1 / ratio)
        shrink = torch.addcmul(steeper * steeper, wider, wider).clamp_min(1).rsqrt()
        found = _State(picture, steeper * shrink, wider * shrink)
        return _State(*(torch.lerp(*pair, RELAXATION) for pair in zip(state, found, strict=True))), found

    @torch.no_grad()
    def energy(self, picture: Maps) -> PerImage:
        """Energy of each picture, brought into its range."""
        picture = picture.clamp(self.low, self.high)
        down, right = _differences(picture)
        lengths = torch.addcmul(down * down, right, right).sqrt()
        return (self.kept * (picture - self.observed).square() / 2 + self.weight * lengths).sum((0, 1)).sum(1)

    @torch.no_grad()
    def bound(self, down: Maps, right: Maps) -> PerImage:
        """Lower bound of the minimum: the least value over [low, high] under these dual maps.

        It is far below the minimum where pixels are dropped.
        """
        slope = -self.weight * _divergence(down, right)
        least = (self.observed - slope).clamp(self.low, self.high)
        fixed = slope * least + (least - self.observed).square() / 2
        free = torch.minimum(slope * self.low, slope * self.high)
        return torch.lerp(free, fixed, self.kept).sum((0, 1)).sum(1)


class Descent:
    """A batch on its way to the minimum; pictures that have arrived leave the computation.

    Attributes:
        start: All pictures at the start, dropped pixels filled in.
        result: All pictures where they are, each in its range; brought up to date by `collect`.
    """

    def __init__(self, images: Images, kept: Bool[Tensor, "n k h w"], weight: float):
        self._problem = Problem.of(images, kept, weight)
        self.start = self.result = self._problem.observed
        self._state = _State(self.start, torch.zeros_like(self.start), torch.zeros_like(self.start))
        self._found = self._state
        self._rows = torch.arange(len(images), device=images.device)
        self._whole = kept.flatten(1).all(1)
        self._energy = torch.full_like(self.start[0, 0, :, 0], torch.inf)

    def step(self, ratio: float) -> None:
        """Move the pictures that are still on their way by one step."""
        self._state, self._found = self._problem.step(self._state, ratio)

    def collect(self) -> None:
        """Bring `result` up to date."""
        found = self._found.picture.clamp(self._problem.low, self._problem.high)
        self.result = self.result.index_copy(2, self._rows, found)

    def leave(self, tolerance: float) -> bool:
        """Let pictures go that have arrived (see `minimize_tv`); return whether any is left."""
        before, self._energy = self._energy, self._problem.energy(self._found.picture)
        excess = (before - self._energy).abs()
        if self._whole.any():
            gap = self._energy - self._problem.bound(self._found.down, self._found.right)
            excess = torch.where(self._whole, gap, excess)
        far = excess > tolerance * self._energy
        if not far.all():
            self._problem = self._problem.select(far)
            self._state, self._found = self._state.select(far), self._found.select(far)
            self._rows, self._whole, self._energy = self._rows[far], self._whole[far], self._energy[far]
        return bool(len(self._rows))


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
