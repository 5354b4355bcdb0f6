"""How many bytes a round sends over the network."""

from typing import NamedTuple

from nc_jax.federated.aggregate import bytes_of, sent, shared_parts
from nc_jax.federated.rounds import Rounds
from nc_jax.training import TrainState


class Traffic(NamedTuple):
    """Bytes of a round, for each client that takes part.

    Attributes:
        down: from the server to the client.
        up: from the client to the server.
    """

    down: int
    up: int


def traffic(state: TrainState, rounds: Rounds) -> Traffic:
    """Return what a real federation would send in a round, uncompressed, for each client.

    Both ways go the parameters and batch statistics that are shared, and the control variates of SCAFFOLD. Of a pooled
    head, the frame goes down, and sums and counts of the features go up. A fixed frame costs nothing: it can be drawn
    again from its seed. Nor do class counts: only a client itself needs its own. The number of examples is not counted.

    Args:
        state: the server's state.
        rounds: what the rounds are.
    """
    federation = rounds.federation
    both = bytes_of(shared_parts(sent(state), federation.personal))
    if federation.controlled:
        both += bytes_of(state.params)
    head = rounds.head_state(state.variables) if rounds.pool is not None else None
    if head is None:
        return Traffic(both, both)
    return Traffic(both + bytes_of((head["frame"], head["global_mean"])), both + bytes_of((head["sums"], head["seen"])))
