"""Can the collapse of ImageNet's features be measured in a stream: how long, and how much memory?

Claim     One pass over 1.28 million features of 2048 dimensions in 1000 classes takes at most three times the matrix
          products that it needs, within 2 GiB (the features themselves would be 10.5 GB), and gives every metric of
          collapse that needs no second pass. For both passes of a report, the same holds.
Command   python -m benchmarks.collapse_metrics [smoke|default|gpu]
Checked   the statistics and NC1 to NC3 of some batches against NumPy in float64, at full d and K, to 1e-4; after all
          batches, the number of examples and the variance within classes that they were drawn with.
Writes    benchmarks/results/collapse_metrics-<preset>-<device>-<time>.json and .png

A program is compared with the products that its batch X (b, d) needs, which are timed in turns with it:

statistics                  X^T X, (d x b)(b x d): the scatter is one, of features minus their class means
statistics without scatter  Y X, (K x b)(b x d), with one-hot labels Y: the sums of the classes
both passes of a report     X^T X, and X M, (b x d)(d x K), with the class means M: the distances from all means
  with a classifier         the same, and X W with the class vectors W: the logits

In the first, class sums count nothing: they need additions only. Cosines of the same vectors are the same product.
Passes of a report begin with features in NumPy, as `nc-jax measure` reads them, and include all of their work.

Features are drawn on the device, batch by batch; drawing is not timed. The default preset times some batches of each
size and extrapolates to all batches (marked ~ in the table, "extrapolated" in the JSON). The gpu preset runs all
batches of the first program.
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
from benchmarks.streamed_features import (
    TOLERANCE,
    Config,
    check,
    class_sums,
    make_batch,
    metrics_of,
    num_batches,
    scores,
    second_moment,
    update,
)
from nc_jax.frames import simplex_etf
from nc_jax.metrics import ClassStatistics, Measurement
from nc_jax.metrics.measurement import chunk_rows

MOST_PRODUCTS = 3  # target: times the products that a program needs
MOST_MEMORY = 2**31  # bytes, target
STATISTICS, LIGHT = "statistics", "statistics without scatter"
FEATURES_ALONE, WITH_CLASSIFIER = "both passes, features alone", "both passes, with a classifier"


PRESETS = {
    "smoke": Config(
        num_examples=2000, dim=24, num_classes=7, batch_sizes=(100,), complete=True, repeats=3, check_batches=3
    ),
    "default": Config(),
    "gpu": Config(complete=True, repeats=50),
}


# --- Time and memory. ---


def time_batches(config: Config, size: int) -> list[dict[str, Any]]:
    """Time updates with one batch size, one by one, and with the scatter in a complete run with all batches.

    Raises:
        WrongAnswerError: if the complete run lost examples, or found another variance than that of the features.
    """
    draw, total = make_batch(config, size), num_batches(config, size)
    batch = jax.block_until_ready(draw(0))
    held = {
        STATISTICS: ClassStatistics.init(config.num_classes, config.dim),
        LIGHT: ClassStatistics.init(config.num_classes, config.dim, scatter=False),
    }
    accumulators = {name: sum(leaf.nbytes for leaf in stats if leaf is not None) for name, stats in held.items()}

    def step(name: str) -> ClassStatistics:
        held[name] = update(held[name], *batch)
        return held[name]

    functions: dict[str, Callable[[], Any]] = {name: functools.partial(step, name) for name in held}
    functions |= {
        "second moment": lambda: second_moment(batch[0]),
        "class sums": lambda: class_sums(*batch, config.num_classes),
    }
    times = harness.compare(functions, repeats=config.repeats, budget=config.budget)
    rows = [
        row_of(config, name, size, [times[name]], [times[needed]])
        for name, needed in ((STATISTICS, "second moment"), (LIGHT, "class sums"))
    ]
    for row in rows:
        row["accumulator_bytes"] = accumulators[row["program"]]
    if config.complete:
        stats = ClassStatistics.init(config.num_classes, config.dim)
        waited = 0.0
        for features, labels in batches(draw, total):
            start = time.perf_counter()
            stats = jax.block_until_ready(update(stats, features, labels))
            waited += time.perf_counter() - start
        check_complete(config, stats)
        rows[0] |= {"total_seconds": waited, "extrapolated": False}
    return rows


def row_of(
    config: Config, program: str, size: int, timings: Sequence[harness.Timing], needed: Sequence[harness.Timing]
) -> dict[str, Any]:
    """Return what is known of a program that takes several calls for a batch, beside the products that it needs."""
    seconds, products = (sum(timing.median for timing in some) for some in (timings, needed))
    return {
        "program": program,
        "batch": size,
        "num_batches": num_batches(config, size),
        "seconds_per_batch": seconds,
        "seconds_per_batch_quartiles": [
            sum(timing.lower_quartile for timing in timings),
            sum(timing.upper_quartile for timing in timings),
        ],
        "repeats": min(timing.repeats for timing in timings),
        "product_seconds": products,
        "products": seconds / products,
        "compile_seconds": sum(timing.compile for timing in timings),
        "total_seconds": seconds * num_batches(config, size),
        "extrapolated": True,
    }


def make_passes(config: Config, with_classifier: bool) -> tuple[Measurement, np.ndarray, np.ndarray]:
    """Return a report that has seen both passes, and the batch that it saw, of the size that `nc-jax measure` reads."""
    size = min(chunk_rows(config.dim, config.num_classes), config.num_examples)
    features, labels = jax.device_get(make_batch(config, size)(0))
    frame = simplex_etf(config.num_classes, config.dim) if with_classifier else None
    measurement = Measurement(config.num_classes, config.dim, frame)
    measurement.first_pass(features, labels)
    measurement.second_pass(features, labels)
    return measurement, features, labels


def time_passes(config: Config) -> list[dict[str, Any]]:
    """Time both passes of a report, with and without a classifier."""
    measurement, *batch = make_passes(config, False)
    with_classifier, *_ = make_passes(config, True)
    features, vectors = jnp.asarray(batch[0]), simplex_etf(config.num_classes, config.dim)
    times = harness.compare(
        {
            "first": lambda: measurement.first_pass(*batch),
            "second": lambda: measurement.second_pass(*batch),
            "second, classifier": lambda: with_classifier.second_pass(*batch),
            "second moment": lambda: second_moment(features),
            "scores": lambda: scores(features, vectors),
        },
        repeats=config.repeats,
        budget=config.budget,
    )
    moment, one = times["second moment"], times["scores"]
    accumulator = sum(leaf.nbytes for leaf in measurement.statistics if leaf is not None)
    return [
        row_of(config, program, len(features), [times["first"], times[second]], needed)
        | {
            "accumulator_bytes": accumulator,
            "second_moments": (times["first"].median + times[second].median) / moment.median,
        }
        for program, second, needed in (
            (FEATURES_ALONE, "second", [moment, one]),
            (WITH_CLASSIFIER, "second, classifier", [moment, one, one]),
        )
    ]


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


def prepare_update(config: Config, size: int, scatter: bool) -> Callable[[], Any]:
    """Return a compiled update with its arguments. `benchmarks.memory.peak_memory` runs this in a new process."""
    stats = jax.block_until_ready(ClassStatistics.init(config.num_classes, config.dim, scatter=scatter))
    arguments = (stats, *jax.block_until_ready(make_batch(config, size)(0)))
    return functools.partial(update.lower(*arguments).compile(), *arguments)


def prepare_passes(config: Config, with_classifier: bool) -> Callable[[], Any]:
    """Return both passes over a batch. `benchmarks.memory.peak_memory` runs this in a new process."""
    measurement, *batch = make_passes(config, with_classifier)

    def both() -> None:
        measurement.first_pass(*batch)
        measurement.second_pass(*batch)

    return both


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
    rows = [row for size in config.batch_sizes for row in time_batches(config, size)] + time_passes(config)
    stats, frame = some_statistics(config), simplex_etf(config.num_classes, config.dim)
    metrics = harness.measure(metrics_of, stats, frame, repeats=config.repeats, budget=config.budget)
    metrics_memory = peak_memory(prepare_metrics, config)
    for row in rows:
        if row["program"] in (STATISTICS, LIGHT):
            memory = peak_memory(prepare_update, config, row["batch"], row["program"] == STATISTICS)
        else:
            memory = peak_memory(prepare_passes, config, row["program"] == WITH_CLASSIFIER)
        row |= {
            "peak_bytes": memory.peak,
            "planned_bytes": memory.planned,
            "memory_method": memory.method,
            "examples": config.num_examples,
            "dim": config.dim,
            "classes": config.num_classes,
            "metrics_seconds": metrics.median,
            "metrics_peak_bytes": metrics_memory.peak,
            "errors": errors,
        }
    problem = f"N={config.num_examples}, d={config.dim}, K={config.num_classes}"
    best = [
        min((row for row in rows if row["program"] == program), key=lambda row: row["total_seconds"])
        for program in (STATISTICS, LIGHT, FEATURES_ALONE, WITH_CLASSIFIER)
    ]
    return harness.report(
        "collapse_metrics",
        config,
        rows=rows,
        table=harness.Table(
            f"collapse in a stream, {problem}; metrics after the pass take {harness.duration(metrics.median)}",
            (
                "program",
                "batch",
                "time per batch",
                "in products that it needs",
                "total",
                "statistics",
                "peak of a batch",
            ),
            [_cells(row) for row in rows],
        ),
        claims=[
            *(claim for row in best for claim in _claims(row, problem)),
            harness.Claim("metrics after the pass", problem, 1e3 * metrics.median, unit="ms"),
            harness.Claim("extra peak memory of the metrics", problem, metrics_memory.peak / 1e6, unit="MB"),
        ],
        draw=functools.partial(_draw, [row for row in rows if row["program"] == STATISTICS]),
    )


def _claims(row: dict[str, Any], problem: str) -> list[harness.Claim]:
    estimate = " (extrapolated)" if row["extrapolated"] else ""
    name = f"{row['program']}, batch {row['batch']}"
    held = row["accumulator_bytes"] + row["peak_bytes"]
    return [
        harness.Claim(f"{name}: products that it needs", problem, row["products"], at_most=MOST_PRODUCTS, unit="x"),
        harness.Claim(f"{name}: all examples{estimate}", problem, row["total_seconds"], unit="s"),
        harness.Claim(f"{name}: memory", problem, held / 1e6, at_most=MOST_MEMORY / 1e6, unit="MB"),
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    total = f"{'~ ' if row['extrapolated'] else ''}{harness.duration(row['total_seconds'])}"
    seconds = harness.duration(row["seconds_per_batch"])
    memory = [f"{harness.number(row[name] / 1e6)} MB" for name in ("accumulator_bytes", "peak_bytes")]
    return [row["program"], str(row["batch"]), seconds, harness.number(row["products"]), total, *memory]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    sizes = [row["batch"] for row in rows]
    times.semilogx(sizes, [1e6 * row["seconds_per_batch"] / row["batch"] for row in rows], "o-", label="update")
    needed = [1e6 * row["product_seconds"] / row["batch"] for row in rows]
    times.semilogx(sizes, needed, "s--", label="the product that it needs")
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
