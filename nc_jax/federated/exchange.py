"""A round in two halves, for clients on machines of their own: named arrays go from the server to clients, and back.

`Rounds.make_step` runs both halves in one program, for simulations. Here the same functions run apart. Whatever carries
the arrays may stand in between, such as `nc_jax.federated.flower`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nc_jax.data import Batch, LabelledArrays
from nc_jax.data.clients import ClientArrays
from nc_jax.federated.aggregate import sent, shared_parts
from nc_jax.federated.layout import cut
from nc_jax.federated.round import Round, Sums, Worst
from nc_jax.federated.rounds import Rounds
from nc_jax.federated.stepwise import Stepwise
from nc_jax.streams import Clients, read
from nc_jax.training import NonFiniteError, StepMetrics, Trainer, TrainState
from nc_jax.training.checkpoint import leaves_by_name
from nc_jax.training.resident import slow_in_loops

Named = dict[str, np.ndarray]
METRICS: tuple[str, ...] = ("loss", "accuracy", "solve_status", "solve_grad_norm", "without_class")


class Answer(NamedTuple):
    """What a client sends at the end of a round.

    Attributes:
        client: number of the client.
        examples: number of its training examples.
        arrays: its parameters and batch statistics, without the parts that it keeps for itself; the changes of the sums
            of a pooled head, and of its control variates; all by name.
        metrics: means of loss and accuracy over its steps, the worst ends of its inner problems, and how many labels
            were no class, by the names in `METRICS`.
    """

    client: int
    examples: int
    arrays: Named
    metrics: dict[str, float]


class NoAnswerError(RuntimeError):
    """No client of a round sent an answer that the server can use. The server's state is as before."""


