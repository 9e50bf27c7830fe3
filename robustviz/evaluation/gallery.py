"""What one model says about a few images, clean and attacked: the record behind rows of pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.tensors import evaluating
from robustviz.types import Images, Labels


@dataclass(frozen=True)
class Gallery:
    """Clean and attacked images with what one model says about them.

    Attributes:
        model: Its name.
        images: Clean.
        attacked: The same images under attack.
        labels: True classes.
        classes: Their names.
        clean_confidence: Probability of each class for the clean images, each row sums to 1.
        attacked_confidence: The same for the attacked ones.
    """

    model: str
    images: Images
    attacked: Images
    labels: Labels
    classes: tuple[str, ...]
    clean_confidence: Float[Tensor, "n k"]
    attacked_confidence: Float[Tensor, "n k"]

    @classmethod
    def of(
        cls, name: str, model: nn.Module, images: Images, attacked: Images, labels: Labels, classes: Any
    ) -> "Gallery":
        """Classify both versions of the images, in evaluation mode.

        Args:
            name: Name of the model.
            model: Maps images in [0, 1] to logits; left as it was.
            images: Clean images.
            attacked: The same images under attack.
            labels: True classes.
            classes: Names of the classes.
        """
        with evaluating(model), torch.no_grad():
            clean, fooled = (model(batch).softmax(1).cpu() for batch in (images, attacked))
        return cls(name, images.cpu(), attacked.cpu(), labels.cpu(), tuple(classes), clean, fooled)
