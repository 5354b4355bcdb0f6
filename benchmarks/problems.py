"""The problem that the solver benchmarks share, with its answers in float64.

Given class means H (d, K), the simplex template T (r, K) with r = K - 1, the previous rotation P (d, r) as proximal
point, and the proximal weight delta:

    minimise ||H - U T||_F^2 + delta / 2 ||U - P||_F^2 over U with U^T U = I

H and T have unit Frobenius norm, as `nc_jax.nearest_simplex_etf` scales them. H is Gaussian, and the mean over classes
is subtracted. A warm start is P, the solution without proximal term for the class means of the step before, which
differ from H by the relative change MOVE. A cold start is a random rotation.
"""

import dataclasses
import functools
import math

import numpy as np

# Relative change of the unit-norm running class means between two training steps. Measured in the first seed of
# `python -m experiments.nearest_etf`: 4e-2 after 10 steps, 1e-2 after 30, 2e-3 after 90 (of 120). The condition number
# of these means falls from 4 to 1.4. For Gaussian means it is 1.3 at (d, K) = (512, 10), 2.5 at (512, 100) and 5.7 at
# (2048, 1000).
MOVE = 1e-2
PROX_WEIGHT = 1e-3  # delta in Markou, Ajanthan and Gould (2024)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs in float32, so that all programs get the same values; answers in float64.

    Attributes:
        means: class means H, shape (d, K).
        template: T, shape (r, K).
        previous: P, shape (d, r): the solution of the step before, which is the proximal point and the warm start.
        random: a Haar-random rotation, shape (d, r): the cold start.
        cotangent: G, shape (d, K): cotangent of the frame U T, Gaussian with unit norm.
        prox_weight: delta.
        simplex: whether T is the simplex template; otherwise it is a matrix without structure.
    """

    means: np.ndarray
    template: np.ndarray
    previous: np.ndarray
    random: np.ndarray
    cotangent: np.ndarray
    prox_weight: float
    simplex: bool = True

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.means.shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.means.shape[1]

    @property
    def label(self) -> str:
        """The size as text, "(d, K)"."""
        return f"({self.dim}, {self.num_classes})"

    def start(self, name: str) -> np.ndarray:
        """Return the "warm" or the "cold" starting point."""
        return {"warm": self.previous, "cold": self.random}[name]

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """B = 2 H T^T + delta P: the solution is its polar factor."""
        means, template, previous = float64(self.means, self.template, self.previous)
        return 2 * means @ template.T + self.prox_weight * previous

    @functools.cached_property
    def rotation(self) -> np.ndarray:
        """The solution U."""
        return polar(self.matrix)

    @functools.cached_property
    def gradient(self) -> np.ndarray:
        r"""Gradient of <G, U T> in H.

        Let B = U S be the polar decomposition, S = V diag(s) V^T, and N = G T^T the cotangent of U. The cotangent of B
        is B_bar = U X + (I - U U^T) N S^-1, where the skew matrix X solves S X + X S = U^T N - N^T U. The gradient is
        H_bar = 2 B_bar T.
        """
        rotation, (template, cotangent) = self.rotation, float64(self.template, self.cotangent)
        values, vectors = np.linalg.eigh(rotation.T @ self.matrix)
        cotangent = cotangent @ template.T
        aligned = rotation.T @ cotangent
        in_basis = vectors.T @ (aligned - aligned.T) @ vectors / (values[:, None] + values[None, :])
        outside = (cotangent - rotation @ aligned) @ vectors / values @ vectors.T
        return 2 * (rotation @ (vectors @ in_basis @ vectors.T) + outside) @ template

    def gradient_norm(self, rotation: np.ndarray) -> float:
        """Norm of the Riemannian gradient of the objective at a rotation, in float64."""
        (rotation,) = float64(rotation)
        aligned = rotation.T @ self.matrix
        return float(np.linalg.norm(self.matrix - rotation @ (aligned + aligned.T) / 2))


def make_problem(
    dim: int, num_classes: int, *, seed: int = 0, move: float = MOVE, condition: float | None = None
) -> Problem:
    """Draw a problem.

    Args:
        dim: d >= K - 1.
        num_classes: K >= 2.
        seed: random seed.
        move: relative change of the means since the previous step.
        condition: None for Gaussian means. A number gives means whose singular values are evenly spaced in the
            logarithm, with this ratio of the largest to the smallest. Then delta is 0, because a proximal term would
            increase the small singular values of B.
    """
    generator = np.random.default_rng(seed)
    rank = num_classes - 1
    rows = simplex_template(num_classes)
    template = rows / math.sqrt(rank)
    if condition is None:
        means = generator.normal(size=(dim, num_classes))
        means -= means.mean(axis=1, keepdims=True)
    else:
        spectrum = np.geomspace(1, 1 / condition, rank)
        means = haar(generator, dim, rank) * spectrum @ haar(generator, rank, rank).T @ rows
        move *= spectrum[-1] / np.linalg.norm(spectrum)  # keep the step small compared with the smallest singular value
    means /= np.linalg.norm(means)
    step = generator.normal(size=means.shape)
    step -= step.mean(axis=1, keepdims=True)
    step *= move / np.linalg.norm(step)
    cotangent = generator.normal(size=means.shape)
    return Problem(
        means=means.astype(np.float32),
        template=template.astype(np.float32),
        previous=polar((means - step) @ template.T).astype(np.float32),
        random=haar(generator, dim, rank).astype(np.float32),
        cotangent=(cotangent / np.linalg.norm(cotangent)).astype(np.float32),
        prox_weight=PROX_WEIGHT if condition is None else 0.0,
    )


def make_wide_problem(dim: int, num_classes: int, *, seed: int = 0, move: float = MOVE) -> Problem:
    """Draw a problem with more classes than dimensions, for a dense template: random unit vectors.

    A frame of hyperspherical energy has this form, too, and takes minutes to find. The class means are a rotated
    template and as much noise, and neither is centred. Where K is far above d, the noise averages out in H T^T, so the
    condition number is about 1.1 at (128, 100,000).

    Args:
        dim: d, which is also the rank r.
        num_classes: K > d.
        seed: random seed.
        move: relative change of the means since the previous step.
    """
    generator = np.random.default_rng(seed)
    template = generator.normal(size=(dim, num_classes))
    template /= np.linalg.norm(template, axis=0)
    template /= np.linalg.norm(template)
    noise, step, cotangent = (generator.normal(size=template.shape) for _ in range(3))
    means = haar(generator, dim, dim) @ template + noise / np.linalg.norm(noise)
    means /= np.linalg.norm(means)
    step *= move / np.linalg.norm(step)
    return Problem(
        means=means.astype(np.float32),
        template=template.astype(np.float32),
        previous=polar((means - step) @ template.T).astype(np.float32),
        random=haar(generator, dim, dim).astype(np.float32),
        cotangent=(cotangent / np.linalg.norm(cotangent)).astype(np.float32),
        prox_weight=PROX_WEIGHT,
        simplex=False,
    )


def float64(*arrays: np.ndarray) -> list[np.ndarray]:
    """Return arrays in double precision."""
    return [np.asarray(array, np.float64) for array in arrays]


def haar(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draw a matrix with orthonormal columns from the uniform distribution."""
    factor, triangle = np.linalg.qr(generator.normal(size=(rows, columns)))
    return factor * np.sign(np.diag(triangle))


def polar(matrix: np.ndarray) -> np.ndarray:
    """Return the orthogonal polar factor."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def simplex_template(num_classes: int) -> np.ndarray:
    """Return T with orthonormal rows and T^T T = I - 11^T / K, shape (K - 1, K): `nc_jax.frames.simplex_template`."""
    root = math.sqrt(num_classes)
    square = np.eye(num_classes - 1) - 1 / (root * (root + 1))
    return np.concatenate([square, np.full((num_classes - 1, 1), -1 / root)], axis=1)
