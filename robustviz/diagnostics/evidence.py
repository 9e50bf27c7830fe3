"""What the checks look at: forward passes, gradients and attacks, each made once, when a check first needs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustviz.attacks import Step, eot, fgsm, pgd, random_noise, square
from robustviz.checks import check_labels
from robustviz.defenses import present
from robustviz.diagnostics.findings import share_of
from robustviz.diagnostics.gradients import Attached, gradient, slopes
from robustviz.diagnostics.outcomes import Outcome, Right, Walk
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, dlr, margin
from robustviz.tensors import batch_dependent, distances, drawing, evaluating, norms, seeded
from robustviz.types import Attack, Images, Labels, Logits, Objective, Threat

LOSSES: Mapping[str, Objective] = {"cross-entropy": cross_entropy, "margin": margin, "DLR": dlr}
"""Objectives that an attack may follow."""

OWN_NAMES = ("clean", "FGSM", "PGD-", "PGD on", "Square", "transfer from the undefended")
"""How the names begin under which the checks keep attacks of their own."""

RESTARTS = 3
PASSES = 5
SAME_ANSWER = 1e-4
"""Largest difference of two answers that counts as none, relative to the largest logit."""
PASS_DRAWS, _AVERAGED_STEPS = 6, 10
"""Draws and steps of the attack that averages over the draws of a random network."""


@dataclass(eq=False)
class Evidence:
    """One network, its images and its threat; everything measured on them is kept.

    Every attack is a cached property, and `outcomes` lists all of them: no figure depends on which checks were run, or
    when. All images are one batch, so that a network whose answers depend on the batch always sees the same one.

    Attributes:
        model: The network in question.
        images: Clean images in [0, 1].
        labels: Their classes.
        threat: What the attacker may do.
        attacks: Attacks made for this defense, by name.
        undefended: A network of the same task without the defense.
        seed: Everything random depends on it.
        steps: Steps of each iterated attack.
        queries: Proposals of each black-box attack.
        training: Names of the modules of `model` that learn or drop in train mode and were handed over in it.
    """

    model: nn.Module
    images: Images
    labels: Labels
    threat: Threat
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    undefended: nn.Module | None = None
    seed: int = 0
    steps: int = 20
    queries: int = 1000
    training: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        modules = self.model.named_modules()
        self.training = tuple(name for name, module in modules if module.training and isinstance(module, kinds))
        if self.logits.dim() != 2 or len(self.logits) != len(self.images):
            shape = tuple(self.logits.shape)
            raise ValueError(f"model must return logits of shape ({len(self.images)}, classes), got {shape}")
        check_labels(self.labels, len(self.images), self.logits.shape[1])

    def ask(self, images: Images, model: nn.Module | None = None) -> Logits:
        """Logits of the model, or of another one, in evaluation mode; random parts draw from the seed."""
        model = self.model if model is None else model
        with evaluating(model), drawing(model, seeded(self.seed, 1)), torch.no_grad():
            return model(images)

    @cached_property
    def logits(self) -> Logits:
        """Answers on the clean images."""
        return self.ask(self.images)

    @property
    def clean(self) -> Right:
        """Whether the decision on each clean image is correct."""
        return self.logits.argmax(1) == self.labels

    @cached_property
    def passes(self) -> Float[Tensor, "passes n classes"]:
        """Answers of several forward passes, each with fresh draws."""
        with evaluating(self.model), drawing(self.model, seeded(self.seed, 2)), torch.no_grad():
            return torch.stack([self.model(self.images) for _ in range(PASSES)])

    def difference(self, one: Tensor, other: Tensor) -> float:
        """Largest difference of two answers, relative to the largest logit (at least 1)."""
        return ((one - other).abs().max() / self.logits.abs().max().clamp_min(1)).item()

    @cached_property
    def spread(self) -> float:
        """Largest difference among the passes, relative to the largest logit."""
        return self.difference(self.passes.amax(0), self.passes.amin(0))

    @property
    def random(self) -> bool:
        """Whether the network answers the same question differently."""
        return not self.spread <= SAME_ANSWER

    @cached_property
    def changes(self) -> list[str]:
        """Modules that one forward pass in evaluation mode puts into train mode, and buffers that it changes."""
        with evaluating(self.model), torch.no_grad():
            before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            self.model(self.images)
            changed = [name or "the network itself" for name, module in self.model.named_modules() if module.training]
            buffers = dict(self.model.named_buffers())
            return changed + [n for n, old in before.items() if not torch.equal(old, buffers[n])]

    @property
    def least(self) -> float:
        """The smallest difference of accuracy that these images can show: one image."""
        return 1 / len(self.labels)

    @cached_property
    def dead(self) -> dict[str, Right]:
        """Images whose gradient is exactly zero or not a number, for each loss."""
        found = {}
        for name, objective in LOSSES.items():
            flat = torch.zeros_like(self.images) if (known := self._gradient(objective)) is None else known
            found[name] = (flat == 0).flatten(1).all(1) | flat.flatten(1).isnan().any(1)
        return found

    @cached_property
    def open(self) -> nn.Module:
        """The network as gradient attacks need it: where it cuts the gradient off, the gradient is zero."""
        return self.model if self._gradient(margin) is not None else Attached(self.model)

    def slopes(self, step: float) -> tuple[Tensor, Tensor]:
        """Slope of the margin along random directions, by autograd and by central differences; see `slopes`."""
        return slopes(margin, self.model, self.images, self.labels, step=step, seed=self.seed)

    def _gradient(self, objective: Objective) -> Images | None:
        return gradient(objective, self.model, self.images, self.labels, seed=self.seed)

    def outcome(self, attacked: Images) -> Outcome:
        """Let the network decide on attacked images."""
        outside = distances(self.images, attacked, self.threat.norm) > self.threat.epsilon + 1e-5
        return Outcome(attacked, (self.ask(attacked).argmax(1) == self.labels) | (outside & self.clean))

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """Every attack on this network by name: what its accuracies and its worst case are made of."""
        starts = {f"PGD-{self.steps}, start {number}": end for number, end in enumerate(self.walk.ends, 1)}
        found = {"FGSM": self.fgsm, **starts, f"PGD-{2 * self.steps}": self.longer}
        found |= {f"PGD-{self.steps}, {name}": end for name, end in self.losses.items() if name != "cross-entropy"}
        found |= self.given
        if self.random:
            found[f"PGD-{_AVERAGED_STEPS}, mean of {PASS_DRAWS} draws"] = self.averaged
        if not batch_dependent(self.model):
            found[f"Square, {self.black_queries} queries"] = self.black["Square"]
            found[f"Square and {self.black_queries} draws of noise"] = self.black["noise"]
        if self.undefended is not None:
            found["transfer from the undefended"] = self.moved
        return found

    @cached_property
    def fgsm(self) -> Outcome:
        """One step."""
        return self.outcome(fgsm(self.open, self.images, self.labels, threat=self.threat))

    @cached_property
    def walk(self) -> Walk:
        """PGD on cross-entropy, several restarts."""
        return self._walk(self.steps, RESTARTS)

    @cached_property
    def longer(self) -> Outcome:
        """PGD on cross-entropy with twice the steps, one start."""
        return self._walk(2 * self.steps, 1).ends[0]

    def _walk(self, steps: int, restarts: int) -> Walk:
        passed = torch.zeros_like(self.labels, dtype=torch.bool)
        ends: list[Step] = []

        def see(step: Step) -> None:
            if step.restart == 0:
                passed.logical_or_(step.fooled)
            if step.step == steps:
                ends.append(step)

        settings: dict[str, Any] = {"threat": self.threat, "steps": steps, "restarts": restarts}
        pgd(self.open, self.images, self.labels, on_step=see, generator=seeded(self.seed, 5), **settings)
        return Walk(tuple(self.outcome(end.images) for end in ends), passed & ~ends[0].fooled)

    @cached_property
    def losses(self) -> dict[str, Outcome]:
        """PGD on each loss, one start."""
        others = (name for name in LOSSES if name != "cross-entropy")
        return {
            "cross-entropy": self.walk.ends[0],
            **{name: self.outcome(self._pgd(self.open, self.threat, objective=LOSSES[name])) for name in others},
        }

    @cached_property
    def white(self) -> Right:
        """Decisions under all attacks that follow the network's own gradient: the worst case, image by image."""
        every = [*self.walk.ends, self.longer, *self.losses.values()]
        return torch.stack([end.right for end in every]).all(0)

    @cached_property
    def given(self) -> dict[str, Outcome]:
        """The attacks made for this defense."""
        found = {}
        for index, (name, attack) in enumerate(self.attacks.items()):
            noise = seeded(self.seed, 6, index)
            with evaluating(self.model):
                attacked = attack(self.model, self.images, self.labels, generator=noise)
            found[name] = self.outcome(attacked)
        return found

    @cached_property
    def averaged(self) -> Outcome:
        """PGD on the mean of several draws of a random network (EOT)."""
        objective = eot(cross_entropy, PASS_DRAWS)
        return self.outcome(self._pgd(self.open, self.threat, steps=_AVERAGED_STEPS, objective=objective))

    @cached_property
    def black(self) -> dict[str, Outcome]:
        """Attacks that see only the outputs: Square, then random noise on what withstands it."""
        queries = self.black_queries
        settings: dict[str, Any] = {"threat": self.threat, "steps": queries}
        attacked = square(self.model, self.images, self.labels, generator=seeded(self.seed, 7), **settings)
        found = self.outcome(attacked)
        rows = found.right.nonzero().squeeze(1)
        noisy = attacked.clone()
        if len(rows):
            some, labels = self.images[rows], self.labels[rows]
            noisy[rows] = random_noise(self.model, some, labels, generator=seeded(self.seed, 8), **settings)
        return {"Square": found, "noise": self.outcome(noisy)}

    @property
    def black_queries(self) -> int:
        """Proposals of each black-box attack; a tenth for a random network, which answers differently each time."""
        return max(self.queries // 10, 1) if self.random else self.queries

    @property
    def gray(self) -> float:
        """The radius at which every image can be turned into plain gray."""
        return norms(0.5 - self.images, self.threat.norm).max().item()

    @cached_property
    def wider(self) -> dict[float, float]:
        """Accuracy under PGD for growing radii, up to that of plain gray."""
        gray = self.gray
        found = {0.0: share_of(self.clean), self.threat.epsilon: share_of(self.walk.right[0])}
        for radius in sorted({self.threat.epsilon / 2, 2 * self.threat.epsilon, gray}):
            if radius <= gray and radius not in found:
                attacked = self._pgd(self.open, Threat(self.threat.norm, radius))
                found[radius] = share_of(self.ask(attacked).argmax(1) == self.labels)
        return dict(sorted(found.items()))

    @cached_property
    def elsewhere(self) -> Images:
        """Images that PGD makes on the undefended network."""
        assert self.undefended is not None
        return self._pgd(self.undefended, self.threat)

    @cached_property
    def moved(self) -> Outcome:
        """The images made on the undefended network, on this one."""
        return self.outcome(self.elsewhere)

    @cached_property
    def switched_off(self) -> dict[str, float]:
        """Accuracy under PGD with a part of the defense taken out, for parts that can be."""
        if not isinstance(self.model, Classifier):
            return {}
        parts = {f"without {d.title}": d.without(self.model) for d in present(self.model) if d.without is not None}
        if all(not isinstance(part.purify, nn.Identity) for part in (self.model, *parts.values())):
            parts["without its purifier"] = self.model.replace(purify=None)
        return {
            name: share_of(self.ask(self._pgd(part, self.threat), part).argmax(1) == self.labels)
            for name, part in parts.items()
        }

    def _pgd(self, model: nn.Module, threat: Threat, *, steps: int = 0, objective: Objective = cross_entropy) -> Images:
        """Last iterate of PGD, as on the walk: images that stop where they first fool a network hardly fool another."""
        return pgd(
            model,
            self.images,
            self.labels,
            threat=threat,
            steps=steps or self.steps,
            objective=objective,
            generator=seeded(self.seed, 5),
        )
