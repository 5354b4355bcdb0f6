"""What the server of a simulated federation keeps for its clients, and a client's model as the server sees it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nc_jax.checks import is_traced
from nc_jax.data import ClientArrays, ExampleSource
from nc_jax.training import TrainState
from nc_jax.training.extension import Client

PREVIOUS = "previous"  # model of a client at the end of its last round


class ClientStates(NamedTuple):
    """What clients have of their own. Every array of `kept` has a leading axis for the C clients.

    Attributes:
        counts: number of training examples of each class at each client, shape (C, K), int32.
        dropped: number of rounds in which a client was left out because it sent a NaN or an infinity, shape (C,).
        kept: what clients keep from round to round, by name: "params" and "variables" of parts that they do not share,
            "opt_state", "extensions", "control" (the control variates of SCAFFOLD) and "previous" (their last models).
        control: mean of the control variates of all clients, weighted by their numbers of examples; None without any.
    """

    counts: Int[Array, "clients classes"]
    dropped: Int[Array, " clients"]
    kept: dict[str, Any]
    control: Any = None


def client_states(
    state: TrainState,
    source: ExampleSource,
    *,
    personal: Sequence[str] = (),
    remembers: bool = False,
    controlled: bool = False,
    opt_state: Any = None,
) -> ClientStates:
    """Return what clients keep before the first round: copies of what the server has.

    Args:
        state: initial state of the server.
        source: the training examples of all clients.
        personal: names of the parts of the model that every client has for itself, such as "head".
        remembers: keep the last model of every client.
        controlled: keep a control variate for every client.
        opt_state: initial state of the clients' optimiser, if they keep it; None: they do not.

    Raises:
        ValueError: if the training set has no clients, or there is no such part.
    """
    if not isinstance(source, ClientArrays):
        raise ValueError(f"rounds need training examples that belong to clients (ClientArrays); got {source!r}")
    unknown = [name for name in personal if name not in state.params and not below(state.variables, (name,))]
    if unknown:
        raise ValueError(f"parts that clients keep must be among {', '.join(state.params)}; got {unknown[0]!r}")
    zeros = jax.tree.map(jnp.zeros_like, state.params) if controlled else None
    own = {
        "params": chosen(state.params, personal),
        "variables": below(state.variables, personal),
        "opt_state": opt_state,
        "extensions": state.extensions,
        "control": zeros,
        PREVIOUS: (state.params, state.variables) if remembers else None,
    }
    number = source.num_clients
    kept = {
        name: jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], number, axis=0), part)
        for name, part in own.items()
        if jax.tree.leaves(part)
    }
    counts = jnp.asarray(source.client_counts(), jnp.int32)
    return ClientStates(counts, jnp.zeros(number, jnp.int32), kept, zeros)


def client_state(state: TrainState, number: int | Int[Array, ""]) -> TrainState:
    """Return a client's state for evaluation: the server's model with the parts that the client has for itself.

    Args:
        state: state of the server.
        number: number of the client. It may be traced, and `jax.vmap` maps over it.

    Raises:
        ValueError: if the state is not that of a server, or there is no client of this number.
    """
    states = state.clients
    if states is None:
        raise ValueError("the state of a server has clients; got one without")
    total = len(states.counts)
    if not is_traced(number) and not 0 <= int(number) < total:
        raise ValueError(f"clients have numbers in 0..{total - 1}; got {number}")
    kept = jax.tree.map(lambda leaf: leaf[number], states.kept)
    return joined(state, kept).replace(
        extensions=kept.get("extensions", state.extensions),
        client=Client(jnp.asarray(number, jnp.int32), states.counts[number]),
        clients=None,
    )


def joined(state: TrainState, kept: dict[str, Any]) -> TrainState:
    """Return a state whose model has the parts that a client keeps, in place of the server's."""
    variables = {name: {**part, **kept.get("variables", {}).get(name, {})} for name, part in state.variables.items()}
    return state.replace(params={**state.params, **kept.get("params", {})}, variables=variables)


def chosen(params: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the parts of the parameters that have these names."""
    return {name: part for name, part in params.items() if name in names}


def below(variables: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the parts of the other variables that have these names, by collection; empty collections are left out."""
    found = {collection: chosen(parts, names) for collection, parts in variables.items()}
    return {collection: parts for collection, parts in found.items() if parts}
