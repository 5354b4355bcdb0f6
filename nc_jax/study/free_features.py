"""Free features under a classifier, and their descent, measured in every step."""

from nc_jax.extras import require

require("flax", "train", __name__)

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nc_jax.checks import PADDING_LABEL, check_at_least
from nc_jax.data import Batch
from nc_jax.heads import Head, scale_features
from nc_jax.losses import cross_entropy
from nc_jax.metrics import (
    ClassStatistics,
    cosine_margins,
    etf_distance,
    nearest_etf_distance,
    self_duality,
    within_class_collapse,
)
from nc_jax.models import Classifier, HeadModule
from nc_jax.streams import epoch_indices
from nc_jax.training import agd, agd_init, forward

DescentName = Literal["gd", "sgd", "agd"]


@dataclasses.dataclass(frozen=True)
class DescentOptions:
    """Settings of a descent.

    Attributes:
        per_class: number n of feature vectors per class.
        steps: number of optimiser steps.
        optimizer: "gd" is gradient descent on all features at once, "sgd" gradient descent on batches, "agd" automatic
            gradient descent on all features at once, which needs no learning rate.
        learning_rate: learning rate for the sum of the losses of all feature vectors. For "agd" it is the gain.
        batch_size: number of feature vectors in a step of "sgd". The other optimisers ignore it.
        radius: length tau to which features are scaled.
        measure_every: steps between measurements of NC1 and of the distances to the nearest ETF, which take longer than
            a step. Loss, NC2, NC3 and margins are measured in every step.
    """

    per_class: int = 3
    steps: int = 220  # the learned head needs 197 to the threshold on NC3
    optimizer: DescentName = "gd"
    learning_rate: float = 0.03  # of 0.01, 0.03 and 0.1 the one at which all three heads descend quickest
    batch_size: int = 150  # half of K = 100's
    radius: float = 5.0  # Markou et al. (2024)
    measure_every: int = 5

    def __post_init__(self):
        for name in ("per_class", "steps", "batch_size", "measure_every"):
            check_at_least(name, getattr(self, name))
        for name in ("learning_rate", "radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


class FreeFeatures(nn.Module):
    """A table of feature vectors, looked up by number: the network that fits everything.

    Attributes:
        number: N.
        dim: d.
    """

    number: int
    dim: int

    @nn.compact
    def __call__(
        self, inputs: Int[Array, " batch"], *, train: bool = False, mask: Any = None
    ) -> Float[Array, "batch dim"]:
        """Return the vectors of these numbers (`train` and `mask` do nothing)."""
        del train, mask
        # Of unit length on average: only the direction matters, and the length sets how far a step turns it.
        table = self.param("table", nn.initializers.normal(1 / math.sqrt(self.dim)), (self.number, self.dim))
        return table[inputs]


def parse(case: str) -> tuple[int, int]:
    """Return K and d of a case.

    Raises:
        ValueError: unless it is "K:d" with two numbers.
    """
    parts = case.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f'a case is "K:d", classes and dimensions; got {case!r}')
    return int(parts[0]), int(parts[1])


def least_loss(num_classes: int, radius: float) -> float:
    r"""Return :math:`\log(1 + (K-1) e^{-\tau K / (K-1)})`, the least mean cross-entropy of K <= d + 1 classes.

    Features of length tau and unit class vectors. Reference: Yaras et al. (2022).
    """
    return math.log1p((num_classes - 1) * math.exp(-radius * num_classes / (num_classes - 1)))


def make_optimizer(config: DescentOptions, number: int) -> optax.GradientTransformation:
    """Return the optimiser of the mean loss of N examples."""
    if config.optimizer == "agd":
        return agd(config.learning_rate)
    return optax.sgd(config.learning_rate * number)


