"""Rounds of federated learning as steps of a trainer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax

from nc_jax import collective
from nc_jax.checks import check_at_least
from nc_jax.data import Batch, ClientArrays, ExampleSource
from nc_jax.federated.aggregate import Federation
from nc_jax.federated.clients import client_states
from nc_jax.federated.local import corrected
from nc_jax.federated.round import HEAD, Round
from nc_jax.federated.stepwise import Stepwise
from nc_jax.heads import Head
from nc_jax.streams import Clients, Stream
from nc_jax.training import Extension, StepMetrics, StepOptions, TrainState, make_train_step
from nc_jax.training.state import Model
from nc_jax.training.step import Step


@dataclass(frozen=True)
class Rounds:
    """Makes of a trainer one that trains in rounds: `Trainer(..., rounds=Rounds(...))`, with a stream of `Clients`.

    The optimiser of the trainer is then that of the clients. In every round a client begins with the server's model and
    a new state of its optimiser, whose learning-rate schedule goes on from round to round, and with a random key of its
    own. It makes its local steps, and its model counts in proportion to its number of training examples. A client of
    which a step was not finite is left out. If none is left, the round changes nothing and is reported as not finite.

    One client that has all the examples trains as without federation, bit for bit, if its optimiser has no other state
    than that of its schedule, or if it keeps that state. (With convolutions it does so up to rounding: XLA chooses
    their kernels by the program around them.)

    Attributes:
        federation: what clients keep, and how the server joins what they send.
        clients: number M of clients in a round, on all devices together (`Clients.clients_per_round`).
        local_batch: examples per local step of a client, B.
        keep_optimizer: clients keep the state of their optimiser.
        schedule_steps: number of steps by which the clients' learning-rate schedule moves on in a round; None: as many
            as the client with the most steps makes.
        at_once: number of clients that a device trains at the same time, as one batched program. The others wait, which
            saves memory. None: all that the device has; on a CPU one, which is faster there, and clients with few steps
            then take less time than others. Results are the same up to rounding.
        pool: head whose state the server updates after a round (`nc_jax.heads.Head.pool`); None: heads' states stay.

    Raises:
        ValueError: if a number is below 1, or clients do not share the head that the server pools.
    """

    federation: Federation = field(default_factory=Federation)
    clients: int = 1
    local_batch: int = 1
    keep_optimizer: bool = False
    schedule_steps: int | None = None
    at_once: int | None = None
    pool: Head | None = None

    def __post_init__(self):
        for name in ("clients", "local_batch"):
            check_at_least(name, getattr(self, name))
        for name in ("schedule_steps", "at_once"):
            check_at_least(name, getattr(self, name), optional=True)
        if self.pool is not None and (self.pool.pool is None or HEAD in self.federation.personal):
            kind = "one that clients keep" if HEAD in self.federation.personal else f"the head {self.pool.name!r}"
            raise ValueError(
                "the server pools a head that clients share and that has a pool, such as nc_jax.heads.pooled; "
                f"got {kind}"
            )

    def server(self) -> optax.GradientTransformation:
        """Return the server's optimiser, whose state is in the server's state; one without state for a mean."""
        return optax.identity() if self.federation.server is None else self.federation.server

    def begin(self, state: TrainState, source: ExampleSource, optimizer: optax.GradientTransformation) -> TrainState:
        """Return the server's initial state, with what its clients keep.

        Args:
            state: initial state of the model, with the state of the server's optimiser.
            source: the training examples, a `nc_jax.data.ClientArrays`.
            optimizer: optimiser of the clients.

        Raises:
            ValueError: if the examples do not belong to clients, or the model has no part that clients are to keep.
        """
        pooled = set() if self.pool is None else {self.pool.collection}
        for collection, parts in state.variables.items():
            alone = [name for name in parts if name not in self.federation.personal]
            if alone and collection not in {"batch_stats", "frame"} | pooled:
                raise ValueError(
                    "the server needs a way to join the states of heads that clients update (nc_jax.heads.pooled has "
                    f"one for nearest frames); got the collection {collection!r} of {alone[0]}"
                )
        states = client_states(
            state,
            source,
            personal=self.federation.personal,
            remembers=self.federation.remembers,
            controlled=self.federation.controlled,
            opt_state=self._local(optimizer).init(state.params) if self.keep_optimizer else None,
        )
        return state.replace(clients=states)

    def make_step(
        self,
        model: Model,
        optimizer: optax.GradientTransformation,
        *,
        axis_name: str | None = None,
        options: StepOptions = StepOptions(),
    ) -> Step:
        """Make the round (server's state, batch of all its clients) -> (server's state, metrics), a pure function.

        A batch has a row for each place of a plan of `nc_jax.streams.Clients`. Several devices have equally many of its
        clients. The metrics are means over the clients, weighted like their models; "grad_norm" is the norm of the
        difference between the server's parameters and the clients' mean.

        Args:
            model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`.
            optimizer: optimiser of the clients.
            axis_name: name of the mapped axis over which clients are split; None for one device.
            options: what a local step does besides gradient and optimiser.

        Raises:
            ValueError: if `options` ask for a moving average of the parameters, which rounds do not have, or have an
                extension whose state changes outputs; from the round, when it is traced, if the clients cannot be
                divided among the devices.
        """
        round_of = self.halves(model, optimizer, options)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            with collective.over(*([axis_name] if axis_name else [])):
                return round_of(state, batch)

        return step

    def make_pieces(self, model: Model, optimizer: optax.GradientTransformation, *, options: StepOptions) -> Step:
        """Make the round for one device as a function of the host, which starts the local steps of clients one by one.

        It is faster than that of `make_step` where loops are slow. The arguments are those of `make_step`.
        """
        return Stepwise(self.halves(model, optimizer, options))

    def halves(self, model: Model, optimizer: optax.GradientTransformation, options: StepOptions) -> "Round":
        """Return the parts of a round, for one device. The arguments are those of `make_step`."""
        if options.average_decay is not None:
            raise ValueError(f"rounds keep no moving average of parameters; got average_decay={options.average_decay}")
        for one in options.extensions:
            # The states of extensions belong to clients, so the server's model would be another one than theirs.
            if type(one).init is not Extension.init and type(one).on_output is not Extension.on_output:
                raise ValueError(
                    f"outputs in rounds must not depend on the state of an extension; got that of {one.name}"
                )
        optimizer = self._local(optimizer)
        return Round(self, optimizer, make_train_step(model, optimizer, options=options))

    def head_state(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state of the pooled head among a model's variables; None without such a head."""
        return None if self.pool is None else variables[self.pool.collection][HEAD]

    def check(self, devices: int) -> None:
        """Raise a ValueError unless the clients of a round can be divided equally among the devices."""
        if self.clients % devices:
            raise ValueError(f"the clients of a round must be a multiple of the {devices} devices; got {self.clients}")

    def check_stream(self, stream: Stream, source: ExampleSource) -> None:
        """Raise a ValueError unless a stream of clients has these rounds, of the clients to which the examples belong.

        Args:
            stream: which clients make which steps.
            source: the training examples.
        """
        if stream.plan(0, 0).client is None:
            raise ValueError(f"rounds need a stream of clients (nc_jax.streams.Clients); got {type(stream).__name__}")
        if not isinstance(stream, Clients):
            return  # it must know by itself which rounds it has
        if (stream.clients_per_round, stream.local_batch) != (self.clients, self.local_batch):
            raise ValueError(
                "rounds must have the clients and the local batch of their stream, "
                f"{stream.clients_per_round} and {stream.local_batch}; got {self.clients} and {self.local_batch}"
            )
        owners = source.clients if isinstance(source, ClientArrays) else None
        if owners is not None and not np.array_equal(owners, stream.source.clients):
            raise ValueError(
                "a stream of clients must be that of the training examples; got one in which other examples belong to "
                "the clients"
            )

    def _local(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return corrected(optimizer) if self.federation.controlled else optimizer
