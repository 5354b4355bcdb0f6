"""Is a report of neural collapse by our metrics equal to that of rhubarbwu/neural-collapse, and quicker?

Claim     On the same features, every figure that the PyTorch package prints is equal to ours up to 1e-5, and ours take
          less time, because they need two passes over the examples instead of three, and less memory.
Command   python -m benchmarks.peer_metrics [smoke|default] [--package FOLDER]
Checked   every figure of ours against its definition in PyTorch in float64, to 1e-5; so are the package's, whose errors
          are reported.
Writes    benchmarks/results/peer_metrics-<preset>-<device>-<time>.json and .png

The package is not on PyPI. `--package` names the folder of a clone of it, if it is not installed. Without it, ours are
measured beside the definitions in PyTorch in float32, from all features at once. `benchmarks.torch_metrics` has both.

Features, labels and class vectors are NumPy arrays, as a user would have them. Classes differ in their number of
examples, and features have an offset. Foreign features, for NC5, are those of other classes. Times are those of a whole
report; our compilation is apart. Memory is the peak above what is held before, after a report on two batches.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness, torch_metrics
from benchmarks.memory import peak_memory
from nc_jax.metrics import (
    Agreement,
    ClassStatistics,
    etf_distance,
    kernel_moments,
    nearest_centre_agreement,
    outlier_orthogonality,
    self_duality,
    uniform_duality,
    within_class_collapse,
)

TOLERANCE = 1e-5  # relative; all programs compute in float32
OURS, PACKAGE, FORMULAS = "nc_jax", "rhubarbwu/neural-collapse", "the definitions in PyTorch"


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        num_examples: number of examples N.
        dim: feature dimension d.
        num_classes: number of classes K.
        num_foreign: number of foreign examples, for NC5.
        batches: batch sizes; each must divide N and the number of foreign examples.
        package: folder of a clone of rhubarbwu/neural-collapse; None if it is installed, or to do without.
        repeats: timed reports of each program.
        budget: seconds after which a program gets no more timed reports; at least three are.
        seed: random seed of the features.
    """

    num_examples: int = 50_000
    dim: int = 512
    num_classes: int = 1000
    num_foreign: int = 10_000
    batches: tuple[int, ...] = (125, 1000)  # about the batch of the package's example, and a larger one
    package: Path | None = None
    repeats: int = 5
    budget: float = 120.0
    seed: int = 0


PRESETS = {
    "smoke": Config(num_examples=400, dim=6, num_classes=9, num_foreign=100, batches=(50,), repeats=2),
    "default": Config(),
}


class Data(NamedTuple):
    """What is measured: features (N, d), labels (N,), the class vectors as rows (K, d), and foreign features."""

    features: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    foreign: np.ndarray
    foreign_labels: np.ndarray


def make_data(config: Config) -> Data:
    """Draw features about random class means, class vectors near these means, and foreign features."""
    random = np.random.default_rng(config.seed)
    number, num_classes, dim = config.num_examples, config.num_classes, config.dim
    means = random.standard_normal((num_classes, dim))
    # Every class at least once; the rest are drawn with unequal probabilities.
    shares = random.uniform(0.5, 1.5, num_classes)
    drawn = random.choice(num_classes, number - num_classes, p=shares / shares.sum())
    labels = random.permutation(np.concatenate([np.arange(num_classes), drawn]))
    features = 0.5 + means[labels] + 0.7 * random.standard_normal((number, dim))
    weight = means + 0.5 * random.standard_normal((num_classes, dim))
    foreign_labels = random.permutation(np.arange(config.num_foreign) % num_classes)
    foreign = 0.2 + random.standard_normal((config.num_foreign, dim))
    features, weight, foreign = (array.astype(np.float32) for array in (features, weight, foreign))
    return Data(features, labels, weight, foreign, foreign_labels)


# --- Our report. ---


