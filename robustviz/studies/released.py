"""The places in which the authors' released WNLL code differs from the paper, each as a switch on our own code.

Source: the code released with Wang et al., arXiv 1809.08516 and arXiv 1802.00168; read, not copied.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robustviz.attacks import linear_head
from robustviz.attacks.common import pixel_gradient
from robustviz.checks import check_images
from robustviz.data import ImageSet
from robustviz.defenses.wnll import features_of
from robustviz.models import Classifier
from robustviz.tensors import evaluating, project, shared_copy
from robustviz.types import LINF_8, Attack, Images, Labels, Threat


def released_ifgsm(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 10,
    step_size: float | None = None,
    generator: Generator | None = None,
) -> Images:
    """IFGSM with the loss in training mode, as the released training script attacks its own WNLL network.

    In every step the outputs are sorted, misclassified images first, and those of correctly classified ones replaced by
    one-hot vectors; the labels are overwritten in that order; and the gradient of each sorted row goes to the image that
    has its place in the old order.

    Args:
        model: Maps images to logits or, with the surrogate gradient of WNLL, to probabilities.
        images: Clean images in [0, 1], one batch.
        labels: True classes; the caller's tensor is left as it is, unlike in the released code.
        threat: Ball around each image.
        steps: Steps along the gradient.
        step_size: Length of a step in pixel units; None is that of `ifgsm`.
        generator: Not used: nothing is random.

    Returns:
        Attacked images, inside the ball and inside [0, 1].
    """
    check_images(images, labels)
    size = 2.5 * threat.epsilon / max(steps, 1) if step_size is None else step_size
    point, known = images.detach(), labels
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            point = point.detach().requires_grad_()
            outputs = model(point)
            scores, known = resorted(outputs, known)
            gradient = pixel_gradient(F.cross_entropy(scores, known, reduction="none"), point)
            point = project(images, point.detach() + size * gradient.sign(), threat)
    return point


def resorted(outputs: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
    """Sort outputs and labels as the released loss does in training mode, and leave the gradient where it was.

    Returns:
        Sorted outputs whose gradient goes to the rows of the old order, and sorted labels.
    """
    right = outputs.argmax(1) == labels
    order = torch.cat([(~right).nonzero().squeeze(1), right.nonzero().squeeze(1)])
    values, labels = outputs.detach()[order], labels[order]
    perfect = F.one_hot(labels, outputs.shape[1]).to(values)
    values = torch.where(right[order][:, None], perfect, values)
    return values + (outputs - outputs.detach()), labels


def batch_statistics(model: Classifier) -> nn.Module:
    """View: batch norm uses the batch it is given, as in a network that is never put in evaluation mode."""
    view = shared_copy(model)
    for module in view.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    return view


def scaled(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    attack: Attack,
    factor: float,
    generator: Generator | None = None,
) -> Images:
    """Multiply the perturbation that another attack finds by a factor."""
    attacked = attack(model, images, labels, generator=generator)
    return images + factor * (attacked - images)


def attacked_template(model: Classifier, image_set: ImageSet, attack: Attack, *, batch_size: int = 100) -> Classifier:
    """Attack the images of a WNLL head's template through the linear head, and decide with their features.

    Args:
        model: With a WNLL head, whose `template_indices` count the images of `image_set`.
        image_set: Images that the template was drawn from.
        attack: An attack on the linear head beside.
        batch_size: Images at a time.
    """
    head: Any = model.head
    chosen = head.template_indices.cpu()
    images, labels = image_set.images[chosen].to(head.template), image_set.labels[chosen].to(head.template.device)
    plain = linear_head(model)
    parts = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    moved = torch.cat([attack(plain, *part) for part in parts])
    changed = head.with_settings()
    changed.refresh(features_of(model, moved), head.template_labels)
    return model.replace(head=changed)
