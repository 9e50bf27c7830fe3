"""Explorers that move: frames measured once, a chart of them, live in Jupyter and as a page without a kernel."""

from robustviz.explorers.attack import attack_frames
from robustviz.explorers.attack_view import attack_explorer, show_attack
from robustviz.explorers.channels import channel_frames, channels_explorer, show_channels
from robustviz.explorers.control import Control
from robustviz.explorers.explorer import Explorer
from robustviz.explorers.features import feature_frames
from robustviz.explorers.features_view import features_explorer, show_features
from robustviz.explorers.frames import Frames
from robustviz.explorers.training import training_frames
from robustviz.explorers.training_view import show_training, training_explorer
from robustviz.explorers.wnll import wnll_frames
from robustviz.explorers.wnll_view import show_wnll, wnll_explorer

__all__ = [
    "Control",
    "Explorer",
    "Frames",
    "attack_explorer",
    "attack_frames",
    "channel_frames",
    "channels_explorer",
    "feature_frames",
    "features_explorer",
    "show_attack",
    "show_channels",
    "show_features",
    "show_training",
    "show_wnll",
    "training_explorer",
    "training_frames",
    "wnll_explorer",
    "wnll_frames",
]
