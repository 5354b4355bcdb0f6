r"""The one-vs-rest margin: how far each class vector is from all that the others can express.

A class vector inside of the convex hull of the others is never the only best one for any feature. The farther every
class vector is from the hull of the others, the easier is each class to tell from the rest. Among K > d + 1 unit
vectors, those with the largest margin are the *softmax code*, to which class vectors tend under cross-entropy at a low
temperature.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import nnls

from nc_jax.arrays import at_least_float32
from nc_jax.checks import Mask, Reals, is_traced, real_array
from nc_jax.metrics.simplex import checked_vectors


class OneVsRestMargin(NamedTuple):
    """Distances of unit class vectors from the convex hull of the others, from `one_vs_rest_margin`.

    Attributes:
        margin: the smallest distance.
        distances: distance of each class, shape (K,); NaN for a class that does not count.
        gap: the largest difference of a distance from a lower bound of it, at least 0: no distance is off by more.
    """

    margin: Float[Array, ""]
    distances: Float[Array, " classes"]
    gap: Float[Array, ""]


def one_vs_rest_margin(vectors: Reals, present: Mask | None = None) -> OneVsRestMargin:
    r"""Least distance of a class vector from the convex hull of the others; only directions count.

    .. math:: \min_k \operatorname{dist}(\hat w_k, \operatorname{conv} \{\hat w_j\}_{j \ne k})

    A simplex ETF has K/(K-1), the 2d vectors of a cross-polytope have 1, and K vectors at equal angles in the plane
    have :math:`1 - \cos(2 \pi / K)`.

    For one class, let A hold the differences :math:`\hat w_j - \hat w_k` as columns. The distance is the least
    :math:`\|A \lambda\|` over weights :math:`\lambda \ge 0` that sum to 1. It comes from a least-squares problem over
    weights that only need be non-negative,

    .. math:: \min_{u \ge 0} \; \|A u\|^2 + (1 - 1^\top u)^2 .

    Write :math:`u = t \lambda` with :math:`1^\top \lambda = 1`. The best t gives
    :math:`p^2 / (1 + p^2)` with :math:`p = \|A \lambda\|`, which grows with p. So the :math:`\lambda` of the solution
    is the one that was sought. The active-set method of Lawson and Hanson solves the problem in finitely many steps.

    The answer is checked. With :math:`x = A \lambda`, every point a of the hull satisfies
    :math:`a^\top x \ge \min_j a_j^\top x`. So the distance is at least :math:`\min_j a_j^\top x / \|x\|`, and at most
    :math:`\|x\|`.

    It is computed in float64 on the host, one class after the other, so it is no part of a compiled program. On one
    core of an EPYC it takes 3 s for 1000 random classes in 64 dimensions and 24 s in 512. It takes longest where the
    nearest point of a hull is a mixture of all classes: 3 s for a simplex ETF of 300 classes, 5 minutes for 1000.

    Args:
        vectors: class vectors as columns, shape (d, K), of any length: the frame of a classifier, or centred class
            means.
        present: True for columns that count, shape (K,); None: all columns count.

    Returns:
        Distances in [0, 2], between unit vectors, and the largest error that they can have. NaN if fewer than two
        columns count, or if a column that counts is zero or not finite. If a problem was not solved, its distance, the
        margin and the gap are NaN.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, `present` is not boolean of shape (K,), or
            the values are not known because JAX traces the program.

    Example:
        >>> found = one_vs_rest_margin(jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
        >>> round(float(found.margin), 6), float(found.gap) < 1e-12
        (1.0, True)

    Reference: Jiang et al., Generalized neural collapse for a large number of classes (2024), for the margin and the
    softmax code; Lawson and Hanson, Solving least squares problems (1974), chapter 23, for the least-squares problem.
    """
    vectors = real_array(vectors, "class vectors")
    counted, present = checked_vectors(vectors, present)
    if is_traced(counted):
        raise ValueError(
            "the one-vs-rest margin needs known class vectors; got traced ones: call it outside jax.jit, jax.grad and "
            "jax.vmap"
        )
    distances, gap = _distances(np.asarray(counted, np.float64), np.asarray(present))
    dtype = at_least_float32(vectors).dtype
    margin = distances[np.asarray(present)].min(initial=np.inf)  # a NaN stays a NaN
    margin = margin if np.isfinite(margin) else np.nan
    return OneVsRestMargin(*(jnp.asarray(value, dtype) for value in (margin, distances, gap)))


def _distances(vectors: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the distance of each class from the hull of the others, and the largest gap to a lower bound."""
    distances = np.full(len(present), np.nan)
    classes = np.flatnonzero(present)
    units = vectors[:, classes]
    with np.errstate(all="ignore"):
        units = units / np.abs(units).max(axis=0, initial=0)  # so that squares neither overflow nor underflow
        units = units / np.linalg.norm(units, axis=0)
    if len(classes) < 2 or not np.isfinite(units).all():
        return distances, np.nan
    if len(units) > len(classes):  # distances are those of the triangular factor, whose columns are shorter
        units = np.linalg.qr(units).R
    gaps = []
    for place, number in enumerate(classes):
        distances[number], gap = _distance_to_hull(np.delete(units, place, axis=1) - units[:, place, None])
        gaps.append(gap)
    return distances, float(np.max(gaps))


def _distance_to_hull(points: np.ndarray) -> tuple[float, float]:
    """Return the distance of the origin from the convex hull of columns, and how much less it may be."""
    number = points.shape[1]
    try:
        weights, _ = nnls(np.vstack([points, np.ones(number)]), np.append(np.zeros(len(points)), 1.0))
    except RuntimeError:  # too many iterations
        return np.nan, np.nan
    nearest = points @ (weights / weights.sum())
    distance = float(np.linalg.norm(nearest))
    bound = float(np.min(nearest @ points)) / distance if distance > 0 else 0.0
    return distance, distance - min(max(bound, 0.0), distance)
