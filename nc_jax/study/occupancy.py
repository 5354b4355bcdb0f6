"""On whose features the features of each class lie, for a frame that gives each feature to one class."""

from pathlib import Path

import jax
import numpy as np

from nc_jax.metrics import support_occupancy
from nc_jax.study import heat_maps
from nc_jax.study.comparison import Found
from nc_jax.study.experiment import Scene
from nc_jax.study.outputs import Outputs

MOST_MATRICES = 6  # pictures of matrices beyond that many rows would be too small to read


def share_no_feature(frame: np.ndarray) -> bool:
    """Return whether no feature has a weight in two class vectors, shape (d, K)."""
    return not ((frame != 0).sum(axis=1) > 1).any()


def occupancy(frame: np.ndarray, outputs: Outputs) -> Found:
    """Return "occupancy", `nc_jax.metrics.support_occupancy` as lists, and "own_share", the mean of its diagonal.

    Both are left out for class vectors that share features.

    Args:
        frame: class vectors as columns, shape (d, K).
        outputs: what the model gives for a set of examples.
    """
    if not share_no_feature(frame):
        return {}
    shares = np.asarray(jax.jit(support_occupancy)(outputs.features, outputs.labels, frame))
    return {"occupancy": heat_maps.rounded(shares), "own_share": float(np.mean(np.diagonal(shares)))}


def occupancy_picture(scene: Scene) -> Path | None:
    """Draw on whose features the features of each class lie, mean over seeds."""
    found = {label: np.nanmean(values, axis=0) for label, values in scene.found("occupancy").items()}
    if not found:
        return None
    path, title = scene.path("occupancy"), "share of the features' squared length"
    in_order = scene.groups[0].settings.continual.tasks > 1
    title += ", classes as they were learned" if in_order else ""
    shown = dict(list(found.items())[:MOST_MATRICES])
    labels = ("features of class", "on the features that class owns")
    heat_maps.shares(path, shown, title=title, labels=labels, first=int(in_order))
    return path
