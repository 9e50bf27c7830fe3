"""Defenses: parts that fill a slot of `Classifier`, each after its paper."""
