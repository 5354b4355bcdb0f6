"""Free features, as if the network could fit anything: how many steps do the three heads need to collapse?

Claim     Markou et al. (2024), section 4: on unconstrained features the nearest simplex ETF converges faster than the
          fixed one and the learned classifier.
Command   python -m experiments.unconstrained_features   (3 cases x 3 heads x 8 seeds: 5 minutes on two CPU cores)
Expected  steps to NC3 < 0.1, nearest / fixed / learned: 5 / 15 / 196 at K = 100, d = 512; 15 / 29 / > 220 at d = 100;
          to a loss within 1e-3 of the least: 52 / 61 / 149 at d = 512
Writes    runs/unconstrained_features/<time>-<preset>/: config.json, metrics.jsonl, tensorboard/, summary.md,
          summary.json, and a plot per case

The N = n K feature vectors are parameters themselves. All heads have unit class vectors without bias and features of
length tau, so that the least possible loss is known: log(1 + (K - 1) exp(-tau K / (K - 1))). The class means of the
nearest head are those of the moment, as in a full batch.
"""

import collections
import dataclasses
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments import harness, plots
from nc_jax.data import epoch_indices
from nc_jax.frames.simplex import check_room_for_simplex
from nc_jax.metrics import (
    ClassStatistics,
    cosine_margins,
    etf_distance,
    nearest_etf_distance,
    self_duality,
    within_class_collapse,
)
from nc_jax.models import Classifier, FixedHead, LearnedHead, NearestHead
from nc_jax.models.heads import scale_features
from nc_jax.solvers import describe
from nc_jax.training import MetricsLog, agd, agd_init, forward, read_metrics
from nc_jax.training.logging import write_atomically

