"""The numbers of `separation` along a trajectory: how they change while an attack grows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.features import FeatureSnapshot
from robustviz.geometry.separation import margins
from robustviz.geometry.surroundings import ratio_and_agreement
from robustviz.geometry.trajectories import Trajectory


@dataclass(frozen=True)
class Curves:
    """The numbers of one attack at every stage of a trajectory.

    Attributes:
        condition: Name of the attack.
        unit: What the stages count, "epsilon" or "step".
        stages: Growing.
        accuracy: Share of right decisions, 0 to 1.
        agreement: Mean of `neighbor_agreement`, 0 to 1.
        distance: Lower quartile, median and upper quartile of `distance_ratio`.
        margin: The same of `margins`.
    """

    condition: str
    unit: str
    stages: tuple[float, ...]
    accuracy: Float[Tensor, "e"]
    agreement: Float[Tensor, "e"]
    distance: Float[Tensor, "e 3"]
    margin: Float[Tensor, "e 3"]


def curves(reference: FeatureSnapshot, trajectory: Trajectory, model: nn.Module, *, batch_size: int = 256) -> Curves:
    """Compute the numbers at every stage of a trajectory.

    Args:
        reference: Clean training features of the same layer.
        trajectory: Images and features at every stage of the attack.
        model: Network that the trajectory was traced on.
        batch_size: Images in one forward pass.

    Raises:
        ValueError: If the layers differ or a value is not finite.
    """
    stages, images = trajectory.values.shape[:2]
    every = FeatureSnapshot(
        trajectory.layer,
        trajectory.condition,
        trajectory.values.flatten(0, 1),
        trajectory.labels.repeat(stages),
        trajectory.predictions.flatten(),
        trajectory.indices.repeat(stages),
    )
    distance, agreement = (part.cpu().view(stages, images) for part in ratio_and_agreement(reference, every))
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    margin = [margins(model, images, trajectory.labels, batch_size=batch_size) for images in trajectory.images]
    return Curves(
        trajectory.condition,
        trajectory.unit,
        trajectory.stages,
        (trajectory.predictions == trajectory.labels).double().mean(1).cpu(),
        agreement.mean(1),
        distance.quantile(quarters, dim=1).T,
        torch.stack([part.cpu().quantile(quarters) for part in margin]),
    )