def alone(arrays: LabelledArrays, client: int, sizes: Sequence[int]) -> ClientArrays:
    """Return the examples of one client as part of a federation of which this machine has nothing else.

    The stream of rounds must know how many examples each client has, but a machine reads only those of its own client.
    The others are zeros here. (Linux gives no memory to zeros that are never written.)

    Args:
        arrays: the examples of the client. For the server, which trains on none, any examples of the same shape.
        client: number of the client, in 0..C-1; -1 for the server.
        sizes: number of training examples of each client, shape (C,).

    Raises:
        ValueError: if there is no such client, or it has another number of examples.

    Example:
        >>> alone(LabelledArrays(np.ones((2, 3)), np.array([1, 0]), num_classes=2), 1, [4, 2]).client_counts()
        array([[4, 0],
               [1, 1]])
    """
    if not -1 <= client < len(sizes):
        raise ValueError(f"clients have numbers in 0..{len(sizes) - 1}; got {client}")
    owners = np.repeat(np.arange(len(sizes)), sizes)
    inputs = np.zeros((len(owners), *arrays.inputs.shape[1:]), arrays.inputs.dtype)
    labels = np.zeros(len(owners), np.int32)
    if client >= 0:
        if len(arrays) != sizes[client]:
            raise ValueError(f"client {client} must have its {sizes[client]} training examples; got {len(arrays)}")
        own = owners == client
        inputs[own], labels[own] = arrays.inputs, arrays.labels
    made = LabelledArrays(inputs, labels, arrays.num_classes, arrays.class_names)
    return ClientArrays.of(made, owners, len(sizes))


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError unless named arrays have the names, shapes and dtypes of others, and are finite.

    Args:
        arrays: what has come.
        expected: arrays as they should be, whatever their values.
    """
    missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    if missing or unknown:
        raise ValueError(f"arrays must be those of the model; got {f'no {missing[0]}' if missing else unknown[0]}")
    for name, array in arrays.items():
        wanted = expected[name]
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(
                f"{name} must be {wanted.dtype} of shape {wanted.shape}, as the model has it; "
                f"got {array.dtype} of shape {array.shape}"
            )
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{name} must be finite; got a NaN or an infinity")


def participants(stream: Clients, seed: int, number: int) -> list[int]:
    """Return the numbers of the clients that train in a round, ascending.

    Args:
        stream: the rounds.
        seed: random seed of the stream.
        number: number of the round, from 0.
    """
    plan = stream.plan(seed, number)
    places = plan.index.reshape(stream.clients_per_round, -1)
    return np.asarray(plan.client).reshape(places.shape)[(places >= 0).any(axis=1), 0].tolist()


@dataclass(frozen=True, eq=False)
class Exchange:
    """The two halves of the rounds of a trainer: `offer` and `join` for the server, `answer` for clients.

    Attributes:
        trainer: trains in rounds. Clients and server need equal ones. Each uses one device.

    Raises:
        ValueError: if the trainer does not train in rounds.
    """

    trainer: Trainer

    def __post_init__(self):
        if not isinstance(self.trainer.rounds, Rounds):
            raise ValueError(f"the trainer must train in rounds (rounds=Rounds(...)); got rounds={self.trainer.rounds}")

    def begin(self, source: ClientArrays, seed: int) -> TrainState:
        """Return the state before the first round, with which the server and all clients begin.

        Args:
            source: the training examples. A client needs its own only, and the server none: see `alone`.
            seed: random seed of the run.
        """
        return jax.tree.map(jnp.asarray, jax.device_get(self.trainer.init(source, seed)))

    def offer(self, state: TrainState) -> Named:
        """Return what the server sends: what it shares of its model, by name. Answers have the same names."""
        return _named(self._shared(state))

    def answer(
        self, begin: TrainState, offer: Named, stream: Clients, seed: int, number: int, client: int, kept: Named
    ) -> tuple[Answer, Named]:
        """Train one client for a round.

        Args:
            begin: the state of `begin`.
            offer: what the server has sent.
            stream: the rounds, with the examples of this client.
            seed: random seed of the stream.
            number: number of the round, from 0.
            client: number of the client, which takes part in the round.
            kept: what the client has kept from its last round; empty before the first.

        Returns:
            What the client sends, and what it keeps for its next round.

        Raises:
            ValueError: if the server's arrays do not fit the client's model.
            NonFiniteError: if a local step was not finite.
        """
        state = self._received(begin, offer, number, client, kept)
        place = np.asarray(stream.plan(seed, number).client).reshape(stream.clients_per_round, -1)[:, 0] == client
        batch = next(
            read(
                stream.source,
                stream,
                seed=seed,
                start_step=number,
                num_steps=1,
                process_index=int(np.argmax(place)),
                process_count=stream.clients_per_round,
                prefetch=0,
            )
        )
        sums, worst, alive, keeps = jax.device_get(self._train(state, batch, np.int32(client)))
        if not alive:
            raise NonFiniteError(f"every local step must be finite; got a NaN or an infinity at client {client}")
        loss, accuracy = sums.numbers
        values = (loss, accuracy, worst.status, worst.grad_norm, worst.without_class)
        examples = int(state.clients.counts[client].sum())
        arrays = _named(_without(sums, self._rounds))
        metrics = dict(zip(METRICS, map(float, values), strict=True))
        return Answer(client, examples, arrays, metrics), _named(keeps)

    def check(self, state: TrainState, answer: Answer) -> None:
        """Raise a ValueError if the server cannot use an answer.

        It cannot if the client has another number of examples than the server knows of, or if arrays are missing, have
        other shapes or types, or are not finite.
        """
        size = int(state.clients.counts[answer.client].sum())
        if answer.examples != size:
            raise ValueError(f"client {answer.client} must have {size} training examples; got {answer.examples}")
        if set(answer.metrics) != set(METRICS) or not np.isfinite(list(answer.metrics.values())).all():
            raise ValueError(f"metrics must be finite numbers for {', '.join(METRICS)}; got {answer.metrics}")
        check_arrays(answer.arrays, self.offer(state))

    def join(
        self, state: TrainState, chosen: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[TrainState, StepMetrics]:
        """Return the server's state after a round, and the metrics of the round as `Rounds.make_step` has them.

        Args:
            state: the server's state.
            chosen: numbers of the clients of the round, of which those without an answer are left out.
            answers: one for each client that the server can use.

        Raises:
            NoAnswerError: if there is no answer.
        """
        if not answers:
            raise NoAnswerError(f"a round needs an answer from one of its clients at least; got none of {list(chosen)}")
        rounds, states = self._rounds, state.clients
        whole = sum(answer.examples for answer in answers)
        shares = [answer.examples / whole for answer in answers]
        total = {
            name: _weighted([answer.arrays[name] for answer in answers], shares if name.startswith("model/") else None)
            for name in answers[0].arrays
        }
        numbers = {
            name: sum(share * answer.metrics[name] for share, answer in zip(shares, answers, strict=True))
            for name in ("loss", "accuracy")
        }
        shared = self._shared(state)
        shared = _unnamed(total, shared)
        sums = Sums(
            share=jnp.ones(()),
            models=_merged(sent(state), shared["model"]),
            numbers=(jnp.float32(numbers["loss"]), jnp.float32(numbers["accuracy"])),
            head=shared["head"],
            control=shared["control"],
        )
        worst = Worst(
            jnp.int32(max(answer.metrics["solve_status"] for answer in answers)),
            jnp.float32(max(answer.metrics["solve_grad_norm"] for answer in answers)),
            jnp.int32(sum(answer.metrics["without_class"] for answer in answers)),
        )
        # A place for every client that a round may have; numbers that are out of range are no client's.
        places = np.full(rounds.clients, len(states.counts), np.int32)
        places[: len(chosen)] = chosen
        alive = np.isin(places, [answer.client for answer in answers])
        failed = ~alive & (places < len(states.counts))
        return self._finish(state, sums, worst, alive, failed, places)

    @property
    def _rounds(self) -> Rounds:
        assert isinstance(self.trainer.rounds, Rounds), "checked at the beginning"
        return self.trainer.rounds

    @cached_property
    def _round(self) -> Round:
        trainer = self.trainer
        return self._rounds.halves(trainer.model, trainer.optimizer, trainer.step_options)

    @cached_property
    def _train(self) -> Any:
        """The local steps of one client: (state, batch, number) -> (sums, worst, alive, what it keeps)."""

        @jax.jit
        def train(state: TrainState, batch: Batch, number: Array) -> tuple[Sums, Worst, Array, Any]:
            ends, alive = self._round.trained(state, number[None], self._rows(batch))
            sums, worst = self._round.added(None, state, ends, alive, jnp.ones(1))
            kept = jax.tree.map(lambda leaf: leaf[0], self._round.keepsakes(ends))
            return sums, worst, alive[0], kept

        def in_pieces(state: TrainState, batch: Batch, number: Any) -> tuple[Sums, Worst, Array, Any]:
            own = jax.tree.map(lambda leaf: leaf[0], self._rows(batch))
            (sums, worst), alive, kept = self._pieces.client(None, state, number, own, 1.0)
            return sums, worst, alive, kept

        faster: list[Any] = []  # decided at the first call

        def run(*arguments: Any) -> tuple[Sums, Worst, Array, Any]:
            if not faster:
                faster.append(in_pieces if slow_in_loops(None, train, *arguments) else train)
            return faster[0](*arguments)

        return run

    @cached_property
    def _pieces(self) -> Stepwise:
        return Stepwise(self._round)

    def _rows(self, batch: Batch) -> Batch:
        """Return the batch of one client with axes for clients, steps and examples."""
        return cut(batch, 1, self._rounds.local_batch)._replace(client=None)

    @cached_property
    def _finish(self) -> Any:
        """The server's half: (state, sums, worst, alive, failed, numbers) -> (state, metrics)."""

        def finish(
            state: TrainState, sums: Sums, worst: Worst, alive: Array, failed: Array, numbers: Array
        ) -> tuple[TrainState, StepMetrics]:
            # What clients keep is on their machines.
            bare = state.replace(clients=state.clients._replace(kept={}))
            new, metrics = self._round.finished(bare, sums, worst, alive, failed, numbers, {})
            return new.replace(clients=new.clients._replace(kept=state.clients.kept)), metrics

        return jax.jit(finish)

    def _shared(self, state: TrainState) -> dict[str, Any]:
        """Return what goes over the network, as a tree."""
        rounds = self._rounds
        return {
            "model": shared_parts(sent(state), rounds.federation.personal),
            "head": rounds.head_state(state.variables),
            "control": state.clients.control,
        }

    def _received(self, begin: TrainState, offer: Named, number: int, client: int, kept: Named) -> TrainState:
        """Return the server's state as a client knows it: with what was sent, and what the client has kept."""
        rounds, shared = self._rounds, self._shared(begin)
        check_arrays(offer, self.offer(begin))
        shared = _unnamed(offer, shared)
        model = _merged(sent(begin), shared["model"])
        variables = {**begin.variables, **{name: part for name, part in model.items() if name != "params"}}
        if rounds.pool is not None:
            collection = rounds.pool.collection
            variables[collection] = {**variables[collection], "head": shared["head"]}
        states = begin.clients._replace(control=shared["control"])
        if kept:
            own = _unnamed(kept, states.kept)
            states = states._replace(kept=jax.tree.map(lambda leaf, new: leaf.at[client].set(new), states.kept, own))
        return begin.replace(
            step=jnp.asarray(number, jnp.int32), params=model["params"], variables=variables, clients=states
        )


