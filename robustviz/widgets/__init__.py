"""Interactive panels for JupyterLab and Voila: sliders on one side, functions of the library on the other."""

from robustviz.widgets.attack import attack_explorer
from robustviz.widgets.attack_record import AttackState
from robustviz.widgets.channel import ChannelState, channel_explorer
from robustviz.widgets.feature import FeatureExplorer, feature_explorer
from robustviz.widgets.feature_record import FeatureState
from robustviz.widgets.panel import Panel, Picture
from robustviz.widgets.tvm import TVMState, tvm_explorer
from robustviz.widgets.wnll import WNLLState, wnll_explorer

__all__ = [
    "AttackState",
    "ChannelState",
    "FeatureExplorer",
    "FeatureState",
    "Panel",
    "Picture",
    "TVMState",
    "WNLLState",
    "attack_explorer",
    "channel_explorer",
    "feature_explorer",
    "tvm_explorer",
    "wnll_explorer",
]
