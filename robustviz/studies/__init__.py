"""Comparisons of defenses over seeds: what `robustviz compare` runs, without prose."""