HeadName = Literal["learned", "fixed", "nearest"]
OptimizerName = Literal["gd", "sgd", "agd"]


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        cases: what to collapse, as "K:d", K classes in d dimensions.
        per_class: n, feature vectors per class.
        heads: which classifiers to compare.
        seeds: how many seeds each; a seed draws the initial features and class vectors.
        steps: of the optimiser.
        optimizer: "gd", full-batch gradient descent; "sgd", the same on batches; "agd", automatic gradient descent on
            the full batch, without a learning rate.
        learning_rate: of the sum of the examples' losses (N times that of their mean); of "agd" the gain.
        batch_size: of "sgd".
        radius: tau, the length of the features.
        solver: of the nearest head.
        prox_weight: delta.
        full_template: use the paper's K x K template.
        stop_gradient: do not differentiate through the solve.
        measure_every: steps between measurements of NC1 and of the distances to the nearest ETF, which take longer than
            a step; loss, NC2, NC3 and margins are measured in every step.
        nc3_target: the threshold on NC3 whose first step is reported.
        gap_targets: likewise, on the loss above the least possible one.
    """

    cases: tuple[str, ...] = ("10:512", "100:512", "100:100")
    per_class: int = 3
    heads: tuple[HeadName, ...] = ("learned", "fixed", "nearest")
    seeds: int = 8  # enough for a paired test
    steps: int = 220  # the learned head needs 197 to the threshold on NC3
    optimizer: OptimizerName = "gd"
    learning_rate: float = 0.03  # issue 5
    batch_size: int = 150  # half of K = 100's
    radius: float = 5.0  # Markou et al. (2024)
    solver: Literal["trust_region", "polar"] = "polar"
    prox_weight: float = 1e-3  # Markou et al. (2024)
    full_template: bool = False
    stop_gradient: bool = False
    measure_every: int = 5
    nc3_target: float = 0.1  # issue 5, and the next
    gap_targets: tuple[float, ...] = (1e-2, 1e-3)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(preset="smoke", cases=("5:8",), seeds=2, steps=12),
    # What the paper could not do with the gradient: 1000 classes.
    "large": Config(preset="large", cases=("200:512", "1000:1024"), seeds=2, steps=120, measure_every=20),
    "agd": Config(preset="agd", optimizer="agd", learning_rate=1.0),
    "sgd": Config(preset="sgd", optimizer="sgd"),
}

# Metric, title in the plot, scale.
PANELS = [
    ("loss_gap", "loss above the least possible", "log"),
    ("accuracy", "accuracy", "linear"),
    ("nc1", "NC1: within-class variability", "log"),
    ("nc2_means", "NC2: class means to a simplex ETF", "log"),
    ("nc3", "NC3: classifier to class means", "log"),
    ("mean_margin", "mean cosine margin", "linear"),
    ("means_to_etf", "class means to the nearest ETF", "log"),
    ("classifier_to_etf", "classifier to the nearest ETF", "log"),
]


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


def run(config: Config) -> dict[str, Any]:
    """Collapse every case with every head and seed; write and show the comparison.

    Returns:
        What summary.json holds: per case and head the numbers of each seed, and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        FloatingPointError: if a number stops being finite.
    """
    if config.resume is None:
        check(config)
    directory, config = harness.open_run("unconstrained_features", config)
    groups: dict[str, dict[HeadName, list[str]]] = {
        case: {head: [f"{case}-{head}-seed{seed}" for seed in range(config.seeds)] for head in config.heads}
        for case in config.cases
    }
    done = {run for run, count in _lines(directory).items() if count == config.steps + 1}
    cost: dict[str, dict[str, Any]] = {}
    with MetricsLog(directory) as log:
        for case, heads in groups.items():
            cost[case] = {}
            for head, runs in heads.items():
                descent = Descent(config, case, head)
                for seed, name in enumerate(runs):
                    if name not in done:
                        log.drop_after(name, -1)
                        write(log, name, descent(seed))
                cost[case][head] = {"seconds": descent.seconds_per_step(), "bytes": descent.memory()}
                print(f"K:d = {case}, {head}: {len(runs)} seeds", flush=True)
    rows = read_metrics(directory / "metrics.jsonl")
    summary = summarise(config, rows, groups) | {"cost": cost, "directory": str(directory)}
    for case, heads in groups.items():
        plots.curves(directory / _plot(case), rows, heads, PANELS, unit="step")
    report(config, summary, directory)
    return summary


def _lines(directory: Path) -> dict[str, int]:
    """Count the lines of each run: only one with all of them is finished."""
    return dict(collections.Counter(row["run"] for row in read_metrics(directory / "metrics.jsonl")))


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if not config.cases or not config.heads or config.seeds < 1:
        raise ValueError(
            "at least one case, head and seed are needed; "
            f"got cases={config.cases}, heads={config.heads}, seeds={config.seeds}"
        )
    for case in config.cases:
        num_classes, dim = parse(case)
        check_room_for_simplex(num_classes + int(config.full_template), dim)
    for name in ("per_class", "steps", "batch_size", "measure_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    for name in ("learning_rate", "radius", "nc3_target"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")
    if not config.prox_weight >= 0:
        raise ValueError(f"prox_weight must be at least 0; got {config.prox_weight}")


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


def make_model(config: Config, num_classes: int, dim: int, head: HeadName) -> Classifier:
    """Return free features under one of the heads."""
    heads: dict[str, Callable[[], Any]] = {
        "learned": lambda: LearnedHead(num_classes, radius=config.radius, normalize_columns=True, use_bias=False),
        "fixed": lambda: FixedHead(num_classes, radius=config.radius),
        "nearest": lambda: NearestHead(
            num_classes,
            radius=config.radius,
            min_alpha=1.0,  # the means of the moment: a running average is for batches
            prox_weight=config.prox_weight,
            solver=config.solver,
            reduced=not config.full_template,
            stop_gradient=config.stop_gradient,
        ),
    }
    return Classifier(FreeFeatures(config.per_class * num_classes, dim), heads[head]())


def make_optimizer(config: Config, number: int) -> optax.GradientTransformation:
    """Return the optimiser of the mean loss of N examples."""
    if config.optimizer == "agd":
        return agd(config.learning_rate)
    return optax.sgd(config.learning_rate * number)


class Descent:
    """The compiled descent of one case and head. Seeds share it, and compile once.

    Args:
        config: settings.
        case: see `Config.cases`.
        head: which classifier.
    """

    def __init__(self, config: Config, case: str, head: HeadName):
        self.config = config
        self.num_classes, self.dim = parse(case)
        number = self.num_classes * config.per_class
        self.labels = np.arange(number, dtype=np.int32) // config.per_class
        self.batch_size = config.batch_size if config.optimizer == "sgd" else number
        self.model = make_model(config, self.num_classes, self.dim, head)
        self.optimizer = make_optimizer(config, number)

    def __call__(self, seed: int) -> dict[str, np.ndarray]:
        """Descend; return metrics by name, of every state from the first to the last, NaN where not measured."""
        values = jax.device_get(self._descend(jax.random.key(seed), self._order(seed), measured=True))
        return {name: np.asarray(series, float) for name, series in values.items()}

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
            batch = {"features": places, "labels": jnp.where(used, jnp.asarray(self.labels)[places], -1)}
            (_, (output, variables)), gradients = jax.value_and_grad(self._loss, has_aux=True)(params, variables, batch)
            updates, opt_state = self.optimizer.update(gradients, opt_state, params)
            new = optax.apply_updates(params, updates), variables, opt_state
            # Without a reader the measurements are not compiled.
            return new, self._measure(params, output, step) if measured else None

        start = params, variables, self.optimizer.init(params)
        end, values = jax.lax.scan(advance, start, (jnp.arange(len(order)), order))
        return values if measured else end

    def _loss(self, params: Any, variables: Any, batch: dict) -> tuple[Array, tuple[Any, Any]]:
        output, variables = forward(self.model, params, variables, batch, train=True)
        used = batch["labels"] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.maximum(batch["labels"], 0))
        return jnp.sum(jnp.where(used, losses, 0)) / jnp.maximum(jnp.sum(used), 1), (output, variables)

    def _measure(self, params: Any, output: Any, step: Array) -> dict[str, Array]:
        """Measure the step's classifier on all features, before they move."""
        config, labels = self.config, jnp.asarray(self.labels)
        features = scale_features(params["backbone"]["table"], config.radius)
        frame = output.frame
        statistics = ClassStatistics.from_batch(features, labels, self.num_classes)
        means = statistics.centred_means()
        logits = features @ frame + (0 if output.bias is None else output.bias)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
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


