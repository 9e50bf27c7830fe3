"""The geometry of an attack: maps of features, paths through them, numbers beside them, decisions over a plane."""

from robustviz.geometry.curves import Curves, curves
from robustviz.geometry.embedding import MAP_NEIGHBORS, Embedding, Method, embed
from robustviz.geometry.planes import DecisionPlane, faithfulness, image_plane, map_regions
from robustviz.geometry.separation import (
    Separation,
    boundary_distance,
    centroid_shifts,
    decisions_differ,
    margins,
    probability_margins,
    scatter_ratio,
    separation,
    separation_rows,
    silhouette,
)
from robustviz.geometry.surroundings import distance_ratio, neighbor_agreement
from robustviz.geometry.trajectories import Trajectory, trace_steps, trace_strengths
from robustviz.geometry.votes import Ballot, ballot, template_source

__all__ = [
    "MAP_NEIGHBORS",
    "Ballot",
    "Curves",
    "DecisionPlane",
    "Embedding",
    "Method",
    "Separation",
    "Trajectory",
    "ballot",
    "boundary_distance",
    "centroid_shifts",
    "curves",
    "decisions_differ",
    "distance_ratio",
    "embed",
    "faithfulness",
    "image_plane",
    "map_regions",
    "margins",
    "neighbor_agreement",
    "probability_margins",
    "scatter_ratio",
    "separation",
    "separation_rows",
    "silhouette",
    "template_source",
    "trace_steps",
    "trace_strengths",
]
