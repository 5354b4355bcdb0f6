"""Class statistics: the same numbers from one batch, from a stream of batches, or from many devices.

Nearly every collapse metric is a function of four statistics of the examples. So one pass over the data is enough, and
no features are stored. `init` makes the statistics of no examples, `update` adds one batch, `merge` joins two sets of
examples in any order, and `all_reduce` joins the sets of all devices.

One of the four, the scatter, has d x d numbers: 17 GB for the 65,536 features of an intermediate layer. With
`scatter=False` it is left out. Metrics of class means and of variances per class work without it.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from nc_jax.arrays import matmul, transpose, unit_scale
from nc_jax.checks import (
    Labels,
    Reals,
    check_at_least,
    checked_features,
    checked_labels,
    kind_of,
    without_class,
)
from nc_jax.metrics.slots import slots_of, sums_of

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
    is formed. Means are kept relative to an origin o among the features, and scatters in the unit :math:`u^2`, where u
    is a power of two of the size of the largest difference. So neither an offset that all features have in common nor
    their scale costs accuracy: both cancel before anything is squared. Counts are int32, exact up to 2^31 - 1 examples;
    a float32 count would be exact only up to 2^24.

    Read the statistics by the properties `means` (d, K), `global_mean` (d,), `scatter` (d, d), `class_scatter` (K,) and
    `present` (K,).

    Attributes:
        counts: number of examples of each class, :math:`n_k`, shape (K,).
        origin: o, shape (d,); zero without examples.
        shifts: class means relative to the origin as columns, :math:`\mu_k - o`, shape (d, K); zero for a class without
            examples.
        unit: u, a power of two.
        scaled_scatter: :math:`S / u^2`, shape (d, d); None in statistics without it.
        scaled_class_scatter: :math:`s_k / u^2`, shape (K,).
        without_class: number of examples that were left out because their label is neither a class nor
            `nc_jax.checks.PADDING_LABEL`. Outside `jax.jit`, such a label is an error.

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
    origin: Float[Array, " dim"]
    shifts: Float[Array, "dim classes"]
    unit: Float[Array, ""]
    scaled_scatter: Float[Array, "dim dim"] | None
    scaled_class_scatter: Float[Array, " classes"]
    without_class: Int[Array, ""]

    @classmethod
    def init(
        cls, num_classes: int, dim: int, dtype: DTypeLike = jnp.float32, *, scatter: bool = True
    ) -> "ClassStatistics":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            num_classes: K >= 1.
            dim: feature dimension d >= 1.
            dtype: dtype of the sums; dtypes narrower than float32 are widened to float32.
            scatter: keep the scatter S, shape (d, d). Without it, memory grows with d K and not with d^2.

        Raises:
            ValueError: if K or d is not a whole number of at least 1.
        """
        check_at_least("num_classes", num_classes)
        check_at_least("dim", dim)
        dtype = jnp.promote_types(dtype, jnp.float32)
        return cls(
            counts=jnp.zeros(num_classes, jnp.int32),
            origin=jnp.zeros(dim, dtype),
            shifts=jnp.zeros((dim, num_classes), dtype),
            unit=unit_scale(jnp.zeros((), dtype)),
            scaled_scatter=jnp.zeros((dim, dim), dtype) if scatter else None,
            scaled_class_scatter=jnp.zeros(num_classes, dtype),
            without_class=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def from_batch(
        cls, features: Reals, labels: Labels, num_classes: int, *, scatter: bool = True
    ) -> "ClassStatistics":
        """Take the statistics of one batch.

        Args:
            features: shape (N, d). The statistics have the dtype of the features, or float32 if that is wider.
            labels: classes 0..K-1 as integers, shape (N,). A label of -1 marks padding: the example is ignored, even if
                its features are NaN. Under `jax.jit`, where other labels cannot be refused, they are counted in
                `without_class`.
            num_classes: K >= 1.
            scatter: keep the scatter S, shape (d, d); see `init`.

        Raises:
            ValueError: if the features are not real numbers of shape (N, d), the labels are not integers of shape (N,)
                in -1..K-1, or K is not a whole number of at least 1.
        """
        features = checked_features(features)
        return cls.init(num_classes, features.shape[1], features.dtype, scatter=scatter).update(features, labels)

    def update(self, features: Reals, labels: Labels) -> "ClassStatistics":
        r"""Add one batch, in the dtype of these statistics.

        Let :math:`n_k` and :math:`\mu_k` be the count and mean of class k before this batch, and n its count after the
        batch. With :math:`c = h - \mu_k` for an example h of class k, :math:`\delta = \sum c / n` is the shift of the
        class mean. Then the scatter grows exactly by the sum over the examples of

        .. math:: (c - a \delta)(c - a \delta)^\top, \qquad a = 1 / (1 + \sqrt{n_k / n}) .

        This takes one symmetric product; merging the statistics of the batch would take two.

        Args:
            features: shape (N, d).
            labels: classes 0..K-1 as integers, shape (N,), -1 for padding; see `from_batch`.

        Raises:
            ValueError: if the features are not real numbers of shape (N, d), or the labels are not integers of shape
                (N,) in -1..K-1.
        """
        features = checked_features(features)
        dim, num_classes = self.shifts.shape
        if features.shape[1] != dim:
            raise ValueError(f"features must have shape (batch, {dim}) like these statistics; got {features.shape}")
        labels = checked_labels(labels, num_classes, rows=len(features))
        if not len(features):
            return self
        dtype = self.shifts.dtype
        member = (labels >= 0) & (labels < num_classes)
        used, classes = member[:, None], jnp.clip(labels, 0, num_classes - 1)
        features = features.astype(dtype)
        # The first example is an exact origin: the differences of nearby numbers have no rounding error. Features of
        # padding must be zero before the products, because 0 * NaN is NaN.
        origin = jnp.where(jnp.any(self.present), self.origin, jnp.where(used, features, 0)[jnp.argmax(member)])
        features = jnp.where(used, features - origin[None], 0)
        unit = jnp.maximum(self.unit, unit_scale(features).reshape(()))
        features = features / unit
        slots = slots_of(classes, member, num_classes)
        number, own = len(slots.owners), jnp.minimum(slots.of_examples, len(slots.owners) - 1)
        owners, every = jnp.minimum(slots.owners, num_classes - 1), number == num_classes
        counts = self.counts + slots.added
        total = jnp.maximum(counts, 1).astype(dtype)
        # A class without a mean so far is centred on its first example. The summed differences then have the size of
        # the spread of the class, even if the class is far from the origin. The barrier keeps rows together in memory,
        # where XLA would fuse the transposition with the reading of single rows.
        known = jax.lax.optimization_barrier(transpose(self.shifts if every else jnp.take(self.shifts, owners, axis=1)))
        centre = jnp.where(self.present[owners][:, None], known / unit, features[slots.starts])
        centred = jnp.where(used, features - centre[own], 0)
        moved = sums_of(centred, slots.of_examples, number) / total[owners][:, None]
        share = moved / (1 + jnp.sqrt(self.counts.astype(dtype) / total))[owners][:, None]
        centred = jnp.where(used, centred - share[own], 0)
        means = transpose((centre + moved) * unit)
        if every:
            shifts = jnp.where((slots.added > 0)[None], means, self.shifts)
        else:
            shifts = self.shifts.at[:, slots.owners].set(means, mode="drop")
        old, scatter = (self.unit / unit) ** 2, self.scaled_scatter
        places = jnp.where(member, classes, num_classes)
        squares = sums_of(jnp.sum(centred**2, axis=1, keepdims=True), places, num_classes)[:, 0]
        return ClassStatistics(
            counts=counts,
            origin=origin,
            shifts=shifts,
            unit=unit,
            scaled_scatter=None if scatter is None else old * scatter + matmul(transpose(centred), centred),
            scaled_class_scatter=old * self.scaled_class_scatter + squares,
            without_class=self.without_class + jnp.sum(without_class(labels, num_classes), dtype=jnp.int32),
        )

    def merge(self, other: "ClassStatistics") -> "ClassStatistics":
        """Join the statistics of two disjoint sets of examples; exact up to rounding, in any order.

        Raises:
            ValueError: if the two differ in K or d, or only one has a scatter.
        """
        if self.shifts.shape != other.shifts.shape:
            raise ValueError(
                f"statistics to merge must agree in (dim, classes); got {self.shifts.shape} and {other.shifts.shape}"
            )
        if (self.scaled_scatter is None) != (other.scaled_scatter is None):
            raise ValueError("statistics to merge must both have a scatter, or both not; got one with and one without")
        dtype = self.shifts.dtype
        total, added = (jnp.sum(part.counts.astype(dtype)) for part in (self, other))
        origin = self.origin + added / jnp.maximum(total + added, 1) * (other.origin - self.origin)
        left, right = self.means_about(origin), other.means_about(origin)
        counts = self.counts + other.counts
        # A product of two int32 counts could overflow; the share of `other` cannot.
        share = other.counts.astype(dtype) / jnp.maximum(counts, 1).astype(dtype)
        delta = jnp.where((self.present & other.present)[None], right - left, 0)
        unit = jnp.maximum(jnp.maximum(self.unit, other.unit), unit_scale(delta).reshape(()))
        scaled = delta / unit
        weights = self.counts.astype(dtype) * share  # n n' / (n + n'), zero where either side has no example
        ours, theirs = (self.unit / unit) ** 2, (other.unit / unit) ** 2
        scatter = None
        if self.scaled_scatter is not None and other.scaled_scatter is not None:
            between = matmul(scaled * weights[None], transpose(scaled))
            scatter = ours * self.scaled_scatter + theirs * other.scaled_scatter + between
        return ClassStatistics(
            counts=counts,
            origin=origin,
            shifts=jnp.where(self.present[None], left + share[None] * delta, right),
            unit=unit,
            scaled_scatter=scatter,
            scaled_class_scatter=ours * self.scaled_class_scatter
            + theirs * other.scaled_class_scatter
            + weights * jnp.sum(scaled**2, axis=0),
            without_class=self.without_class + other.without_class,
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "ClassStatistics":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the statistics of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        dtype, psum = self.shifts.dtype, jax.lax.psum
        counts, lacking = psum((self.counts, self.without_class), axis_name)
        number = jnp.sum(self.counts.astype(dtype))
        origin = psum(self.origin * (number / jnp.maximum(psum(number, axis_name), 1)), axis_name)
        shifts = self.means_about(origin)
        share = self.counts.astype(dtype) / jnp.maximum(counts, 1).astype(dtype)
        together = psum(shifts * share[None], axis_name)
        # The scatter about any point m is S + n (mu - m)(mu - m)^T, so rounding errors of the new means do no harm.
        delta = jnp.where(self.present[None], shifts - together, 0)
        unit = jax.lax.pmax(jnp.maximum(self.unit, unit_scale(delta).reshape(())), axis_name)
        scaled, old = delta / unit, (self.unit / unit) ** 2
        number_of, scatter = self.counts.astype(dtype), self.scaled_scatter
        if scatter is not None:
            scatter = psum(old * scatter + matmul(scaled * number_of[None], transpose(scaled)), axis_name)
        return ClassStatistics(
            counts=counts,
            origin=origin,
            shifts=together,
            unit=unit,
            scaled_scatter=scatter,
            scaled_class_scatter=psum(
                old * self.scaled_class_scatter + number_of * jnp.sum(scaled**2, axis=0), axis_name
            ),
            without_class=lacking,
        )

    def means_about(self, origin: Float[Array, " dim"]) -> Float[Array, "dim classes"]:
        """Return the class means relative to another origin, with zero columns for absent classes.

        Differences of nearby numbers are exact, so this is more accurate than `means` minus the origin.

        Args:
            origin: shape (d,).
        """
        return jnp.where(self.present[None], self.shifts + (self.origin - origin)[:, None], 0)

    def at_unit_scale(self) -> "ClassStatistics":
        """Return the statistics of the features divided by a power of two, such that no square over- or underflows.

        Metrics that do not depend on the scale of the features are computed from these.
        """
        size = jnp.maximum(self.unit, unit_scale(self.shifts).reshape(()))
        return self._replace(origin=self.origin / size, shifts=self.shifts / size, unit=self.unit / size)

    @property
    def means(self) -> Float[Array, "dim classes"]:
        """Class means as columns, shape (d, K); zero for a class without examples."""
        return self.means_about(jnp.zeros_like(self.origin))

    @property
    def global_mean(self) -> Float[Array, " dim"]:
        """Mean of all examples, shape (d,); NaN without examples."""
        counts = self.counts.astype(self.shifts.dtype)
        return self.origin + matmul(self.shifts, counts / jnp.sum(counts))

    @property
    def scatter(self) -> Float[Array, "dim dim"]:
        """Within-class scatter S, shape (d, d); infinite where its dtype cannot hold a number as large.

        Raises:
            ValueError: if it was left out (`scatter=False`).
        """
        if self.scaled_scatter is None:
            raise ValueError("this needs class statistics with a scatter; got some made with scatter=False")
        return self.scaled_scatter * self.unit * self.unit

    @property
    def class_scatter(self) -> Float[Array, " classes"]:
        """Sum of squared distances to the class mean, shape (K,)."""
        return self.scaled_class_scatter * self.unit * self.unit

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
        weights = (self.present if centre == "balanced" else self.counts).astype(self.shifts.dtype)
        weights = weights / jnp.sum(weights)
        # Centre twice. The rounding error of the first centre is relative to the distance of the means from the origin
        # (25 units in the last place with 1000 classes). The error is common to all classes, so it would look like a
        # direction of the class means.
        rough = jnp.where(self.present[None], self.shifts - matmul(self.shifts, weights)[:, None], 0)
        return jnp.where(self.present[None], rough - matmul(rough, weights)[:, None], 0)

    def compute(self) -> ClassMoments:
        """Compute means, covariances and the mask of present classes (see `ClassMoments`); NaN without any example.

        Raises:
            ValueError: if these statistics have no scatter.
        """
        dtype = self.shifts.dtype
        total, num_present = (jnp.sum(number.astype(dtype)) for number in (self.counts, self.present))
        centred = self.centred_means("balanced")
        return ClassMoments(
            class_means=self.means,
            counts=self.counts,
            present=self.present,
            global_mean=self.global_mean,
            balanced_mean=self.origin + jnp.sum(self.shifts, axis=1) / num_present,
            within_covariance=self.scatter / total,
            between_covariance=matmul(centred, transpose(centred)) / num_present,
        )


def check_statistics(stats: ClassStatistics) -> None:
    """Raise a ValueError unless these are class statistics, and not the features that they are made from."""
    if not isinstance(stats, ClassStatistics):
        raise ValueError(
            "stats must be class statistics, which ClassStatistics.from_batch(features, labels, num_classes) makes; "
            f"got {kind_of(stats)}"
        )
