"""Configurations of points on the sphere whose energy is known to be least, and the least energies that are known."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from nc_jax.checks import check_at_least
from nc_jax.energies import checked_exponent

GOLDEN = (1 + math.sqrt(5)) / 2
# Least known energies of K electrons on the sphere (s = 1, d = 3), as sums over unordered pairs: the best of 20
# descents by L-BFGS in float64, which are the values that the literature on Thomson's problem gives.
THOMSON = {
    2: 0.500000000,
    3: 1.732050808,
    4: 3.674234614,
    5: 6.474691495,
    6: 9.985281374,
    7: 14.452977414,
    8: 19.675287861,
    9: 25.759986531,
    10: 32.716949460,
    11: 40.596450510,
    12: 49.165253058,
    13: 58.853230612,
    14: 69.306363297,
    15: 80.670244114,
    16: 92.911655302,
    17: 106.050404829,
    18: 120.084467447,
    19: 135.089467557,
    20: 150.881568334,
    21: 167.641622399,
    22: 185.287536149,
    23: 203.930190663,
    24: 223.347074052,
}


class Configuration(NamedTuple):
    """A configuration in closed form.

    Attributes:
        name: its name.
        points: unit vectors as columns, float64, shape (r, K) with r = min(d, K - 1).
    """

    name: str
    points: np.ndarray


def closed_form(num_classes: int, dim: int, objective: str = "riesz") -> Configuration | None:
    """Return the configuration of K points in d dimensions that is proven best, or None if there is none here.

    All of them are *universally optimal*: they have the least energy for every completely monotone function of the
    squared distance, among them the Riesz kernels of all s > -2, and the largest separation. For the determinant, only
    the simplex is proven: the cosines of different points have a mean of at least -1 / (K - 1), so the entries of the
    Gaussian kernel have at least the mean that they have for the simplex (Jensen), and averaging a kernel over all
    permutations does not lower its determinant, which is log-concave.

    Args:
        num_classes: K >= 2.
        dim: d >= 2, or 1 for two classes.
        objective: "riesz", "separation" or "determinant".

    Reference: Cohn and Kumar, Universally optimal distribution of points on spheres (2007), theorem 1.2 and table 1.
    """
    if num_classes <= dim + 1:
        scale = math.sqrt(num_classes / (num_classes - 1))
        return Configuration("simplex", scale * _simplex(num_classes))
    if objective == "determinant":
        return None
    if dim == 2:
        turns = 2 * np.pi * np.arange(num_classes) / num_classes
        return Configuration("regular polygon", np.stack([np.cos(turns), np.sin(turns)]))
    if num_classes == 2 * dim:
        return Configuration("cross-polytope", np.hstack([np.eye(dim), -np.eye(dim)]))
    build = {(12, 3): _icosahedron, (120, 4): _six_hundred_cell, (240, 8): _roots_of_e8}.get((num_classes, dim))
    if build is None:
        return None
    name = {12: "icosahedron", 120: "600-cell", 240: "E8 roots"}[num_classes]
    points = build()
    return Configuration(name, points / np.linalg.norm(points, axis=0))


def least_energy(num_classes: int, dim: int, s: float | int = 1.0) -> float | None:
    r"""Least mean Riesz energy of K directions in d dimensions, as far as it is known.

    It is exact where a configuration is proven optimal, for every s > -2. For s = 1 and d = 3 (Thomson's problem) and
    K <= 24 it is the best value known. Nothing else is known here, and None says so.

    Args:
        num_classes: K >= 2.
        dim: d >= 1; d = 1 has room for two classes only.
        s: exponent above -2.

    Returns:
        The mean over ordered pairs, as `nc_jax.energies.riesz_energy` returns it; inf for more than two classes in one
        dimension and s >= 0. None: not known.

    Raises:
        ValueError: if K < 2, d < 1, or s is not a finite number above -2.

    Example:
        >>> round(least_energy(4, 3, 2), 6)  # (K - 1) / (2 K)
        0.375
        >>> least_energy(13, 5) is None
        True
    """
    s = checked_exponent(s)
    for name, size, least in (("num_classes", num_classes, 2), ("dim", dim, 1)):
        check_at_least(name, size, least)
    if dim == 1 and num_classes > 2:
        return math.inf if s >= 0 else None
    if (squared := _squared_distances(num_classes, dim)) is not None:
        return _mean_kernel(squared, s)
    if s == 1 and dim == 3 and num_classes in THOMSON:
        return THOMSON[num_classes] / (num_classes * (num_classes - 1) / 2)
    return None


def _squared_distances(num_classes: int, dim: int) -> np.ndarray | None:
    """Squared distances of a point of a closed form from the others; None if there is no closed form.

    Every point of these configurations sees the others at the same distances, so those of one point are enough, and the
    large families need no points.
    """
    if num_classes <= dim + 1:
        return np.array([2 * num_classes / (num_classes - 1)])
    if num_classes == 2 * dim:
        return np.append(np.full(num_classes - 2, 2.0), 4.0)
    if dim == 2:
        return 4 * np.sin(np.pi * np.arange(1, num_classes) / num_classes) ** 2
    known = closed_form(num_classes, dim)
    return None if known is None else np.sum((known.points[:, 1:] - known.points[:, :1]) ** 2, axis=0)


def _mean_kernel(squared: np.ndarray, s: float) -> float:
    """Mean Riesz kernel of squared distances."""
    logs = np.log(squared) / 2
    if s == 0:
        return float(-np.mean(logs))
    with np.errstate(over="ignore", under="ignore"):
        return math.copysign(1, s) * float(np.mean(np.exp(-s * logs)))


def _simplex(num_classes: int) -> np.ndarray:
    # In NumPy's float64, whatever JAX's own width: the reduced template of `simplex_template`.
    root = math.sqrt(num_classes)
    rows = np.eye(num_classes - 1) - 1 / (root * (root + 1))
    return np.hstack([rows, np.full((num_classes - 1, 1), -1 / root)])


def _icosahedron() -> np.ndarray:
    """Cyclic permutations of (0, +-1, +-phi)."""
    corners = [np.roll([0, a, b * GOLDEN], turn) for turn in range(3) for a in (1, -1) for b in (1, -1)]
    return np.array(corners, float).T


def _six_hundred_cell() -> np.ndarray:
    """The 120 unit icosians: +-e_i, (+-1, +-1, +-1, +-1) / 2, and even permutations of (+-phi, +-1, +-1/phi, 0) / 2."""
    axes = [sign * row for row in np.eye(4) for sign in (1, -1)]
    halves = [np.array(signs) / 2 for signs in itertools.product((1, -1), repeat=4)]
    even = [order for order in itertools.permutations(range(4)) if round(np.linalg.det(np.eye(4)[list(order)])) == 1]
    mixed = [
        np.array([a * GOLDEN, b, c / GOLDEN, 0])[list(order)] / 2
        for order in even
        for a, b, c in itertools.product((1, -1), repeat=3)
    ]
    return np.array([*axes, *halves, *mixed]).T


def _roots_of_e8() -> np.ndarray:
    """The 112 vectors +-e_i +- e_j, and the 128 vectors (+-1/2)^8 with an even number of minus signs."""
    eye = np.eye(8)
    pairs = [a * eye[i] + b * eye[j] for i, j in itertools.combinations(range(8), 2) for a in (1, -1) for b in (1, -1)]
    halves = [np.array(signs) / 2 for signs in itertools.product((1, -1), repeat=8) if math.prod(signs) == 1]
    return np.array([*pairs, *halves]).T
