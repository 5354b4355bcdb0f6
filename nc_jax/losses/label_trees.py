r"""Losses and decision rules that use a label tree, for comparison with the hierarchy-aware frame.

The functions take a tree as `levels` (`LabelTree.levels()`, shape (H, K)): for every level, the node to which each
class belongs. The probability of a node is the sum of the probabilities of the leaves below it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from nc_jax.arrays import at_least_float32, matmul
from nc_jax.checks import Labels, Reals, checked_logits, checked_pairs, checked_scores, nan_without_class, real_array
from nc_jax.hierarchy import LabelTree


def soft_targets(
    distances: Real[np.ndarray, "classes classes"],
    hardness: float = 10.0,  # beta; Bertinetto et al. (2020) try 4 to 30
) -> Float[np.ndarray, "classes classes"]:
    r"""Soft labels that give near classes more weight.

    The row of class y holds :math:`\operatorname{softmax}_j(-\beta d_{jy} / d_{max})`.

    Args:
        distances: distances d between classes, symmetric, shape (K, K).
        hardness: beta > 0. For large beta the soft labels approach one-hot labels.

    Returns:
        Soft labels, shape (K, K); each row sums to 1.

    Raises:
        ValueError: if the hardness is not positive, or the distances are not finite numbers of at least 0, shape
            (K, K), some of them above 0.

    Reference: Bertinetto et al., Making better mistakes (2020), section 3.3.
    """
    if not hardness > 0:
        raise ValueError(f"hardness must be positive; got {hardness}")
    checked_pairs(distances, "distances")
    distances = np.asarray(distances, float)
    if not distances.any():
        raise ValueError("distances must be above 0 for some pair of classes; got zeros only")
    weights = np.exp(-hardness * distances / np.max(distances))
    return (weights / weights.sum(axis=0)).T


def soft_label_loss(logits: Reals, labels: Labels, targets: Reals) -> Float[Array, " batch"]:
    """Kullback-Leibler divergence KL(soft label || prediction), per example, in nats.

    Args:
        logits: shape (N, K).
        labels: integer classes 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller must
            mask.
        targets: soft label of each class as a row, shape (K, K), from `soft_targets`.

    Returns:
        Numbers >= 0, shape (N,). The released program divides their mean by K (the legacy "mean" reduction of PyTorch),
        so it needs a learning rate that is K times larger. NaN for a label that is neither a class nor -1, under
        `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, or the labels are not integers of shape (N,) in -1..K-1.

    Reference: Bertinetto et al., Making better mistakes (2020), section 3.3.
    """
    logits, labels = checked_scores(logits, labels)
    targets, num_classes = real_array(targets, "targets"), logits.shape[1]
    if targets.shape != (num_classes, num_classes):
        raise ValueError(f"targets must have shape {(num_classes, num_classes)}; got {targets.shape}")
    wanted = targets[jnp.clip(labels, 0, num_classes - 1)].astype(logits.dtype)
    negative_entropy = jnp.sum(jax.scipy.special.xlogy(wanted, wanted), axis=1)
    divergence = negative_entropy - jnp.sum(wanted * jax.nn.log_softmax(logits), axis=1)
    return nan_without_class(divergence, labels, num_classes)


def level_weights(
    tree: LabelTree,
    alpha: float = 0.1,  # the smallest value of Bertinetto et al. (2020), closest to cross-entropy
) -> Float[np.ndarray, " levels"]:
    r"""Weights of the levels for `hierarchical_cross_entropy`: :math:`e^{-\alpha l}`, l = 1..H, divided by a sum.

    The sum of :math:`e^{-\alpha l}` runs over all nodes of the tree, with l the depth of the node and l = 0 at the
    root. So the loss is smaller for larger trees, as in the released program.

    Args:
        tree: label tree.
        alpha: rate of decay with depth, >= 0; 0 gives all levels the same weight.

    Returns:
        Shape (H,), coarsest level first.

    Raises:
        ValueError: if alpha is negative or not finite.

    Reference: Bertinetto et al. (2020), section 3.2.
    """
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a finite number of at least 0; got {alpha}")
    weights = np.exp(-alpha * np.arange(1, tree.height + 1))
    return weights / np.exp(-alpha * tree.depths).sum()


def hierarchical_cross_entropy(
    logits: Reals,
    labels: Labels,
    levels: Int[Array, "levels classes"],
    weights: Float[Array, " levels"],
) -> Float[Array, " batch"]:
    r"""Hierarchical cross-entropy (HXE): cross-entropy of every decision on the path from the root to the label.

    .. math:: \ell(z, y) = -\sum_{l=1}^{H} \lambda_l \log \frac{P(v_l)}{P(v_{l-1})},
        \qquad P(v) = \sum_{k \text{ below } v} \operatorname{softmax}(z)_k

    :math:`v_0` is the root, :math:`v_l` the node of the label y at level l, and :math:`v_H` the leaf y. If a leaf is
    less deep than H, its last ratios are 1. The root has probability 1, so a leaf directly below the root gives a
    finite value (the released program gives -inf).

    Args:
        logits: logits z of the leaves, shape (N, K); log-probabilities give the same result.
        labels: classes y, integers 0..K-1, shape (N,); rows with the label -1 (padding) give a number that the caller
            must mask.
        levels: node of every class at every level, shape (H, K), from `LabelTree.levels()`.
        weights: weights lambda of the levels, shape (H,), from `level_weights`. If all are 1, this is cross-entropy.

    Returns:
        Numbers >= 0, shape (N,), in nats times the scale of the weights. NaN for a label that is neither a class nor
        -1, under `jax.jit`.

    Raises:
        ValueError: if the shapes do not fit, or the labels are not integers of shape (N,) in -1..K-1.

    Reference: Bertinetto et al. (2020), section 3.2.
    """
    logits, labels = checked_scores(logits, labels)
    num_classes = logits.shape[1]
    if levels.ndim != 2 or levels.shape[1] != num_classes or weights.shape != levels.shape[:1]:
        raise ValueError(
            f"levels and weights must have shapes (levels, {num_classes}) and (levels,); "
            f"got {levels.shape} and {weights.shape}"
        )
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.clip(labels, 0, num_classes - 1)

    def log_probability_at(level: Array) -> Array:
        same = level[own][:, None] == level[None]
        return jax.nn.logsumexp(jnp.where(same, log_probabilities, -jnp.inf), axis=1)

    path = jax.lax.map(log_probability_at, levels)  # one level at a time, so memory holds (H, N) and not (H, N, K)
    steps = path - jnp.concatenate([jnp.zeros_like(path[:1]), path[:-1]])
    return nan_without_class(-matmul(weights.astype(steps.dtype), steps), labels, num_classes)


def tree_log_softmax(logits: Float[Array, "batch nodes"], tree: LabelTree) -> Float[Array, "batch classes"]:
    """Log-probabilities of the leaves from one logit per node.

    A softmax over the children of each node gives conditional probabilities. The probability of a leaf is their product
    along the path from the root. With all weights 1, `hierarchical_cross_entropy` of the result is the loss of the tree
    in YOLO9000.

    Args:
        logits: logits of all nodes except the root, in the order of `tree.nodes[1:]`, shape (N, nodes).
        tree: label tree.

    Returns:
        Log-probabilities, shape (N, K); the probabilities of each row sum to 1.

    Raises:
        ValueError: if the number of logits is not the number of nodes without the root.

    Reference: Redmon and Farhadi, YOLO9000 (2017), section 4.
    """
    logits = at_least_float32(logits)
    if logits.shape[1] != len(tree.nodes) - 1:
        raise ValueError(f"the tree has {len(tree.nodes) - 1} nodes besides the root; got {logits.shape[1]} logits")
    parents = jnp.asarray(tree.parents[1:])
    rows, count = logits.T, len(tree.nodes)
    highest = jax.lax.stop_gradient(jax.ops.segment_max(rows, parents, count))
    sums = jax.ops.segment_sum(jnp.exp(rows - highest[parents]), parents, count)
    # A leaf has no children, so its sum is empty; no node gathers it.
    conditional = rows - highest[parents] - jnp.log(sums[parents])
    return matmul(conditional.T, jnp.asarray(tree.membership[1:]))


def conditional_risk_scores(
    logits: Float[Array, "batch classes"], distances: Real[Array | np.ndarray, "classes classes"]
) -> Float[Array, "batch classes"]:
    r"""Conditional risk minimisation (CRM): decide for the class k with the largest score :math:`-\sum_j p_j d_{jk}`.

    The score is minus the expected distance between class k and the true class, with p the softmax of the logits. The
    rule is used at test time; it trains nothing.

    Args:
        logits: shape (N, K).
        distances: d, the cost of deciding for class k if class j is right, shape (K, K).

    Returns:
        Scores <= 0 in the unit of the distances, shape (N, K).

    Raises:
        ValueError: if the logits do not have shape (N, K), or the distances are not finite numbers of at least 0, shape
            (K, K).

    Reference: Karthik et al., No cost likelihood manipulation at test time for making better mistakes (2021).
    """
    probabilities = jax.nn.softmax(at_least_float32(checked_logits(logits)))
    distances = checked_pairs(distances, "distances", probabilities.shape[1])
    return -matmul(probabilities, distances.astype(probabilities.dtype))
