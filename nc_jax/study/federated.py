"""What experiments on federated learning measure: the server's model, every client's own, and how they differ."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nc_jax.data import Batch
from nc_jax.data.clients import ClientArrays, partition_statistics
from nc_jax.federated import Rounds, client_state, traffic
from nc_jax.federated.layout import cut
from nc_jax.metrics import Answers, GroupAngles, answers, balanced_accuracy, client_drift, client_summary, group_angles
from nc_jax.streams import Plan, gather, local_rows
from nc_jax.study.comparison import Found, Run
from nc_jax.study.data import Data
from nc_jax.study.settings import Comparison
from nc_jax.study.trainers import clients_stream
from nc_jax.training import Client, Evaluated, Evaluation, Trainer, TrainState
from nc_jax.training.running import Watch

# A model at a client: as the client gets it in a round, and after the local steps of that round.
MOMENTS = ("personal", "tuned")


class Local(NamedTuple):
    """What a client's models give on its own test examples.

    Attributes:
        received: answers of the model before the local steps of a round.
        tuned: answers after them.
        angles: angles of the class vectors after them.
        params: parameters after them.
        finite: whether the steps were finite.
    """

    received: Answers
    tuned: Answers
    angles: GroupAngles
    params: Any
    finite: Any


def check_clients(settings: Comparison) -> None:
    """Raise a ValueError unless the data are spread over clients."""
    if settings.federated.clients is None:
        raise ValueError("federated learning needs clients (--federated.clients 10); got none")


def watching(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Return what measures all clients at every evaluation.

    The log gets the means over clients of "personal", "personal_masked", "tuned" and "tuned_masked" (accuracies before
    and after the local steps of a round), of "angle_existing" and "angle_missing" in degrees after them, the "drift" in
    them, and the "balanced_accuracy" of the server's model.
    """

    def watch(state: TrainState, train: Evaluation, test: Evaluation) -> dict[str, float]:
        del train
        return _means(_all_clients(trainer, state, data, settings)) | _generic(test)

    return watch


def measure(run: Run) -> Found:
    """Return how good the server's and the clients' models are at the end, what a round sends, and who has what.

    All clients count, and the last round, each client with its own test examples and after as many local steps as in a
    round.

    Returns:
        The numbers of `watching`; for "personal", "tuned" and those with "_masked" also the worst client ("_worst"),
        and the 10th and 90th percentile ("_low", "_high"); "personal_by_client" and "personal_masked_by_client", the
        accuracies of all clients, None for clients without a test example; "partition", training examples by client
        and class; "divergence", mean distance of a client's class distribution from that of all; "bytes_per_round",
        sent by and to all clients of a round; "dropped", rounds of which a client was left out.
    """
    data: Any = run.data
    found: Found = _generic(run.trained.test)
    locals_ = _all_clients(run.trainer, run.trained.state, data, run.group.settings)
    found |= _means(locals_)
    for name, values in _accuracies(locals_).items():
        summary = client_summary(values, locals_[1][1])
        found |= {f"{name}_worst": summary.worst, f"{name}_low": summary.low, f"{name}_high": summary.high}
        if name.startswith("personal"):
            found[f"{name}_by_client"] = [None if np.isnan(value) else round(float(value), 4) for value in values]
    counts = data.train.client_counts()
    found["partition"] = counts.tolist()
    found["divergence"] = float(np.mean(partition_statistics(counts).divergence))
    stream: Any = run.stream
    rounds = run.trainer.rounds
    assert isinstance(rounds, Rounds), "clients are trained in rounds"
    sent = sum(traffic(run.trained.state, rounds)) * stream.clients_per_round
    found["bytes_per_round"] = 0 if stream.together else sent
    found["dropped"] = int(np.sum(np.asarray(run.trained.state.clients.dropped)))
    return found


def _generic(test: Evaluation) -> dict[str, float]:
    accuracy = test.class_accuracy
    return {} if accuracy is None else {"balanced_accuracy": balanced_accuracy(accuracy)}


