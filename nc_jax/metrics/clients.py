"""Federated learning: angles of the classes that clients lack, accuracy client by client, and how clients drift apart.

A class *exists* at a client that has a training example of it; else it is *missing* there. Functions of arrays can be
traced, and `jax.vmap` maps them over clients. Only `client_summary` returns plain numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from nc_jax.arrays import angles, at_least_float32, matmul, transpose
from nc_jax.checks import Labels, Mask, Reals, as_array, checked_scores, is_real, is_traced, real_array
from nc_jax.metrics.agreement import right_answers


class GroupAngles(NamedTuple):
    """Mean angles between class vectors, in degrees, in [0, 180]; NaN where there is no pair.

    Attributes:
        existing: over the pairs of existing classes.
        missing: over the pairs of missing classes. 0 where their vectors have collapsed onto each other.
        between: over the pairs of an existing and a missing class.
    """

    existing: Float[Array, ""]
    missing: Float[Array, ""]
    between: Float[Array, ""]


def group_angles(frame: Reals, existing: Mask) -> GroupAngles:
    r"""Mean angles between the class vectors of a client, for the classes that exist there and for those that do not.

    .. math:: \frac{1}{|P|} \sum_{(i, j) \in P} \angle(w_i, w_j), \qquad P \text{ the pairs of a group, } i \ne j

    Of a simplex ETF all three are :math:`\arccos(-1 / (K - 1))`, and no training moves a fixed frame. A client that
    trains its class vectors pushes those of all missing classes away from the same features, so that they approach each
    other (angle collapse).

    Args:
        frame: class vectors as columns, shape (d, K), not centred. Lengths do not matter, but a vector of length zero
            has no direction: its pairs do not count. So give the frame that clients share, not FedGELA's with the local
            lengths.
        existing: True for the classes with a training example at the client, shape (K,). For many clients and one
            frame, `jax.vmap(group_angles, in_axes=(None, 0))` computes the angles once.

    Returns:
        Three means, accurate to rounding near 0 and 180 degrees, too. NaN for a group without a pair.

    Raises:
        ValueError: if the frame does not have shape (d, K), or `existing` is not boolean of shape (K,).

    Example:
        >>> found = group_angles(jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), jnp.array([True, True, False]))
        >>> float(found.existing), float(found.missing), float(found.between)
        (90.0, nan, 45.0)

    Reference: Fan et al., Federated learning with bilateral curation for partially class-disjoint data (2023), which
    names the existing and the missing angle.
    """
    frame = at_least_float32(real_array(frame, "frame"))
    if frame.ndim != 2:
        raise ValueError(f"a frame must have shape (dim, classes); got shape {frame.shape}")
    existing = _checked_existing(existing, frame.shape[1])
    # One class at a time: the differences of all pairs would be a (d, K, K) array.
    of_pairs = jax.lax.map(
        lambda vector: angles(jnp.broadcast_to(vector[:, None], frame.shape), frame), transpose(frame)
    )
    directed = jnp.any(frame != 0, axis=0)  # NaN counts, so that it is not overlooked
    pairs = directed[:, None] & directed[None] & ~jnp.eye(len(directed), dtype=bool)
    row, column = existing[:, None], existing[None]
    groups = (row & column, ~row & ~column, row & ~column)
    return GroupAngles(*(jnp.degrees(jnp.mean(of_pairs, where=pairs & group)) for group in groups))


class Answers(NamedTuple):
    """How many answers are right: of one client, or of many along an axis. Add two with `merge`.

    Attributes:
        right: right answers, if all classes can be chosen.
        right_masked: right answers, if only the classes that exist at the client can be chosen.
        examples: number of examples.
    """

    right: Int[Array, "*clients"]
    right_masked: Int[Array, "*clients"]
    examples: Int[Array, "*clients"]

    def merge(self, other: "Answers") -> "Answers":
        """Join two disjoint sets of examples of the same clients."""
        return Answers(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))

    @property
    def accuracy(self) -> Float[Array, "*clients"]:
        """Share of right answers among all classes, in [0, 1]; NaN without any example."""
        return self.right / self.examples

    @property
    def masked_accuracy(self) -> Float[Array, "*clients"]:
        """Share of right answers among the existing classes, in [0, 1]; NaN without any example."""
        return self.right_masked / self.examples


def answers(logits: Reals, labels: Labels, existing: Mask) -> Answers:
    """Count the right answers of a client's model: among all classes, and among those that exist at the client.

    A client's own test split may hold examples of classes that it has never trained on. Among the existing classes they
    are always wrong.

    Args:
        logits: shape (N, K).
        labels: class numbers, shape (N,); -1 for padding, which does not count.
        existing: True for the classes with a training example at the client, shape (K,).

    Returns:
        Three counts. An answer is the class with the largest logit, the first of equal ones; it is wrong if that logit
        is not finite. So all masked answers of a client without any existing class are wrong.

    Raises:
        ValueError: if the logits do not have shape (N, K), the labels are not integers of shape (N,) in -1..K-1, or
            `existing` is not boolean of shape (K,).

    Example:
        >>> found = answers([[0.5, 0.1, 0.9], [0.2, 0.1, 0.0]], [0, 0], [True, True, False])
        >>> float(found.accuracy), float(found.masked_accuracy)
        (0.5, 1.0)
    """
    logits, labels = checked_scores(logits, labels)
    existing = _checked_existing(existing, logits.shape[1])

    def count(scores: Array) -> Array:
        return jnp.sum(right_answers(scores, labels) & (labels >= 0))

    masked = jnp.where(existing[None], logits, -jnp.inf)
    return Answers(count(logits), count(masked), jnp.sum(labels >= 0))


class ClientSummary(NamedTuple):
    """A number of many clients, such as their accuracies, in few numbers; all but the counts in its unit.

    Attributes:
        mean: over the clients, each counting once.
        weighted_mean: with the weights of the clients.
        worst: the smallest number.
        low: the 10th percentile. Percentiles are interpolated linearly between the two nearest ranks, as NumPy does.
        median: the 50th percentile.
        high: the 90th percentile.
        sd: standard deviation over the clients, which are all clients and not a sample of them (ddof = 0). The smaller
            it is, the fairer is the model.
        clients: how many clients count.
        left_out: how many clients have no number.
    """

    mean: float
    weighted_mean: float
    worst: float
    low: float
    median: float
    high: float
    sd: float
    clients: int
    left_out: int


def client_summary(values: Reals, weights: Reals) -> ClientSummary:
    """Summarise a number of every client: means, the worst client, deciles and spread.

    Args:
        values: a number for each client, such as its personal accuracy, shape (C,). NaN for a client without one, such
            as a client without test examples; it is left out and counted.
        weights: weight of each client in the weighted mean, shape (C,). With the numbers of test examples, it is the
            accuracy over the test examples of all clients.

    Returns:
        Plain numbers. NaN where no client counts; the weighted mean is also NaN if all clients that count have the
        weight 0.

    Raises:
        ValueError: if the values are not real numbers of shape (C,), or the weights are not numbers from 0 up of the
            same shape.

    Example:
        >>> found = client_summary([0.5, 1.0, float("nan")], [30, 10, 0])
        >>> found.mean, found.weighted_mean, found.worst, found.high, found.clients, found.left_out
        (0.75, 0.625, 0.5, 0.95, 2, 1)

    Reference: Li et al., Fair resource allocation in federated learning (2020), which calls a model fairer if its
    accuracy is more uniform over the clients.
    """
    given = np.asarray(as_array(values, "values"))
    if given.ndim != 1 or not is_real(given.dtype):
        raise ValueError(f"values must be real numbers, one for each client; got {given.dtype} of shape {given.shape}")
    shares = np.asarray(_checked_weights(weights, len(given)), np.float64)
    known = ~np.isnan(given)
    counted, shares = given[known].astype(np.float64), shares[known]
    left_out = int(np.sum(~known))
    if not counted.size:
        none = float("nan")
        return ClientSummary(none, none, none, none, none, none, none, clients=0, left_out=left_out)
    low, median, high = np.percentile(counted, (10, 50, 90)).tolist()
    return ClientSummary(
        mean=float(counted.mean()),
        weighted_mean=float(shares @ counted / shares.sum()) if shares.any() else float("nan"),
        worst=float(counted.min()),
        low=low,
        median=median,
        high=high,
        sd=float(counted.std()),
        clients=counted.size,
        left_out=left_out,
    )


class ClientDrift(NamedTuple):
    """How far clients went in a round.

    Attributes:
        squared: mean squared distance from the server's parameters.
        relative: mean distance from the clients' mean, over the distance of that mean from the server's parameters. 0
            if all clients went the same way. Much larger than 1 if they went different ways, whose mean is small.
    """

    squared: Float[Array, ""]
    relative: Float[Array, ""]


def client_drift(clients: PyTree, server: PyTree, weights: Reals) -> ClientDrift:
    r"""How far the parameters of clients have moved from the server's in a round, and how far from each other.

    .. math::
        \text{squared} = \sum_i a_i \|y_i - x\|^2, \qquad
        \text{relative} = \frac{\sum_i a_i \|y_i - \bar y\|}{\|\bar y - x\|}, \qquad \bar y = \sum_i a_i y_i

    The parameters of client i after its local steps are :math:`y_i`, those with which it began are x, all as one
    vector, and the weights :math:`a_i` sum to 1.

    Args:
        clients: y, a tree of arrays with a leading axis of C clients.
        server: x, the same tree without that axis.
        weights: weights of the clients in the mean, shape (C,), which are divided by their sum. A client with the
            weight 0 took no part, and whatever its parameters are, they do not count.

    Returns:
        Two numbers in at least float32: `squared` in the squared unit of the parameters, `relative` without unit. If
        the mean has not moved, `relative` is infinite, or NaN if no client has moved. With weights that are all 0, both
        are NaN.

    Raises:
        ValueError: if the clients do not have the server's parameters with a leading axis, or the weights are not one
            number from 0 up for each client.

    Example:
        >>> found = client_drift({"w": jnp.array([[3.0, 1.0], [3.0, -1.0]])}, {"w": jnp.zeros(2)}, [1, 1])
        >>> float(found.squared), round(float(found.relative), 6)
        (10.0, 0.333333)

    Reference: `squared` is the drift that Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated
    learning (2020), bound, after the last local step; `relative` is defined here.
    """
    weights = as_array(weights, "weights")
    number = len(weights) if weights.ndim else 0
    weights = at_least_float32(real_array(_checked_weights(weights, number), "weights"))
    moves = _moves(clients, server, number)
    share = weights / jnp.sum(weights)
    moves = [jnp.where(weights[:, None] > 0, move, 0) for move in moves]
    means = [matmul(share.astype(move.dtype)[None], move) for move in moves]
    change = jnp.sqrt(sum(jnp.sum(mean**2) for mean in means))
    apart = jnp.sqrt(sum(jnp.sum((move - mean) ** 2, axis=1) for move, mean in zip(moves, means, strict=True)))
    squared = sum(jnp.sum(move**2, axis=1) for move in moves)
    return ClientDrift(jnp.sum(share * squared), jnp.sum(share * apart) / change)


def _moves(clients: PyTree, server: PyTree, number: int) -> list[Float[Array, "clients size"]]:
    """Return what the clients have added to each array of the server, a row per client."""
    clients, server = jax.tree.map(lambda leaf: as_array(leaf, "parameters"), (clients, server))
    theirs, ours = jax.tree.leaves(clients), jax.tree.leaves(server)
    wanted = f"clients must have the server's parameters with a leading axis of {number} clients, one for each weight"
    if jax.tree.structure(clients) != jax.tree.structure(server):
        raise ValueError(f"{wanted}; got trees that differ, of {len(theirs)} and {len(ours)} arrays")
    for one, other in zip(theirs, ours, strict=True):
        if jnp.shape(one) != (number, *jnp.shape(other)):
            raise ValueError(f"{wanted}; got shape {jnp.shape(one)} for {jnp.shape(other)}")
    pairs = [
        tuple(at_least_float32(real_array(array, "parameters")) for array in pair)
        for pair in zip(theirs, ours, strict=True)
    ]
    return [(one - other[None]).reshape(number, -1) for one, other in pairs]


def _checked_existing(existing: Mask, num_classes: int) -> Bool[Array, " classes"]:
    existing = as_array(existing, "existing")
    if existing.shape != (num_classes,) or existing.dtype != bool:
        raise ValueError(
            f"existing must be booleans of shape ({num_classes},), one for each class; "
            f"got {existing.dtype} of shape {existing.shape}"
        )
    return jnp.asarray(existing)


def _checked_weights(weights: Reals, number: int) -> Array | np.ndarray:
    array = as_array(weights, "weights")
    wanted = f"weights must be finite numbers of at least 0, one for each of the {number} clients"
    if array.shape != (number,) or not is_real(array.dtype):
        raise ValueError(f"{wanted}; got {array.dtype} of shape {array.shape}")
    if not is_traced(array) and not (np.isfinite(np.asarray(array)) & (np.asarray(array) >= 0)).all():
        raise ValueError(f"{wanted}; got {np.asarray(array)}")
    # Integers in NumPy, as in real_array, but in float64 where JAX has it.
    return array.astype(jax.dtypes.canonicalize_dtype(float)) if jnp.issubdtype(array.dtype, jnp.integer) else array
