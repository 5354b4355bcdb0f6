"""Free features of classes of unequal size under a head: their descent, and what becomes of the small classes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import matmul
from nc_jax.checks import PADDING_LABEL, check_at_least
from nc_jax.heads import Head, batch_means_of, scale_features
from nc_jax.losses import cross_entropy
from nc_jax.metrics import logit_margins, mean_cosine
from nc_jax.streams import epoch_indices

COPIES = 100  # noisy copies of each class; accuracies of five classes and five seeds then have a 95 % interval of 1 %


@dataclasses.dataclass(frozen=True)
class ImbalanceOptions:
    """Settings of a descent.

    Attributes:
        num_classes: number of classes K. The half with the fewest examples is the minority.
        dim: feature dimension d.
        largest: number of feature vectors of the largest class.
        steps: number of steps of gradient descent.
        batch_size: number of feature vectors in a step.
        feature_rate: learning rate of a feature vector, for its own loss.
        class_rate: learning rate of learned class vectors, for the mean loss.
        radius: length tau to which heads of unit class vectors scale the features.
        weight_decay: decay of learned class vectors in the rows with decay.
        feature_decay: decay of each feature vector in the rows with decay, beside the mean loss.
        noise: length of the noise on copies of the features, relative to the features' root mean square.

    Raises:
        ValueError: if a number is out of its range.
    """

    num_classes: int = 10
    dim: int = 16
    largest: int = 1000  # so that the largest ratio leaves one example
    steps: int = 2000  # about 100 epochs of equal classes
    batch_size: int = 500  # a class with one example is in every tenth batch
    feature_rate: float = 0.3
    class_rate: float = 0.3
    radius: float = 5.0  # Markou et al. (2024)
    weight_decay: float = 0.05
    feature_decay: float = 2e-5  # with weight_decay a threshold of 0.001: small classes merge from a ratio of 38 on
    noise: float = 1.0  # an ideal frame classifies 98 % of the copies

    def __post_init__(self):
        for name in ("dim", "largest", "steps", "batch_size"):
            check_at_least(name, getattr(self, name))
        if self.num_classes < 4:
            raise ValueError(f"num_classes must be at least 4, two of each kind; got {self.num_classes}")
        for name in ("feature_rate", "class_rate", "radius", "weight_decay", "feature_decay", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


class ImbalancedDescent:
    """The compiled descent of one head. All counts of examples share it.

    Args:
        config: settings.
        head: (counts of the classes) -> a head.
        decays: whether class vectors and features have decays; otherwise both have a fixed length.
    """

    def __init__(self, config: ImbalanceOptions, head: Callable[[Array], Head], *, decays: bool):
        self.config, self.head, self.decays = config, head, decays

    def __call__(self, counts: Int[np.ndarray, " classes"], seeds: int) -> dict[str, list[float]]:
        """Descend from a start for each seed; return metrics by name, a number per seed."""
        config = self.config
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        padded = np.full(config.num_classes * config.largest, PADDING_LABEL, np.int32)
        padded[: len(labels)] = labels
        orders = np.stack([_order(labels, config, seed) for seed in range(seeds)])
        keys = jax.vmap(jax.random.key)(np.arange(seeds))
        values = jax.device_get(self._descend(keys, jnp.asarray(counts, jnp.float32), padded, orders))
        return {name: np.asarray(numbers, float).tolist() for name, numbers in values.items()}

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0, None, None, 0))
    def _descend(self, key: Array, counts: Array, labels: Array, order: Array) -> dict[str, Array]:
        config, head = self.config, self.head(counts)
        number = jnp.sum(counts)
        head_key, features_key, noise_key = jax.random.split(key, 3)
        params, state = head.init(head_key, config.dim)
        # Of unit length on average: only the direction matters where features are scaled.
        table = jax.random.normal(features_key, (len(labels), config.dim)) / np.sqrt(config.dim)

        def loss(free: tuple[Any, Array], state: Any, batch: Array) -> tuple[Array, tuple[Any, Array]]:
            params, features = free
            output, state = head.apply(params, state, features, batch, train=True)
            status = jnp.zeros((), jnp.int32) if output.solution is None else output.solution.status
            return jnp.sum(jnp.where(batch >= 0, cross_entropy(output.logits, batch), 0)), (state, status)

        def step(carry: tuple[Any, Any, Array], indices: Array) -> tuple[tuple[Any, Any, Array], Array]:
            params, state, table = carry
            used, places = indices >= 0, jnp.maximum(indices, 0)
            batch, rows = jnp.where(used, labels[places], PADDING_LABEL), table[places]
            (slopes, way), (state, status) = jax.grad(loss, has_aux=True)((params, rows), state, batch)
            # The gradient of the sum is each feature's own. The decay of the objective has N times the mean loss's.
            shrunk = config.feature_decay * number * rows if self.decays else 0.0
            table = table.at[places].add(-config.feature_rate * jnp.where(used[:, None], way + shrunk, 0))
            params = _stepped(params, slopes, config, jnp.sum(used), decays=self.decays)
            return (params, state, table), status

        (params, state, table), statuses = jax.lax.scan(step, (params, state, table), order)
        features = table if self.decays else scale_features(table, config.radius)
        features = jnp.where(labels[:, None] >= 0, features, 0)

        def classify(features: Array) -> Any:
            return head.apply(params, state, features)[0]

        found = _measured(config, classify, features, labels, counts, noise_key)
        # Before the scaling: the gradient makes a scaled feature longer, and the longer it is, the less it turns.
        sizes = _per_class(jnp.linalg.norm(table, axis=1), labels, config.num_classes)
        found["feature length"] = jnp.mean(sizes[minority(config)]) / jnp.mean(sizes[~minority(config)])
        return found | {"solve_status": jnp.max(statuses)}


def minority(config: ImbalanceOptions) -> Bool[np.ndarray, " classes"]:
    """Return which classes are the minority: the last half."""
    return np.arange(config.num_classes) >= config.num_classes - config.num_classes // 2


def _stepped(params: Any, slopes: Any, config: ImbalanceOptions, number: Array, *, decays: bool) -> Any:
    """Step along the gradient of the mean loss; only class vectors decay, the bias does not."""
    decay = {"kernel": config.weight_decay if decays else 0.0}
    return {
        name: value - config.class_rate * (slopes[name] / jnp.maximum(number, 1) + decay.get(name, 0.0) * value)
        for name, value in params.items()
    }


def _order(labels: np.ndarray, config: ImbalanceOptions, seed: int) -> np.ndarray:
    """Return the example numbers of every step, in epochs."""
    epochs = -(-config.steps // -(-len(labels) // config.batch_size))
    orders = [epoch_indices(labels, config.batch_size, seed=seed, epoch=epoch) for epoch in range(epochs)]
    return np.concatenate(orders)[: config.steps].astype(np.int32)


def _measured(
    config: ImbalanceOptions,
    classify: Callable[[Array], Any],
    features: Float[Array, "examples dim"],
    labels: Int[Array, " examples"],
    counts: Float[Array, " classes"],
    key: Array,
) -> dict[str, Array]:
    """Measure large and small classes, after the descent."""
    num_classes = config.num_classes
    small = minority(config)
    output = classify(features)
    means, _, _ = batch_means_of(features, labels, num_classes)
    centred = means - jnp.mean(means, axis=1, keepdims=True)
    size = jnp.sqrt(jnp.mean(jnp.sum(means**2, axis=0)))
    losses = _per_class(cross_entropy(output.logits, labels), labels, num_classes)
    places = jnp.cumsum(counts) - counts
    chosen = places[:, None] + jnp.arange(COPIES)[None] % counts[:, None]
    noise = jax.random.normal(key, (num_classes * COPIES, config.dim)) * config.noise * size / np.sqrt(config.dim)
    copies, truth = features[chosen.astype(jnp.int32).reshape(-1)] + noise, jnp.repeat(jnp.arange(num_classes), COPIES)
    right = (jnp.argmax(classify(copies).logits, axis=1) == truth).reshape(num_classes, COPIES)
    gaps = logit_margins(output.logits, labels)
    lengths = jnp.linalg.norm(output.frame, axis=0)
    aligned = jnp.sum(output.frame * centred, axis=0) / jnp.maximum(lengths * jnp.linalg.norm(centred, axis=0), 1e-30)
    found: dict[str, Array] = {}
    for name, which in (("minority", small), ("majority", ~small)):
        kept = jnp.asarray(which)[jnp.maximum(labels, 0)] & (labels >= 0)
        found |= {
            f"{name} cosine": mean_cosine(output.frame, np.flatnonzero(which)),
            f"{name} mean cosine": mean_cosine(centred, np.flatnonzero(which)),
            f"{name} alignment": jnp.sum(jnp.where(which, aligned, 0)) / jnp.sum(which),
            f"{name} margin": jnp.min(gaps, where=kept, initial=jnp.inf),
            f"{name} loss": jnp.sum(jnp.where(which, losses, 0)) / jnp.sum(which),
            f"{name} accuracy": jnp.sum(jnp.where(which[:, None], right, False)) / (COPIES * jnp.sum(which)),
        }
    found["length"] = jnp.mean(lengths, where=small) / jnp.mean(lengths, where=~small)
    return found


def _per_class(values: Array, labels: Array, num_classes: int) -> Float[Array, " classes"]:
    members = jax.nn.one_hot(labels, num_classes, axis=0)
    return matmul(members, jnp.where(labels >= 0, values, 0)) / jnp.maximum(jnp.sum(members, axis=1), 1)
