r"""From distances in a tree to the cosines that class vectors should have.

Let d be distances between classes and f a decreasing map with f(0) = 1. The wanted cosines are

.. math:: S(s) = (1 - s) E + s\, \mathbf 1 \mathbf 1^\top, \qquad E_{ij} = f(d_{ij} / d_{max}),

where s is the lower end of the similarities. Unit vectors with these cosines exist exactly if S is positive
semidefinite. The smallest s for which they exist separates the classes most. With t = s / (1 - s), S is a positive
multiple of E + t 11^T. The determinant of that matrix is det(E) (1 + t q) with q = 1^T E^{-1} 1. So the smallest t is
-1 / q, and

.. math:: s^* = -\frac{1}{q - 1}.

At s* the matrix S is singular with null vector E^{-1} 1, so a weighted sum of the class vectors is zero.

Reference: Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 3, who find s on a
grid; the closed form is derived here.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.spatial.distance
from jaxtyping import Float, Real

Mapping = Literal["exponential", "linear"] | Callable[[np.ndarray], np.ndarray]
_GRID = 100  # points in the grid of s from -1/(K-1) to -1: Liang and Davis (2023), released program
_ZERO = 1e-6  # eigenvalues down to minus this count as zero: Liang and Davis (2023), released program


def similarity(
    distances: Real[np.ndarray, "classes classes"],
    gamma: float = 3.0,  # Liang and Davis (2023) for tieredImageNet-H; 1, 2 and 5 for their other data sets
    min_similarity: float | Literal["max-separation", "grid"] = "max-separation",
    mapping: Mapping = "exponential",
    clip: float | None = None,
) -> Float[np.ndarray, "classes classes"]:
    r"""Cosines that class vectors should have, from distances between classes.

    Args:
        distances: distances between classes, symmetric and zero on the diagonal only, shape (K, K), in any unit;
            usually `LabelTree.distances()`.
        gamma: rate at which similarity decays with distance, > 0; used by the exponential map only.
        min_similarity: s < 1, a number or a rule. "max-separation": the smallest s for which unit vectors with these
            cosines exist, in closed form. "grid": the smallest feasible s of the 100 values that the released program
            of Liang and Davis tries.
        mapping: map f from u = d / d_max to similarity. "exponential": exp(-gamma u). "linear": 1 - u. Or a function
            of an array of u.
        clip: lower bound on the s that "max-separation" chooses; None for no bound. The released program uses -1.
            Without a bound, s can fall below -1 (few classes, small gamma); that is harmless, because the cosines stay
            in [-1, 1].

    Returns:
        S in float64, shape (K, K): positive semidefinite, with ones on the diagonal. Its rank is K - 1 for
        "max-separation" without `clip`, and usually K otherwise.

    Raises:
        ValueError: if the distances are not symmetric and zero on the diagonal only; if gamma is not positive or
            min_similarity, mapping or s is invalid; if S is not positive semidefinite, or no s makes it so. In the last
            two cases the message names the smallest eigenvalue and, if the distances are not ultrametric, three classes
            that show it.

    Example:
        >>> float(similarity(np.ones((4, 4)) - np.eye(4))[0, 1]).__round__(9)  # a star: the simplex
        -0.333333333

    Reference: Liang and Davis (2023), section 3.2; Barz and Denzler (2019) for the linear map, which they use with
    s = 0.
    """
    matrix = kernel(distances, gamma, mapping)
    if clip is not None and not -1 <= clip < 1:
        raise ValueError(f"clip must lie in [-1, 1), a similarity of different classes; got {clip}")
    if min_similarity == "max-separation":
        lowest = max_separation(matrix, distances)
        lowest = lowest if clip is None else max(lowest, clip)
    elif min_similarity == "grid":
        lowest = grid_separation(matrix, distances)
    elif isinstance(min_similarity, str):
        raise ValueError(f'min_similarity must be a number, "max-separation" or "grid"; got {min_similarity!r}')
    else:
        lowest = float(min_similarity)
        if not lowest < 1:
            raise ValueError(f"min_similarity must be below 1, the similarity of a class with itself; got {lowest}")
    found = mixed(matrix, lowest)
    if min_similarity == "max-separation":
        return found  # positive semidefinite by construction
    smallest = float(scipy.linalg.eigvalsh(found, subset_by_index=(0, 0))[0])
    if smallest < -_ZERO:
        raise ValueError(
            f"a matrix of cosines must be positive semidefinite; with s = {lowest:.6g} its smallest eigenvalue is "
            f"{smallest:.3g}{_blame(distances)}"
        )
    return found


def kernel(
    distances: Real[np.ndarray, "classes classes"], gamma: float, mapping: Mapping = "exponential"
) -> Float[np.ndarray, "classes classes"]:
    """Return E: the map of the distances, divided by the largest distance. Arguments and errors as in `similarity`."""
    check_distances(distances)
    scaled = np.asarray(distances, float) / np.max(distances)
    if callable(mapping):
        matrix = np.asarray(mapping(scaled), float)
        if matrix.shape != scaled.shape or not np.allclose(np.diagonal(matrix), 1, rtol=0, atol=1e-12):
            raise ValueError(f"a mapping takes 0 to 1 and keeps the shape {scaled.shape}; got shape {matrix.shape}")
        if not np.all(np.isfinite(matrix)):
            one, other = np.argwhere(~np.isfinite(matrix))[0]
            raise ValueError(
                f"a mapping gives finite similarities; got {matrix[one, other]} for u = {scaled[one, other]:g}"
            )
        return matrix
    if mapping == "linear":
        return 1 - scaled
    if mapping != "exponential":
        raise ValueError(f'mapping must be "exponential", "linear" or a function; got {mapping!r}')
    if not (np.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be positive; got {gamma}")
    return np.exp(-gamma * scaled)


def mixed(matrix: Float[np.ndarray, "classes classes"], lowest: float) -> Float[np.ndarray, "classes classes"]:
    """Return (1 - s) E + s 11^T, with exact ones on the diagonal."""
    found = (1 - lowest) * matrix + lowest
    np.fill_diagonal(found, 1.0)
    return found


def max_separation(
    matrix: Float[np.ndarray, "classes classes"], distances: Real[np.ndarray, "classes classes"] | None = None
) -> float:
    """Return the smallest s for which (1 - s) E + s 11^T is positive semidefinite: -1 / (q - 1), q = 1^T E^{-1} 1.

    Args:
        matrix: E, symmetric with ones on the diagonal, shape (K, K).
        distances: distances from which E was made, shape (K, K); they only make the error message more specific.

    Raises:
        ValueError: if no such s exists, because E has a negative eigenvalue on vectors that sum to zero.
    """
    ones = np.ones(len(matrix))
    try:
        factor = scipy.linalg.cho_factor(matrix)
        total = float(ones @ scipy.linalg.cho_solve(factor, ones))
    except np.linalg.LinAlgError:
        # E may have one negative eigenvalue if adding a multiple of 11^T makes it positive. That is possible if E is
        # positive semidefinite on vectors that sum to zero.
        centred = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
        smallest = float(scipy.linalg.eigvalsh(centred, subset_by_index=(0, 0))[0])
        if smallest < -1e-10 * len(matrix):
            raise ValueError(
                "no s makes these cosines positive semidefinite; on vectors that sum to zero the smallest eigenvalue "
                f"of E is {smallest:.3g}{'' if distances is None else _blame(distances)}"
            ) from None
        total = float(ones @ np.linalg.lstsq(matrix, ones, rcond=None)[0])
    return -1 / (total - 1)


def grid_separation(
    matrix: Float[np.ndarray, "classes classes"], distances: Real[np.ndarray, "classes classes"] | None = None
) -> float:
    """Return the smallest feasible s in the grid of the released program of Liang and Davis.

    Every s from that of `max_separation` up to 1 is feasible, so the function compares numbers and tries no matrices.

    Args:
        matrix: E, symmetric with ones on the diagonal, shape (K, K).
        distances: distances from which E was made, shape (K, K); they only make the error message more specific.

    Raises:
        ValueError: if `max_separation` raises one, or all s of the grid, which begins at -1 / (K - 1), are too small.
    """
    grid = np.linspace(-1 / (len(matrix) - 1), -1, _GRID)
    exact = max_separation(matrix, distances)
    if grid[0] < exact - 1e-9:
        raise ValueError(f"the grid of s begins at {grid[0]:.4g}; the least feasible s is {exact:.4g}")
    return float(grid[grid >= exact - 1e-9].min())


class GammaRange(NamedTuple):
    """Values of gamma for which the exponential map gives feasible cosines.

    Attributes:
        low: every gamma above this bound is feasible; the bound has a relative error of 1e-6. It is 0 for ultrametric
            distances, for which every gamma is feasible.
        ultrametric: whether the distances are ultrametric.
    """

    low: float
    ultrametric: bool


def similarity_range(distances: Real[np.ndarray, "classes classes"]) -> GammaRange:
    """Find for which gamma of the exponential map a feasible s, and therefore a frame, exists.

    For ultrametric distances, such as those in a tree, every gamma is feasible. For other distances every gamma above
    some bound is feasible; this is certain once the similarities of a class to all others sum to less than 1. A scan
    over 65 gammas and a bisection find the bound. They may miss an infeasible gamma between two scanned values.

    Args:
        distances: distances between classes, symmetric and zero on the diagonal only, shape (K, K), in any unit.

    Raises:
        ValueError: if the distances are not symmetric, or not zero on the diagonal only.

    Example:
        >>> cycle = np.array([[0, 1, 1, 3], [1, 0, 3, 1], [1, 3, 0, 1], [3, 1, 1, 0.0]])
        >>> found = similarity_range(cycle)
        >>> 1 < found.low < 2, found.ultrametric
        (True, False)
    """
    check_distances(distances)
    if broken_triple(distances) is None:
        return GammaRange(0.0, True)
    scaled = np.asarray(distances, float) / np.max(distances)
    smallest = scaled[~np.eye(len(scaled), dtype=bool)].min()

    def feasible(gamma: float) -> bool:
        matrix = np.exp(-gamma * scaled)
        centred = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
        return float(scipy.linalg.eigvalsh(centred, subset_by_index=(0, 0))[0]) > -1e-12 * len(matrix)

    certain = np.log(max(len(scaled) - 1, 2)) / smallest  # diagonally dominant from here on
    gammas = certain * np.logspace(-4, 0, 65)
    bad = [gamma for gamma in gammas if not feasible(gamma)]
    if not bad:
        return GammaRange(0.0, False)
    low = float(bad[-1])
    high = float(gammas[np.searchsorted(gammas, low) + 1]) if low < gammas[-1] else float(2 * certain)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return GammaRange(high, False)


def check_distances(distances: Any) -> None:
    """Raise a ValueError unless the distances are symmetric, and zero on the diagonal only."""
    distances = np.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or len(distances) < 2:
        raise ValueError(f"distances must have shape (classes, classes), two at least; got {distances.shape}")
    if not np.all(np.isfinite(distances)):
        one, other = np.argwhere(~np.isfinite(distances))[0]
        raise ValueError(f"distances must be finite; got {distances[one, other]} between class {one} and {other}")
    if not np.array_equal(distances, distances.T):
        one, other = np.argwhere(distances != distances.T)[0]
        raise ValueError(
            f"distances must be symmetric; got {distances[one, other]} from class {one} to {other} and "
            f"{distances[other, one]} back"
        )
    if np.any(np.diagonal(distances)):
        raise ValueError(f"a class has distance 0 to itself; class {np.flatnonzero(np.diagonal(distances))[0]} has not")
    if np.any(distances + np.eye(len(distances), dtype=distances.dtype) <= 0):
        one, other = np.argwhere(distances + np.eye(len(distances)) <= 0)[0]
        raise ValueError(
            f"different classes need a positive distance; got {distances[one, other]} between {one} and {other}"
        )


def broken_triple(distances: Real[np.ndarray, "classes classes"]) -> tuple[int, int, int] | None:
    """Return classes (i, j, k) with d(i, k) > max(d(i, j), d(j, k)), or None if the distances are ultrametric.

    Distances are ultrametric exactly if they equal the distances in their single-linkage tree. The test takes O(K^2).
    """
    distances = np.asarray(distances, float)
    condensed = scipy.spatial.distance.squareform(distances, checks=False)
    tree = scipy.spatial.distance.squareform(
        scipy.cluster.hierarchy.cophenet(scipy.cluster.hierarchy.single(condensed))
    )
    tolerance = 1e-9 * distances.max()
    gaps = distances - tree
    if gaps.max() <= tolerance:
        return None
    # Some pairs are farther apart than every step of the chain of near neighbours between them. Take the pair that is
    # nearest in the single-linkage tree: the last step of its chain already breaks the rule.
    i, k = np.unravel_index(np.argmin(np.where(gaps > tolerance, tree, np.inf)), gaps.shape)
    detour = np.maximum(distances[i], distances[k])
    detour[[i, k]] = np.inf
    j = int(np.argmin(detour))
    if detour[j] >= distances[i, k] - tolerance:
        for j in range(len(distances)):
            excess = distances - np.maximum(distances[:, j, None], distances[j])
            if excess.max() > tolerance:
                i, k = np.unravel_index(np.argmax(excess), excess.shape)
                break
    return int(i), j, int(k)


def check_ultrametric(distances: Real[np.ndarray, "classes classes"]) -> None:
    """Raise a ValueError that names three classes, unless d(i, k) <= max(d(i, j), d(j, k)) for all i, j and k."""
    check_distances(distances)
    triple = broken_triple(distances)
    if triple is not None:
        raise ValueError(f"distances must be ultrametric; {_triple_sentence(distances, triple)}")


def _triple_sentence(distances: Any, triple: tuple[int, int, int]) -> str:
    i, j, k = triple
    return (
        f"classes {i}, {j}, {k} break it: d({i},{k}) = {distances[i][k]:g} > "
        f"max(d({i},{j}) = {distances[i][j]:g}, d({j},{k}) = {distances[j][k]:g})"
    )


def _blame(distances: Any) -> str:
    triple = broken_triple(np.asarray(distances))
    if triple is None:
        return ""
    return f"; the distances are not ultrametric: {_triple_sentence(np.asarray(distances), triple)}"
