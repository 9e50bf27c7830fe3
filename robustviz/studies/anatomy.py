"""Where published figures of WNLL may come from: what the released code does otherwise, one switch at a time.

Each switch changes *our* code in the way that the authors' released code (written for another version of PyTorch, read
and not copied) differs from the paper. The table says how far each one moves clean and attacked accuracy, on the WNLL
head and on the linear head beside it in the same network. Which script made a published figure cannot be known.

Source: the code released with Wang et al., arXiv 1809.08516 and arXiv 1802.00168.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

from robustviz.attacks import against, carlini_wagner, ifgsm, linear_head, surrogate_head
from robustviz.data import ImageSet
from robustviz.defenses.defense import itself
from robustviz.defenses.wnll import WNLLHead
from robustviz.evaluation import evaluate, wilson
from robustviz.models import Classifier
from robustviz.records import RunRecord, describe
from robustviz.studies.released import attacked_template, batch_statistics, released_ifgsm, scaled
from robustviz.tensors import seeded
from robustviz.types import Attack, Threat

HEADS = ("WNLL", "linear head")
AS_PUBLISHED, CW = "IFGSM as published", "Carlini & Wagner"

SWITCHES: Mapping[str, str] = {
    AS_PUBLISHED: "Nothing is switched: the attack of the paper, with the right labels.",
    "labels re-sorted": (
        "The attack is computed with the training flag on. The loss then sorts the batch, misclassified images first, "
        "and overwrites the labels in that order, while gradients return to the images in the old order: each image "
        "is pushed away from some other image's label."
    ),
    "template attacked": "The template images are attacked too, and the answer uses their features.",
    "both": "Labels re-sorted and template attacked.",
    "batch norm in training mode": "The network is never put in evaluation mode: batch norm uses the batch it is given.",
    CW: "Nothing is switched: the perturbation that the attack finds.",
    "C&W perturbation scaled": "The finished perturbation is multiplied by epsilon before the network decides.",
}
"""What each row of the table changes."""


@dataclass(frozen=True)
class SwitchRow:
    """One condition on one head.

    Attributes:
        switch: Key of `SWITCHES`.
        head: `"WNLL"` or `"linear head"`.
        clean: Whether each clean image is classified correctly.
        attacked: Whether each attacked image is.
    """

    switch: str
    head: str
    clean: tuple[bool, ...]
    attacked: tuple[bool, ...]

    def shares(self) -> tuple[float, float]:
        """Clean and attacked accuracy, from 0 to 1."""
        return sum(self.clean) / len(self.clean), sum(self.attacked) / len(self.attacked)


@dataclass(frozen=True)
class Anatomy:
    """How far each switch moves the figures.

    Attributes:
        rows: Conditions in the order of `SWITCHES`, both heads of each.
        settings: Network, data, threat, attack and batch size.
    """

    rows: tuple[SwitchRow, ...]
    settings: dict[str, Any]

    def row(self, switch: str, head: str) -> SwitchRow:
        """Return one condition."""
        return next(row for row in self.rows if (row.switch, row.head) == (switch, head))

    def moved(self, row: SwitchRow) -> tuple[float, float]:
        """By how much a switch changes attacked accuracy on the same images, and half the width of its 95 % interval."""
        base = self.row(CW if row.switch in (CW, "C&W perturbation scaled") else AS_PUBLISHED, row.head)
        changes = [int(now) - int(then) for now, then in zip(row.attacked, base.attacked, strict=True)]
        mean = sum(changes) / len(changes)
        variance = sum((change - mean) ** 2 for change in changes) / max(len(changes) - 1, 1)
        return mean, 1.96 * sqrt(variance / len(changes))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and cells: accuracy with 95 % Wilson intervals, and what the switch changes."""
        cells = []
        for row in self.rows:
            clean, attacked = (_share(share, len(row.clean)) for share in row.shares())
            by, half = self.moved(row)
            still = row.switch in (AS_PUBLISHED, CW)
            cells.append(
                [row.switch, row.head, clean, attacked, "" if still else f"{100 * by:+.1f} ± {100 * half:.1f}"]
            )
        return ["switch", "head", "clean %", "attacked %", "moved by"], cells

    def save(self, path: Any) -> Any:
        """Write everything as JSON, whole or not at all."""
        rows = [
            [row.switch, row.head, *("".join(map(str, map(int, right))) for right in (row.clean, row.attacked))]
            for row in self.rows
        ]
        return RunRecord("anatomy", self.settings, {"rows": rows}).save(path)

    @classmethod
    def load(cls, path: Any) -> "Anatomy":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        record = RunRecord.load(path)
        try:
            rows = [
                SwitchRow(switch, head, *(tuple(digit == "1" for digit in right) for right in both))
                for switch, head, *both in record.results["rows"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an anatomy: {error!r}") from error
        return cls(tuple(rows), record.settings)


def _share(share: float, count: int) -> str:
    low, high = wilson(share, count)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def anatomy(
    model: Classifier,
    test_set: ImageSet,
    source: ImageSet,
    *,
    threat: Threat,
    steps: int = 10,
    step_size: float | None = None,
    batch_size: int = 100,
    cw_images: int = 100,
    cw_steps: int = 50,
    on_row: Callable[[int, int], Any] | None = None,
) -> Anatomy:
    """Measure every switch on the WNLL head of a network and on the linear head beside it.

    Args:
        model: With a WNLL head.
        test_set: Test images.
        source: Images that the template was drawn from (`checkpoints.template_source`).
        threat: Ball of IFGSM.
        steps: Steps of IFGSM.
        step_size: Its length of a step, in pixel units.
        batch_size: Images at a time; batch norm and the graph see such batches.
        cw_images: Number of the first test images that Carlini & Wagner's attack is made on.
        cw_steps: Its steps.
        on_row: Called after every condition with (done, total).

    Raises:
        ValueError: If the network has no WNLL head with a linear head beside it.
    """
    if not isinstance(model.head, WNLLHead) or model.head.linear is None:
        raise ValueError("model must have a WNLL head with the linear head beside it, such as digits-pgd-wnll")
    iterated: dict[str, Any] = {"threat": threat, "steps": steps, "step_size": step_size}
    plain, sorted_ = partial(ifgsm, **iterated), partial(released_ifgsm, **iterated)
    minimal = partial(carlini_wagner, steps=cw_steps, search_steps=3)
    template = attacked_template(model, source, plain, batch_size=batch_size)
    few = test_set[: min(cw_images, len(test_set))]
    todo: list[tuple[str, Classifier, Attack, ImageSet]] = [
        (AS_PUBLISHED, model, plain, test_set),
        ("labels re-sorted", model, sorted_, test_set),
        ("template attacked", template, plain, test_set),
        ("both", template, sorted_, test_set),
        ("batch norm in training mode", batch_statistics(model), plain, test_set),  # type: ignore[list-item]
        (CW, model, minimal, few),
        ("C&W perturbation scaled", model, partial(scaled, attack=minimal, factor=threat.epsilon), few),
    ]
    rows = []
    for switch, network, attack, part in todo:
        for head in HEADS:
            seen = network if head == "WNLL" else linear_head(network)
            view = surrogate_head if head == "WNLL" else itself
            made = {switch: partial(against, view=view, attack=attack)}
            measured = evaluate(
                seen, part.images, part.labels, made, batch_size=batch_size, draws=1, generator=seeded(0)
            )
            clean, attacked = (tuple(measured.correct[c, 0].tolist()) for c in (0, 1))
            rows.append(SwitchRow(switch, head, clean, attacked))
            if on_row is not None:
                on_row(len(rows), len(todo) * len(HEADS))
    settings = {"data": test_set.name, "images": len(test_set), "few": len(few), "batch_size": batch_size}
    settings |= {"threat": describe(threat), "attack": describe(plain), "minimal attack": describe(minimal)}
    return Anatomy(tuple(rows), settings)
