"""What can be done to any network: find its places, change them, copy it folded."""

from robustviz.networks.folding import folded
from robustviz.networks.places import Place, activations, blocks, rewired

__all__ = ["Place", "activations", "blocks", "folded", "rewired"]