def _means(found: tuple[Local, Any]) -> dict[str, float]:
    """Return means over clients, and the drift from the server's parameters."""
    local, (server, sizes) = found
    numbers = {name: client_summary(values, sizes).mean for name, values in _accuracies(found).items()}
    for name, angles in (("existing", local.angles.existing), ("missing", local.angles.missing)):
        known = np.asarray(angles)[np.isfinite(angles)]
        numbers[f"angle_{name}"] = float(known.mean()) if known.size else float("nan")
    # A client whose steps were not finite does not count.
    drift = client_drift(local.params, server, np.where(local.finite, sizes, 0))
    return numbers | {"drift": float(drift.squared) ** 0.5}


def _accuracies(found: tuple[Local, Any]) -> dict[str, np.ndarray]:
    """Return accuracies of all clients, shape (C,), NaN for clients without a test example."""
    local = found[0]
    numbers = {}
    for name, one in zip(MOMENTS, (local.received, local.tuned), strict=True):
        numbers[name] = np.asarray(one.accuracy)
        numbers[f"{name}_masked"] = np.asarray(one.masked_accuracy)
    return numbers


def _all_clients(trainer: Trainer, state: TrainState, data: Data, settings: Comparison) -> tuple[Local, Any]:
    """Return what all clients' models give, with a leading axis for clients; and the server's parameters and sizes."""
    train, test = data.train, data.test
    assert isinstance(train, ClientArrays) and isinstance(test, ClientArrays), "spread over clients"  # noqa: PT018
    everyone = replace(clients_stream(settings, train), per_round=None, dropouts=0.0, stragglers=0.0, together=False)
    # The round that has just ended once more: the learning-rate schedule may end with it.
    state = state.replace(totals=None, step=jnp.maximum(state.step - 1, 0))
    plan = jax.tree.map(lambda part: part.reshape(train.num_clients, -1), everyone.plan(0, int(state.step)))
    own = [np.flatnonzero(test.clients == client) for client in range(test.num_clients)]
    most = max(1, max(map(len, own)))
    program = _program(trainer)
    found = []
    for client in range(train.num_clients):
        rows = gather(train, local_rows(plan, client))
        places = np.full(most, -1, np.int32)
        places[: len(own[client])] = own[client]
        found.append(program(state, np.int32(client), rows, gather(test, Plan(places))))
    # Models of all clients wait on the host.
    params = jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *[one.params for one in found]
    )
    local = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one._replace(params=None) for one in found])
    return local._replace(params=params), (jax.device_get(state.params), train.client_counts().sum(axis=1))


@functools.lru_cache(maxsize=1)  # all seeds of a group share a trainer
def _program(trainer: Trainer) -> Callable[..., Local]:
    """Compile what one client's models give: (server's state, client, training rows, test rows) -> `Local`."""
    rounds = trainer.rounds
    assert isinstance(rounds, Rounds), "clients are trained in rounds"
    halves = rounds.halves(trainer.model, trainer.optimizer, trainer.step_options)
    output_of = Evaluated(trainer.model, trainer.step_options)

    @jax.jit
    def run(state: TrainState, number: Int[Array, ""], rows: Batch, test: Batch) -> Local:
        received = client_state(state, number)
        ends, finite = halves.trained(state, number[None], cut(rows, 1, rounds.local_batch)._replace(client=None))
        tuned = jax.tree.map(lambda leaf: leaf[0], ends)
        tuned = tuned.replace(client=Client(received.client.number, received.client.counts))
        existing = received.client.counts > 0
        given = [answers(output_of(one, test).logits, test.labels, existing) for one in (received, tuned)]
        frame = output_of(tuned.replace(client=None), test).frame  # without lengths of the client's own
        return Local(given[0], given[1], group_angles(frame, existing), tuned.params, finite[0])

    return run
