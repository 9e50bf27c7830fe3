"""What can be done to any network: open it, find its places, change them, copy it folded."""

from robustviz.networks.folding import folded
from robustviz.networks.opening import Source, open_network, trusting
from robustviz.networks.own import check_classes, own_network
from robustviz.networks.places import Place, activations, blocks, rewired
from robustviz.networks.tracing import example

__all__ = [
    "Place",
    "Source",
    "activations",
    "blocks",
    "check_classes",
    "example",
    "folded",
    "open_network",
    "own_network",
    "rewired",
    "trusting",
]
