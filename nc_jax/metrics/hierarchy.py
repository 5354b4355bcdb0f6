"""How bad mistakes are, measured by distances between classes, and how close class vectors are to wanted cosines.

Mistake severity (the mean distance of wrong predictions from the truth) misleads on its own: it falls if a classifier
makes many additional mild mistakes. So the statistics also give the accuracy and the average hierarchical distance
(AHD), a mean over all examples, which rises with every mistake.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.arrays import matmul
from nc_jax.checks import (
    Labels,
    Mask,
    Reals,
    check_whole,
    checked_pairs,
    checked_scores,
    is_traced,
    real_array,
    without_class,
)
from nc_jax.frames.properties import cosines
from nc_jax.metrics.simplex import checked_vectors

TOP = (1, 5, 20)  # values of k in "ahd@k" and "hp@k": Bertinetto et al. (2020), Liang and Davis (2023)
RANKED = 20  # predictions that the rank-aware severity looks at: the largest k of those papers


def usual_top(num_classes: int) -> tuple[int, ...]:
    """The values of k in `TOP` below K: the first K predictions of K classes are all classes, whatever their order.

    Raises:
        ValueError: if K is not a whole number of at least 2.

    Example:
        >>> usual_top(10), usual_top(100)
        ((1, 5), (1, 5, 20))
    """
    check_whole("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"a ranking needs num_classes of at least 2; got {num_classes}")
    return tuple(k for k in TOP if k < num_classes)


class HierarchyStatistics(NamedTuple):
    """Sums over ranked predictions. Take them with `from_batch`, add them with `merge`, read them with `compute`.

    Attributes:
        histogram: number of examples whose first prediction has distance 0, 1, ..., d_max from the truth, shape
            (d_max + 1,).
        distance_sums: for each k, the mean distance of the first k predictions from the truth, summed over examples.
        precision_sums: for each k, the hierarchical precision, summed over examples.
        rank_sum: rank-aware severity, summed over examples.
        chance_sum: mean distance from the true class to the other classes, summed over the wrongly predicted examples.

    Example:
        >>> distances = jnp.array([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
        >>> logits, labels = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), jnp.array([0, 1])
        >>> found = HierarchyStatistics.from_batch(logits, labels, distances, top=(1, 2)).compute(top=(1, 2))
        >>> float(found["top1"]), float(found["mistake_severity"]), float(found["ahd@2"])
        (0.5, 1.0, 0.5)
    """

    histogram: Int[Array, " bins"]
    distance_sums: Float[Array, " tops"]
    precision_sums: Float[Array, " tops"]
    rank_sum: Float[Array, ""]
    chance_sum: Float[Array, ""]

    @classmethod
    def init(cls, max_distance: int, top: Sequence[int] = TOP) -> "HierarchyStatistics":
        """Return the statistics of no examples, the identity of `merge`.

        Args:
            max_distance: d_max, the largest distance between two classes.
            top: the values of k, as in `from_batch`.
        """
        zeros = jnp.zeros(len(top))
        return cls(jnp.zeros(max_distance + 1, jnp.int32), zeros, zeros, jnp.zeros(()), jnp.zeros(()))

    @classmethod
    def from_batch(
        cls,
        scores: Reals,
        labels: Labels,
        distances: Reals,
        top: Sequence[int] = TOP,
        max_distance: int | None = None,
    ) -> "HierarchyStatistics":
        """Take the statistics of one batch.

        Args:
            scores: logits, or any other scores that rank the classes, shape (N, K). If two scores are equal, the
                smaller class number comes first.
            labels: shape (N,), integers in 0..K-1; -1 marks padding.
            distances: distances between classes in whole edges, shape (K, K).
            top: the values of k, in 1..K; `usual_top` gives the usual ones.
            max_distance: d_max, the largest of the distances; required under jit. None takes it from `distances`.

        Raises:
            ValueError: if a k is not in 1..K, the scores do not have shape (N, K), the labels are not integers of shape
                (N,) in -1..K-1, or the distances are not whole numbers in 0..d_max of shape (K, K), 0 on the diagonal.
                Under `jax.jit` values are unknown; a label that is no class then makes the sums NaN, as does a NaN
                among the scores of an example.
        """
        scores, labels = checked_scores(scores, labels)
        num_classes = scores.shape[1]
        distances = checked_pairs(distances, "distances", num_classes, whole=True)
        if not is_traced(distances):
            _check_edges(np.asarray(distances), max_distance)
        if not 1 <= min(top) <= max(top) <= num_classes:
            raise ValueError(
                f"top must hold numbers in 1..{num_classes}, the number of classes (usual_top gives the usual ones); "
                f"got {tuple(top)}"
            )
        bins = (int(jnp.max(distances)) if max_distance is None else max_distance) + 1
        used = (labels >= 0) & (labels < num_classes)
        wrong = jnp.any(without_class(labels, num_classes)) | jnp.any(used & jnp.any(jnp.isnan(scores), axis=1))
        own = distances[jnp.clip(labels, 0, num_classes - 1)].astype(jnp.float32)  # (N, K): distances from the truth
        depth = min(max(*top, RANKED), num_classes)
        _, ranked = jax.lax.top_k(scores, depth)
        found = jnp.take_along_axis(own, ranked, axis=1)  # (N, depth), best first
        ordered = jnp.sort(own, axis=1)
        largest = bins - 1

        def total(values: Array) -> Array:
            return jnp.where(wrong, jnp.nan, jnp.sum(jnp.where(used, values, 0)))

        precisions = [jnp.sum(largest - found[:, :k], 1) / jnp.sum(largest - ordered[:, :k], 1) for k in top]
        first = found[:, 0]
        members = jax.nn.one_hot(jnp.where(used, first, -1).astype(jnp.int32), bins, dtype=jnp.int32)
        chance = jnp.sum(own, axis=1) / max(num_classes - 1, 1)
        return cls(
            histogram=jnp.sum(members, axis=0, dtype=jnp.int32),
            distance_sums=jnp.stack([total(jnp.mean(found[:, :k], axis=1)) for k in top]),
            precision_sums=jnp.stack([total(precision) for precision in precisions]),
            rank_sum=total(_rank_severity(found, ordered)),
            chance_sum=total(jnp.where(first > 0, chance, 0)),
        )

    def merge(self, other: "HierarchyStatistics") -> "HierarchyStatistics":
        """Join the statistics of two disjoint sets of examples.

        Raises:
            ValueError: if they differ in the largest distance or the number of values of k.
        """
        sizes = [(len(one.histogram) - 1, len(one.distance_sums)) for one in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"statistics must agree in max_distance and the number of values of k; got {sizes[0]} and {sizes[1]}"
            )
        return HierarchyStatistics(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "HierarchyStatistics":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the sums over all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        return HierarchyStatistics(*jax.lax.psum(tuple(self), axis_name))

    def compute(self, top: Sequence[int] = TOP) -> dict[str, Array]:
        r"""Compute the metrics.

        Let :math:`d_j` be the distance from the truth to the prediction of rank j, and :math:`d_{max}` the largest
        distance between classes.

        Args:
            top: the values of k, the same as in `from_batch`.

        Raises:
            ValueError: if there are more or fewer values of k than in `from_batch`.

        Returns:
            Scalars by name. Distances are in edges of the tree.

            - "top1": accuracy, in [0, 1].
            - "mistake_severity", "mistake_severity_std": mean and standard deviation of :math:`d_1` over the wrongly
              predicted examples. NaN if there are none.
            - "ahd@k": average hierarchical distance, the mean over *all* examples of the mean of
              :math:`d_1, \ldots, d_k`.
            - "hp@k": hierarchical precision, in [0, 1], the mean over all examples of
              :math:`\sum_{j \le k} s_j` divided by the largest such sum that k classes can give, with
              :math:`s_j = 1 - d_j / d_{max}`.
            - "rank_severity": rank-aware severity, :math:`\sum_j d_j / \log_2(j + 1)` up to rank `RANKED` (or K, or a
              larger k), scaled to 0 for the best order of the classes and 1 for the worst; mean over all examples.
              Unlike AHD, it depends on the order of these predictions.
            - "alignment": mistake severity divided by the severity of random mistakes on the same examples. It is below
              1 if the classifier confuses classes that are near, and about 1 if its mistakes are unrelated to the
              distances.

        Reference: Bertinetto et al. (2020), section 4; Deng et al., What does classifying more than 10,000 image
        categories tell us? (2010) for the precision; alignment and the rank-aware severity are derived here.
        """
        if len(top) != len(self.distance_sums):
            raise ValueError(f"top must hold the {len(self.distance_sums)} values of from_batch; got {tuple(top)}")
        # An integer cannot say that a label was no class or a score a NaN; the sums do.
        counts = jnp.where(jnp.isnan(self.rank_sum), jnp.nan, self.histogram.astype(jnp.float32))
        count, mistakes = jnp.sum(counts), jnp.sum(counts[1:])
        edges = jnp.arange(len(counts), dtype=jnp.float32)
        severity = jnp.sum(counts * edges) / mistakes
        variance = jnp.sum(counts[1:] * (edges[1:] - severity) ** 2) / mistakes
        found = {
            "top1": counts[0] / count,
            "mistake_severity": severity,
            "mistake_severity_std": jnp.sqrt(variance),
            "rank_severity": self.rank_sum / count,
            "alignment": severity * mistakes / self.chance_sum,
        }
        for place, k in enumerate(top):
            found[f"ahd@{k}"] = self.distance_sums[place] / count
            found[f"hp@{k}"] = self.precision_sums[place] / count
        return found


def _check_edges(distances: np.ndarray, most: int | None) -> None:
    """Refuse known distances with another number than 0 on the diagonal, or above a given largest one."""
    own = np.flatnonzero(np.diagonal(distances))
    if len(own):
        raise ValueError(f"distances must be 0 from a class to itself; got {distances[own[0], own[0]]} for {own[0]}")
    if most is not None and distances.max() > most:
        raise ValueError(f"distances must be at most max_distance={most}; got {distances.max()}")


def similarity_errors(
    vectors: Reals,
    similarity: Reals,
    present: Mask | None = None,
) -> dict[str, Array]:
    r"""Errors of cosines against wanted cosines S: :math:`\cos(m_i, m_j) - S_{ij}` over the pairs i < j.

    Args:
        vectors: class means (not centred) or class vectors :math:`m_i`, as columns, shape (d, K).
        similarity: wanted cosines S, shape (K, K), such as `nc_jax.hierarchy.similarity` gives.
        present: True for columns that count, shape (K,); None: all columns count.

    Returns:
        "mean": the mean absolute error; "std": the standard deviation of the errors with their signs. Both are
        differences of cosines; 0 means collapse onto the wanted frame. NaN if fewer than two columns count, or one that
        counts is zero.

    Raises:
        ValueError: if `vectors` is not a matrix with at least two columns, `similarity` does not have shape (K, K), or
            `present` is not boolean of shape (K,).

    Reference: Liang and Davis (2023), released program. For its self-duality metric, square `self_duality` with
    form="difference" and centre="origin".
    """
    vectors, present = checked_vectors(vectors, present)
    pairs = jnp.triu(jnp.outer(present, present), 1)
    similarity = real_array(similarity, "similarity")
    if similarity.shape != pairs.shape:
        raise ValueError(f"similarity must have shape {pairs.shape}, a cosine for each pair; got {similarity.shape}")
    # A zero vector has no direction. Its cosines would count as 0.
    defined = jnp.all(jnp.any(vectors != 0, axis=0), where=present)
    gaps = jnp.where(defined, cosines(vectors) - similarity, jnp.nan)
    mean = jnp.mean(gaps, where=pairs)
    return {
        "mean": jnp.mean(jnp.abs(gaps), where=pairs),
        "std": jnp.sqrt(jnp.mean((gaps - mean) ** 2, where=pairs)),
    }


def _rank_severity(found: Array, ordered: Array) -> Array:
    """Discounted distance of each ranking, scaled to 0 for the best and 1 for the worst ranking; shape (N,)."""
    depth = found.shape[1]
    discounts = 1 / jnp.log2(jnp.arange(2, depth + 2, dtype=found.dtype))
    best, worst = ordered[:, :depth], ordered[:, ::-1][:, :depth]
    value, low, high = (matmul(distances, discounts) for distances in (found, best, worst))
    return (value - low) / jnp.where(high > low, high - low, 1)
