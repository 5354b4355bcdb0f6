"""Zero-mean collapse: the properties of neural collapse about the origin, for a frame of orthogonal class vectors.

Non-negative features have a common part that no class vector can cancel. So with orthogonal class vectors, collapse is
measured about the origin, and not about the mean: class means of the same length, at right angles, along the class
vectors. Orthogonal vectors minus their mean are a simplex. So at zero-mean collapse, the usual metrics of the features
(NC1, NC2) are zero as well, and only those of the classifier (NC3) tell the two apart.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.arrays import at_least_float32, matmul, normalized, safe_norm, transpose
from nc_jax.checks import Labels, Mask, Reals, check_features_fit, checked_features, checked_labels, real_array
from nc_jax.frames.orthogonal import owner
from nc_jax.metrics.agreement import Agreement, right_answers
from nc_jax.metrics.collapse import within_class_collapse
from nc_jax.metrics.duality import self_duality
from nc_jax.metrics.nearest_mean import nearest_mean_scores
from nc_jax.metrics.simplex import checked_frame, equiangle, equinorm, maximal_angle
from nc_jax.metrics.statistics import ClassStatistics


def zero_mean_collapse(stats: ClassStatistics, frame: Reals) -> dict[str, Float[Array, ""]]:
    r"""Compute the metrics of zero-mean collapse that need only one pass over the data.

    All are about the origin: :math:`\mu_k` is the mean of class k itself, not minus a centre, and :math:`w_k` its class
    vector.

    Args:
        stats: statistics of the features.
        frame: class vectors of the classifier as columns, shape (d, K).

    Returns:
        Scalars by name, each 0 at collapse to an orthogonal frame. Class means are those of the classes with examples.

        - "zero_mean_equinorm_means", "zero_mean_equinorm_classifier": `equinorm`, the relative spread of the lengths.
        - "zero_mean_equiangle_means", "zero_mean_equiangle_classifier": `equiangle`, the spread of the cosines.
        - "zero_mean_angle_means", "zero_mean_angle_classifier": `maximal_angle`, the mean absolute cosine.
        - "zero_mean_convergence": `self_duality`, form "difference", the distance of means from frame up to scale.
        - "zero_mean_variation": `within_class_collapse`, variant "pinv".
        - "zero_mean_mismatch": share of classes whose mean is not strictly nearest, in angle, to its own class vector.

        NaN where these functions give NaN. Angles and mismatch are NaN if the mean of a class with examples, or a class
        vector, is zero; all metrics of the means are NaN if fewer than two classes have examples. More class vectors
        than dimensions cannot be orthogonal, so the angles then stay above 0.

    Raises:
        ValueError: if the frame does not have shape (d, K) like the class means, or K < 2.

    Example:
        >>> stats = ClassStatistics.from_batch(3 * jnp.eye(2), jnp.arange(2), num_classes=2)
        >>> max(float(value) for value in zero_mean_collapse(stats, jnp.eye(2)).values()) < 1e-6
        True

    Reference: Kim and Kim, Fixed non-negative orthogonal classifier (FNO, 2024). Their released program divides by the
    number of norms or pairs minus one (`ddof=1`), averages the cosines with their signs, and squares the convergence.
    """
    frame = checked_frame(frame, stats)
    means = stats.centred_means("origin")
    two = jnp.sum(stats.present) >= 2
    of_means = {
        "zero_mean_equinorm_means": equinorm(means, stats.present),
        "zero_mean_equiangle_means": equiangle(means, stats.present),
        "zero_mean_angle_means": maximal_angle(means, stats.present, target=0.0),
        "zero_mean_convergence": self_duality(frame, stats, "difference", "origin"),
        "zero_mean_variation": within_class_collapse(stats, "pinv", "origin"),
        "zero_mean_mismatch": _mismatch(means, stats.present, frame),
    }
    return {name: jnp.where(two, value, jnp.nan) for name, value in of_means.items()} | {
        "zero_mean_equinorm_classifier": equinorm(frame),
        "zero_mean_equiangle_classifier": equiangle(frame),
        "zero_mean_angle_classifier": maximal_angle(frame, target=0.0),
    }


def nearest_centre_accuracy(
    features: Reals,
    labels: Labels,
    class_means: Reals,
    present: Mask | None = None,
) -> Agreement:
    r"""On how many examples the nearest class mean is that of the true class.

    An example h of class y is right if :math:`\operatorname*{argmin}_k \|h - \mu_k\| = y`.

    Distances between points do not depend on a centre, so this is a property of zero-mean collapse and of the usual
    one alike. `nearest_centre_agreement` asks instead whether the classifier decides for the same class.

    Args:
        features: h, shape (N, d).
        labels: y, classes 0..K-1 as integers, shape (N,); -1 marks padding, which is not counted.
        class_means: class means :math:`\mu_k` as columns, not centred, shape (d, K); usually from a first pass over the
            training set.
        present: True for the classes to choose from, shape (K,); None: all classes.

    Returns:
        Counts of right answers and of examples, int32. 1 minus their quotient, `compute()`, is the disagreement, 0 at
        collapse. At a tie the smaller class number wins. An example whose distances are not finite is wrong.

    Raises:
        ValueError: if the shapes do not fit, K < 2, or the labels are not integers of shape (N,) in -1..K-1.

    Example:
        >>> nearest_centre_accuracy(jnp.eye(2), jnp.array([0, 0]), jnp.eye(2)).compute().item()
        0.5

    Reference: Kim and Kim (2024), released program (ncc).
    """
    scores = nearest_mean_scores(features, class_means, present)
    labels = checked_labels(labels, scores.shape[1], rows=len(scores))
    used = labels >= 0
    return Agreement(jnp.sum(used & right_answers(scores, labels), dtype=jnp.int32), jnp.sum(used, dtype=jnp.int32))


def support_occupancy(features: Reals, labels: Labels, frame: Reals) -> Float[Array, "classes classes"]:
    r"""Share of the squared length of features that lies on the features of each class.

    Class k owns the features :math:`J_k`, on which only its vector is not zero. Entry (c, k) is the mean over the
    examples of class c of

    .. math:: \sum_{j \in J_k} h_j^2 / \|h\|^2 .

    The diagonal is the share on the own class's features: 1 at zero-mean collapse to the frame. Features of equal
    length give :math:`|J_k| / d` everywhere.

    Args:
        features: h, shape (N, d).
        labels: classes 0..K-1 as integers, shape (N,), -1 for padding.
        frame: class vectors as columns that share no feature, as from `nc_jax.frames.nonnegative_orthogonal`, shape
            (d, K).

    Returns:
        Shape (K, K), rows are true classes. Each row sums to 1, if every feature has an owner. NaN in the row of a
        class without examples, and of a class with an example whose features are all zero.

    Raises:
        ValueError: if the shapes do not fit, the labels are not integers of shape (N,) in -1..K-1, or two class vectors
            share a feature.

    Example:
        The class means of statistics, in place of features:

        >>> stats = ClassStatistics.from_batch(jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 3.0]]), jnp.array([0, 1]), 2)
        >>> classes = jnp.where(stats.present, jnp.arange(2), -1)
        >>> [round(float(share), 3) for share in jnp.diagonal(support_occupancy(stats.means.T, classes, jnp.eye(3, 2)))]
        [1.0, 0.5]

    Reference: derived from the feature dimension separation of Kim and Kim (2024).
    """
    features, frame = checked_features(features), at_least_float32(real_array(frame, "frame"))
    owners = owner(frame)
    check_features_fit(features, frame)
    num_classes = frame.shape[1]
    labels = checked_labels(labels, num_classes, rows=len(features))
    units, norms = normalized(features, axis=1)
    members = jax.nn.one_hot(owners, num_classes, dtype=features.dtype)  # nothing for -1
    shares = jnp.where(norms > 0, matmul(units**2, members), jnp.nan)
    rows = jnp.where(labels >= 0, labels, num_classes)  # padding: out of range, so `add` drops it
    sums = jnp.zeros((num_classes, num_classes), shares.dtype).at[rows].add(shares, mode="drop")
    return sums / jnp.bincount(rows, length=num_classes)[:, None].astype(shares.dtype)


def _mismatch(means: Array, present: Array, frame: Array) -> Array:
    """Share of present classes whose mean has no larger cosine with its own class vector than with all others."""
    vectors = at_least_float32(frame)
    cosines = matmul(transpose(means / safe_norm(means, axis=0)), vectors / safe_norm(vectors, axis=0))
    own = jnp.diagonal(cosines)
    others = jnp.max(jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, cosines), axis=1)
    wrong = jnp.where(jnp.isnan(own + others), jnp.nan, (own <= others).astype(own.dtype))
    return jnp.mean(wrong, where=present)
