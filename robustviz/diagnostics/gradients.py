"""The gradient that a network gives to the pixels, and the slope that it has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustviz.tensors import batch_dependent, drawing, evaluating, seeded
from robustviz.types import Images, Labels, Logits, Objective, PerImage

DIRECTIONS = 4


def gradient(objective: Objective, model: nn.Module, images: Images, labels: Labels, *, seed: int) -> Images | None:
    """Gradient of an objective to the pixels, NaN included; None if the network cuts it off."""
    points = images.detach().clone().requires_grad_()
    with _same_draws(model, images, seed), torch.enable_grad():
        values = objective(model, points, labels, generator=seeded(seed, 3))
        if not values.requires_grad:
            return None
        return torch.autograd.grad(values.sum(), points, allow_unused=True)[0]


def slopes(
    objective: Objective, model: nn.Module, images: Images, labels: Labels, *, step: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Slope of an objective along random directions, by autograd and by central differences.

    Args:
        objective: One number for each image.
        model: Evaluated in evaluation mode.
        images: In [0, 1]; moved inwards so that both sides stay there.
        labels: Their classes.
        step: How far each pixel is moved to both sides.
        seed: Seed of the directions, and of a stochastic network's draws.

    Returns:
        Both (images, directions); where answers depend on the batch, both (1, directions) for the whole batch.
    """
    center = images.clamp(step, 1 - step)
    known = gradient(objective, model, center, labels, seed=seed)
    known = torch.zeros_like(center) if known is None else known.nan_to_num(0)

    def value(points: Images) -> PerImage:
        with _same_draws(model, images, seed), torch.no_grad():
            return objective(model, points, labels, generator=seeded(seed, 3))

    generator = seeded(seed, 4)
    by_gradient, by_difference = [], []
    for _ in range(DIRECTIONS):
        signs = 2 * torch.randint(2, center.shape, generator=generator).to(center) - 1
        by_gradient.append((known * signs).flatten(1).sum(1).double())
        by_difference.append((value(center + step * signs) - value(center - step * signs)).double() / (2 * step))
    both = torch.stack(by_gradient, 1), torch.stack(by_difference, 1)
    return (both[0].sum(0, True), both[1].sum(0, True)) if batch_dependent(model) else both


class Attached(nn.Module):
    """A network whose gradient to the pixels is cut off, with a gradient of zero in its place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Logits:
        """Return the logits of the network."""
        return self.model(images) + 0 * images.flatten(1).sum(1, keepdim=True)


def gpus(images: Images, *models: nn.Module) -> list[int]:
    """Number of each GPU that holds the images or a part of a network: layers draw from its random state."""
    held = [images, *(tensor for model in models for tensor in (*model.parameters(), *model.buffers()))]
    return sorted({tensor.device.index for tensor in held if tensor.is_cuda})


@contextmanager
def _same_draws(model: nn.Module, images: Images, seed: int) -> Iterator[None]:
    """Evaluation mode in which random layers draw the same every time, be it from the global random state."""
    devices = gpus(images, model)
    with evaluating(model), drawing(model, seeded(seed, 1)), torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
