"""What attacks share: which threat they obey."""

from functools import partial

import pytest

from robustviz.attacks import against, bounded, carlini_wagner, deepfool, exact_head, fmn, pgd, transfer
from robustviz.attacks.common import threat_of
from robustviz.types import LINF_8, Threat

L2 = Threat("l2", 0.5)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (pgd, LINF_8),
        (partial(pgd, threat=L2), L2),
        (partial(against, view=exact_head, attack=pgd), LINF_8),
        (partial(against, view=exact_head, attack=partial(transfer, source=None, attack=partial(pgd, threat=L2))), L2),
        (partial(bounded, threat=L2, attack=partial(fmn, norm="l2")), L2),
        (carlini_wagner, None),
        (partial(against, view=exact_head, attack=deepfool), None),
        (lambda model, images, labels, generator=None: images, None),
        (None, None),
    ],
)
def test_threat_of(attack, threat):
    assert threat_of(attack) == threat
