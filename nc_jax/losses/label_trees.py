r"""Losses and decisions that know a label tree: the peers of the hierarchy-aware frame.

A tree enters as its `levels` (`LabelTree.levels()`, shape (H, K)): which node of each level a class belongs to. The
probability of a node is the sum of its leaves'.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from nc_jax.arrays import at_least_float32, matmul
from nc_jax.hierarchy import LabelTree


def soft_targets(
    distances: Real[np.ndarray, "classes classes"],
    hardness: float = 10.0,  # beta; Bertinetto et al. (2020) try 4 to 30
) -> Float[np.ndarray, "classes classes"]:
    r"""Labels that spread over near classes: row y holds :math:`\operatorname{softmax}_j(-\beta d_{jy} / d_{max})`.

    Args:
        distances: symmetric, shape (K, K).
        hardness: beta > 0; the one-hot labels in the limit.

    Returns:
        Rows that sum to 1, shape (K, K).

    Raises:
        ValueError: if the hardness is not positive.

    Reference: Bertinetto et al., Making better mistakes (2020), section 3.3.
    """
    if not hardness > 0:
        raise ValueError(f"hardness must be positive; got {hardness}")
    weights = np.exp(-hardness * np.asarray(distances, float) / np.max(distances))
    return (weights / weights.sum(axis=0)).T


def soft_label_loss(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], targets: Float[Array, "classes classes"]
) -> Float[Array, " batch"]:
    """Kullback-Leibler divergence from the prediction to the soft label, per example, in nats.

    Args:
        logits: shape (N, K).
        labels: shape (N,); negative ones (padding) give a number that must not be used.
        targets: of `soft_targets`, a row per class.

    Returns:
        Numbers >= 0, shape (N,). The released program divides their mean by K (PyTorch's legacy "mean"), and so needs
        a K times larger learning rate.

    Reference: as `soft_targets`.
    """
    wanted = targets[jnp.maximum(labels, 0)]
    negative_entropy = jnp.sum(jax.scipy.special.xlogy(wanted, wanted), axis=1)
    return negative_entropy - jnp.sum(wanted * jax.nn.log_softmax(at_least_float32(logits)), axis=1)


def level_weights(
    tree: LabelTree,
    alpha: float = 0.1,  # Bertinetto et al. (2020), the least of theirs: the closest to cross-entropy
) -> Float[np.ndarray, " levels"]:
    r"""Weight of the edge into each level, :math:`e^{-\alpha l}` for l = 1..H, over the sum of all nodes' weights.

    Args:
        tree: the sum runs over its nodes, the root (l = 0) included, as in the released program; so the scale of the
            loss falls with the size of the tree.
        alpha: 0 weights all edges alike.

    Reference: Bertinetto et al. (2020), section 3.2.
    """
    weights = np.exp(-alpha * np.arange(1, tree.height + 1))
    return weights / np.exp(-alpha * tree.depths).sum()


def hierarchical_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    levels: Int[Array, "levels classes"],
    weights: Float[Array, " levels"],
) -> Float[Array, " batch"]:
    r"""Cross-entropy of every decision on the way from the root to the label, weighted by level (HXE).

    .. math:: \ell(z, y) = -\sum_{l=1}^{H} \lambda_l \log \frac{P(v_l)}{P(v_{l-1})},
        \qquad P(v) = \sum_{k \text{ below } v} \operatorname{softmax}(z)_k

    with :math:`v_0` the root and :math:`v_H` the leaf y. A leaf that hangs higher has its last ratios equal to 1, and
    the root's probability is 1, so a leaf below the root does not give -inf as in the released program.

    Args:
        logits: of the leaves, shape (N, K); log-probabilities will do.
        labels: shape (N,); negative ones (padding) give a number that must not be used.
        levels: shape (H, K).
        weights: lambda, shape (H,); of `level_weights`. Equal weights of 1 give cross-entropy.

    Returns:
        Numbers >= 0, shape (N,), in nats times the weights' scale.

    Reference: Bertinetto et al. (2020), section 3.2.
    """
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    labels = jnp.maximum(labels, 0)

    def log_probability_at(level: Array) -> Array:
        same = level[labels][:, None] == level
        return jax.nn.logsumexp(jnp.where(same, log_probabilities, -jnp.inf), axis=1)

    path = jax.lax.map(log_probability_at, levels)  # one level at a time: (H, N), not (H, N, K), in memory
    steps = path - jnp.concatenate([jnp.zeros_like(path[:1]), path[:-1]])
    return -matmul(weights.astype(steps.dtype), steps)


def tree_log_softmax(logits: Float[Array, "batch nodes"], tree: LabelTree) -> Float[Array, "batch classes"]:
    """Log-probabilities of the leaves from a logit per node: a softmax among siblings, products along paths.

    The hierarchical cross-entropy of the result is that of the conditional probabilities: with all weights 1 the loss
    of YOLO-v2's tree.

    Args:
        logits: of all nodes but the root, in the order of `tree.nodes[1:]`, shape (N, nodes).
        tree: the tree.

    Returns:
        Shape (N, K), normalised.

    Raises:
        ValueError: if there are not as many logits as nodes.

    Reference: Redmon and Farhadi, YOLO9000 (2017), section 4.
    """
    logits = at_least_float32(logits)
    if logits.shape[1] != len(tree.nodes) - 1:
        raise ValueError(f"the tree has {len(tree.nodes) - 1} nodes besides the root; got {logits.shape[1]} logits")
    parents = jnp.asarray(tree.parents[1:])
    rows, count = logits.T, len(tree.nodes)
    highest = jax.lax.stop_gradient(jax.ops.segment_max(rows, parents, count))
    sums = jax.ops.segment_sum(jnp.exp(rows - highest[parents]), parents, count)
    # Leaves have no children: their empty sums are never gathered.
    conditional = rows - highest[parents] - jnp.log(sums[parents])
    return matmul(conditional.T, jnp.asarray(tree.membership[1:]))


def conditional_risk_scores(
    logits: Float[Array, "batch classes"], distances: Real[Array | np.ndarray, "classes classes"]
) -> Float[Array, "batch classes"]:
    r"""Minus the expected distance of deciding for each class, :math:`-\sum_j p_j d_{jk}`: take the largest (CRM).

    A rule at test time; nothing is trained.

    Args:
        logits: shape (N, K).
        distances: cost of deciding k where j is right, shape (K, K).

    Returns:
        Scores <= 0 in the distances' unit, shape (N, K).

    Reference: Karthik et al., No cost likelihood manipulation at test time for making better mistakes (2021).
    """
    probabilities = jax.nn.softmax(at_least_float32(logits))
    return -matmul(probabilities, jnp.asarray(distances, probabilities.dtype))
