"""Federated learning: clients train on their own examples, and a server joins what they send.

A round has the type of a training step. `nc_jax.training.Trainer` runs it, logs it and saves it as it does a step.
"""

from nc_jax.extras import require_all

require_all("train", __name__)

from nc_jax.federated.aggregate import Federation
from nc_jax.federated.clients import ClientStates, client_state, client_states
from nc_jax.federated.exchange import Answer, Exchange, NoAnswerError, alone
from nc_jax.federated.local import alternating, corrected, proximal
from nc_jax.federated.rounds import Rounds
from nc_jax.federated.traffic import Traffic, traffic

__all__ = [
    "Answer",
    "ClientStates",
    "Exchange",
    "Federation",
    "NoAnswerError",
    "Rounds",
    "Traffic",
    "alone",
    "alternating",
    "client_state",
    "client_states",
    "corrected",
    "proximal",
    "traffic",
]