def write(log: MetricsLog, name: str, values: dict[str, np.ndarray]) -> None:
    """Log a run, a line per step.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    steps = len(values["loss_gap"])
    if not np.isfinite(values["loss_gap"]).all():
        step = int(np.argmin(np.isfinite(values["loss_gap"])))
        raise FloatingPointError(f"descent needs finite losses; {name} met a NaN or an infinity in step {step}")
    for step in range(steps):
        log.write(name, step, step, {metric: float(series[step]) for metric, series in values.items()})


def summarise(config: Config, rows: list[dict], groups: dict[str, dict[HeadName, list[str]]]) -> dict[str, Any]:
    """Collect thresholds and final values, per case, head and seed."""
    by_run: dict[str, list[dict]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    cases: dict[str, Any] = {}
    for case, heads in groups.items():
        cases[case] = {}
        for head, runs in heads.items():
            histories = [sorted(by_run[name], key=lambda row: row["step"]) for name in runs]
            values = {"steps to NC3": [_first(history, "nc3", config.nc3_target) for history in histories]}
            for gap in config.gap_targets:
                values[f"steps to a gap of {gap:g}"] = [_first(history, "loss_gap", gap) for history in histories]
            for metric in ("loss_gap", "nc1", "nc2_means", "nc3", "mean_margin", "means_to_etf"):
                values[metric] = [history[-1][metric] for history in histories]
            worst = max(row["solve_status"] for history in histories for row in history)
            cases[case][head] = {"values": values, "solve_status": int(worst)}
    return {"cases": cases, "steps": config.steps}


def _first(history: list[dict], metric: str, target: float) -> float:
    """Return the number of steps after which a metric is below its target; NaN if that never happens."""
    return next((row["step"] for row in history if row[metric] < target), math.nan)


def report(config: Config, summary: dict[str, Any], directory: Path) -> None:
    """Write summary.json and summary.md and show a table per case."""
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    text = f"# unconstrained_features, preset {config.preset}\n"
    for case, heads in summary["cases"].items():
        num_classes, dim = parse(case)
        others = [head for head in heads if head != "nearest"] if "nearest" in heads else []
        columns = ["", *heads, *(f"{head} / nearest" for head in others)]
        table = []
        for metric in next(iter(heads.values()))["values"]:
            values = {head: heads[head]["values"][metric] for head in heads}
            counted = metric.startswith("steps")
            title = f"{metric} < {config.nc3_target:g}" if metric == "steps to NC3" else metric
            row = [title, *(_cell(values[head], counted) for head in heads)]
            row += [harness.paired_ratio(values[head], values["nearest"]) if counted else "" for head in others]
            table.append(row)
        cost = summary["cost"][case]
        table.append(
            ["milliseconds per step", *(f"{1e3 * cost[head]['seconds']:.3g}" for head in heads), *[""] * len(others)]
        )
        table.append(
            ["MB beyond arguments (XLA)", *(f"{cost[head]['bytes'] / 1e6:.3g}" for head in heads), *[""] * len(others)]
        )
        title = (
            f"K = {num_classes}, d = {dim}, n = {config.per_class}, {config.optimizer}, {config.seeds} seeds: "
            "mean ± standard deviation; mean ratio with a paired t test of its logarithm"
        )
        status = heads["nearest"]["solve_status"] if "nearest" in heads else None
        note = "" if status is None else f"\nInner solves, worst of all steps: {describe(status)}.\n"
        text += f"\n{title}\n\n{harness.markdown_table(columns, table)}{note}\n![{case}]({_plot(case)})\n"
        harness.show_table(title, columns, table)
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")


def _cell(values: list[float], counted: bool) -> str:
    if counted:
        return harness.mean_and_sd(values, 1)
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def _plot(case: str) -> str:
    return f"{case.replace(':', '-')}.png"


if __name__ == "__main__":
    harness.main(run, PRESETS)
