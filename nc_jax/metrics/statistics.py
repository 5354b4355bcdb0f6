"""Class statistics: the same numbers from one batch, from a stream of batches, or from many devices.

Nearly every collapse metric is a function of four statistics of the examples. So one pass over the data is enough, and
no features are stored. `init` makes the statistics of no examples, `update` adds one batch, `merge` joins two sets of
examples in any order, and `all_reduce` joins the sets of all devices.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from nc_jax.arrays import at_least_float32, matmul, transpose

Centre = Literal["balanced", "sample", "origin"]


class ClassMoments(NamedTuple):
    """Means and covariances of labelled features, from `ClassStatistics.compute`.

    Means are in the unit of the features, covariances in its square.

    Attributes:
        class_means: mean of each class as a column, shape (d, K); zero for a class without examples.
        counts: number of examples of each class, shape (K,).
        present: which classes have at least one example, shape (K,).
        global_mean: mean of all examples, shape (d,); NaN without examples.
        balanced_mean: mean of the class means, over classes with examples, shape (d,); NaN without examples.
        within_covariance: within-class scatter divided by the number of examples, shape (d, d).
        between_covariance: covariance of the class means about the balanced mean, shape (d, d). Every class with
            examples counts once.
    """

    class_means: Float[Array, "dim classes"]
    counts: Int[Array, " classes"]
    present: Bool[Array, " classes"]
    global_mean: Float[Array, " dim"]
    balanced_mean: Float[Array, " dim"]
    within_covariance: Float[Array, "dim dim"]
    between_covariance: Float[Array, "dim dim"]


class ClassStatistics(NamedTuple):
    r"""Counts, class means and within-class scatter of labelled features.

    Class k has :math:`n_k` examples with mean :math:`\mu_k`. Example i has the feature :math:`h_i` and the label
    :math:`y_i`. The scatters are

    .. math:: S = \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top, \qquad s_k = \sum_{i: y_i = k} \|h_i - \mu_k\|^2 .

    The statistics of two sets merge exactly: with :math:`\delta_k = \mu'_k - \mu_k`, class k adds
    :math:`\tfrac{n_k n'_k}{n_k + n'_k} \delta_k \delta_k^\top` to the sum of both scatters. No second moment about zero
    is formed, so features far from the origin cause no cancellation. Counts are int32, exact up to 2^31 - 1 examples; a
    float32 count would be exact only up to 2^24.

    Attributes:
        counts: number of examples of each class, :math:`n_k`, shape (K,).
        means: class means :math:`\mu_k` as columns, shape (d, K); zero for a class without examples.
        scatter: within-class scatter S, shape (d, d).
        class_scatter: sum of squared distances to the class mean, :math:`s_k`, shape (K,).

    Example:
        >>> features, labels = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), jnp.array([0, 0, 1])
        >>> stats = ClassStatistics.init(num_classes=3, dim=2).update(features, labels)
        >>> stats.counts.tolist(), stats.means.tolist()
        ([2, 1, 0], [[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
        >>> stats.class_scatter.tolist()
        [2.0, 0.0, 0.0]

    Reference: Chan, Golub and LeVeque (1979), Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances (for `merge`).
    """

    counts: Int[Array, " classes"]
    means: Float[Array, "dim classes"]
    scatter: Float[Array, "dim dim"]
    class_scatter: Float[Array, " classes"]

    @classmethod
    def init(cls, num_classes: int, dim: int, dtype: DTypeLike = jnp.float32) -> "ClassStatistics":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            num_classes: K >= 1.
            dim: feature dimension d >= 1.
            dtype: dtype of the sums; dtypes narrower than float32 are widened to float32.

        Raises:
            ValueError: if K < 1 or d < 1.
        """
        if num_classes < 1 or dim < 1:
            raise ValueError(
                f"class statistics need num_classes >= 1 and dim >= 1; got num_classes={num_classes}, dim={dim}"
            )
        dtype = jnp.promote_types(dtype, jnp.float32)
        return cls(
            counts=jnp.zeros(num_classes, jnp.int32),
            means=jnp.zeros((dim, num_classes), dtype),
            scatter=jnp.zeros((dim, dim), dtype),
            class_scatter=jnp.zeros(num_classes, dtype),
        )

    @classmethod
    def from_batch(
        cls, features: Float[Array, "batch dim"], labels: Int[Array, " batch"], num_classes: int
    ) -> "ClassStatistics":
        """Take the statistics of one batch.

        Args:
            features: shape (N, d). The statistics have the dtype of the features, or float32 if that is wider.
            labels: shape (N,). An example whose label is not in 0..K-1 (by convention -1) is padding: it is ignored,
                even if its features are NaN.
            num_classes: K >= 1.

        Raises:
            ValueError: if the shapes do not fit, K < 1 or d < 1.
        """
        _check_batch(features, labels)
        features = at_least_float32(features)
        return cls.init(num_classes, features.shape[1], features.dtype).update(features, labels)

    def update(self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"]) -> "ClassStatistics":
        r"""Add one batch, in the dtype of these statistics.

        Let :math:`n_k` and :math:`\mu_k` be the count and mean of class k before this batch, and n its count after the
        batch. With :math:`c = h - \mu_k` for an example h of class k, :math:`\delta = \sum c / n` is the shift of the
        class mean. Then the scatter grows exactly by the sum over the examples of

        .. math:: (c - a \delta)(c - a \delta)^\top, \qquad a = 1 / (1 + \sqrt{n_k / n}) .

        This takes one symmetric product; merging the statistics of the batch would take two.

        Args:
            features: shape (N, d).
            labels: shape (N,). An example whose label is not in 0..K-1 (by convention -1) is padding: it is ignored,
                even if its features are NaN.

        Raises:
            ValueError: if the shapes do not fit.
        """
        _check_batch(features, labels)
        dim, num_classes = self.means.shape
        if features.shape[1] != dim:
            raise ValueError(f"features must have shape (batch, {dim}) like these statistics; got {features.shape}")
        if not features.shape[0]:
            return self
        dtype = self.means.dtype
        used = ((labels >= 0) & (labels < num_classes))[:, None]
        classes = jnp.clip(labels, 0, num_classes - 1)
        features = features.astype(dtype)
        # One-hot products add in a fixed order on every backend, unlike scatter-adds, and cost less than the product S.
        membership = jax.nn.one_hot(labels, num_classes, dtype=dtype)
        added = jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=jnp.int32), axis=0, dtype=jnp.int32)
        counts = self.counts + added
        total = jnp.maximum(counts, 1).astype(dtype)

        # A class without a mean so far is centred on its first example. The summed differences then have the size of
        # the spread of the class, even if the class is far from the origin.
        first = transpose(features[jnp.argmax(membership, axis=0)])
        origin = jnp.where(self.counts > 0, self.means, first)
        # 0 * NaN is NaN, so features of padding must be set to zero before the products.
        centred = jnp.where(used, features - transpose(origin)[classes], 0)
        shift = matmul(transpose(centred), membership) / total
        share = shift / (1 + jnp.sqrt(self.counts / total))
        centred = jnp.where(used, centred - transpose(share)[classes], 0)
        return ClassStatistics(
            counts=counts,
            means=jnp.where(added > 0, origin + shift, self.means),
            scatter=self.scatter + matmul(transpose(centred), centred),
            class_scatter=self.class_scatter + matmul(jnp.sum(centred**2, axis=1), membership),
        )

    def merge(self, other: "ClassStatistics") -> "ClassStatistics":
        """Join the statistics of two disjoint sets of examples; exact up to rounding, in any order.

        Raises:
            ValueError: if the two differ in K or d.
        """
        if self.means.shape != other.means.shape:
            raise ValueError(
                f"statistics to merge must agree in (dim, classes); got {self.means.shape} and {other.means.shape}"
            )
        counts = self.counts + other.counts
        # A product of two int32 counts could overflow; the share of `other` cannot.
        share = other.counts / jnp.maximum(counts, 1).astype(self.means.dtype)
        delta = other.means - self.means
        weights = self.counts * share  # n n' / (n + n'), zero where either side has no example
        return ClassStatistics(
            counts=counts,
            means=self.means + share * delta,
            scatter=self.scatter + other.scatter + matmul(delta * weights, transpose(delta)),
            class_scatter=self.class_scatter + other.class_scatter + weights * jnp.sum(delta**2, axis=0),
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "ClassStatistics":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the statistics of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        counts = jax.lax.psum(self.counts, axis_name)
        means = jax.lax.psum(self.means * (self.counts / jnp.maximum(counts, 1).astype(self.means.dtype)), axis_name)
        # The scatter about any point m is S + n (mu - m)(mu - m)^T, so rounding errors of the new means do no harm.
        delta = self.means - means
        return ClassStatistics(
            counts=counts,
            means=means,
            scatter=jax.lax.psum(self.scatter + matmul(delta * self.counts, transpose(delta)), axis_name),
            class_scatter=jax.lax.psum(self.class_scatter + self.counts * jnp.sum(delta**2, axis=0), axis_name),
        )

    @property
    def present(self) -> Bool[Array, " classes"]:
        """Which classes have at least one example."""
        return self.counts > 0

    def centred_means(self, centre: Centre = "balanced") -> Float[Array, "dim classes"]:
        """Return the class means minus a centre, with zero columns for absent classes.

        Args:
            centre: point that is subtracted. "balanced": the mean of the class means, over classes with examples; the
                vectors of a simplex sum to zero about this point, even if the classes differ in size. "sample": the
                mean of all examples. "origin": nothing is subtracted.

        Returns:
            Shape (d, K).

        Raises:
            ValueError: if the centre is none of these three.
        """
        if centre not in get_args(Centre):
            raise ValueError(f"centre must be one of {', '.join(get_args(Centre))}; got {centre!r}")
        if centre == "origin":
            return self.means
        weights = (self.present if centre == "balanced" else self.counts).astype(self.means.dtype)
        weights = weights / jnp.sum(weights)
        # Centre twice. The rounding error of the first centre is relative to the distance of the features from the
        # origin (25 units in the last place with 1000 classes). The error is common to all classes, so it would look
        # like a direction of the class means.
        rough = jnp.where(self.present, self.means - matmul(self.means, weights)[:, None], 0)
        return jnp.where(self.present, rough - matmul(rough, weights)[:, None], 0)

    def compute(self) -> ClassMoments:
        """Compute means, covariances and the mask of present classes (see `ClassMoments`); NaN without any example."""
        dtype = self.means.dtype
        total, num_present = jnp.sum(self.counts.astype(dtype)), jnp.sum(self.present.astype(dtype))
        centred = self.centred_means("balanced")
        return ClassMoments(
            class_means=self.means,
            counts=self.counts,
            present=self.present,
            global_mean=matmul(self.means, self.counts / total),
            balanced_mean=jnp.sum(self.means, axis=1) / num_present,
            within_covariance=self.scatter / total,
            between_covariance=matmul(centred, transpose(centred)) / num_present,
        )


class Agreement(NamedTuple):
    """How often two rules agreed. Add two with `merge`, read the share with `compute`.

    Attributes:
        agree: number of examples on which the rules agreed.
        count: number of examples.
    """

    agree: Int[Array, ""]
    count: Int[Array, ""]

    def merge(self, other: "Agreement") -> "Agreement":
        """Join two disjoint sets of examples."""
        return Agreement(self.agree + other.agree, self.count + other.count)

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "Agreement":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the counts of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        return Agreement(*jax.lax.psum(tuple(self), axis_name))

    def compute(self) -> Float[Array, ""]:
        """Return the share of examples on which the rules agree, in [0, 1]; NaN without any example."""
        return self.agree / self.count


def _check_batch(features: Array, labels: Array) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features and labels must have shapes (batch, dim) and (batch,); got {features.shape} and {labels.shape}"
        )
