"""Oracles for the tests: slow, plain NumPy in float64, written from the mathematics and not from the library."""

import jax.numpy as jnp
import numpy as np

from nc_jax.metrics import ClassStatistics


def polar_by_svd(matrix):
    """Orthogonal polar factor."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def polar_jacobian(matrix, factor=None):
    """Dense Jacobian (n p, n p) of the polar factor, from the Kronecker form of its defining equations.

    Differentiating B = U S, U^T U = I and S = S^T gives linear equations for dU and dS, solved by least squares.
    Matrices are flattened by rows, so A X C becomes kron(A, C^T) vec(X). Where B has several factors, `factor` says
    which one is meant; None is that of the SVD.
    """
    n, p = matrix.shape
    factor = polar_by_svd(matrix) if factor is None else factor
    stretch = factor.T @ matrix
    transposition = np.eye(p * p).reshape(p, p, p, p).transpose(1, 0, 2, 3).reshape(p * p, p * p)
    aligned = np.kron(factor.T, np.eye(p))
    equations = np.block(
        [
            [np.kron(np.eye(n), stretch.T), np.kron(factor, np.eye(p))],
            [aligned + transposition @ aligned, np.zeros((p * p, p * p))],
            [np.zeros((p * p, n * p)), np.eye(p * p) - transposition],
        ]
    )
    right_hand_sides = np.vstack([np.eye(n * p), np.zeros((2 * p * p, n * p))])
    return np.linalg.lstsq(equations, right_hand_sides, rcond=None)[0][: n * p]


def procrustes_matrix(means, template, prox_point, prox_weight):
    """B, whose polar factor minimises ||H - U T||_F^2 + delta/2 ||U - P||_F^2."""
    return 2 * means @ template.T + prox_weight * prox_point


def procrustes_rotation(means, template, prox_point, prox_weight):
    return polar_by_svd(procrustes_matrix(means, template, prox_point, prox_weight))


def huber_rotation(means, template, prox_point, prox_weight):
    """Minimiser of the Huber discrepancy, by iteratively reweighted Procrustes problems (each lowers the cost)."""
    threshold = np.sqrt(np.mean(np.sum(template**2, axis=0))) / 2
    rotation = procrustes_rotation(means, template, prox_point, prox_weight)
    for _ in range(2000):
        distances = np.linalg.norm(means - rotation @ template, axis=0)
        weights = np.minimum(1, threshold / np.maximum(distances, threshold))
        previous, rotation = rotation, procrustes_rotation(means * weights, template, prox_point, prox_weight)
        if np.linalg.norm(rotation - previous) < 1e-15 * np.sqrt(rotation.size):
            break
    return rotation


def objective(rotation, means, template, prox_point, prox_weight):
    return np.sum((means - rotation @ template) ** 2) + prox_weight / 2 * np.sum((rotation - prox_point) ** 2)


def central_difference(function, step):
    """Derivative of t -> function(t) at 0, to fourth order in the step."""
    near, far = (function(step) - function(-step)) / 2, (function(2 * step) - function(-2 * step)) / 4
    return (4 * near - far) / (3 * step)


def gram_of_simplex(num_classes):
    """Cosines of a simplex ETF: 1 on the diagonal, -1 / (K - 1) off it."""
    return np.where(np.eye(num_classes, dtype=bool), 1.0, -1 / (num_classes - 1))


def relative_error(found, expected):
    """Frobenius norm of the difference, relative to the expected array's (absolute where that is zero)."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    size = np.linalg.norm(expected)
    return np.linalg.norm(found - expected) / (size if size > 0 else 1)


class NearestHeadRecipe:
    """The nearest head's recipe, step by step, with a loop over classes instead of masks.

    Markou, Ajanthan and Gould (2024), section 3, with the released settings.
    """

    def __init__(self, template, dim, averaging="ema", tau=5.0, delta=1e-3, min_alpha=1e-4):
        self.template, self.num_classes, self.averaging = template, template.shape[1], averaging
        self.tau, self.delta, self.min_alpha = tau, delta, min_alpha
        num_classes = self.num_classes
        self.class_means = np.zeros((dim, num_classes))
        self.global_mean = np.zeros(dim)
        self.updates = np.zeros(num_classes, int)
        self.counts = np.zeros(num_classes, int)
        self.steps = 0
        self.rotation = None

    def alpha(self, count):
        return max(2 / (count + 1), self.min_alpha) if self.averaging == "ema" else 1 / count

    def step(self, features, labels):
        """One training step: returns the logits and the frame."""
        features = self.tau * features / np.linalg.norm(features, axis=1, keepdims=True)
        batch_mean = features[labels >= 0].mean(axis=0)
        self.steps += 1
        for k in range(self.num_classes):
            members = features[labels == k]
            if len(members):
                self.updates[k] += 1
                self.counts[k] += len(members)
                alpha = self.alpha(self.updates[k])
                newest = members.mean(axis=0) - batch_mean
                self.class_means[:, k] = (1 - alpha) * self.class_means[:, k] + alpha * newest
        alpha = self.alpha(self.steps)
        self.global_mean = (1 - alpha) * self.global_mean + alpha * batch_mean

        means = self.class_means / np.linalg.norm(self.class_means)
        template = self.template / np.sqrt(self.num_classes - 1)
        if self.rotation is None:
            self.rotation = polar_by_svd(means @ template.T)
        self.rotation = procrustes_rotation(means, template, self.rotation, self.delta)
        frame = np.sqrt(self.num_classes / (self.num_classes - 1)) * self.rotation @ self.template
        return features @ frame - frame.T @ self.global_mean, frame


def statistics_of(counts, means, scatter, class_scatter):
    """Class statistics with given numbers, about the origin zero."""
    means = jnp.asarray(means)
    return ClassStatistics(
        counts=jnp.asarray(counts, jnp.int32),
        origin=jnp.zeros(len(means), means.dtype),
        shifts=means,
        unit=jnp.ones((), means.dtype),
        scaled_scatter=jnp.asarray(scatter, means.dtype),
        scaled_class_scatter=jnp.asarray(class_scatter, means.dtype),
        without_class=jnp.zeros((), jnp.int32),
    )
