"""What a server makes of what clients send: weighted means, and a step of the server's own optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nc_jax.training import TrainState

# Statistics of the features are averaged like parameters. The state of a head is the server's; see `Head.pool`.
AVERAGED = "batch_stats"


@dataclass(frozen=True)
class Federation:
    """How clients and server work together. The default is federated averaging (FedAvg).

    Attributes:
        personal: names of the parts of the model that every client keeps for itself, such as "head": it goes on with
            its own in its next round. The server still has the mean of these parts, for its own model. A real
            federation does not send them.
        server: optimiser of the server, whose gradient is the parameters minus the weighted mean of the clients'
            (FedOpt). None: the server takes the mean.
        remembers: clients know the model that they have received, and their own at the end of their last round; see
            `nc_jax.training.Client`.
        controlled: correct the gradients of clients by control variates (SCAFFOLD); see `corrected`.

    Reference: McMahan et al., Communication-efficient learning of deep networks from decentralized data (2017); Reddi
    et al., Adaptive federated optimization (2021), algorithm 1, for the server's optimiser.
    """

    personal: tuple[str, ...] = ()
    server: optax.GradientTransformation | None = None
    remembers: bool = False
    controlled: bool = False


def sent(state: TrainState) -> dict[str, Any]:
    """Return what is averaged of a client's state: parameters and batch statistics, a tree of arrays."""
    found = {"params": state.params}
    return found | ({AVERAGED: state.variables[AVERAGED]} if AVERAGED in state.variables else {})


def updated(
    state: TrainState, mean: dict[str, Any], server: optax.GradientTransformation | None
) -> tuple[TrainState, Float[Array, ""]]:
    """Return the server's state with the mean of its clients' models, and the norm of the change of the parameters.

    Args:
        state: the server's state.
        mean: weighted mean of what `sent` returns of each client.
        server: optimiser of the server; None takes the mean.
    """
    params, opt_state = mean["params"], state.opt_state
    gradient = jax.tree.map(jnp.subtract, state.params, params)
    if server is not None:
        updates, opt_state = server.update(gradient, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    variables = state.variables | ({AVERAGED: mean[AVERAGED]} if AVERAGED in mean else {})
    return state.replace(params=params, variables=variables, opt_state=opt_state), optax.tree.norm(gradient)


def shared_parts(model: dict[str, Any], personal: Sequence[str]) -> dict[str, Any]:
    """Return the parts of what `sent` returns that clients do not keep for themselves."""
    return {
        collection: {name: part for name, part in parts.items() if name not in personal}
        for collection, parts in model.items()
    }


def bytes_of(tree: Any) -> int:
    """Return how many bytes the arrays of a tree take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
