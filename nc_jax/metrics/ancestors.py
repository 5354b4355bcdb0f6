"""Hierarchical precision, recall and F1: predictions and truths as sets of a class and its ancestors in a tree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.checks import PADDING_LABEL, Labels, as_array, checked_labels, checked_pairs, is_traced, without_class
from nc_jax.hierarchy import LabelTree


def ancestor_overlaps(tree: LabelTree) -> Int[np.ndarray, "classes classes"]:
    """Count the nodes that two classes have in common on their ways to the root, which does not count.

    Args:
        tree: a label tree, with its classes in the order of the labels.

    Returns:
        Shape (K, K). Entry (i, j) is the depth of the lowest common ancestor; the diagonal has the depths of the
        classes, which are nodes of their own ways.

    Example:
        >>> tree = LabelTree.from_edges([("any", "pet"), ("any", "car"), ("pet", "cat"), ("pet", "dog")])
        >>> ancestor_overlaps(tree).tolist()  # car, cat, dog
        [[1, 0, 0], [0, 2, 1], [0, 1, 2]]
    """
    members = tree.membership[1:]  # the root is a node of every way
    return np.rint(members.T @ members).astype(np.int32)


class AncestorCounts(NamedTuple):
    r"""Sums of set sizes over examples. Take them with `from_batch`, add them with `merge`, read them with `compute`.

    With the set A of an example's predicted class and its ancestors, and the set B of the true class and its ancestors,
    both without the root:

    Attributes:
        shared: sum of :math:`|A \cap B|`.
        predicted: sum of :math:`|A|`.
        true: sum of :math:`|B|`.
        without_class: number of examples whose label or prediction is no class. Outside `jax.jit`, that is an error.

    Example:
        >>> overlaps = jnp.array([[1, 0, 0], [0, 2, 1], [0, 1, 2]])  # car, cat, dog
        >>> counts = AncestorCounts.from_batch(jnp.array([1, 0, 2]), jnp.array([2, 1, 2]), overlaps)
        >>> {name: round(float(value), 4) for name, value in counts.compute().items()}
        {'h_precision': 0.6, 'h_recall': 0.5, 'h_f1': 0.5455}
    """

    shared: Int[Array, ""]
    predicted: Int[Array, ""]
    true: Int[Array, ""]
    without_class: Int[Array, ""]

    @classmethod
    def init(cls) -> "AncestorCounts":
        """Return the counts of no examples, the identity of `merge`."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in range(4)))

    @classmethod
    def from_batch(
        cls, predictions: Labels, labels: Labels, overlaps: Int[Array | np.ndarray, "classes classes"]
    ) -> "AncestorCounts":
        """Count one batch.

        Args:
            predictions: predicted classes 0..K-1 as integers, shape (N,), such as `argmax(logits, axis=1)`.
            labels: true classes 0..K-1 as integers, shape (N,); -1 marks padding, whose prediction is ignored.
            overlaps: from `ancestor_overlaps`, shape (K, K).

        Raises:
            ValueError: if predictions and labels are not integers of one shape (N,), one is no class, or the overlaps
                are not whole numbers of at least 0, shape (K, K).
        """
        overlaps = checked_pairs(overlaps, "overlaps", whole=True)
        num_classes = len(overlaps)
        labels, predictions = checked_labels(labels, num_classes), as_array(predictions, "predictions")
        if predictions.shape != labels.shape or not jnp.issubdtype(predictions.dtype, jnp.integer):
            raise ValueError(
                f"predictions must be integers of shape {labels.shape}, one for each label; got {predictions.dtype} of "
                f"shape {predictions.shape}"
            )
        predictions, used = jnp.asarray(predictions), labels != PADDING_LABEL
        wrong_predictions = without_class(predictions, num_classes, used)
        if not is_traced(wrong_predictions) and wrong_predictions.any():
            first = int(jnp.argmax(wrong_predictions))
            raise ValueError(f"predictions must lie in 0..{num_classes - 1}; got {predictions[first]} at index {first}")
        wrong = without_class(labels, num_classes) | wrong_predictions
        counted = used & ~wrong
        first, second = (jnp.clip(classes, 0, num_classes - 1) for classes in (predictions, labels))
        parts = (overlaps[first, second], overlaps[first, first], overlaps[second, second])
        shared, predicted, true = (jnp.sum(jnp.where(counted, part, 0), dtype=jnp.int32) for part in parts)
        return cls(shared, predicted, true, jnp.sum(wrong, dtype=jnp.int32))

    def merge(self, other: "AncestorCounts") -> "AncestorCounts":
        """Join the counts of two disjoint sets of examples."""
        return AncestorCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> "AncestorCounts":
        """Merge over a mapped axis (pmap, shard_map, vmap): every device gets the counts of all devices' examples.

        Args:
            axis_name: the axis over which the examples are split.
        """
        return AncestorCounts(*jax.lax.psum(tuple(self), axis_name))

    def compute(self) -> dict[str, Float[Array, ""]]:
        r"""Compute the metrics.

        .. math:: hP = \frac{\sum_i |A_i \cap B_i|}{\sum_i |A_i|}, \qquad
            hR = \frac{\sum_i |A_i \cap B_i|}{\sum_i |B_i|}, \qquad hF_1 = \frac{2 \, hP \, hR}{hP + hR}

        Papers and programs differ. Sums over examples are divided, as in the reference; the "macro" average of the
        package hiclass divides for each example and averages then. The root is in no set: where it is counted, all
        values are larger. If all classes have the same depth, the three numbers are equal, and `HierarchyStatistics`
        has the same information as the average hierarchical distance at rank 1: hP = 1 - AHD@1 / H for the distance
        "depth" and a tree of height H.

        Returns:
            "h_precision", "h_recall" and "h_f1", each in [0, 1]; 1 if all predictions are right. Not to be confused
            with "hp@k" of `HierarchyStatistics`, which compares several predictions with the best possible ones. NaN
            without any example, and if the label or the prediction of an example was no class.

        Reference: Kiritchenko, Matwin, Nock and Famili, Learning and evaluation in the presence of class hierarchies
        (2006); Silla and Freitas, A survey of hierarchical classification across different application domains (2011).
        """
        shared, predicted, true = (
            jnp.where(self.without_class > 0, jnp.nan, count.astype(jnp.float32)) for count in self[:3]
        )
        return {
            "h_precision": shared / predicted,
            "h_recall": shared / true,
            "h_f1": 2 * shared / (predicted + true),  # the harmonic mean of both, also where both are 0
        }
