"""Federated training on several machines with Flower: the rounds of a simulation, with a process for each client.

Flower carries the messages, and starts the processes; see `docs/federated_machines.md`. What a client computes and what
the server makes of it are those of a simulation (`nc_jax.federated.Rounds`).

Reference: Beutel et al., Flower: a friendly federated learning research framework (2020).
"""

import logging
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from nc_jax.extras import require
from nc_jax.federated.exchange import METRICS, Answer, Exchange, Named, participants
from nc_jax.streams import Clients
from nc_jax.training import NonFiniteError, StepMetrics, Trainer, TrainState

LOG = logging.getLogger("flwr")  # the lines then stand among those of Flower
KEPT = "nc_jax"  # name under which Flower keeps what a client does not send
PATIENCE = 3600.0  # seconds; Flower's own default of a strategy
POLL = 1.0  # seconds between two looks at which machines are there


class Problem(NamedTuple):
    """What a machine trains.

    Attributes:
        trainer: trains in rounds (`Trainer(..., rounds=...)`), on one device. Equal on all machines.
        stream: the rounds. Its source has the examples of this machine's client; those of others are never read, so
            `nc_jax.federated.alone` makes one.
        seed: random seed of the run, equal on all machines.
    """

    trainer: Trainer
    stream: Clients
    seed: int


def client_app(problem: Callable[[int], Problem]) -> Any:
    """Make the Flower app of the clients. Parts of the model that clients keep stay on their machines.

    A machine is told the number of its client when it is started (`--node-config client=3`). In Flower's own simulation
    it is the number of the partition.

    Args:
        problem: function of the number of a client -> what the machine of this client trains. In a process that serves
            several clients, return the same trainer for all of them, so that it compiles once.

    Returns:
        A `flwr.clientapp.ClientApp`.

    Raises:
        MissingExtraError: if Flower is not installed.
    """
    flwr = _flower()
    app = flwr.clientapp.ClientApp()

    @app.train()
    def train(message: Any, context: Any) -> Any:
        client = _client_of(context.node_config)
        order = message.content["round"]
        number, chosen = int(order["number"]), list(order["clients"])
        metrics: dict[str, Any] = {"client": client}
        records = flwr.app.RecordDict()
        if client in chosen:
            made, exchange, begin = _machine(problem, client)
            kept = _arrays(context.state[KEPT]) if KEPT in context.state else {}
            offer = _arrays(message.content["arrays"])
            answer, kept = exchange.answer(begin, offer, made.stream, made.seed, number, client, kept)
            context.state[KEPT] = _record(kept)
            records["arrays"] = _record(answer.arrays)
            metrics |= {"examples": answer.examples} | answer.metrics
        records["answer"] = flwr.app.MetricRecord(metrics)
        return flwr.app.Message(records, reply_to=message)

    return app


def server_app(
    problem: Callable[[int], Problem],
    *,
    on_round: Callable[[int, TrainState, StepMetrics], None],
    patience: float = PATIENCE,
) -> Any:
    """Make the Flower app of the server.

    It waits until there is a machine for every client, and then runs all rounds. A client is left out of a round, with
    a message in the log, if it does not answer in time, if its answer is an error, if arrays are missing, have other
    shapes or are not finite, or if it says that it has another number of examples. If all clients of a round are left
    out, the run ends with an error.

    Args:
        problem: function that returns, for the number -1, what the server trains: a problem whose source need not hold
            examples of any client.
        on_round: called as on_round(number of rounds done, state of the server, metrics of the round) after every
            round, to evaluate or to save.
        patience: seconds to wait for machines before the first round, and for answers in every round.

    Returns:
        A `flwr.serverapp.ServerApp`.

    Raises:
        MissingExtraError: if Flower is not installed.
        ValueError: if `patience` is not positive.
    """
    if not patience > 0:
        raise ValueError(f"patience must be positive; got {patience}")
    app = _flower().serverapp.ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        del context
        made, exchange, state = _machine(problem, -1)
        stream = made.stream
        _await(grid, stream.source.num_clients, patience)
        clients: dict[int, int] = {}
        for number in range(stream.rounds):
            chosen = participants(stream, made.seed, number)
            answers = _answers(grid, exchange, state, number, chosen, clients, patience)
            state, metrics = exchange.join(state, chosen, answers)
            if not metrics.finite:
                raise NonFiniteError(
                    f"the server's model must be finite; got a NaN or an infinity in round {number + 1}"
                )
            LOG.info(
                "round %d of %d: %d of %d clients, loss %.4g",
                number + 1,
                stream.rounds,
                len(answers),
                len(chosen),
                float(metrics.loss),
            )
            on_round(number + 1, state, metrics)

    return app