def _named(tree: Any) -> Named:
    """Return the arrays of a tree by name, numbers of 16 bits as 32 bits: NumPy's files do not know bfloat16."""
    arrays = leaves_by_name(jax.device_get(tree))
    narrow = {name for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    return {
        name: array.astype(np.float32) if name in narrow and array.dtype.itemsize < 4 else np.asarray(array)
        for name, array in arrays.items()
    }


def _unnamed(arrays: Named, like: Any) -> Any:
    """Return a tree of named arrays with the structure and the dtypes of another tree."""
    leaves = [arrays[name].astype(leaf.dtype) for name, leaf in leaves_by_name(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _weighted(arrays: Sequence[np.ndarray], shares: Sequence[float] | None) -> np.ndarray:
    """Return the weighted sum of arrays; without weights, their sum."""
    dtype = arrays[0].dtype
    if shares is None:
        return np.asarray(np.sum(arrays, axis=0), dtype)
    # In double precision the sum does not depend on the order in which answers arrive, up to the last rounding.
    found = np.zeros(arrays[0].shape, np.float64)
    for array, share in zip(arrays, shares, strict=True):
        found += share * array.astype(np.float64)
    return found.astype(dtype)


def _without(sums: Sums, rounds: Rounds) -> dict[str, Any]:
    """Return what of a client's sums goes over the network."""
    model = shared_parts(sums.models, rounds.federation.personal)
    return {"model": model, "head": sums.head, "control": sums.control}


def _merged(model: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Return a model with other shared parts."""
    return {collection: {**parts, **shared[collection]} for collection, parts in model.items()}
