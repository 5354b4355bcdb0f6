r"""Neural regression collapse (NRC1 to NRC3): features, weights and targets of a network that predicts several numbers.

Such a network predicts n targets :math:`y = W^\top h + b` from its last features h. At collapse all features lie in a
subspace of n dimensions (NRC1), which the weights span (NRC2), and the weights' Gram matrix is a function of the
covariance of the targets (NRC3).

The statistics are sums, so one pass over the data is enough, and no features are stored:

>>> targets = jax.random.normal(jax.random.key(0), (50, 2)) * jnp.array([3.0, 1.0])
>>> weights = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
>>> stats = RegressionStatistics.from_batch(targets @ weights.T, targets)
>>> found = regression_collapse(stats, weights)
>>> round(float(found["nrc1"]), 6), round(float(found["nrc2"]), 6), float(found["nrc3"]) > 0.1
(0.0, 0.0, True)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, normalized, transpose, unit_scale
from nc_jax.checks import Labels, Reals, checked_features, checked_labels, real_array
from nc_jax.metrics.statistics import ClassStatistics


class RegressionStatistics(NamedTuple):
    r"""What the metrics of regression collapse need of features and targets.

    Take it with `from_batch` or `init` and `update`, add two with `merge`, and over devices with `all_reduce`.

    Attributes:
        features: count, mean and scatter of the features, as statistics of a single class.
        targets: the same of the targets.
        directions: mean of :math:`\hat h \hat h^\top`, shape (d, d), where :math:`\hat h` is a feature scaled to unit
            length. A feature that is zero has no direction and does not count here.
        directed: number of features that have a direction.
    """

    features: ClassStatistics
    targets: ClassStatistics
    directions: Float[Array, "dim dim"]
    directed: Int[Array, ""]

    @classmethod
    def init(cls, dim: int, num_targets: int, dtype: DTypeLike = jnp.float32) -> "RegressionStatistics":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            dim: feature dimension d >= 1.
            num_targets: n >= 1.
            dtype: dtype of the sums; dtypes narrower than float32 are widened to float32.

        Raises:
            ValueError: if d < 1 or n < 1.
        """
        features, targets = (ClassStatistics.init(1, size, dtype) for size in (dim, num_targets))
        return cls(features, targets, jnp.zeros((dim, dim), features.shifts.dtype), jnp.zeros((), jnp.int32))

    @classmethod
    def from_batch(cls, features: Reals, targets: Reals, labels: Labels | None = None) -> "RegressionStatistics":
        """Take the statistics of one batch.

        Args:
            features: h, shape (N, d). The statistics have the dtype of the features, or float32 if that is wider.
            targets: y, shape (N, n).
            labels: integers of shape (N,). Only their sign is used: rows with labels < 0 are padding and are ignored,
                even if they are NaN. None: every row is an example.

        Raises:
            ValueError: if the shapes do not fit.
        """
        features, targets = _checked(features, targets)
        return cls.init(features.shape[1], targets.shape[1], features.dtype).update(features, targets, labels)

    def update(self, features: Reals, targets: Reals, labels: Labels | None = None) -> "RegressionStatistics":
        """Add one batch; see `from_batch`."""
        features, targets = _checked(features, targets)
        if labels is None:
            single = jnp.zeros(len(features), jnp.int32)
        else:
            single = jnp.minimum(checked_labels(labels, rows=len(features)), 0)
        dtype = self.directions.dtype
        units, lengths = normalized(jnp.where(single[:, None] == 0, features, 0).astype(dtype), axis=1)
        added = jnp.sum(lengths != 0, dtype=jnp.int32)  # a NaN counts, and shows
        count = self.directed + added
        share = added.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
        mean = matmul(transpose(units), units) / jnp.maximum(added, 1).astype(dtype)
        return RegressionStatistics(
            self.features.update(features, single),
            self.targets.update(targets, single),
            self.directions + share * (mean - self.directions),
            count,
        )

    def merge(self, other: "RegressionStatistics") -> "RegressionStatistics":
        """Join the statistics of two disjoint sets of examples; exact up to rounding, in any order.

        Raises:
            ValueError: if the two differ in d or n.
        """
        dtype, count = self.directions.dtype, self.directed + other.directed
        share = other.directed.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
        return RegressionStatistics(
            self.features.merge(other.features),
            self.targets.merge(other.targets),
            self.directions + share * (other.directions - self.directions),
            count,
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "RegressionStatistics":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the statistics of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        dtype, count = self.directions.dtype, jax.lax.psum(self.directed, axis_name)
        share = self.directed.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
        return RegressionStatistics(
            self.features.all_reduce(axis_name),
            self.targets.all_reduce(axis_name),
            jax.lax.psum(self.directions * share, axis_name),
            count,
        )


def regression_collapse(stats: RegressionStatistics, weights: Reals, *, rows: bool = False) -> dict[str, Array]:
    r"""Compute the metrics of neural regression collapse.

    .. math::
        \text{NRC1} = \frac1N \sum_i \|\hat h_i - P_H \hat h_i\|^2, \qquad
        \text{NRC2} = \frac1N \sum_i \|\hat h_i - P_W \hat h_i\|^2

    .. math::
        \text{NRC3} = \min_{0 \le \gamma \le \lambda_{\min}} \left\| \frac{W^\top W}{\|W^\top W\|_F} -
        \frac{\Sigma^{1/2} - \gamma^{1/2} I}{\|\Sigma^{1/2} - \gamma^{1/2} I\|_F} \right\|_F^2

    :math:`\hat h_i` is a feature scaled to unit length, *not* centred. :math:`P_H` projects to the n leading principal
    directions of the features (of their covariance, which is centred), and :math:`P_W` to the span of the weights.
    :math:`\Sigma` is the covariance of the targets, and :math:`\lambda_{\min}` its smallest eigenvalue. The authors'
    program seeks :math:`\gamma` among 1000 numbers. Here it is exact: for :math:`s = \gamma^{1/2}` and with X for the
    first of the two matrices, the inner product of both has a single stationary point,

    .. math:: s = \frac{\operatorname{tr} X \, \|\Sigma^{1/2}\|_F^2 - \langle X, \Sigma^{1/2} \rangle
        \operatorname{tr} \Sigma^{1/2}}{\operatorname{tr} X \operatorname{tr} \Sigma^{1/2} -
        n \langle X, \Sigma^{1/2} \rangle}

    so that the best s is this or an end of the interval.

    Papers and programs differ. An earlier version of the authors' program does not scale features to unit length (that
    value has a unit). Rangamani and Unal (2026) call something else NRC1: the share of the variance outside of the n
    leading principal directions.

    Args:
        stats: statistics of features and targets of the training set.
        weights: W, the last layer's weights as columns, shape (d, n), one column for each target. The bias plays no
            part.
        rows: take the weights from the rows, shape (n, d), as in `torch.nn.Linear.weight`.

    Returns:
        Scalars by name.

        - "nrc1", "nrc2": in [0, 1], 0 at collapse; of values below 1e-6, float32 has no digits. For n >= d both
          projections keep everything, and both are 0. NaN without a feature that has a direction; nrc2 also if the
          weights are zero.
        - "nrc3": in [0, 4], 0 at collapse; 0 for a single target, where it says nothing. NaN if the weights are zero or
          the targets do not vary.
        - "gamma": the best :math:`\gamma`, in the unit of :math:`\Sigma`. In the unconstrained feature model it is the
          product of the decays of features and weights.

    Raises:
        ValueError: if the weights do not have shape (d, n), with d and n as in the statistics.

    Reference: Andriopoulos et al., The prevalence of neural collapse in neural multivariate regression (2024), and its
    released program.
    """
    (dim, _), (num_targets, _) = stats.features.shifts.shape, stats.targets.shifts.shape
    weights, wanted = real_array(weights, "weights"), (dim, num_targets)
    if weights.shape != (wanted[::-1] if rows else wanted):
        each, turned = ("row", wanted[::-1]) if rows else ("column", wanted)
        raise ValueError(f"weights must have shape {turned}, one {each} for each target; got {weights.shape}")
    weights = at_least_float32(transpose(weights) if rows else weights)
    scaled = stats.features.at_unit_scale()
    principal = jnp.linalg.eigh(scaled.scatter)[1]  # in ascending order
    outside = principal[:, : max(dim - num_targets, 0)]
    left, singular, _ = jnp.linalg.svd(weights / unit_scale(weights), full_matrices=True)
    spanned = singular > max(weights.shape) * jnp.finfo(weights.dtype).eps * singular[0]
    beyond = jnp.where(jnp.arange(dim) < singular.size, ~jnp.pad(spanned, (0, max(dim - singular.size, 0))), True)
    any_weight = jnp.any(spanned)
    known = stats.directed > 0
    nrc3, gamma = _structure(stats.targets, weights)
    return {
        "nrc1": jnp.where(known, _share(outside, stats.directions), jnp.nan),
        "nrc2": jnp.where(known & any_weight, _share(jnp.where(beyond[None], left, 0), stats.directions), jnp.nan),
        "nrc3": jnp.where(any_weight, nrc3, jnp.nan),
        "gamma": jnp.where(any_weight, gamma, jnp.nan),
    }


def _share(basis: Float[Array, "dim columns"], directions: Float[Array, "dim dim"]) -> Float[Array, ""]:
    """Return the mean squared length of unit features in the span of orthonormal columns; no term cancels another."""
    return jnp.maximum(jnp.sum(basis * matmul(directions, basis)), 0)


def _structure(targets: ClassStatistics, weights: Float[Array, "dim targets"]) -> tuple[Array, Array]:
    """Return NRC3 and the best gamma."""
    scaled = targets.at_unit_scale()
    size = targets.unit / scaled.unit
    values, vectors = jnp.linalg.eigh(scaled.scatter / scaled.counts[0].astype(weights.dtype))
    roots = jnp.sqrt(jnp.maximum(values, 0))
    # In the eigenvectors of the covariance, its root is diagonal; the norms stay.
    turned = matmul(weights / unit_scale(weights), vectors)
    gram = matmul(transpose(turned), turned)
    gram = gram / jnp.linalg.norm(gram)
    trace, inner, total, squares = jnp.trace(gram), jnp.sum(jnp.diag(gram) * roots), jnp.sum(roots), jnp.sum(roots**2)
    stationary = (trace * squares - inner * total) / (trace * total - len(roots) * inner)
    stationary = jnp.where(jnp.isfinite(stationary), jnp.clip(stationary, 0, roots[0]), 0)

    def distance(shift: Array) -> Array:
        wanted = roots - shift
        return jnp.sum((gram - jnp.diag(wanted / jnp.linalg.norm(wanted))) ** 2)

    shifts = jnp.stack([jnp.zeros_like(stationary), stationary, roots[0]])
    distances = jax.vmap(distance)(shifts)  # NaN where the covariance's root less the shift is zero
    best = jnp.argmin(jnp.where(jnp.isnan(distances), jnp.inf, distances))
    return distances[best], jnp.where(jnp.isnan(distances[best]), jnp.nan, (shifts[best] * size) ** 2)


def _checked(features: Reals, targets: Reals) -> tuple[Float[Array, "batch dim"], Float[Array, "batch targets"]]:
    features, targets = checked_features(features), at_least_float32(real_array(targets, "targets"))
    if targets.ndim != 2 or len(targets) != len(features) or not targets.shape[1]:
        raise ValueError(
            f"targets must have shape ({len(features)}, targets), one row for each of the features; got {targets.shape}"
        )
    return features, targets