@functools.partial(jax.jit, donate_argnums=0)
def add(stats: ClassStatistics, features: jax.Array, labels: jax.Array) -> ClassStatistics:
    """First pass: add a batch to the statistics."""
    return stats.update(features, labels)


@functools.partial(jax.jit, donate_argnums=0)
def compare(found: Agreement, stats: ClassStatistics, frame: jax.Array, features: jax.Array) -> Agreement:
    """Second pass: count on how many examples of a batch the classifier and the nearest class mean agree."""
    return found.merge(nearest_centre_agreement(features, frame, None, stats.means, stats.present))


# One program for each figure, as for a user who calls them in turn. In a single program, XLA would hold at once what
# several of them need.
FIGURES: dict[str, Callable[[ClassStatistics, jax.Array, ClassStatistics], jax.Array]] = {
    "nc1_pinv": jax.jit(lambda stats, frame, foreign: within_class_collapse(stats)),
    "nc1_quot": jax.jit(lambda stats, frame, foreign: within_class_collapse(stats, "quotient")),
    "nc1_cdnv": jax.jit(lambda stats, frame, foreign: within_class_collapse(stats, "cdnv")),
    "nc2_etf_err": jax.jit(lambda stats, frame, foreign: etf_distance(stats.centred_means())),
    "nc2g_dist": jax.jit(lambda stats, frame, foreign: kernel_moments(stats.centred_means(), -1).variance),
    "nc2g_log": jax.jit(lambda stats, frame, foreign: kernel_moments(stats.centred_means(), 0).variance),
    "nc3_dual_err": jax.jit(lambda stats, frame, foreign: self_duality(frame, stats)),
    "nc3u_uni_dual": jax.jit(lambda stats, frame, foreign: uniform_duality(frame, stats, ddof=1)),
    "nc5_ood_dev": jax.jit(lambda stats, frame, foreign: outlier_orthogonality(stats, jnp.mean(foreign.means, axis=1))),
}


