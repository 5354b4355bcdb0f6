"""Rounds of federated learning: which clients take part, and which of their examples they visit in which order."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from nc_jax.checks import check_at_least
from nc_jax.data.clients import ClientArrays
from nc_jax.data.draws import draws_for, uniform
from nc_jax.streams.epochs import epoch_indices, steps_per_epoch
from nc_jax.streams.stream import Plan

# The high half of the random key tells the purpose of the numbers; the orders of epochs use the small ones.
_CHOICE, _FAILURES = 1 << 59, (1 << 59) + (1 << 58)
_ORDERS = 1 << 32  # epochs of the first client come before this number, then those of the second


@dataclass(frozen=True, eq=False)
class Clients:
    """Rounds, in each of which some clients make some steps on their own examples. A step of this stream is a round.

    A row of a plan holds S local steps of B places for each of the M clients of a round: client after client, step
    after step. A client has its examples in a random order, then in another one, and so on; the last batch of a pass is
    filled up with padding. A client that makes fewer than S steps has padding in the others. Client 0 alone visits its
    examples in the order of `Epochs`.

    A client that drops out has padding only, and so nothing to send. If all clients of a round would drop out, one of
    them does not. A straggler makes the first of its steps only, a number of them that is uniform in 1 to all but one.

    Attributes:
        source: N examples of C clients.
        local_batch: examples per local step of a client, B.
        rounds: number of rounds.
        per_round: number M of clients in a round, drawn at random without replacement; None: all C.
        local_epochs: passes of a client over its examples in a round.
        local_steps: local steps of each client in a round, in place of passes; None: passes.
        dropouts: probability in [0, 1) that a client of a round drops out.
        stragglers: probability in [0, 1] that a client of a round is a straggler.
        together: one client, number 0, has the examples of all clients, and visits as many of them in a round as all
            clients of a round would: training in one place.

    Raises:
        ValueError: if a number is out of its range, or a client has no example.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.zeros((5, 2)), np.zeros(5, int), num_classes=1)
        >>> arrays = ClientArrays.of(arrays, np.array([0, 0, 0, 1, 1]), 2)
        >>> stream = Clients(arrays, local_batch=2, rounds=3)
        >>> stream.ends, stream.steps, stream.plan(0, 0).client.tolist()
        (range(1, 4), 2, [[0, 0, 0, 0, 1, 1, 1, 1]])

    Reference: McMahan et al., Communication-efficient learning of deep networks from decentralized data (2017),
    algorithm 1; for stragglers, Li et al., Federated optimization in heterogeneous networks (2020), section 5.2.
    """

    source: ClientArrays
    local_batch: int
    rounds: int
    per_round: int | None = None
    local_epochs: int = 1
    local_steps: int | None = None
    dropouts: float = 0.0
    stragglers: float = 0.0
    together: bool = False
    _members: tuple[np.ndarray, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self):
        for name in ("local_batch", "rounds", "local_epochs"):
            check_at_least(name, getattr(self, name))
        check_at_least("local_steps", self.local_steps, optional=True)
        number = self.source.num_clients
        check_at_least("per_round", self.per_round, optional=True)
        if self.per_round is not None and not 1 <= self.per_round <= number:
            raise ValueError(f"per_round must lie in 1..{number}, the number of clients; got {self.per_round}")
        if not 0 <= self.dropouts < 1 or not 0 <= self.stragglers <= 1:
            raise ValueError(
                "dropouts must lie in [0, 1) and stragglers in [0, 1]; "
                f"got dropouts={self.dropouts}, stragglers={self.stragglers}"
            )
        owners = np.asarray(self.source.clients)
        members = np.split(np.argsort(owners, kind="stable"), np.searchsorted(np.sort(owners), np.arange(number)))[1:]
        empty = [client for client, own in enumerate(members) if not len(own)]
        if empty:
            raise ValueError(f"every client needs an example; client {empty[0]} of 0..{number - 1} has none")
        object.__setattr__(self, "_members", tuple(members))

    @property
    def clients_per_round(self) -> int:
        """Number of clients that a row of a plan has, M."""
        return 1 if self.together else self._chosen

    @cached_property
    def steps(self) -> int:
        """Largest number of local steps of a client in a round, S."""
        if not self.together:
            return max(self._steps_of(len(own)) for own in self._members)
        if self.local_steps is not None:
            return self.local_steps * self._chosen
        # Passes over all examples, of which the clients of a round have a share.
        total = sum(map(len, self._members))
        share = self._chosen / self.source.num_clients
        return max(round(self.local_epochs * steps_per_epoch(total, self.local_batch) * share), 1)

    @property
    def batch_size(self) -> int:
        """Places in a round, padding included."""
        return self.clients_per_round * self.steps * self.local_batch

    @property
    def ends(self) -> range:
        """Step numbers at which rounds end: every step is a round."""
        return range(1, self.rounds + 1)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches besides the source and the seed: see `nc_jax.training.fingerprint`."""
        names = ("local_batch", "per_round", "local_epochs", "local_steps", "dropouts", "stragglers", "together")
        return {name: getattr(self, name) for name in names}

    def plan(self, seed: int, segment: int) -> Plan:
        """Return the examples of a round; `segment` is its number, from 0."""
        places = np.full((self.clients_per_round, self.steps, self.local_batch), -1, np.int32)
        if self.together:
            chosen = np.zeros(1, np.int32)
            places[0] = self._rows(seed, segment, 0, np.sort(np.concatenate(self._members)), self.steps)
        else:
            chosen = self._choice(seed, segment)
            steps = self._made(seed, segment, chosen).tolist()
            for place, client in enumerate(chosen.tolist()):
                if steps[place]:
                    found = self._rows(seed, segment, client, self._members[client], steps[place])
                    places[place, : steps[place]] = found
        client = np.broadcast_to(chosen[:, None, None], places.shape)
        return Plan(places.reshape(1, -1), client=client.reshape(1, -1).astype(np.int32))

    @property
    def _chosen(self) -> int:
        return self.source.num_clients if self.per_round is None else self.per_round

    def _steps_of(self, examples: int) -> int:
        """Return the number of steps of a client with so many examples."""
        if self.local_steps is not None:
            return self.local_steps
        return self.local_epochs * steps_per_epoch(examples, self.local_batch)

    def _choice(self, seed: int, segment: int) -> Int[np.ndarray, " chosen"]:
        """Return the clients of a round, ascending."""
        number = self.source.num_clients
        if self.per_round is None:
            return np.arange(number, dtype=np.int32)
        drawn = draws_for(seed, _CHOICE + segment).random_raw(number)
        return np.sort(np.argsort(drawn, kind="stable")[: self.per_round]).astype(np.int32)

    def _made(self, seed: int, segment: int, chosen: np.ndarray) -> Int[np.ndarray, " chosen"]:
        """Return how many steps each client of a round makes."""
        steps = np.array([self._steps_of(len(self._members[client])) for client in chosen])
        raw = draws_for(seed, _FAILURES + segment).random_raw(3 * len(chosen))
        drops, lags, parts = uniform(raw).reshape(3, -1)
        late = (lags < self.stragglers) & (steps > 1)
        steps = np.where(late, 1 + (parts * (steps - 1)).astype(int), steps)
        absent: Bool[np.ndarray, " chosen"] = drops < self.dropouts
        absent[np.argmax(drops)] = False
        return np.where(absent, 0, steps)

    def _rows(self, seed: int, segment: int, client: int, members: np.ndarray, steps: int) -> np.ndarray:
        """Return the examples of a client's first steps in a round, shape (steps, B); -1 for padding."""
        labels = np.zeros(len(members), np.int32)
        each = steps_per_epoch(len(members), self.local_batch)
        # Numbered such that passes of different rounds are different ones.
        per_round = -(-self._steps_of(len(members)) // each) if not self.together else -(-self.steps // each)
        passes = []
        for number in range(-(-steps // each)):
            epoch = client * _ORDERS + segment * per_round + number
            passes.append(epoch_indices(labels, self.local_batch, seed=seed, epoch=epoch))
        order = np.concatenate(passes)[:steps]
        return np.where(order >= 0, members[order], -1)
