"""Training: one loop for every objective, attack and defense."""

from robustviz.training.config import Precision, Schedule, TrainConfig, hold_out
from robustviz.training.loop import train
from robustviz.training.state import EpochLog

__all__ = ["EpochLog", "Precision", "Schedule", "TrainConfig", "hold_out", "train"]
