"""The numbers of `separation` along a trajectory: how they change while an attack grows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.features import FeatureSnapshot
from robustviz.geometry.separation import distance_ratio, margins, neighbor_agreement
from robustviz.geometry.trajectories import Trajectory


@dataclass(frozen=True)
class Course:
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


def course(reference: FeatureSnapshot, trajectory: Trajectory, model: nn.Module, *, batch_size: int = 256) -> Course:
    """Compute the numbers at every stage of a trajectory.

    Args:
        reference: Clean training features of the same layer.
        trajectory: As traced.
        model: That the trajectory was traced on.
        batch_size: Images in one forward pass.

    Raises:
        ValueError: If the layers differ or a value is not finite.
    """
    taken = [trajectory.snapshot(stage) for stage in range(len(trajectory.stages))]
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    distance = [distance_ratio(reference, part).cpu().quantile(quarters) for part in taken]
    margin = [margins(model, images, trajectory.labels, batch_size=batch_size) for images in trajectory.images]
    return Course(
        trajectory.condition,
        trajectory.unit,
        trajectory.stages,
        (trajectory.predictions == trajectory.labels).double().mean(1).cpu(),
        torch.stack([neighbor_agreement(reference, part).mean() for part in taken]).cpu(),
        torch.stack(distance),
        torch.stack([part.cpu().quantile(quarters) for part in margin]),
    )
