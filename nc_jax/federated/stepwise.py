"""Rounds whose local steps the host starts one by one, for networks with convolutions on a CPU.

Inside a loop, XLA's CPU backend runs convolutions on one core and without its fast kernels. A local step of a ResNet-18
of width 1/8 takes 16 times as long inside as outside (batch 32, two cores, JAX 0.10.2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nc_jax.data import Batch
from nc_jax.federated.layout import cut
from nc_jax.federated.round import Round, Sums, Worst
from nc_jax.training import StepMetrics, TrainState


@dataclass(frozen=True, eq=False)
class Stepwise:
    """A round on one device, like `Rounds.make_step`, but to be called as it is: its parts are compiled.

    Attributes:
        round: the parts.
    """

    round: Round

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Train the clients one after another, and return the server's state after the round, with its metrics."""
        rounds = self.round.rounds
        rows = cut(batch, rounds.clients, rounds.local_batch)
        numbers, mask = np.asarray(rows.client)[:, 0, 0], np.asarray(rows.mask)
        took_part = mask.any(axis=(1, 2))
        sizes = np.where(took_part, np.asarray(state.clients.counts).sum(axis=1)[numbers], 0).astype(np.float32)
        shares = sizes / max(sizes.sum(), 1)
        sums, alive, kept = None, [], []
        for place, number in enumerate(numbers):
            own = jax.tree.map(lambda leaf, place=place: leaf[place], rows._replace(client=None))
            sums, one_alive, keeps = self.client(sums, state, number, own, shares[place])
            alive.append(one_alive)
            kept.append(keeps)
        alive, kept = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(alive, kept, strict=True))
        assert sums is not None, "a round has clients"
        return self._finish(state, *sums, alive, took_part & ~alive, numbers, kept)

    def client(
        self, sums: Any, state: TrainState, number: Any, rows: Batch, share: Any
    ) -> tuple[tuple[Sums, Worst], Array, dict[str, Any]]:
        """Train one client, and add what it sends.

        Args:
            sums: what other clients have sent; None: nothing.
            state: the server's state.
            number: number of the client.
            rows: its batches, with axes for steps and for examples. A client without examples sends nothing.
            share: its share of the examples of the round.

        Returns:
            The new sums, whether all its steps were finite, and what it keeps.
        """
        mask = np.asarray(rows.mask)
        steps = int(mask.any(axis=1).sum())
        client = self._begin(len(mask), state, np.int32(number))
        for step in range(steps):
            client, _ = self._step(client, jax.tree.map(lambda leaf, step=step: leaf[step], rows))
        return self._add(sums, state, client, np.bool_(steps > 0), np.float32(share))

    @cached_property
    def _begin(self) -> Any:
        return jax.jit(lambda length, state, number: self.round.begin(state, length, number), static_argnums=0)

    @cached_property
    def _step(self) -> Any:
        return jax.jit(self.round.step)

    @cached_property
    def _add(self) -> Any:
        def add(sums: Any, state: TrainState, ends: TrainState, took_part: Array, share: Array) -> Any:
            ends = jax.tree.map(lambda leaf: leaf[None], ends)
            alive = ends.totals.finite & took_part
            sums = self.round.added(sums, state, ends, alive, share[None])
            return sums, alive[0], jax.tree.map(lambda leaf: leaf[0], self.round.keepsakes(ends))

        return jax.jit(add)

    @cached_property
    def _finish(self) -> Any:
        return jax.jit(self.round.finished)
