"""How clients lie in the arrays of a round, and what tells one client from another."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nc_jax.data import Batch
from nc_jax.training import StepMetrics, TrainState
from nc_jax.training.step import Step

NO_STEP = 2**32 - 1  # a number that is that of no step, which are int32


def cut(batch: Batch, clients: int, local_batch: int) -> Batch:
    """Return a batch with axes for clients and their steps in front of that for examples.

    Raises:
        ValueError: if the batch has no clients, or not equally many rows for each of them and each step.
    """
    if batch.client is None:
        raise ValueError("a round needs a batch whose rows belong to clients (nc_jax.streams.Clients); got one without")
    rows = len(batch.labels)
    if rows % (clients * local_batch):
        raise ValueError(
            f"a round of {clients} clients with batches of {local_batch} needs a multiple of {clients * local_batch} "
            f"rows; got {rows}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(clients, -1, local_batch, *leaf.shape[1:]), batch)


def filled(tree: Any, more: int) -> Any:
    """Return arrays with some more rows of zeros: for masks, rows of padding."""
    if not more:
        return tree
    return jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, more), *[(0, 0)] * (leaf.ndim - 1))), tree)


def for_one(step: Step) -> Step:
    """Return a step of one client whose arrays have a leading axis of length 1."""

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        found = step(*jax.tree.map(lambda leaf: leaf[0], (state, batch)))
        return jax.tree.map(lambda leaf: leaf[None], found)

    return one


def key_of(key: Array, number: Int[Array, ""]) -> Array:
    """Return the data of a client's random key. The first client has the server's, as training in one place has it."""
    # No step has the number between the two. Without it, the key of client n would be that of the server's step n.
    apart = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), NO_STEP)
    own = jax.random.fold_in(apart, number)
    return jnp.where(number == 0, key, jax.random.key_data(own))
