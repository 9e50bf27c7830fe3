"""The WNLL head: `affinity` and `interpolate` as the last layer of a classifier."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustviz.defenses.wnll.graph import Weights, alone, check_graph, checked, joined_graph
from robustviz.defenses.wnll.interpolation import check_template, interpolate
from robustviz.neighbors import Neighbors, nearest
from robustviz.types import Labels, Logits

Gradient = Literal["exact", "surrogate", "surrogate-log"]


class WNLLHead(nn.Module):
    """Decide by interpolating from labelled template features; the largest share of a class wins.

    Args:
        template: Features (m, d) of labelled images; kept as a buffer, without gradient.
        template_labels: Their classes (m,).
        classes: How many classes there are; the template must hold every one.
        linear: The linear head beside it, whose gradient the surrogates borrow.
        template_indices: Position of each template image in its image set; `votes` names images by these numbers.
            None counts from 0.
        neighbors: K of the graph.
        scale_neighbor: M of the graph, at most K.
        joint: One graph for the whole batch, as published: an answer then depends on the rest of the batch. Else every
            image is answered as if it came alone, by a weighted vote without solving a system.
        gradient: What the layer returns, and its gradient. `"exact"`: log(u + 1e-12) with its gradient.
            `"surrogate"`: u itself with the gradient of the linear head, as published. `"surrogate-log"`:
            log(u + 1e-12) with the gradient of the linear head.
        templates: Number of equal parts of the points, each a template by itself; their answers are averaged.

    Raises:
        ValueError: If a setting is out of range, or the template is empty, not finite or lacks a class.

    Source: Wang et al., arXiv 1809.08516, section 3; arXiv 1802.00168, section 2.
    """

    template: Tensor
    template_labels: Tensor
    template_indices: Tensor

    def __init__(
        self,
        template: Float[Tensor, "m d"],
        template_labels: Int[Tensor, "labels"],
        classes: int,
        *,
        linear: nn.Module | None = None,
        template_indices: Int[Tensor, "m"] | None = None,
        neighbors: int = 15,
        scale_neighbor: int = 8,
        joint: bool = True,
        gradient: Gradient = "exact",
        templates: int = 1,
    ):
        super().__init__()
        check_graph(neighbors, scale_neighbor)
        if gradient not in get_args(Gradient):
            raise ValueError(f"gradient must be one of {', '.join(get_args(Gradient))}, got {gradient!r}")
        if gradient != "exact" and linear is None:
            raise ValueError(f"linear must be given for gradient={gradient!r}, which borrows the linear head's")
        self.classes, self.linear = classes, linear
        self.neighbors, self.scale_neighbor = neighbors, scale_neighbor
        self.joint, self.gradient, self.templates = joint, gradient, templates
        self.refresh(template, template_labels)
        if template_indices is not None:
            self.template_indices = template_indices

    @property
    def batch_dependent(self) -> bool:
        """Whether the answer for one image depends on the other images of its batch."""
        return self.joint

    def forward(self, features: Float[Tensor, "n d"]) -> Logits:
        """Return log(u + 1e-12) or, with the surrogate gradient, u."""
        exact = self.gradient == "exact"
        return self.scores(self.probabilities(features if exact else features.detach()), features)

    def probabilities(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return u, each image's share of every class, with its exact gradient."""
        answers = [
            interpolate(weights, labels, self.classes, multiplier=multiplier)
            for weights, multiplier, labels in self._graphs(features)
        ]
        return torch.stack(answers).mean(0)

    def scores(self, probabilities: Float[Tensor, "n classes"], features: Float[Tensor, "n d"]) -> Logits:
        """Turn u into what the head returns, with the gradient that was asked for."""
        values = probabilities if self.gradient == "surrogate" else torch.log(probabilities + 1e-12)
        if self.gradient == "exact" or self.linear is None:
            return values
        logits = self.linear(features)
        return values.detach() + (logits - logits.detach()).to(values)

    @torch.no_grad()
    def votes(
        self, features: Float[Tensor, "n d"], *, count: int | None = None
    ) -> tuple[Int[Tensor, "n votes"], Float[Tensor, "n votes"]]:
        """Tell which template points decide: u is the sum of their one-hot labels with these weights.

        Args:
            features: Features of the query images; their graph is that of `forward`.
            count: Number of votes returned, heaviest first; None returns all that have a weight.

        Returns:
            Indices of the template images, heaviest first, and their weights. All weights of an image sum to 1.
        """
        every = [
            interpolate(weights, torch.arange(len(labels), device=labels.device), len(labels), multiplier=multiplier)
            for weights, multiplier, labels in self._graphs(features)
        ]
        shares = torch.cat(every, 1) / self.templates
        most = int((shares > 0).sum(1).amax()) if len(shares) else 0
        weights, order = shares.topk(most if count is None else min(count, shares.shape[1]))
        return self.template_indices[order], weights

    def drawn_from(self, labels: Labels) -> bool:
        """Tell whether the template has the labels of an image set at its indices, so that it was drawn from there."""
        chosen, known = self.template_indices.cpu(), labels.cpu()
        return int(chosen.max()) < len(known) and known[chosen].equal(self.template_labels.cpu())

    @torch.no_grad()
    def refresh(self, template: Float[Tensor, "m d"], template_labels: Int[Tensor, "labels"]) -> None:
        """Put other features in place, after the network that made them has changed.

        The same images in the same order keep their `template_indices`; another number of images counts from 0.
        """
        if template.dim() != 2 or len(template) != len(template_labels):
            raise ValueError(
                f"template must have shape (m, d) with one label for each point, got shape {tuple(template.shape)} "
                f"and {len(template_labels)} labels"
            )
        if self.templates < 1 or len(template) % self.templates:
            raise ValueError(f"templates must divide the {len(template)} template points, got {self.templates}")
        check_template(template_labels, self.classes)
        for labels in template_labels.chunk(self.templates):
            _check_classes(labels, self.classes)
        if len(template) != len(getattr(self, "template_indices", ())):
            self.register_buffer("template_indices", torch.arange(len(template), device=template.device))
        self.register_buffer("template", checked(template.detach() if template.requires_grad else template))
        self.register_buffer("template_labels", template_labels)
        self._lists: dict[int, tuple[Tensor, int, list[Neighbors]]] = {}

    def with_settings(self, **settings: Any) -> "WNLLHead":
        """Return a head on the same template and linear head, some of its settings changed.

        Args:
            **settings: New values of `neighbors`, `scale_neighbor`, `joint` or `gradient`.
        """
        kept = {name: getattr(self, name) for name in ("neighbors", "scale_neighbor", "joint", "gradient", "templates")}
        changed = WNLLHead(
            self.template,
            self.template_labels,
            self.classes,
            linear=self.linear,
            template_indices=self.template_indices,
            **{**kept, **settings},
        )
        changed._lists, changed.training = self._lists, self.training
        return changed

    def alone(self) -> "WNLLHead":
        """Return the head as it answers one image at a time, for attacks that choose image by image."""
        return self.with_settings(joint=False)

    def _graphs(self, features: Tensor) -> Iterator[tuple[Weights, float, Tensor]]:
        """Weights, multiplier and labels for each template."""
        features = checked(features)
        if features.dim() != 2 or features.shape[1] != self.template.shape[1]:
            raise ValueError(
                f"features must have shape (n, {self.template.shape[1]}), as the template, got {tuple(features.shape)}"
            )
        dtype = torch.promote_types(features.dtype, self.template.dtype)
        parts = [part.chunk(self.templates) for part in (self.template.to(dtype), self.template_labels)]
        graph, unlabelled = (joined_graph, len(features)) if self.joint else (alone, 1)
        settings = {"neighbors": self.neighbors, "scale_neighbor": self.scale_neighbor}
        for template, labels, prepared in zip(*parts, self._prepared(), strict=True):
            weights = graph(features.to(dtype), template, prepared, **settings)
            yield weights, unlabelled / len(template), labels

    def _prepared(self) -> list[Neighbors]:
        """Neighbor lists of the templates, made at their first use and again when the buffer has changed or moved."""
        version = -1 if self.template.is_inference() else self.template._version
        known = self._lists.get(self.neighbors)
        if known is None or known[0] is not self.template or known[1] != version:
            parts = self.template.chunk(self.templates)
            lists = [nearest(part, part, min(self.neighbors, len(part) - 1), itself=True) for part in parts]
            known = self._lists[self.neighbors] = (self.template, version, lists)
        return known[2]


def expected_size(classes: int) -> float:
    """Mean number of random points until each of C equally likely classes has been drawn: C(1 + 1/2 + ... + 1/C)."""
    return classes * sum(1 / number for number in range(1, classes + 1))


def _check_classes(labels: Labels, classes: int) -> None:
    """Refuse a template that lacks a class, because that class could never be predicted."""
    missing = sorted(set(range(classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"template must hold all {classes} classes, but {len(labels)} points lack {missing}; random points "
            f"hold all classes after {expected_size(classes):.1f} on average"
        )
