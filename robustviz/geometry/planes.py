"""Decisions over a plane: through three images in pixel space, or over a map of features."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustviz.attacks.views import alone_head
from robustviz.checks import check_images
from robustviz.features import FeatureSnapshot
from robustviz.geometry.embedding import Embedding
from robustviz.tensors import batch_dependent, evaluating
from robustviz.types import Images


@dataclass(frozen=True)
class DecisionPlane:
    """What a model decides on a grid of points in a plane; all of it on the CPU.

    Attributes:
        horizontal: First coordinate of each column.
        vertical: Second coordinate of each row.
        decisions: Class decided at each point.
        confidence: Its probability, 0 to 1.
        points: Where the images that span the plane lie; none on a map.
        names: What they are called.
    """

    horizontal: Float[Tensor, "w"]
    vertical: Float[Tensor, "h"]
    decisions: Int[Tensor, "h w"]
    confidence: Float[Tensor, "h w"]
    points: Float[Tensor, "p 2"]
    names: tuple[str, ...] = ()


def image_plane(
    model: nn.Module, images: Images, names: tuple[str, str, str], *, resolution: int = 81, batch_size: int = 512
) -> DecisionPlane:
    """Classify every point of the plane through three images, such as a clean one and two attacked ones.

    The first image is the origin and the second lies on the horizontal axis; distances in the plane are Euclidean
    distances between images. Points are clipped to [0, 1], as every image is. A model whose answers depend on the
    batch gets one point at a time.

    Args:
        model: Any network; left as it was.
        images: Three different images in [0, 1], not on one line.
        names: What they are called.
        resolution: Points along each axis.
        batch_size: Points in one forward pass.

    Raises:
        ValueError: If the images are not three, or lie on one line, or a setting is out of range.

    Source: Somepalli et al., "Can neural nets learn the same model twice? Investigating reproducibility and double
    descent from the decision boundary perspective", arXiv 2203.08124, section 3.
    """
    check_images(images)
    _check_grid(resolution, batch_size)
    if len(images) != 3:
        raise ValueError(f"images must be three, got {len(images)}")
    origin, first, second = images.flatten(1).double()
    first, second = first - origin, second - origin
    along = first / first.norm().clamp_min(1e-12)
    height = second - (second @ along) * along
    if min(first.norm(), height.norm()) < 1e-6:
        raise ValueError(f"images {', '.join(names)} must span a plane, but lie on one line; choose another image")
    up = height / height.norm()
    points = torch.stack([torch.stack([part @ along, part @ up]) for part in (first * 0, first, second)])
    horizontal, vertical = _axes(points, resolution, square=True)
    grid = torch.cartesian_prod(vertical, horizontal).to(images.device)
    flat = (origin + grid[:, 1:] * along + grid[:, :1] * up).clamp(0, 1).to(images.dtype)
    asked = alone_head(model) if batch_dependent(model) else model
    decisions, confidence = _ask(asked, flat.view(-1, *images.shape[1:]), batch_size)
    shape = (resolution, resolution)
    placed = points.cpu()
    return DecisionPlane(horizontal, vertical, decisions.view(shape), confidence.view(shape), placed, tuple(names))


def map_regions(
    head: nn.Module, embedding: Embedding, *, resolution: int = 81, batch_size: int = 2048
) -> DecisionPlane:
    """Classify every point of a map of features, by the head that they are the input of.

    Each point of the map is lifted to features first (`Embedding.lift`). A map cannot show all boundaries of a space
    with many dimensions: `faithfulness` tells how often it is right.

    Args:
        head: Layer on the features that the map was fitted on; a WNLL head gets one point at a time.
        embedding: The map.
        resolution: Points along each axis.
        batch_size: Points in one forward pass.

    Raises:
        ValueError: If a setting is out of range.

    Source: Going back through neighbors: Schulz, Hinder & Hammer, "DeepView: visualizing classification boundaries of
    deep neural networks as scatter plots using discriminative dimensionality reduction", arXiv 1909.09154.
    """
    _check_grid(resolution, batch_size)
    shown = torch.cat([embedding.coordinates, *(part.reshape(-1, 2) for part in embedding.positions.values())])
    horizontal, vertical = _axes(shown, resolution, square=False)
    grid = torch.cartesian_prod(vertical, horizontal).flip(1)
    values = embedding.lift(grid).to(embedding.reference.values.dtype)
    decisions, confidence = _ask(_alone(head), values.to(_device(head)), batch_size)
    shape = (resolution, resolution)
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    return DecisionPlane(horizontal, vertical, decisions.view(shape), confidence.view(shape), nothing)


def faithfulness(head: nn.Module, embedding: Embedding, snapshot: FeatureSnapshot) -> float:
    """Share of the images, 0 to 1, whose own decision is the one that `map_regions` shows where they lie.

    Args:
        head: The head that decides, as `map_regions` takes it.
        embedding: The map.
        snapshot: Features of images that the map was not fitted on; a training image is its own nearest neighbor.
    """
    values = embedding.lift(embedding.place(snapshot.values)).to(snapshot.values.dtype)
    shown, own = (_ask(_alone(head), part.to(_device(head)), 2048)[0] for part in (values, snapshot.values))
    return (shown == own).double().mean().item()


def _alone(head: Any) -> nn.Module:
    return head.with_settings(joint=False, gradient="exact") if batch_dependent(head) else head


def _device(head: nn.Module) -> torch.device:
    return next((tensor.device for tensor in head.state_dict().values()), torch.device("cpu"))


def _ask(model: nn.Module, points: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Decision and its probability at each point, on the CPU."""
    with evaluating(model), torch.no_grad():
        shares = torch.cat([model(batch).double().softmax(1) for batch in torch.split(points, batch_size)])
    confidence, decisions = shares.cpu().max(1)
    return decisions, confidence


def _axes(points: Tensor, resolution: int, *, square: bool) -> tuple[Tensor, Tensor]:
    """Coordinates of columns and rows that leave a margin around the points; square ones have equal ranges."""
    low, high = points.amin(0), points.amax(0)
    half = (high - low) / 2
    half = half.amax().expand(2) * 1.35 if square else half * 1.06
    ends = torch.stack([(low + high) / 2 - half, (low + high) / 2 + half]).double().cpu()
    steps = torch.linspace(0, 1, resolution, dtype=torch.float64)
    horizontal, vertical = ends[0][:, None] + (ends[1] - ends[0])[:, None] * steps
    return horizontal, vertical


def _check_grid(resolution: int, batch_size: int) -> None:
    if resolution < 2 or batch_size < 1:
        raise ValueError(f"resolution must be >= 2 and batch_size >= 1, got {resolution} and {batch_size}")
