"""Can the class statistics of ImageNet's features be streamed: how long, and how much memory?

Claim     One pass over 1.28 million features of 2048 dimensions in 1000 classes needs a fixed 25 MB of statistics (the
          features themselves would be 10.5 GB), and gives every collapse metric that needs no second pass.
Command   python -m benchmarks.collapse_metrics [smoke|default|gpu]
Checked   the statistics and NC1 to NC3 of some batches against NumPy in float64, at full d and K, to 1e-4; after all
          batches, the number of examples and the variance within classes that they were drawn with.
Writes    benchmarks/results/collapse_metrics-<preset>-<device>-<time>.json and .png

Features are drawn on the device, batch by batch; drawing is not timed. The default preset times some batches of each
size and extrapolates to all batches (marked ~ in the table, "extrapolated" in the JSON). The gpu preset runs all
batches. For comparison, each row also gives the time of one product, features^T features: a scatter matrix needs it.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.memory import peak_memory
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


PRESETS = {
    "smoke": Config(
        num_examples=2000, dim=24, num_classes=7, batch_sizes=(100,), complete=True, repeats=3, check_batches=3
    ),
    "default": Config(),
    "gpu": Config(complete=True, repeats=50),
}


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
def product(features: jax.Array) -> jax.Array:
    """Compute features^T features, with the precision of the statistics."""
    return jnp.matmul(features.T, features, precision="highest")


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


# --- Time and memory. ---


def time_batches(config: Config, size: int) -> dict[str, Any]:
    """Time updates with one batch size, one by one, and in a complete run with all batches.

    Raises:
        WrongAnswerError: if the complete run lost examples, or found another variance than that of the features.
    """
    draw, total = make_batch(config, size), num_batches(config, size)
    batch = jax.block_until_ready(draw(0))
    stats = ClassStatistics.init(config.num_classes, config.dim)

    def step() -> ClassStatistics:
        nonlocal stats
        stats = update(stats, *batch)
        return stats

    functions: dict[str, Callable[[], Any]] = {"update": step, "product": lambda: product(batch[0])}
    times = harness.compare(functions, repeats=config.repeats, budget=config.budget)
    seconds = times["update"].median
    if config.complete:
        stats = ClassStatistics.init(config.num_classes, config.dim)
        waited = 0.0
        for features, labels in batches(draw, total):
            start = time.perf_counter()
            stats = jax.block_until_ready(update(stats, features, labels))
            waited += time.perf_counter() - start
        check_complete(config, stats)
    else:
        waited = seconds * total
    return {
        "batch": size,
        "num_batches": total,
        "seconds_per_batch": seconds,
        "seconds_per_batch_quartiles": [times["update"].lower_quartile, times["update"].upper_quartile],
        "repeats": times["update"].repeats,
        "product_seconds": times["product"].median,
        "products": harness.ratio(times["update"], times["product"]),
        "compile_seconds": times["update"].compile,
        "total_seconds": waited,
        "extrapolated": not config.complete,
    }


def batches(draw: Callable[[Any], tuple[jax.Array, jax.Array]], total: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Draw all batches, one after another, and wait for each."""
    for index in range(total):
        yield jax.block_until_ready(draw(index))


def check_complete(config: Config, stats: ClassStatistics) -> None:
    """Compare the statistics of all examples with the distribution from which the features were drawn."""
    counted = int(np.sum(np.asarray(stats.counts), dtype=np.int64))
    harness.require_at_most("the number of examples lost", abs(counted - config.num_examples), 0)
    freedom = (config.num_examples - config.num_classes) * config.dim
    variance = float(np.trace(np.asarray(stats.scatter, np.float64))) / freedom
    # Five standard errors of a sample variance, plus the errors of float32 sums.
    limit = 5 * math.sqrt(2 / freedom) + TOLERANCE
    harness.require_at_most("the error of the variance within classes", abs(variance - 1), limit)


def prepare_update(config: Config, size: int) -> Callable[[], Any]:
    """Return a compiled update with its arguments. `benchmarks.memory.peak_memory` runs this in a new process."""
    stats = jax.block_until_ready(ClassStatistics.init(config.num_classes, config.dim))
    arguments = (stats, *jax.block_until_ready(make_batch(config, size)(0)))
    return functools.partial(update.lower(*arguments).compile(), *arguments)


