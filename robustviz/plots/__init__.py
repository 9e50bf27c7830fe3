"""Pictures of records: each function takes a record, draws it into Axes and returns them; nothing is computed here."""

from robustviz.plots.accuracy import plot_accuracy, plot_comparison
from robustviz.plots.channels import plot_frequency, plot_magnitude, plot_panels
from robustviz.plots.decisions import plot_curves, plot_plane, plot_votes
from robustviz.plots.gallery import Purified, plot_gallery, plot_purified
from robustviz.plots.maps import MapView, plot_map, plot_maps, plot_paths, plot_trajectories
from robustviz.plots.strengths import plot_strengths
from robustviz.plots.style import CLASS_COLORS, COLORS, MARKERS, STYLE, class_color, new_axes, show_picture, styled

__all__ = [
    "CLASS_COLORS",
    "COLORS",
    "MARKERS",
    "STYLE",
    "MapView",
    "Purified",
    "class_color",
    "new_axes",
    "plot_accuracy",
    "plot_comparison",
    "plot_curves",
    "plot_frequency",
    "plot_gallery",
    "plot_magnitude",
    "plot_map",
    "plot_maps",
    "plot_panels",
    "plot_paths",
    "plot_plane",
    "plot_purified",
    "plot_strengths",
    "plot_trajectories",
    "plot_votes",
    "show_picture",
    "styled",
]