def ours(data: Data, batch: int) -> dict[str, float]:
    """Compute all figures with our metrics, on batches of the given size."""
    num_classes, dim = data.weight.shape
    frame = jnp.asarray(data.weight.T)
    stats = ClassStatistics.init(num_classes, dim)
    for start in range(0, len(data.features), batch):
        # Waiting costs microseconds. Otherwise JAX would queue copies of all batches.
        stats = jax.block_until_ready(
            add(stats, data.features[start : start + batch], data.labels[start : start + batch])
        )
    foreign = ClassStatistics.init(num_classes, dim, scatter=False)
    for start in range(0, len(data.foreign), batch):
        foreign = jax.block_until_ready(
            add(foreign, data.foreign[start : start + batch], data.foreign_labels[start : start + batch])
        )
    agreement = Agreement(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    for start in range(0, len(data.features), batch):
        agreement = jax.block_until_ready(compare(agreement, stats, frame, data.features[start : start + batch]))
    found = {name: float(figure(stats, frame, foreign)) for name, figure in FIGURES.items()}
    found["nc4_agree"] = float(agreement.compute())
    return {name: found[name] for name in torch_metrics.FIGURES}


def program_of(name: str, data: Data, batch: int) -> Callable[[], dict[str, float]]:
    """Return the program of this name, without arguments."""
    if name == FORMULAS:
        return lambda: torch_metrics.formulas(data, "float32")
    return functools.partial(ours if name == OURS else torch_metrics.package, data, batch)


def prepare(config: Config, name: str, batch: int) -> Callable[[], Any]:
    """Return a report after it has run on two batches. `benchmarks.memory.peak_memory` runs this in a new process."""
    torch_metrics.find_package(config.package)
    data = make_data(config)
    few = Data(data.features[: 2 * batch], data.labels[: 2 * batch], data.weight, data.foreign, data.foreign_labels)
    few = few._replace(foreign=data.foreign[:batch], foreign_labels=data.foreign_labels[:batch])
    program_of(name, few, batch)()
    return program_of(name, data, batch)


# --- What is reported. ---


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.

    Raises:
        WrongAnswerError: if a figure of ours differs from its definition.
    """
    if not harness.available("torch"):
        raise ValueError("the benchmark needs PyTorch for the definitions; got no package torch")
    peer = PACKAGE if torch_metrics.find_package(config.package) else FORMULAS
    if peer == FORMULAS:
        print(f"{PACKAGE} is neither installed nor named by --package, so its formulas in PyTorch take its place")
    data = make_data(config)
    expected = torch_metrics.formulas(data)
    rows = [row for batch in config.batches for row in measure(config, data, expected, peer, batch)]
    claims = [
        harness.Claim("largest relative error of our figures", "all", worst(rows, OURS), at_most=TOLERANCE),
        harness.Claim(f"largest relative error: {peer}", "all", worst(rows, peer)),
    ]
    for batch in config.batches:
        mine, theirs = (next(row for row in rows if (row["program"], row["batch"]) == (n, batch)) for n in (OURS, peer))
        for what, name in (("time", "seconds"), ("memory", "peak_bytes")):
            statement = f"{what}: ours, of {peer}"
            claims.append(harness.Claim(statement, f"batch {batch}", mine[name] / theirs[name], at_most=1, unit="x"))
    problem = f"N={config.num_examples}, d={config.dim}, K={config.num_classes}"
    return harness.report(
        "peer_metrics",
        config,
        rows=rows,
        table=harness.Table(
            f"a report of ten figures, {problem}",
            ("batch", "program", "time", "quartiles", "peak memory", "largest error", "figure"),
            [_cells(row) for row in rows],
        ),
        claims=claims,
        draw=functools.partial(_draw, rows),
    )


def measure(config: Config, data: Data, expected: dict[str, float], peer: str, batch: int) -> list[dict[str, Any]]:
    """Check, time and weigh both programs at one batch size."""
    harness.progress(f"batches of {batch}")
    programs = {name: program_of(name, data, batch) for name in (OURS, peer)}
    found: dict[str, dict[str, float]] = {}

    def check(name: str, result: dict[str, float]) -> bool:
        found[name] = result
        if name == OURS:
            for figure, value in expected.items():
                harness.require_close(f"our {figure}", result[figure], value, TOLERANCE)
        return True

    times = harness.compare(programs, repeats=config.repeats, budget=config.budget, check=check)
    rows = []
    for name in programs:
        harness.progress(f"memory of {name}")
        memory = peak_memory(prepare, config, name, batch)
        errors = {figure: harness.relative_error(found[name][figure], value) for figure, value in expected.items()}
        rows.append(
            {
                "program": name,
                "batch": batch,
                **times[name].row(),
                "peak_bytes": memory.peak,
                "memory_method": memory.method,
                "figures": found[name],
                "expected": expected,
                "errors": errors,
            }
        )
    return rows


def worst(rows: Sequence[dict[str, Any]], program: str) -> float:
    """Return the largest error of a program."""
    return max(max(row["errors"].values()) for row in rows if row["program"] == program)


def _cells(row: dict[str, Any]) -> list[str]:
    figure = max(row["errors"], key=row["errors"].get)
    return [
        str(row["batch"]),
        row["program"],
        harness.duration(row["seconds"]),
        harness.quartiles(row),
        f"{harness.number(row['peak_bytes'] / 1e6)} MB",
        f"{row['errors'][figure]:.1e}",
        figure,
    ]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    labels = [f"{row['program']}\nbatch {row['batch']}" for row in rows]
    times.barh(labels, [row["seconds"] for row in rows])
    times.set_xlabel("time of a report, s")
    memory.barh(labels, [row["peak_bytes"] / 1e6 for row in rows])
    memory.set_xlabel("extra peak memory, MB")
    memory.set_yticks([])


if __name__ == "__main__":
    harness.main(run, PRESETS)
