"""How often a model is right, clean and under attack: measured image by image."""

from robustviz.evaluation.answers import usual_draws
from robustviz.evaluation.evaluate import evaluate
from robustviz.evaluation.gallery import Gallery
from robustviz.evaluation.shares import bootstrap, wilson
from robustviz.evaluation.sweep import Sweep, sweep
from robustviz.evaluation.table import CLEAN, WORST, RobustnessTable, TableRow

__all__ = [
    "CLEAN",
    "WORST",
    "Gallery",
    "RobustnessTable",
    "Sweep",
    "TableRow",
    "bootstrap",
    "evaluate",
    "sweep",
    "usual_draws",
    "wilson",
]
