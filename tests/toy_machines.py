"""A toy federation of two clients, as its machines and as a simulation see it."""

from functools import cache

import jax
import numpy as np
import optax
from toy_training import NUM_CLASSES, NormalisedMLP, blobs

from nc_jax.data import LabelledArrays
from nc_jax.data.clients import ClientArrays
from nc_jax.federated import Rounds, alone
from nc_jax.federated.flower import Problem
from nc_jax.heads import learned
from nc_jax.models import Classifier, HeadModule
from nc_jax.streams import Clients
from nc_jax.training import LoopOptions, Trainer, TrainState
from nc_jax.training.checkpoint import leaves_by_name

SIZES, SEED, ROUNDS, BATCH = (14, 21), 3, 2, 8


def everything() -> ClientArrays:
    """The examples of all clients, which only the simulation has."""
    return ClientArrays.of(blobs(sum(SIZES)), np.repeat(np.arange(len(SIZES)), SIZES), len(SIZES))


def stream_of(source: ClientArrays, rounds: int = ROUNDS, **options) -> Clients:
    return Clients(source, BATCH, rounds, **options)


@cache
def trainer(clients: int = len(SIZES)) -> Trainer:
    model = Classifier(NormalisedMLP(), HeadModule(learned(NUM_CLASSES)))
    # The momentum of a client lasts from round to round, so its machine has to remember something.
    rounds = Rounds(clients=clients, local_batch=BATCH, keep_optimizer=True)
    return Trainer(model, optax.sgd(0.05, 0.9), LoopOptions(batch_size=BATCH, devices=1), rounds=rounds)


def own(client: int) -> ClientArrays:
    """The examples of one client, or of none (-1)."""
    whole = everything()
    found = whole.subset(whole.clients == max(client, 0))
    return alone(LabelledArrays(found.inputs, found.labels, NUM_CLASSES), client, SIZES)


def problem(client: int) -> Problem:
    return Problem(trainer(), stream_of(own(client)), SEED)


def arrays_of(state: TrainState) -> dict[str, np.ndarray]:
    return named({"params": state.params, "variables": state.variables})


def named(tree) -> dict[str, np.ndarray]:
    return leaves_by_name(jax.device_get(tree))
