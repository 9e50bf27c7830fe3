"""See, attack and harden image classifiers: a small library for teaching and analyzing adversarial robustness.

Nothing is imported here, so that every module stays light: `from robustviz.attacks import pgd`, and so on. The README
has the map.
"""
