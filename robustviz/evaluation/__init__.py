"""How often a model is right, clean and under attack: measured image by image."""

from robustviz.evaluation.evaluate import Sweep, evaluate, sweep
from robustviz.evaluation.gallery import Gallery
from robustviz.evaluation.table import CLEAN, RobustnessTable, wilson

__all__ = ["CLEAN", "Gallery", "RobustnessTable", "Sweep", "evaluate", "sweep", "wilson"]
