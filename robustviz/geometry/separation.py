"""Numbers beside the map: how far attacked images move from the data, and how well the classes stay apart.

They are computed in the feature space itself. A map in two dimensions distorts it; these do not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.checks import check_images
from robustviz.features import FeatureSnapshot
from robustviz.geometry.surroundings import check_finite, ratio_and_agreement
from robustviz.objectives import logit_margin
from robustviz.tensors import evaluating
from robustviz.types import Images, Labels, Logits, PerImage


def probability_margins(logits: Logits, labels: Labels) -> PerImage:
    """Probability of the true class minus that of the most probable other one, -1 to 1; negative is a wrong decision.

    For a WNLL head, whose logits are log u, the probabilities are u itself, so that both heads have one scale.

    Source: Schapire et al., "Boosting the margin", 1998, section 1.
    """
    return -logit_margin(logits.double().softmax(1), labels)


def margins(model: nn.Module, images: Images, labels: Labels, *, batch_size: int = 256) -> PerImage:
    """Compute `probability_margins` of images in evaluation mode.

    Args:
        model: Any network; left as it was.
        images: In [0, 1].
        labels: Their true classes.
        batch_size: Images in one forward pass.

    Raises:
        ValueError: If images, labels or the batch size are out of range.
    """
    check_images(images, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    with evaluating(model), torch.no_grad():
        return probability_margins(torch.cat([model(batch) for batch in torch.split(images, batch_size)]), labels)


def boundary_distance(head: nn.Linear, snapshot: FeatureSnapshot) -> PerImage:
    """Distance of each image's features to the nearest boundary of its class, in units of the layer.

    Between the true class y and another one c the boundary of a linear head is a hyperplane, at the distance
    (f_y - f_c) / |w_y - w_c|; the smallest over c is returned. It is negative where the decision is wrong.

    Args:
        head: Linear, on the features of the snapshot.
        snapshot: Penultimate features.

    Raises:
        ValueError: If the head does not take the snapshot's features.

    Source: Elsayed et al., "Large margin deep networks for classification", arXiv 1803.05598, equation 3, which is
    exact for a linear map.
    """
    if head.in_features != snapshot.values.shape[1]:
        raise ValueError(f"head must take {snapshot.values.shape[1]} features, got one for {head.in_features}")
    weight = head.weight.detach().double()
    bias = torch.zeros(len(weight)).to(weight) if head.bias is None else head.bias.detach().double()
    logits, own = snapshot.values.double() @ weight.T + bias, snapshot.labels[:, None]
    lengths = (weight[snapshot.labels][:, None] - weight).norm(dim=2).scatter(1, own, 1)
    distances = (logits.gather(1, own) - logits) / lengths
    return distances.scatter(1, own, torch.inf).amin(1)


def scatter_ratio(snapshot: FeatureSnapshot) -> float:
    """Scatter between classes over scatter within: tr(S_B) / tr(S_W); the larger, the further apart the classes are.

    S_B sums the squared distances of the class means to the mean of all, one for each image; S_W those of the images
    to their class mean. It is infinite where every image is its class mean.

    Raises:
        ValueError: If there are fewer than two classes, or a value is not finite.

    Source: Fukunaga, "Introduction to statistical pattern recognition", 1990, section 10.2.
    """
    values, labels = _classes(snapshot)
    centers = torch.stack([values[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    within = (values - centers[labels]).square().sum()
    between = (centers[labels] - values.mean(0)).square().sum()
    return (between / within).item()


def silhouette(snapshot: FeatureSnapshot) -> float:
    """Mean silhouette of the true classes, -1 to 1: near 1 they are far apart, near 0 they touch.

    For each image (b - a) / max(a, b), where a is its mean distance to the others of its class and b the smallest mean
    distance to another class. Computed by scikit-learn.

    Raises:
        ValueError: If there are fewer than two classes, as many classes as images, or a value is not finite.

    Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.
    """
    from sklearn.metrics import silhouette_score

    values, labels = _classes(snapshot)
    if int(labels.max()) + 1 >= len(labels):
        raise ValueError(f"snapshot must hold more images than classes, got {len(labels)} of each")
    return float(silhouette_score(values.cpu().numpy(), labels.cpu().numpy()))


def centroid_shifts(clean: FeatureSnapshot, attacked: FeatureSnapshot) -> dict[int, float]:
    """How far the attack carries the mean of each true class, in units of the classes' own spread.

    The distance between both means of a class, divided by the root-mean-square distance of all clean images to their
    class mean: 1 moves a class as far as its images lie from their middle.

    Args:
        clean: Features of some images.
        attacked: Features of the same images under attack.

    Returns:
        By class.

    Raises:
        ValueError: If the snapshots do not match, or every clean image is its class mean.
    """
    _check_match(clean, attacked)
    values, moved, labels = clean.values.double(), attacked.values.double(), clean.labels
    present = torch.unique(labels).tolist()
    squared = sum((values[labels == y] - values[labels == y].mean(0)).square().sum() for y in present)
    spread = float(squared / len(values)) ** 0.5
    if not spread:
        raise ValueError("clean must hold several different images of a class, but every image is its class mean")
    return {y: (moved[labels == y].mean(0) - values[labels == y].mean(0)).norm().item() / spread for y in present}


def decisions_differ(first: FeatureSnapshot, second: FeatureSnapshot) -> float:
    """Share of the images, 0 to 1, that two models decide differently, such as one network with two heads.

    Raises:
        ValueError: If the snapshots are not of the same images.
    """
    _check_match(first, second)
    return (first.predictions != second.predictions).double().mean().item()


@dataclass(frozen=True)
class Separation:
    """The numbers of one condition, each explained by the function of its name.

    Attributes:
        condition: What was done to the images.
        accuracy: Share of right decisions, 0 to 1.
        distance: Median of `distance_ratio`.
        agreement: Mean of `neighbor_agreement`.
        margin: Median of `margins`.
        scatter: `scatter_ratio`.
        silhouette: `silhouette`.
        shift: Mean of `centroid_shifts` over the classes.
    """

    condition: str
    accuracy: float
    distance: float
    agreement: float
    margin: float
    scatter: float
    silhouette: float
    shift: float


def separation(
    reference: FeatureSnapshot, clean: FeatureSnapshot, snapshot: FeatureSnapshot, margin: PerImage
) -> Separation:
    """Compute every number of one condition.

    Args:
        reference: Clean training features.
        clean: Clean test features.
        snapshot: Features of the same test images under the condition; may be `clean` itself.
        margin: Margins of the images under the condition, see `margins`.

    Raises:
        ValueError: If the snapshots do not match or cannot be compared.
    """
    shifts = centroid_shifts(clean, snapshot)
    distance, agreement = ratio_and_agreement(reference, snapshot)
    return Separation(
        condition=snapshot.condition,
        accuracy=(snapshot.predictions == snapshot.labels).double().mean().item(),
        distance=distance.median().item(),
        agreement=agreement.mean().item(),
        margin=margin.median().item(),
        scatter=scatter_ratio(snapshot),
        silhouette=silhouette(snapshot),
        shift=sum(shifts.values()) / len(shifts),
    )


def separation_rows(separations: Sequence[Separation]) -> tuple[list[str], list[list[str]]]:
    """Lay the numbers out as headers and rows of text, a row for each condition."""
    headers = ["condition", "right", "distance to data", "same-class neighbors", "margin"]
    headers += ["between / within", "silhouette", "centroid shift"]
    rows = []
    for numbers in separations:
        condition, right, distance, agreement, *others = asdict(numbers).values()
        shown = [f"{right:.1%}", f"{distance:.2f}", f"{agreement:.1%}", *(f"{value:.2f}" for value in others)]
        rows.append([condition, *shown])
    return headers, rows


def _classes(snapshot: FeatureSnapshot) -> tuple[Float[Tensor, "n k"], Labels]:
    """Features in float64 and labels counted from 0 without gaps."""
    labels = torch.unique(snapshot.labels, return_inverse=True)[1]
    if not len(labels) or int(labels.max()) < 1:
        raise ValueError("snapshot must hold images of at least two classes")
    check_finite(snapshot)
    return snapshot.values.double(), labels


def _check_match(first: FeatureSnapshot, second: FeatureSnapshot) -> None:
    if not (torch.equal(first.indices, second.indices) and torch.equal(first.labels, second.labels)):
        raise ValueError("snapshots must be of the same images in the same order, got different indices or labels")
    for part in (first, second):
        check_finite(part)
