"""Losses of networks with a classifier for every level of a tree: Flamingo and HAFeature.

Level l = 1..L, coarsest first, has K_l nodes; the last is that of the classes (`LabelTree.levels()`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32, matmul, safe_norm
from nc_jax.losses.alignment import cross_entropy

_FLOOR = 1e-7  # below which the mixture's probabilities are not let fall: Garg et al. (2022), released program


def feature_slices(dim: int, num_levels: int, spread: bool = False) -> list[tuple[int, int]]:
    """Cut a feature vector into a part [start, end) for each level, coarsest first.

    Args:
        dim: d >= L.
        num_levels: L.
        spread: give the last levels one more each, until d is used up, as the released program does for WideResNets;
            else the last level takes all that is left over, as it does for ResNet-50.

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
    logits: Sequence[Float[Array, "batch _"]], labels: Int[Array, " batch"], levels: Int[Array, "levels classes"]
) -> Float[Array, " batch"]:
    """Sum of the levels' cross-entropies, per example: Flamingo's loss.

    Args:
        logits: one array (N, K_l) per level, coarsest first.
        labels: of the classes, shape (N,); negative ones (padding) give a number that must not be used.
        levels: shape (L, K).

    Reference: Chang et al. (2021), section 3.
    """
    labels = jnp.maximum(labels, 0)
    losses = [cross_entropy(z, level[labels]) for z, level in zip(logits, levels, strict=True)]
    return jnp.sum(jnp.stack(losses), axis=0)


def jensen_shannon(left: Float[Array, "batch nodes"], right: Float[Array, "batch nodes"]) -> Float[Array, " batch"]:
    r"""Jensen-Shannon divergence of the rows in [0, ln 2], :math:`\tfrac12 (KL(p \| m) + KL(q \| m))`, m the middle."""
    middle = jnp.clip((left + right) / 2, _FLOOR, 1)

    def divergence(p: Array) -> Array:
        # p log p with a derivative of zero, not infinity, where a softmax has underflowed.
        entropy = jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)
        return jnp.sum(entropy - p * jnp.log(middle), axis=1)

    return (divergence(left) + divergence(right)) / 2


def summed_probabilities(
    fine: Float[Array, "batch nodes"], parents: Int[np.ndarray, " nodes"], num_coarse: int
) -> Float[Array, "batch coarse"]:
    """Probabilities of a level's nodes as the sums of the next finer level's below them."""
    return matmul(fine, jax.nn.one_hot(jnp.asarray(parents), num_coarse, dtype=fine.dtype))


def level_geometry(
    coarse: Float[Array, "dim coarse"], fine: Float[Array, "dim fine"], parents: Int[np.ndarray, " fine"]
) -> Float[Array, ""]:
    """Mean cosine between the class vectors of a level and the normalised sums of their children's unit vectors."""
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
    """Margin less the mean Jensen-Shannon divergence of neighbours in the batch with different labels.

    A divergence is at most ln 2, so the margin never comes into play. Without any such pair, the margin.

    Args:
        probabilities: of a level's nodes, shape (N, K_l), the batch in random order.
        labels: nodes of that level, shape (N,).
        used: which rows are examples, shape (N,).
        margin: see above.

    Reference: Garg, Sani and Anand, Learning hierarchy aware features for reducing mistake severity (2022); there pairs
    are repeated up to a number of 256, which leaves their mean as it is, but for the last repetition.
    """
    pairs = (labels[1:] != labels[:-1]) & used[1:] & used[:-1]
    divergences = jensen_shannon(probabilities[1:], probabilities[:-1])
    return margin - jnp.sum(jnp.where(pairs, divergences, 0)) / jnp.maximum(jnp.sum(pairs), 1)


def hierarchy_aware_features(
    logits: Sequence[Float[Array, "batch _"]],
    frames: Sequence[Float[Array, "dim _"]],
    labels: Int[Array, " batch"],
    levels: Int[np.ndarray, "levels classes"],
    dissimilar_levels: Sequence[int] | None = None,
    everyone: Callable[[Array], Array] = lambda rows: rows,
) -> Float[Array, " batch"]:
    r"""HAFeature's loss: fine cross-entropy, and levels that agree in probabilities and geometry.

    .. math:: \mathrm{CE}_L + \sum_{l<L} \mathrm{JSD}(\hat p_l, p_l) - \sum_{l<L} \mathrm{geometry}_l
        + \sum_l \mathrm{dissimilarity}_l

    with :math:`\hat p_l` the next finer level's probabilities summed over children, all terms of weight 1.

    Args:
        logits: one array (N, K_l) per level, coarsest first.
        frames: class vectors of each level's classifier, (d, K_l).
        labels: of the classes, shape (N,); negative ones are padding.
        levels: shape (L, K), concrete.
        dissimilar_levels: which levels have the last term, counted from 0; None: all but the finest, as the released
            program has for WideResNets.
        everyone: takes an array of this device's rows to the rows of the whole batch, in their order: neighbours may
            lie on different devices.

    Returns:
        Shape (N,); terms of the whole batch are the same for each of its examples, so that the mean is the loss.

    Reference: Garg, Sani and Anand (2022).
    """
    used, labels = labels >= 0, jnp.maximum(labels, 0)
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
    return total