def prepare_metrics(config: Config) -> Callable[[], Any]:
    """Return the compiled metrics with their arguments. `benchmarks.memory.peak_memory` runs this in a new process."""
    arguments = some_statistics(config), simplex_etf(config.num_classes, config.dim)
    return functools.partial(metrics_of.lower(*arguments).compile(), *arguments)


def some_statistics(config: Config) -> ClassStatistics:
    """Return the statistics of two examples of every class."""
    draw = make_batch(dataclasses.replace(config, num_examples=2 * config.num_classes), 2 * config.num_classes)
    return update(ClassStatistics.init(config.num_classes, config.dim), *draw(0))


# --- What is reported. ---


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.

    Raises:
        ValueError: if the classes do not fit the dimension.
        WrongAnswerError: if a statistic or a metric is wrong.
    """
    errors = check(config)
    rows = [time_batches(config, size) for size in config.batch_sizes]
    stats, frame = some_statistics(config), simplex_etf(config.num_classes, config.dim)
    metrics = harness.measure(metrics_of, stats, frame, repeats=config.repeats, budget=config.budget)
    metrics_memory = peak_memory(prepare_metrics, config)
    accumulator = sum(leaf.nbytes for leaf in stats if leaf is not None)
    for row in rows:
        memory = peak_memory(prepare_update, config, row["batch"])
        row |= {
            "peak_bytes": memory.peak,
            "planned_bytes": memory.planned,
            "memory_method": memory.method,
            "examples": config.num_examples,
            "dim": config.dim,
            "classes": config.num_classes,
            "accumulator_bytes": accumulator,
            "metrics_seconds": metrics.median,
            "metrics_peak_bytes": metrics_memory.peak,
            "errors": errors,
        }
    best = min(rows, key=lambda row: row["total_seconds"])
    problem = f"N={config.num_examples}, d={config.dim}, K={config.num_classes}"
    estimate = " (extrapolated)" if best["extrapolated"] else ""
    return harness.report(
        "collapse_metrics",
        config,
        rows=rows,
        table=harness.Table(
            f"class statistics, {problem}; metrics after the pass take {harness.duration(metrics.median)}",
            ("batch", "time per batch", "in products", "total", "statistics", "peak of an update"),
            [_cells(row) for row in rows],
        ),
        claims=[
            harness.Claim(f"one pass, batch {best['batch']}{estimate}", problem, best["total_seconds"], unit="s"),
            harness.Claim("memory of the statistics", problem, accumulator / 1e6, unit="MB"),
            harness.Claim("extra peak memory of an update", problem, best["peak_bytes"] / 1e6, unit="MB"),
            harness.Claim("metrics after the pass", problem, 1e3 * metrics.median, unit="ms"),
            harness.Claim("extra peak memory of the metrics", problem, metrics_memory.peak / 1e6, unit="MB"),
        ],
        draw=functools.partial(_draw, rows),
    )


def _cells(row: dict[str, Any]) -> list[str]:
    total = f"{'~ ' if row['extrapolated'] else ''}{harness.duration(row['total_seconds'])}"
    seconds = harness.duration(row["seconds_per_batch"])
    memory = [f"{harness.number(row[name] / 1e6)} MB" for name in ("accumulator_bytes", "peak_bytes")]
    return [str(row["batch"]), seconds, harness.number(row["products"]), total, *memory]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    sizes = [row["batch"] for row in rows]
    times.semilogx(sizes, [1e6 * row["seconds_per_batch"] / row["batch"] for row in rows], "o-", label="update")
    times.semilogx(sizes, [1e6 * row["product_seconds"] / row["batch"] for row in rows], "s--", label="one product")
    times.set_ylim(0)
    times.set_ylabel("time per example, us")
    times.legend()
    memory.semilogx(sizes, [row["peak_bytes"] / 1e6 for row in rows], "o-", label="extra peak of an update")
    memory.semilogx(sizes, [row["accumulator_bytes"] / 1e6 for row in rows], "s--", label="statistics")
    memory.set_ylabel("memory, MB")
    memory.legend()
    for axes in (times, memory):
        axes.set_xlabel("batch size")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()


if __name__ == "__main__":
    harness.main(run, PRESETS)
