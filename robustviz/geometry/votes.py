"""Who votes: the template images that decide about one image in a network with a WNLL head."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from robustviz import checkpoints
from robustviz.checks import check_images
from robustviz.data import ImageSet
from robustviz.defenses.wnll.head import WNLLHead
from robustviz.models import Classifier
from robustviz.tensors import evaluating
from robustviz.training import hold_out
from robustviz.types import Images, Labels


@dataclass(frozen=True)
class Ballot:
    """How the template votes about one image that is classified on its own.

    Attributes:
        condition: What was done to the image.
        image: In [0, 1].
        label: Its true class.
        shares: Share of every class, u; the largest is the decision.
        indices: Place of each voter in the image set of the template, heaviest first.
        voters: Their images.
        labels: Their classes, which is what they vote for.
        weights: Their weights; those of all template points sum to 1.
    """

    condition: str
    image: Float[Tensor, "c h w"]
    label: int
    shares: Float[Tensor, "classes"]
    indices: Labels
    voters: Images
    labels: Labels
    weights: Float[Tensor, "n"]

    @property
    def decision(self) -> int:
        """Class with the largest share."""
        return int(self.shares.argmax())


@torch.no_grad()
def ballot(
    model: Classifier,
    image_set: ImageSet,
    image: Float[Tensor, "c h w"],
    label: int,
    *,
    condition: str,
    count: int = 8,
) -> Ballot:
    """Find the template images that decide about one image, in a network with a WNLL head.

    Args:
        model: With a `WNLLHead`; left as it was.
        image_set: What the template was drawn from; behind a purifier its images are named as they were before it.
        image: The image, in [0, 1].
        label: Its true class.
        condition: What was done to it.
        count: Maximum number of voters; those without weight are left out.

    Raises:
        ValueError: If the head is another one, the image set does not fit the template, or count is below 1.
    """
    check_images(image[None])
    head = model.head
    if not isinstance(head, WNLLHead):
        raise ValueError(f"head must be a WNLLHead, got {type(head).__name__}; `wnll_classifier` puts one there")
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    if not head.drawn_from(image_set.labels):
        raise ValueError(f"image_set must be what the template was drawn from, but {image_set.name} does not fit it")
    alone = head.with_settings(joint=False, gradient="exact")
    with evaluating(model):
        features = model.features(image[None])
        shares = alone.probabilities(features)[0]
        indices, weights = alone.votes(features, count=count)
    voting = weights[0] > 0
    indices, weights = indices[0][voting].cpu(), weights[0][voting].cpu()
    voters = image_set[indices.to(image_set.labels.device)]
    return Ballot(
        condition, image.cpu(), label, shares.cpu(), indices, voters.images.cpu(), voters.labels.cpu(), weights
    )


def template_source(name: Path | str, training_set: ImageSet) -> ImageSet:
    """Find the images that the template of a WNLL network was drawn from: those of its training that were not held out.

    Behind TVM the template holds the features of their purified versions, made with other masks than a new pass.

    Args:
        name: Name or path of the network, as `checkpoints.load` takes it.
        training_set: All training images of the data set.

    Returns:
        The images that `WNLLHead.votes` numbers.

    Raises:
        ValueError: If the network has no template, or was trained on other images.
    """
    network, record = checkpoints.load(name)
    if not isinstance(network.head, WNLLHead):
        raise ValueError(f"{name} must have a template, but its head is a {type(network.head).__name__}")
    trained = training_set.subset(min(record.settings.get("training_images", len(training_set)), len(training_set)))
    source = trained[hold_out(trained.labels, record.settings.get("validation", 0.0))[0]]
    if not network.head.drawn_from(source.labels):
        raise ValueError(
            f"{name} was trained on other images than the {len(training_set)} of {training_set.name}: its template is "
            "not among them; give the data that it was trained on"
        )
    return source
