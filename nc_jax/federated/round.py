"""The parts of a round: clients train with the one training step, and the server joins what they send."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from nc_jax import collective
from nc_jax.arrays import at_least_float32
from nc_jax.collective import all_rows, all_sum, own
from nc_jax.data import Batch
from nc_jax.data.batch import rows_with
from nc_jax.federated.aggregate import sent, updated
from nc_jax.federated.clients import PREVIOUS, ClientStates, below, chosen, joined
from nc_jax.federated.layout import cut, filled, for_one, key_of
from nc_jax.federated.local import continued, scheduled
from nc_jax.solvers import Status
from nc_jax.training import EpochTotals, StepMetrics, TrainState
from nc_jax.training.extension import Client
from nc_jax.training.step import Step

HEAD = "head"  # name of the head among the parts of a model


class Sums(NamedTuple):
    """Sums over clients.

    Attributes:
        share: of the clients' shares of all examples.
        models: of parameters and batch statistics, times the shares.
        numbers: of mean loss and mean accuracy, times the shares.
        head: of the changes of the pooled head's state; None without such a head.
        control: of the changes of control variates; None without any.
    """

    share: Float[Array, ""]
    models: Any
    numbers: tuple[Array, Array]
    head: Any
    control: Any


class Worst(NamedTuple):
    """The worst of what steps report, and a count."""

    status: Int[Array, ""]
    grad_norm: Float[Array, ""]
    without_class: Int[Array, ""]


@dataclass(frozen=True)
class Round:
    """The round as a function of the server's state and the batch of all clients."""

    rounds: Any  # a `nc_jax.federated.Rounds`, which imports this module
    optimizer: optax.GradientTransformation
    step: Step

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Train the clients, and return the server's state after the round, with its metrics."""
        rounds, states = self.rounds, state.clients
        device, devices = collective.device()
        rounds.check(devices)
        here = rounds.clients // devices
        rows = cut(batch, here, rounds.local_batch)
        on_cpu = jax.default_backend() == "cpu"
        at_once = min(rounds.at_once or (1 if on_cpu else here), here)
        numbers, rows = (filled(part, -here % at_once) for part in (rows.client[:, 0, 0], rows))
        places = device * len(numbers) + jnp.arange(len(numbers))
        # A client of the filling has no number.
        numbers = jnp.where(jnp.arange(len(numbers)) < here, numbers, len(states.counts))
        rows = rows._replace(client=None)
        sizes = jnp.sum(states.counts, axis=1)[jnp.minimum(numbers, len(states.counts) - 1)]
        took_part = jnp.any(rows.mask, axis=(1, 2))
        sizes = jnp.where(took_part, sizes, 0).astype(jnp.float32)
        shares = sizes / jnp.maximum(all_sum(jnp.sum(sizes)), 1)

        def train(sums: Any, chunk: Any) -> tuple[Any, Any]:
            ends, alive = self.trained(state, chunk[0], chunk[1])
            return own(self.added(sums, state, ends, alive, chunk[2])), (alive, self.keepsakes(ends))

        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, at_once, *leaf.shape[1:]), (numbers, rows, shares))
        shapes = jax.eval_shape(lambda: train(None, jax.tree.map(lambda leaf: leaf[0], chunks))[0])
        nothing = own(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        (sums, worst), (alive, kept) = jax.lax.scan(train, nothing, chunks)
        sums = all_sum(sums)
        worst = worst._replace(without_class=all_sum(worst.without_class))
        worst = worst._replace(status=_largest(worst.status), grad_norm=_largest(worst.grad_norm))
        one_row = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (alive, kept))
        gathered = partial(all_rows, places=places, constant=True)
        alive, kept, took_part, numbers = jax.tree.map(gathered, (*one_row, took_part, numbers))
        return self.finished(state, sums, worst, alive, took_part & ~alive, numbers, kept)

    def trained(self, state: TrainState, numbers: Array, rows: Batch) -> tuple[TrainState, Bool[Array, " clients"]]:
        """Return the states at the end of some clients' local steps, and which of them made steps that were finite."""
        length = rows.mask.shape[1]
        clients = own(jax.vmap(partial(self.begin, state, length))(numbers))
        steps = jnp.sum(jnp.any(rows.mask, axis=2), axis=1)
        # A single client is not a batch of one: its program is that of a plain step.
        each = jax.vmap(self.step) if len(numbers) > 1 else for_one(self.step)

        def one(number: Any, clients: TrainState) -> TrainState:
            part = jax.tree.map(lambda leaf: leaf[:, number], rows)
            moved, _ = each(clients, part)
            acts = number < steps
            return jax.tree.map(lambda new, old: jnp.where(rows_with(acts, new), new, old), moved, clients)

        ends = jax.lax.fori_loop(0, jnp.max(steps), one, clients)
        return ends, ends.totals.finite & (steps > 0)

    def begin(self, state: TrainState, length: int, number: Int[Array, ""]) -> TrainState:
        """Return a client's state before its first step in a round."""
        federation, states = self.rounds.federation, state.clients
        kept = jax.tree.map(lambda leaf: leaf[jnp.minimum(number, len(states.counts) - 1)], states.kept)
        own = joined(state, kept)
        opt_state = self.optimizer.init(own.params)
        if "opt_state" in kept:
            opt_state = continued(opt_state, kept["opt_state"])
        opt_state = scheduled(opt_state, state.step * (self.rounds.schedule_steps or length))
        if federation.controlled:
            opt_state = opt_state._replace(correction=jax.tree.map(jnp.subtract, states.control, kept["control"]))
        received = (own.params, own.variables) if federation.remembers else None
        return own.replace(
            step=state.step * length,
            opt_state=opt_state,
            key=key_of(state.key, number),
            totals=EpochTotals.zero(),
            extensions=kept.get("extensions", state.extensions),
            client=Client(number, states.counts[number], received, kept.get(PREVIOUS)),
            clients=None,
        )

    def added(self, sums: Any, state: TrainState, ends: TrainState, alive: Array, shares: Array) -> Any:
        """Add what some clients send. Without sums so far, return sums of these alone."""
        shares = jnp.where(alive, shares, 0)

        def total(tree: Any, weights: Array) -> Any:
            # Zero times a NaN is a NaN, so the numbers of a client that is left out are replaced, too.
            def one(leaf: Array) -> Array:
                used = jnp.where(rows_with(alive, leaf), leaf, 0)
                wide = at_least_float32(used)
                return jnp.tensordot(weights.astype(wide.dtype), wide, axes=1, precision="highest")

            return jax.tree.map(one, tree)

        totals = ends.totals
        steps = jnp.maximum(totals.steps, 1)
        numbers = total((totals.loss / steps, totals.accuracy / steps), shares)
        head = control = None
        before, after = (self.rounds.head_state(one.variables) for one in (state, ends))
        if before is not None:
            changes = jax.tree.map(lambda new, old: new - old[None], after, before)
            head = jax.tree.map(
                lambda leaf: jnp.sum(jnp.where(rows_with(alive, leaf), leaf, 0), axis=0, dtype=leaf.dtype), changes
            )
        if self.rounds.federation.controlled:
            counts = state.clients.counts
            places = jnp.minimum(ends.client.number, len(counts) - 1)
            old = jax.tree.map(lambda leaf: leaf[places], state.clients.kept["control"])
            changes = jax.tree.map(jnp.subtract, self._control(ends), old)
            # Weighted like models, among all clients: else the corrections would pull to the minimum of another mean.
            parts = jnp.sum(counts, axis=1)[places] / jnp.sum(counts)
            control = total(changes, jnp.where(alive, parts, 0))
        found = Sums(jnp.sum(shares), total(sent(ends), shares), numbers, head, control)
        worst = Worst(
            jnp.max(jnp.where(alive, totals.solve_status, Status.CONVERGED)).astype(jnp.int32),
            jnp.max(jnp.where(alive, totals.solve_grad_norm, 0)),
            jnp.sum(totals.without_class, dtype=jnp.int32),
        )
        if sums is None:
            return found, worst
        return (
            jax.tree.map(jnp.add, sums[0], found),
            Worst(
                jnp.maximum(sums[1].status, worst.status),
                jnp.maximum(sums[1].grad_norm, worst.grad_norm),
                sums[1].without_class + worst.without_class,
            ),
        )

    def _control(self, ends: TrainState) -> Any:
        """Return the next control variates of some clients: the mean gradients of their steps."""
        steps = jnp.maximum(ends.opt_state.steps, 1)
        return jax.tree.map(lambda leaf: leaf / rows_with(steps, leaf), ends.opt_state.gradients)

    def keepsakes(self, ends: TrainState) -> dict[str, Any]:
        """Return what some clients keep of their states at the end of a round."""
        rounds, federation = self.rounds, self.rounds.federation
        found = {
            "params": chosen(ends.params, federation.personal),
            "variables": below(ends.variables, federation.personal),
            "opt_state": ends.opt_state if rounds.keep_optimizer else None,
            "extensions": ends.extensions,
            "control": self._control(ends) if federation.controlled else None,
            PREVIOUS: (ends.params, ends.variables) if federation.remembers else None,
        }
        return {name: part for name, part in found.items() if jax.tree.leaves(part)}

    def finished(
        self,
        state: TrainState,
        sums: Sums,
        worst: Worst,
        alive: Bool[Array, " clients"],
        failed: Bool[Array, " clients"],
        numbers: Int[Array, " clients"],
        kept: dict[str, Any],
    ) -> tuple[TrainState, StepMetrics]:
        """Return the server's state after a round, unless nothing finite came; and the metrics."""
        rounds, states = self.rounds, state.clients
        whole = jnp.where(sums.share > 0, sums.share, 1)
        loss, accuracy = (number / whole for number in sums.numbers)
        mean = jax.tree.map(
            lambda leaf, old: (leaf / whole.astype(leaf.dtype)).astype(old.dtype), sums.models, sent(state)
        )
        new, norm = updated(state, mean, rounds.federation.server)
        status, solve_norm = worst.status, worst.grad_norm
        if rounds.pool is not None:
            assert rounds.pool.pool is not None, "checked"
            head, solution = rounds.pool.pool(rounds.head_state(state.variables) or {}, sums.head)
            collection = rounds.pool.collection
            new = new.replace(variables={**new.variables, collection: {**new.variables[collection], HEAD: head}})
            status = jnp.maximum(status, solution.status).astype(jnp.int32)
            solve_norm = jnp.maximum(solve_norm, solution.grad_norm)
        keeps = jnp.where(alive, numbers, len(states.counts))  # out of range, and so not written
        clients = ClientStates(
            states.counts,
            states.dropped.at[jnp.where(failed, numbers, len(states.counts))].add(1, mode="drop"),
            jax.tree.map(lambda whole, part: whole.at[keeps].set(part, mode="drop"), states.kept, kept),
            jax.tree.map(lambda old, change: (old + change).astype(old.dtype), states.control, sums.control),
        )
        new = new.replace(step=state.step + 1, clients=clients)
        leaves = [leaf for leaf in jax.tree.leaves((new.params, new.variables, new.opt_state, loss))]
        finite = jnp.any(alive)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                finite &= jnp.all(jnp.isfinite(leaf))
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            grad_norm=norm,
            solve_status=status,
            solve_grad_norm=solve_norm,
            without_class=worst.without_class,
            finite=finite,
        )
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return new.replace(totals=state.totals.add(metrics)), metrics


def _largest(value: Array) -> Array:
    names = collective.axes()
    return jax.lax.pmax(value, names) if names else value
