"""Attacks: `(model, images, labels, /, *, generator=None) -> images`, settings fixed with `functools.partial`."""

from robustviz.attacks.gradient import Step, fgsm, ifgsm, mifgsm, pgd

__all__ = ["Step", "fgsm", "ifgsm", "mifgsm", "pgd"]