def _answers(
    grid: Any,
    exchange: Exchange,
    state: TrainState,
    number: int,
    chosen: list[int],
    clients: dict[int, int],
    patience: float,
) -> list[Answer]:
    """Send the server's model, and return the answers that can be used, in the order of the clients' numbers.

    Args:
        grid: Flower's connection to the machines.
        exchange: what the arrays mean.
        state: the server's state.
        number: number of the round, from 0.
        chosen: numbers of the clients of the round.
        clients: number of the client of each machine, as far as it is known; is completed.
        patience: seconds to wait.
    """
    flwr = _flower()
    order = flwr.app.ConfigRecord({"number": number, "clients": chosen})
    content = flwr.app.RecordDict({"arrays": _record(exchange.offer(state)), "round": order})
    # A machine whose client is not known yet is asked, too: it trains only if its client was chosen.
    machines = [machine for machine in grid.get_node_ids() if clients.get(machine, chosen[0]) in chosen]
    orders = [flwr.app.Message(content, machine, "train", group_id=str(number + 1)) for machine in machines]
    found: dict[int, Answer] = {}
    for reply in grid.send_and_receive(orders, timeout=patience):
        machine = reply.metadata.src_node_id
        try:
            answer = _answer(reply)
            clients[machine] = answer.client
            if answer.client in found:
                raise ValueError(f"client {answer.client} must have one machine; got a second one")
            if answer.client in chosen:
                exchange.check(state, answer)
                found[answer.client] = answer
        except Exception as error:  # whatever a machine sends must not end the run of the others
            LOG.warning("round %d: the answer of machine %d cannot be used: %s", number + 1, machine, error)
    for client in sorted(set(chosen) - set(found)):
        LOG.warning("round %d: client %d is left out: no answer that can be used has come", number + 1, client)
    return [found[client] for client in sorted(found)]


def _answer(reply: Any) -> Answer:
    """Return what a machine has sent; one whose client was not chosen sends no arrays.

    Raises:
        RuntimeError: if the machine reports an error.
    """
    if reply.has_error():
        raise RuntimeError(f"its client has failed: {reply.error.reason}")
    record = dict(reply.content["answer"])
    arrays = _arrays(reply.content["arrays"]) if "arrays" in reply.content else {}
    metrics = {name: float(record[name]) for name in METRICS if name in record}
    return Answer(int(record["client"]), int(record.get("examples", 0)), arrays, metrics)


def _await(grid: Any, number: int, patience: float) -> None:
    """Wait until there are so many machines, but not for ever."""
    end = time.monotonic() + patience
    while len(list(grid.get_node_ids())) < number and time.monotonic() < end:
        time.sleep(min(POLL, patience))


def _client_of(node_config: Any) -> int:
    """Return the number of a machine's client."""
    for name in ("client", "partition-id"):
        if name in node_config:
            return int(node_config[name])
    raise ValueError(f"a machine must be told its client (--node-config client=0); got {dict(node_config)}")


@cache
def _exchange(trainer: Trainer) -> Exchange:
    """Return the exchange of a trainer. A process compiles it once."""
    return Exchange(trainer)


@lru_cache(maxsize=64)  # a machine has one client; only a process of Flower's simulation has more
def _machine(problem: Callable[[int], Problem], client: int) -> tuple[Problem, Exchange, TrainState]:
    """Return what a machine trains, how, and with which state it begins."""
    made = problem(client)
    exchange = _exchange(made.trainer)
    return made, exchange, exchange.begin(made.stream.source, made.seed)


def _record(arrays: Named) -> Any:
    """Return named arrays as Flower sends them."""
    flwr = _flower()
    return flwr.app.ArrayRecord({name: flwr.app.Array(np.asarray(array)) for name, array in arrays.items()})


def _arrays(record: Any) -> Named:
    """Return the named arrays that Flower has sent."""
    return {name: array.numpy() for name, array in record.items()}


def _flower() -> Any:
    """Return the module of Flower; only here it is imported."""
    require("flwr", "flower", "training on several machines")
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp

    return flwr
