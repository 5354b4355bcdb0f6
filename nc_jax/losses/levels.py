"""Losses of networks with a classifier for every level of a label tree: Flamingo and HAFeature.

Levels are numbered l = 1..L, coarsest first, and level l has K_l nodes. The nodes of the last level are the K classes
(`LabelTree.levels()`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm
from nc_jax.checks import Labels, Reals, checked_scores, is_traced, nan_without_class
from nc_jax.losses.alignment import cross_entropy

_FLOOR = 1e-7  # smallest probability in the middle distribution: Garg et al. (2022), released program


def feature_slices(dim: int, num_levels: int, spread: bool = False) -> list[tuple[int, int]]:
    """Cut the d entries of a feature vector into one part per level.

    Args:
        dim: feature dimension d >= L.
        num_levels: number of levels L.
        spread: what happens to the entries that remain if L does not divide d. True: the last levels get one more each
            (the released program does so for WideResNets). False: the last level gets all of them (the released program
            does so for ResNet-50).

    Returns:
        For each level, coarsest first, the start and the end of its part; the end is not included.

    Raises:
        ValueError: if d < L.

    Reference: Chang et al., Your "Flamingo" is my "bird" (2021), section 3.
    """
    if not 1 <= num_levels <= dim:
        raise ValueError(f"every level needs a dimension; got dim={dim} for {num_levels} levels")
    size, rest = divmod(dim, num_levels)
    sizes = [size] * num_levels
    for extra in range(rest):
        sizes[-1 - extra if spread else -1] += 1
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def level_cross_entropies(
    logits: Sequence[Reals], labels: Labels, levels: Int[Array, "levels classes"]
) -> Float[Array, " batch"]:
    """Loss of Flamingo: the sum of the cross-entropies of all levels, per example.

    Args:
        logits: one array (N, K_l) per level, coarsest first.
        labels: integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller must
            mask.
        levels: node of every class at every level, shape (L, K), from `LabelTree.levels()`.

    Returns:
        Numbers >= 0, shape (N,), in nats. NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if there is not one array of logits per level, or the labels are not integers of shape (N,) in
            -1..K-1.

    Reference: Chang et al. (2021), section 3.
    """
    labels, num_classes = _checked_labels_of(logits, labels, levels), levels.shape[1]
    own = jnp.clip(labels, 0, num_classes - 1)
    losses = [cross_entropy(z, level[own]) for z, level in zip(logits, levels, strict=True)]
    return nan_without_class(jnp.sum(jnp.stack(losses), axis=0), labels, num_classes)


def jensen_shannon(left: Float[Array, "batch nodes"], right: Float[Array, "batch nodes"]) -> Float[Array, " batch"]:
    r"""Jensen-Shannon divergence of distributions p and q: :math:`\tfrac12 (KL(p \| m) + KL(q \| m))`, m = (p + q) / 2.

    Args:
        left: distributions p as rows, shape (N, K_l).
        right: distributions q as rows, shape (N, K_l).

    Returns:
        Numbers in [0, ln 2], shape (N,), in nats.

    Raises:
        ValueError: if the shapes are not equal.
    """
    if jnp.ndim(left) != 2 or jnp.shape(left) != jnp.shape(right):
        raise ValueError(
            f"distributions must have the same shape (batch, nodes); got {jnp.shape(left)} and {jnp.shape(right)}"
        )
    middle = jnp.clip((left + right) / 2, _FLOOR, 1)

    def divergence(p: Array) -> Array:
        # p log p, with derivative zero instead of infinity for a probability that has underflowed to zero.
        entropy = jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)
        return jnp.sum(entropy - p * jnp.log(middle), axis=1)

    return (divergence(left) + divergence(right)) / 2


def _check_parents(parents: Int[np.ndarray, " nodes"], num_fine: int, num_coarse: int) -> None:
    parents = np.asarray(parents)
    if parents.shape != (num_fine,) or np.any((parents < 0) | (parents >= num_coarse)):
        raise ValueError(
            f"parents must be {num_fine} numbers in 0..{num_coarse - 1}, one for each node of the finer level; "
            f"got shape {parents.shape} with numbers in {np.min(parents, initial=0)}..{np.max(parents, initial=0)}"
        )


def summed_probabilities(
    fine: Float[Array, "batch nodes"], parents: Int[np.ndarray, " nodes"], num_coarse: int
) -> Float[Array, "batch coarse"]:
    """Probabilities of the nodes of a level, as sums over their children in the next finer level.

    Args:
        fine: probabilities of the nodes of the finer level, shape (N, K_fine).
        parents: for each node of the finer level, the number of its parent, shape (K_fine,).
        num_coarse: number of nodes of the coarser level, K_coarse.

    Returns:
        Shape (N, K_coarse).

    Raises:
        ValueError: if there is not one parent in 0..K_coarse-1 for each node.
    """
    _check_parents(parents, fine.shape[1], num_coarse)
    return matmul(fine, jax.nn.one_hot(jnp.asarray(parents), num_coarse, dtype=fine.dtype))


def level_geometry(
    coarse: Float[Array, "dim coarse"], fine: Float[Array, "dim fine"], parents: Int[np.ndarray, " fine"]
) -> Float[Array, ""]:
    """Mean cosine between the class vectors of a level and the sums of their children's unit vectors.

    Args:
        coarse: class vectors of the coarser level as columns, shape (d, K_coarse).
        fine: class vectors of the next finer level as columns, shape (d, K_fine).
        parents: for each node of the finer level, the number of its parent, shape (K_fine,).

    Returns:
        A scalar in [-1, 1].

    Raises:
        ValueError: if the dimensions differ, or there is not one parent in 0..K_coarse-1 for each node.
    """
    if coarse.shape[0] != fine.shape[0]:
        raise ValueError(f"class vectors of both levels must have one dimension; got {coarse.shape} and {fine.shape}")
    _check_parents(parents, fine.shape[1], coarse.shape[1])
    norms = safe_norm(fine, axis=0)
    units = fine / jnp.where(norms > 0, norms, 1)
    sums = matmul(units, jax.nn.one_hot(jnp.asarray(parents), coarse.shape[1], dtype=units.dtype))
    lengths = (safe_norm(sums, axis=0) * safe_norm(coarse, axis=0))[0]
    return jnp.mean(jnp.sum(sums * coarse, axis=0) / jnp.where(lengths > 0, lengths, 1))


def dissimilarity(
    probabilities: Float[Array, "batch nodes"],
    labels: Int[Array, " batch"],
    used: Bool[Array, " batch"],
    margin: float = 3.0,  # Garg et al. (2022), released program
) -> Float[Array, ""]:
    """Margin minus the mean Jensen-Shannon divergence between neighbouring rows of the batch with different labels.

    A divergence is at most ln 2, so a margin of 3 is a constant offset. If no neighbours have different labels, the
    result is the margin.

    Args:
        probabilities: probabilities of the nodes of one level, shape (N, K_l). The batch must be in random order.
        labels: number of each row's node in that level, shape (N,).
        used: True for rows that are examples, False for padding, shape (N,).
        margin: constant from which the mean divergence is subtracted.

    Returns:
        A scalar, in nats.

    Reference: Garg, Sani and Anand, Learning hierarchy aware features for reducing mistake severity (2022). They repeat
    the pairs until there are 256, which changes the mean only by the incomplete last repetition.
    """
    pairs = (labels[1:] != labels[:-1]) & used[1:] & used[:-1]
    divergences = jensen_shannon(probabilities[1:], probabilities[:-1])
    number = jnp.maximum(jnp.sum(pairs.astype(divergences.dtype)), 1)
    return margin - jnp.sum(jnp.where(pairs, divergences, 0)) / number


def hierarchy_aware_features(
    logits: Sequence[Float[Array, "batch _"]],
    frames: Sequence[Float[Array, "dim _"]],
    labels: Labels,
    levels: Int[np.ndarray, "levels classes"],
    dissimilar_levels: Sequence[int] | None = None,
    everyone: Callable[[Array], Array] = lambda rows: rows,
) -> Float[Array, " batch"]:
    r"""Loss of HAFeature: cross-entropy of the classes, and terms that make levels agree in probabilities and geometry.

    .. math:: \mathrm{CE}_L + \sum_{l<L} \mathrm{JSD}(\hat p_l, p_l) - \sum_{l<L} \mathrm{geometry}_l
        + \sum_l \mathrm{dissimilarity}_l

    :math:`p_l` are the probabilities of level l; :math:`\hat p_l` are the probabilities of level l + 1, summed over the
    children of each node (`summed_probabilities`). The other terms are `jensen_shannon`, `level_geometry` and
    `dissimilarity`; all have weight 1.

    Args:
        logits: one array (N, K_l) per level, coarsest first.
        frames: class vectors of the classifier of each level as columns, (d, K_l), coarsest first.
        labels: integer classes 0..K-1, shape (N,); -1 marks padding.
        levels: node of every class at every level, shape (L, K), from `LabelTree.levels()`; not a traced array.
        dissimilar_levels: numbers of the levels that have the dissimilarity term, counted from 0. None: all levels
            except the finest, as in the released program for WideResNets.
        everyone: function from this device's rows to the rows of the whole batch, in their order. The dissimilarity
            needs it if the batch is split over devices, because neighbouring rows may lie on different devices.

    Returns:
        Numbers of shape (N,), whose mean over the examples is the loss: every example has the same batch-wide terms.
        NaN for a label that is neither a class nor -1, under `jax.jit`.

    Raises:
        ValueError: if there is not one array of logits per level, or the labels are not integers of shape (N,) in
            -1..K-1.

    Reference: Garg, Sani and Anand (2022).
    """
    given, num_classes = _checked_labels_of(logits, labels, levels), levels.shape[1]
    used, labels = given >= 0, jnp.clip(given, 0, num_classes - 1)
    chosen = range(len(levels) - 1) if dissimilar_levels is None else dissimilar_levels
    probabilities = [jax.nn.softmax(at_least_float32(z)) for z in logits]
    total = cross_entropy(logits[-1], labels)
    for coarse in range(len(levels) - 1):
        parents = np.zeros(levels[coarse + 1].max() + 1, np.int32)
        parents[levels[coarse + 1]] = levels[coarse]
        summed = summed_probabilities(probabilities[coarse + 1], parents, int(levels[coarse].max()) + 1)
        total += jensen_shannon(summed, probabilities[coarse])
        total -= level_geometry(frames[coarse], frames[coarse + 1], parents)
    for level in chosen:
        nodes = jnp.asarray(levels[level])[labels]
        total += dissimilarity(everyone(probabilities[level]), everyone(nodes), everyone(used))
    return nan_without_class(total, given, num_classes)


def _checked_labels_of(logits: Sequence[Reals], labels: Labels, levels: Array | np.ndarray) -> Array:
    """Return the labels as int32, once there are logits (N, K_l) for every level and the labels fit the last ones."""
    if len(logits) != len(levels):
        raise ValueError(f"there must be logits for each of the {len(levels)} levels; got {len(logits)} arrays")
    _, labels = checked_scores(logits[-1], labels)
    if not is_traced(levels):
        for number, (found, level) in enumerate(zip(logits, np.asarray(levels), strict=True)):
            wanted = (len(labels), int(level.max()) + 1)
            if jnp.shape(found) != wanted:
                raise ValueError(f"logits of level {number} must have shape {wanted}; got {jnp.shape(found)}")
    return labels
