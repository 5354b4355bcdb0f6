"""A catalogue of Procrustes problems, used by the tests of solvers, derivatives and frames.

A problem is: minimise ||H - U T||_F^2 + delta/2 ||U - P||_F^2 over U with orthonormal columns. The problems are NumPy
and float64; few shapes, because each one is compiled.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import oracles

from nc_jax.discrepancies import huber, squared_frobenius

# Arguments of `nearest_frame`: the closed form, the trust region on -<U, B>, and the trust region on any cost.
SOLVERS = {
    "polar": {"solver": "polar"},
    "trust region": {"solver": "trust_region"},
    "general cost": {"solver": "trust_region", "cost": squared_frobenius},
}
HUBER = {"solver": "trust_region", "cost": huber}


class Problem(NamedTuple):
    """Means H (d, K), template T (r, K), prox point P (d, r) and its weight delta."""

    name: str
    means: np.ndarray
    template: np.ndarray
    prox_point: np.ndarray
    prox_weight: float = 1e-3

    def __str__(self):
        return self.name

    @property
    def arguments(self):
        """The inputs in which a solution is differentiated."""
        return (self.means, self.template, self.prox_point, np.asarray(self.prox_weight))

    @property
    def matrix(self):
        """B, whose polar factor is the solution."""
        return oracles.procrustes_matrix(*self.arguments)

    @property
    def condition(self):
        """Condition of the derivative: largest singular value of B over the least sum of two (if d > r, of one)."""
        values = np.linalg.svd(self.matrix, compute_uv=False)
        square = self.matrix.shape[0] == self.matrix.shape[1] > 1
        return values[0] / (values[-1] + values[-2] if square else values[-1])


def random_rotation(rng, dim, rank):
    return np.linalg.qr(rng.normal(size=(dim, rank)))[0]


def full_template(num_classes):
    """The paper's template I - 11^T / K, of rank K - 1."""
    return np.eye(num_classes) - 1 / num_classes


def reduced_template(num_classes):
    """Orthonormal rows that sum to zero, (K - 1, K), from an eigendecomposition; the library has a closed form."""
    return np.linalg.eigh(full_template(num_classes))[1][:, 1:].T


# Every shape of the catalogue, as case -> (d, template). Random problems are drawn with these shapes.
KINDS = {
    "random": (12, reduced_template(4)),
    "outlier class": (12, reduced_template(4)),
    "d = K - 1": (3, reduced_template(4)),
    "d = K, reduced": (4, reduced_template(4)),
    "d = K, full": (4, full_template(4)),
    "K = 2": (3, reduced_template(2)),
    "K = 2, d = 1": (1, reduced_template(2)),
}


def random_problem(kind, seed, prox_weight=0.1):
    """Draw a Gaussian problem; the outlier class has ten times the length of the others."""
    dim, template = KINDS[kind]
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(dim, template.shape[1]))
    if kind == "outlier class":
        means[:, -1] *= 10
    return Problem(kind, means, template, random_rotation(rng, dim, len(template)), prox_weight)


def with_singular_values(values, seed=0):
    """Problem of the shape (12, 4) whose B, without the prox term, has the given singular values."""
    rng = np.random.default_rng(seed)
    template = reduced_template(4)
    left, right = random_rotation(rng, 12, 3), random_rotation(rng, 3, 3)
    means = left @ np.diag(values) @ right.T @ template / 2  # T T^T = I
    return Problem("given singular values", means, template, random_rotation(rng, 12, 3), prox_weight=0)


def tall_problem():
    dim, num_classes = 512, 100
    rng = np.random.default_rng(0)
    means = rng.normal(size=(dim, num_classes))
    return Problem("tall", means, reduced_template(num_classes), random_rotation(rng, dim, num_classes - 1))


class Released(NamedTuple):
    """A problem with the right rotation, and the right gradient of <cotangent, rotation> in the means."""

    problem: Problem
    cotangent: np.ndarray
    rotation: np.ndarray
    means_gradient: np.ndarray

    def __str__(self):
        return str(self.problem)


def released_problems():
    """Read tests/golden/nearest_etf.json."""
    file = Path(__file__).parent / "golden" / "nearest_etf.json"
    for case in json.loads(file.read_text())["cases"]:
        dim, num_classes = case["dim"], case["num_classes"]
        arrays = {key: np.array(value) for key, value in case.items() if isinstance(value, list)}
        template = full_template(num_classes) / np.sqrt(num_classes - 1)
        problem = Problem(
            f"released {dim}x{num_classes}", arrays["means"], template, arrays["prox_point"], case["prox_weight"]
        )
        yield Released(problem, arrays["cotangent"], arrays["rotation"], arrays["means_gradient"])


PROCRUSTES_PROBLEMS = [
    *(random_problem(kind, seed=0) for kind in KINDS),
    random_problem("random", seed=1, prox_weight=0)._replace(name="without prox term"),
    with_singular_values([2.0, 0.1, 0.002])._replace(name="ill-conditioned"),
    # Collapsed means form a simplex ETF: all singular values are equal, so autodiff of the SVD would divide by zero.
    with_singular_values([2.0, 2.0, 2.0])._replace(name="collapsed"),
    tall_problem(),
]
RELEASED_PROBLEMS = list(released_problems())