class Descent:
    """The compiled descent of one case and head. Seeds share it, and compile once.

    Args:
        config: settings.
        case: "K:d".
        head: a head of K classes.
    """

    def __init__(self, config: DescentOptions, case: str, head: Head):
        self.config = config
        self.num_classes, self.dim = parse(case)
        number = self.num_classes * config.per_class
        self.labels = np.arange(number, dtype=np.int32) // config.per_class
        self.batch_size = config.batch_size if config.optimizer == "sgd" else number
        self.model = Classifier(FreeFeatures(number, self.dim), HeadModule(head))
        self.optimizer = make_optimizer(config, number)

    def __call__(self, seed: int) -> dict[str, np.ndarray]:
        """Descend; return metrics by name, of every state from the first to the last, NaN where not measured."""
        values = jax.device_get(self._descend(jax.random.key(seed), self._order(seed), measured=True))
        return {name: np.asarray(series, float) for name, series in values.items()}

    def cost(self) -> dict[str, float]:
        """Return milliseconds per step and the megabytes that the compiled descent needs."""
        return {"milliseconds": 1e3 * self.seconds_per_step(), "megabytes": self.memory() / 1e6}

    def seconds_per_step(self) -> float:
        """Time the descent without measurements, once it has been compiled."""
        arguments = jax.random.key(0), self._order(0)
        jax.block_until_ready(self._descend(*arguments, measured=False))
        began = time.perf_counter()
        jax.block_until_ready(self._descend(*arguments, measured=False))
        return (time.perf_counter() - began) / len(arguments[1])

    def memory(self) -> int:
        """Return the bytes that the compiled descent needs at once, beyond its arguments: XLA's own account."""
        compiled = self._descend.lower(self, jax.random.key(0), self._order(0), measured=False).compile()
        analysis: Any = compiled.memory_analysis()
        return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)

    def _order(self, seed: int) -> np.ndarray:
        """Return the example numbers of every step, and one more: the last state is measured, too."""
        needed = self.config.steps + 1
        epochs = -(-needed // -(-len(self.labels) // self.batch_size))
        shuffle = self.config.optimizer == "sgd"
        orders = [
            epoch_indices(self.labels, self.batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
            for epoch in range(epochs)
        ]
        return np.concatenate(orders)[:needed].astype(np.int32)

    @partial(jax.jit, static_argnames=("self", "measured"))
    def _descend(self, key: Array, order: Array, *, measured: bool) -> Any:
        variables = dict(self.model.init(key, jnp.zeros((1,), jnp.int32)))
        params: Any = variables.pop("params")
        if self.config.optimizer == "agd":
            params = agd_init(params, key)

        def advance(state: tuple, chosen: tuple[Array, Array]) -> tuple[tuple, Any]:
            params, variables, opt_state = state
            step, indices = chosen
            used = indices >= 0
            places = jnp.maximum(indices, 0)
            batch = Batch(places, jnp.where(used, jnp.asarray(self.labels)[places], PADDING_LABEL), used)
            (_, (output, variables)), gradients = jax.value_and_grad(self._loss, has_aux=True)(params, variables, batch)
            updates, opt_state = self.optimizer.update(gradients, opt_state, params)
            new = optax.apply_updates(params, updates), variables, opt_state
            # Without a reader the measurements are not compiled.
            return new, self._measure(params, output, step) if measured else None

        start = params, variables, self.optimizer.init(params)
        end, values = jax.lax.scan(advance, start, (jnp.arange(len(order)), order))
        return values if measured else end

    def _loss(self, params: Any, variables: Any, batch: Batch) -> tuple[Array, tuple[Any, Any]]:
        output, variables, _ = forward(self.model, params, variables, batch, train=True)
        losses = cross_entropy(output.logits, batch.labels)
        return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.maximum(jnp.sum(batch.mask), 1), (output, variables)

    def _measure(self, params: Any, output: Any, step: Array) -> dict[str, Array]:
        """Measure the step's classifier on all features, before they move."""
        config, labels = self.config, jnp.asarray(self.labels)
        features = scale_features(params["backbone"]["table"], config.radius)
        frame = output.frame
        statistics = ClassStatistics.from_batch(features, labels, self.num_classes)
        means = statistics.centred_means()
        logits = features @ frame + (0 if output.bias is None else output.bias)
        losses = cross_entropy(logits, labels)
        margins = cosine_margins(features, frame, labels)
        dear: dict[str, Callable[[], Array]] = {
            "nc1": lambda: within_class_collapse(statistics),
            "means_to_etf": lambda: nearest_etf_distance(means),
            "classifier_to_etf": lambda: nearest_etf_distance(frame),
        }
        values = jax.lax.cond(
            (step % config.measure_every == 0) | (step == config.steps),
            lambda: {name: function() for name, function in dear.items()},
            lambda: dict.fromkeys(dear, jnp.asarray(jnp.nan, features.dtype)),
        )
        return values | {
            "loss_gap": jnp.mean(losses) - least_loss(self.num_classes, config.radius),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=1) == labels),
            "nc2_means": etf_distance(means),
            "nc2_classifier": etf_distance(frame),
            "nc3": self_duality(frame, statistics),
            "mean_margin": jnp.mean(margins),
            "least_margin": jnp.min(margins),
            "solve_status": jnp.zeros((), jnp.int32) if output.solution is None else output.solution.status,
        }
