"""A small real use of each kind of thing that extensions and streams must express."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.collective import all_sum
from nc_jax.data import Batch, Partner
from nc_jax.streams import Plan
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
        partner = jax.random.permutation(pairing, len(labels))[context.places % len(labels)]
        weight = jax.random.uniform(draw, minval=0.5)
        weight = jnp.where(batch.mask & used[partner], weight, 1.0)
        mixed = weight[:, None] * rows + (1 - weight[:, None]) * everyone[partner]
        return mixed, batch._replace(partner=Partner(labels[partner], weight))


@dataclass(frozen=True)
class SeenClasses(Extension):
    """A softmax over the classes that have been seen so far, in training and in evaluation."""

    num_classes: int

    def init(self, key, output):
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


# --- A stream. ---


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
