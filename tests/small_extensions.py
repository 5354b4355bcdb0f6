"""A small real use of each kind of thing that extensions and streams must express."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.collective import all_sum
from nc_jax.data import Batch, Partner
from nc_jax.streams import Plan, Stream, epoch_indices, locate
from nc_jax.training import Extension

# --- Extensions. ---


@dataclass(frozen=True)
class Mixup(Extension):
    """Convex combinations of pairs, of inputs or of features; each example keeps its class, and gets a second one."""

    of: str = "inputs"

    def on_batch(self, context, state, batch):
        if self.of != "inputs":
            return batch
        inputs, batch = self._mixed(context, batch.inputs, batch)
        return batch._replace(inputs=inputs)

    def on_features(self, context, state, features, batch):
        return self._mixed(context, features, batch) if self.of == "features" else (features, batch)

    def _mixed(self, context, rows, batch) -> tuple[Any, Batch]:
        everyone, labels, used = (context.everyone(part) for part in (rows, batch.labels, batch.mask))
        pairing, draw = jax.random.split(context.key)
        partner = jax.random.permutation(pairing, len(labels))[context.places]
        weight = jax.random.uniform(draw, minval=0.5)
        weight = jnp.where(batch.mask & used[partner], weight, 1.0)
        mixed = weight[:, None] * rows + (1 - weight[:, None]) * everyone[partner]
        return mixed, batch._replace(partner=Partner(labels[partner], weight))


@dataclass(frozen=True)
class SeenClasses(Extension):
    """A softmax over the classes that have been seen so far, in training and in evaluation."""

    num_classes: int

    def init(self, key):
        return jnp.zeros((self.num_classes,), bool)

    def on_output(self, context, state, output, batch):
        seen = self.update(context, state, output, batch) if context.train else state
        return output._replace(logits=jnp.where(seen, output.logits, -1e9))

    def update(self, context, state, output, batch):
        members = jax.nn.one_hot(batch.labels, self.num_classes) * batch.mask[:, None]
        return state | (all_sum(jnp.sum(members, axis=0)) > 0)


@dataclass(frozen=True)
class LogitAdjustment(Extension):
    """Log class frequencies added to the logits, in training only."""

    class_counts: tuple[int, ...]

    def on_output(self, context, state, output, batch):
        if not context.train:
            return output
        counts = jnp.asarray(self.class_counts, output.logits.dtype)
        return output._replace(logits=output.logits + jnp.log(counts / jnp.sum(counts)))


@dataclass(frozen=True)
class LogitMemory(Extension):
    """Stores the logits that examples had when they entered the memory; pulls replayed examples towards them."""

    capacity: int
    num_classes: int

    def init(self, key):
        return {"logits": jnp.zeros((self.capacity, self.num_classes)), "known": jnp.zeros((self.capacity,), bool)}

    def _raw(self, output):
        """The logits before a mask has filled some of them."""
        return output.features @ output.frame + output.bias

    def penalties(self, context, state, output, batch):
        place = jnp.maximum(batch.slot, 0)
        gaps = jnp.mean((self._raw(output) - state["logits"][place]) ** 2, axis=1)
        return {"distance": jnp.where(batch.replayed & state["known"][place], 0.5 * gaps, 0)}

    def update(self, context, state, output, batch):
        new = batch.mask & ~batch.replayed & (batch.slot >= 0)
        place = jnp.where(new, batch.slot, self.capacity)  # out of range: dropped
        written = jnp.zeros_like(state["logits"]).at[place].set(self._raw(output), mode="drop")
        touched = jnp.zeros((self.capacity,)).at[place].set(1, mode="drop")
        # No two examples of a batch have the same slot, so the sums have one term.
        written, touched = all_sum((written, touched))
        return {
            "logits": jnp.where(touched[:, None] > 0, written, state["logits"]),
            "known": state["known"] | (touched > 0),
        }


# --- Streams. ---


@dataclass(frozen=True, eq=False)
class Tasks:
    """Task after task, each a part of the classes; a segment is an epoch of a task."""

    labels: np.ndarray
    classes: tuple[tuple[int, ...], ...]
    batch_size: int
    epochs: int

    @property
    def ends(self):
        steps = [-(-np.isin(self.labels, classes).sum() // self.batch_size) for classes in self.classes]
        return tuple(int(end) for end in np.cumsum(np.repeat(steps, self.epochs)))

    def plan(self, seed, segment):
        members = np.flatnonzero(np.isin(self.labels, self.classes[segment // self.epochs]))
        order = epoch_indices(self.labels[members], self.batch_size, seed=seed, epoch=segment)
        return Plan(np.where(order >= 0, members[order], -1).astype(np.int32))


@dataclass(frozen=True, eq=False)
class Balanced:
    """Every class as often as any other, whatever its size."""

    labels: np.ndarray
    batch_size: int
    epochs: int

    @property
    def ends(self):
        steps = -(-len(self.labels) // self.batch_size)
        return range(steps, self.epochs * steps + 1, steps)

    def plan(self, seed, segment):
        draws = np.random.Generator(np.random.Philox(key=seed + (segment << 64)))
        shape = self.ends[0], self.batch_size
        members = [np.flatnonzero(self.labels == label) for label in range(self.labels.max() + 1)]
        chosen = draws.integers(len(members), size=shape)
        places = draws.random(shape)
        return Plan(np.vectorize(lambda k, u: members[k][int(u * len(members[k]))])(chosen, places).astype(np.int32))


@dataclass(frozen=True, eq=False)
class Replayed:
    """Adds examples from a reservoir to every step of a stream.

    The reservoir holds each previous example with equal probability.
    The content of the reservoir at step s is computed from the seed and the steps before, so it is not part of the
    state of the run.
    """

    stream: Stream
    capacity: int
    extra: int

    @property
    def batch_size(self):
        return self.stream.batch_size + self.extra

    @property
    def ends(self):
        return self.stream.ends

    def plan(self, seed, segment):
        steps = self._steps(seed)
        start = self.ends[segment - 1] if segment else 0
        rows = [steps[step] for step in range(start, self.ends[segment])]
        index, slot, replayed = (np.stack(part) for part in zip(*rows, strict=True))
        return Plan(index.astype(np.int32), slot.astype(np.int32), replayed)

    @functools.cache  # noqa: B019
    def _steps(self, seed):
        plans = {segment: self.stream.plan(seed, segment).index for segment in range(len(self.ends))}
        memory, seen, steps = np.full(self.capacity, -1), 0, []
        for step in range(self.ends[-1]):
            draws = np.random.Generator(np.random.Philox(key=seed + (step << 64) + (1 << 127)))
            segment, row = locate(self.stream, step)
            new = plans[segment][row]
            filled = np.flatnonzero(memory >= 0)
            old_slots = draws.choice(filled, self.extra) if len(filled) else np.full(self.extra, -1)
            old = np.where(old_slots >= 0, memory[old_slots], -1)
            slots = np.full(len(new), -1)
            for place in np.flatnonzero(new >= 0):
                seen += 1
                slot = seen - 1 if seen <= self.capacity else draws.integers(seen)
                if slot < self.capacity:
                    slots[slots == slot] = -1  # the later of two new examples keeps the slot
                    slots[place] = slot
            for place in np.flatnonzero(slots >= 0):
                memory[slots[place]] = new[place]
            replayed = np.arange(len(new) + self.extra) >= len(new)
            steps.append((np.concatenate([new, old]), np.concatenate([slots, old_slots]), replayed))
        return steps
