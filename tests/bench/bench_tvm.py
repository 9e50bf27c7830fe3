"""Total variation of 100 images of 3x32x32 to within 0.1 % of the least energy: against scikit-image, and masked.

With half of the pixels dropped, `masked to 0.1 %` misses its target: that problem holds half of the fidelity and needs
more steps of every kind that was tried. Lengths by local contrast, shorter towards the end, are the best of them; a
harmonic start, a start of the dual maps from the gradient, Anderson mixing and preconditioning by a blur help no more,
or as much without a mask. Split Bregman needs fewer steps, each far dearer.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from robustviz.defenses.tvm import draw_kept, minimize_tv, tv_energy
from robustviz.tensors import seeded
from tests.bench.timing import Ratio, interleaved, ratios

COUNT, SIZE, WEIGHT = 100, 32, 0.03


def main() -> Iterator[Ratio]:
    images = crops()
    plain, masked = (fewest(lambda steps, keep=keep: ours(images, keep, steps), images, keep) for keep in (1.0, 0.5))
    candidates = {
        f"{plain} steps": lambda: ours(images, 1.0, plain),
        f"masked, {plain} steps": lambda: ours(images, 0.5, plain),
        f"masked, {masked} steps": lambda: ours(images, 0.5, masked),
        **chambolle(images),
    }
    seconds = interleaved(candidates, 5)
    for theirs in list(candidates)[3:]:
        yield from ratios("tvm to 0.1 %", seconds, f"{plain} steps", {theirs: 0.6})
    yield from ratios("masked, equal steps", seconds, f"masked, {plain} steps", {f"{plain} steps": 1.2})
    print("masked to 0.1 % is a harder problem, see tests/bench/bench_tvm.py; its target has not been met")
    yield from ratios("masked to 0.1 %", seconds, f"masked, {masked} steps", {f"{plain} steps": 1.2})


def crops() -> Tensor:
    """Pieces of two photographs, reduced to a quarter."""
    photos = [F.avg_pool2d(torch.tensor(photo).permute(2, 0, 1) / 255, 4) for photo in load_sample_images().images]
    pieces = []
    for row, place in enumerate(torch.rand(COUNT, 2, generator=seeded(7)).tolist()):
        photo = photos[row % 2]
        top, left = (int(p * (side - SIZE)) for p, side in zip(place, photo.shape[1:], strict=True))
        pieces.append(photo[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(pieces)


def ours(images: Tensor, keep: float, steps: int) -> Tensor:
    """Exactly so many steps, so that the time depends on nothing but the machine."""
    return minimize_tv(images, weight=WEIGHT, keep=keep, steps=steps, tolerance=0.0)


def total(found: Tensor, images: Tensor, keep: float) -> float:
    """Energy of all images together."""
    return tv_energy(found, images, draw_kept(images, keep), weight=WEIGHT).sum().item()


def least(images: Tensor, keep: float) -> float:
    """Energy of all images together, converged."""
    return total(minimize_tv(images, weight=WEIGHT, keep=keep, steps=1000, tolerance=1e-5), images, keep)


def fewest(run: Callable[[int], Tensor], images: Tensor, keep: float) -> int:
    """The smallest number of steps whose result has at most 0.1 % more energy than the minimum, by bisection."""
    target = 1.001 * least(images, keep)
    low, high = 0, 1
    while total(run(high), images, keep) > target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if total(run(middle), images, keep) <= target else (middle, high)
    return high


def chambolle(images: Tensor) -> dict[str, Callable[[], object]]:
    """scikit-image, image by image, each channel on its own; its stopping rule is off."""
    try:
        from skimage.restoration import denoise_tv_chambolle
    except ImportError as error:
        print(f"scikit-image is left out ({error}): pip install -e '.[dev]'")
        return {}

    def run(steps: int) -> Tensor:
        options = {"weight": WEIGHT, "eps": 0, "max_num_iter": steps, "channel_axis": 0}
        return torch.stack([torch.from_numpy(denoise_tv_chambolle(image, **options)) for image in images.numpy()])

    steps = fewest(run, images, 1.0)
    return {f"Chambolle, {steps}": lambda: run(steps)}
