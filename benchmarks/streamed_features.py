"""Features of ImageNet's size in a stream, the products that statistics of them need, and the right answers."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from nc_jax.frames import simplex_etf
from nc_jax.metrics import ClassStatistics, collapse_metrics

# Largest relative error of statistics and metrics in float32 against NumPy in float64; else no time is reported.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        num_examples: number of examples N.
        dim: feature dimension d.
        num_classes: number of classes K.
        batch_sizes: batch sizes to time.
        complete: run all batches, instead of extrapolating from `repeats` batches.
        repeats: number of batches that are timed one by one.
        budget: seconds after which no more batches of a size are timed; at least three are.
        check_batches: number of batches of the first size to compare with NumPy.
    """

    num_examples: int = 1_280_000  # ImageNet has 1 281 167 training images
    dim: int = 2048  # ResNet-50
    num_classes: int = 1000
    batch_sizes: tuple[int, ...] = (256, 1024, 4096)
    complete: bool = False
    repeats: int = 10
    budget: float = 10.0
    check_batches: int = 8


# --- Data, drawn where it is needed. ---


def make_batch(config: Config, size: int) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Return the compiled function index -> (features, labels) of the batch that begins with example index * size.

    The features of class k are Gaussian with unit variance about centre k of a simplex ETF of radius sqrt(d), and all
    are shifted by 1: so they are neither centred nor collapsed. The labels are 0..K-1 in turn, and -1 (padding) for
    examples beyond N.
    """
    # The centres are an argument, not a constant, of the compiled function: XLA would spend seconds on folding them.
    centres = 1 + math.sqrt(config.dim) * simplex_etf(config.num_classes, config.dim).T

    @jax.jit
    def draw(centres: jax.Array, index: Any) -> tuple[jax.Array, jax.Array]:
        examples = index * size + jnp.arange(size)
        labels = jnp.where(examples < config.num_examples, examples % config.num_classes, -1)
        key = jax.random.fold_in(jax.random.key(0, impl="rbg"), index)
        return centres[labels] + jax.random.normal(key, (size, config.dim)), labels

    return functools.partial(draw, centres)


def num_batches(config: Config, size: int) -> int:
    """Number of batches of a size that hold all examples."""
    return -(-config.num_examples // size)


@functools.partial(jax.jit, donate_argnums=0)
def update(stats: ClassStatistics, features: jax.Array, labels: jax.Array) -> ClassStatistics:
    """Add a batch to the statistics, in place."""
    return stats.update(features, labels)


@jax.jit
def second_moment(features: jax.Array) -> jax.Array:
    """Compute features^T features, with the precision of the statistics."""
    return jnp.matmul(features.T, features, precision="highest")


@functools.partial(jax.jit, static_argnums=2)
def class_sums(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Compute the product of one-hot labels (K x b) with the features (b x d)."""
    members = jax.nn.one_hot(labels, num_classes, axis=0, dtype=features.dtype)
    return jnp.matmul(members, features, precision="highest")


@jax.jit
def scores(features: jax.Array, vectors: jax.Array) -> jax.Array:
    """Compute the product of the features (b x d) with class vectors (d x K)."""
    return jnp.matmul(features, vectors, precision="highest")


metrics_of = jax.jit(collapse_metrics)


# --- Right before fast. ---


def check(config: Config) -> dict[str, float]:
    """Compare some batches' statistics and metrics with NumPy's in float64.

    Returns:
        Relative errors by name.

    Raises:
        WrongAnswerError: if an error exceeds `TOLERANCE`.
    """
    size = config.batch_sizes[0]
    draw = make_batch(config, size)
    stats = ClassStatistics.init(config.num_classes, config.dim)
    kept = []
    # Every class must occur at least twice, because the scatter of a single example is zero.
    needed = max(config.check_batches, -(-2 * config.num_classes // size))
    for index in range(min(needed, num_batches(config, size))):
        batch = draw(index)
        stats = update(stats, *batch)
        kept.append(jax.device_get(batch))
    frame = simplex_etf(config.num_classes, config.dim)
    found = jax.device_get(metrics_of(stats, frame))
    features = np.concatenate([features for features, _ in kept]).astype(np.float64)
    labels = np.concatenate([labels for _, labels in kept])
    expected = reference(features[labels >= 0], labels[labels >= 0], np.asarray(frame, np.float64))
    answers: dict[str, Any] = {"counts": stats.counts, "class_means": stats.means, "scatter": stats.scatter}
    answers["class_scatter"] = stats.class_scatter
    answers |= {name: found[name] for name in expected if name in found}
    return {
        name: harness.require_close(f"the {name} of {len(features)} examples", answers[name], value, TOLERANCE)
        for name, value in expected.items()
    }


def reference(features: np.ndarray, labels: np.ndarray, frame: np.ndarray) -> dict[str, Any]:
    """Compute statistics and some metrics in NumPy, from all features at once; every class must be present."""
    num_classes = frame.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(features[order], starts) / counts[:, None]  # (K, d)
    residuals = features - means[labels]
    scatter = residuals.T @ residuals
    centred = means - means.mean(axis=0)
    # NC1 = tr(S_W pinv(S_B)) / K, where M holds the centred means as rows and K S_B = M^T M. Use the K - 1 positive
    # eigenvalues of M M^T.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[1:], vectors[:, 1:]
    directions = centred.T @ vectors / np.sqrt(values)
    within = np.sum(directions * (scatter @ directions), axis=0) / len(features)
    simplex = (np.eye(num_classes) - 1 / num_classes) / math.sqrt(num_classes - 1)
    gram, crossed = centred @ centred.T, frame.T @ centred.T
    return {
        "counts": counts,
        "class_means": means.T,
        "scatter": scatter,
        "class_scatter": np.bincount(labels, np.sum(residuals**2, axis=1), minlength=num_classes),
        "nc1": np.sum(within / values),
        "nc2_means": np.linalg.norm(gram / np.linalg.norm(gram) - simplex),
        "nc3": np.linalg.norm(crossed / np.linalg.norm(crossed) - simplex),
    }
