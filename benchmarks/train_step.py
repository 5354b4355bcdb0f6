"""What share of a training step does the nearest head take, compared with a learned head?

Claim     The nearest simplex ETF takes at most 15 % of a training step (forward and backward) of the digits MLP (batch
          256), and at most 5 % of a step of a ResNet-18 (batch 128 on a CPU, 256 on a GPU).
Command   python -m benchmarks.train_step [smoke|default|gpu]
Checked   the frame of a step against the polar factor of its class means in float64, to 1e-3; the first loss on several
          devices against the first loss on one device.
Writes    benchmarks/results/train_step-<preset>-<device>-<time>.json and .png

Both heads train the same network with the same optimiser and training step, in turns in one process: scaled features,
unit class vectors, no bias. Three shares of the step with the nearest head are reported:

- difference: 1 - learned / nearest, from the median times of a step. It includes all costs, but it has the noise of two
  long times (the number after ± combines the two half interquartile ranges as the root of the sum of squares).
- head: forward and backward pass of the nearest head on given features, minus those of the learned head.
- solve: the inner solve and its derivative, on the class means and the previous rotation of a training step.

If a CPU is to run more devices than it has, a new process divides it into virtual devices. These share the cores, and
each solves the same problem, so the head's share grows with their number; on real devices it does not. Float32 products
in the network have JAX's default precision, which is TF32 on recent GPUs; those of the solve have full precision.
"""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks import harness, problems
from benchmarks.networks import Problem, Solver, learned_head, make_problem, nearest_head, parse
from benchmarks.problems import PROX_WEIGHT
from nc_jax import nearest_simplex_etf
from nc_jax.models import Classifier
from nc_jax.training import AXIS, StepMetrics, create_state, data_parallel, make_train_step

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        cases: what to train, as "model:K" with K classes. Models: mlp (64-256-256-128), resnet18 (CIFAR stem, 32x32
            pixels) and resnet18-imagenet (224x224 pixels). A ResNet has 512 features, or the next larger power of two
            that a simplex ETF of K classes needs.
        dtypes: dtypes of the activations of a ResNet. Parameters and the solve are float32, and so is the whole MLP.
        devices: numbers of devices.
        solvers: solvers of the nearest head. Only the first one is timed on several devices.
        mlp_batch: examples per step of the MLP, on all devices together.
        resnet_batch: examples per step of a ResNet, on all devices together.
        repeats: timed calls of every step.
        budget: seconds after which a step gets no more timed calls, if it has had three.
        chunk: number of steps that are timed together, as a training loop runs them; a ResNet on a CPU takes 1.
    """

    cases: tuple[str, ...] = ("mlp:10", "resnet18:10")
    dtypes: tuple[Dtype, ...] = ("float32",)
    devices: tuple[int, ...] = (1, 2, 4, 8)
    solvers: tuple[Solver, ...] = ("polar", "trust_region")
    mlp_batch: int = 256
    resnet_batch: int = 128
    repeats: int = 20
    budget: float = 10.0
    chunk: int = 10


PRESETS = {
    # Leaves out what takes too long to compile for a test.
    "smoke": Config(cases=("mlp:10",), devices=(1,), solvers=("polar",), mlp_batch=16, repeats=2, chunk=1),
    "default": Config(),
    "gpu": Config(
        cases=("resnet18:10", "resnet18:100", "resnet18:1000", "resnet18-imagenet:1000"),
        dtypes=("float32", "bfloat16"),
        devices=(1,),
        solvers=("polar",),
        resnet_batch=256,
    ),
}

TARGETS = {"mlp": 15.0, "resnet18": 5.0, "resnet18-imagenet": 5.0}  # percent of a step
# Largest relative errors: frames in float32 against float64, and losses on several devices against one device.
FRAME_TOLERANCE = 1e-3
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

COLUMNS = ("step", "batch", "dtype", "devices", "solver", "learned", "nearest", "difference", "head", "solve")


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.

    Raises:
        ValueError: if a case is malformed, no solver is named, or a batch cannot be shared by the devices.
        WrongAnswerError: if a frame is wrong, or if the loss on several devices differs from that on one device.
    """
    for case in config.cases:
        parse(case)
    if not config.solvers:
        raise ValueError("solvers must name at least one; got none")
    rows = [row for num_devices in config.devices for row in time_cases(config, num_devices)]
    check_devices_agree(rows)
    return report(config, rows)


def report(config: Config, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Show the rows as a table, and write them."""
    return harness.report(
        "train_step",
        config,
        rows=rows,
        table=harness.Table(
            "a training step with the nearest head against one with a learned head, and the nearest head's share",
            COLUMNS,
            [_cells(row) for row in rows],
        ),
        claims=[claim for row in rows if row["devices"] == 1 for claim in _claims(row)],
        draw=functools.partial(_draw, rows),
    )


# --- How steps are timed. ---


class Run:
    """A network in training; each call takes the next steps.

    Args:
        problem: backbone and batches.
        head: head of the network.
        num_devices: number of local devices to use.
        chunk: number of steps that a call takes.
    """

    def __init__(self, problem: Problem, head: Any, num_devices: int, chunk: int = 1):
        model = Classifier(problem.backbone(), head)
        optimizer = optax.sgd(0.05, 0.9)  # experiments.nearest_etf
        # Not the default random generator: on a CPU, XLA needs a second per kernel to compile it, for twenty kernels.
        key = jax.random.key(0, impl="rbg")
        self.chunk = chunk
        batches: Any = problem.batches
        if jax.default_backend() != "cpu" and num_devices == 1:
            batches = jax.device_put(batches)  # in a training loop, the transfer overlaps with the previous step
        self.num_batches, self.batches = len(batches), itertools.cycle(batches)
        self.state = create_state(model, optimizer, key, problem.batches[0].inputs[:1])
        step = make_train_step(model, optimizer, axis_name=AXIS)
        self.step = data_parallel(step, devices=jax.local_devices()[:num_devices], donate=True)

    def __call__(self) -> Any:
        """Take the steps of one chunk; return arrays that are ready when all steps have ended."""
        metrics = None
        for _ in range(self.chunk):
            metrics = self.take_step()
        return self.state, metrics

    def take_step(self) -> StepMetrics:
        """Take one step."""
        self.state, metrics = self.step(self.state, next(self.batches))
        return metrics

    def head_variables(self) -> dict[str, np.ndarray]:
        """Return a copy of the nearest head's state (steps donate the original)."""
        return jax.tree.map(np.array, self.state.variables["nearest"]["head"])


def time_case(config: Config, case: str, dtype: Dtype, num_devices: int) -> list[dict[str, Any]]:
    """Check and time every head of a case on some of the local devices.

    Returns:
        A row per solver of the nearest head.

    Raises:
        WrongAnswerError: if a frame is wrong.
    """
    mlp = parse(case)[0] == "mlp"
    problem = make_problem(case, config.mlp_batch if mlp else config.resnet_batch, dtype)
    chunk = config.chunk if mlp or jax.default_backend() != "cpu" else 1
    solvers = config.solvers if num_devices == 1 else config.solvers[:1]
    heads: dict[str, Any] = {"learned": learned_head(problem.num_classes)}
    heads |= {solver: nearest_head(problem.num_classes, solver) for solver in solvers}
    runs = {name: Run(problem, head, num_devices, chunk) for name, head in heads.items()}
    checked = {name: check(name, run) for name, run in runs.items()}
    times = harness.compare(runs, repeats=config.repeats, warmup=0, budget=config.budget)  # the checks were the warm-up
    rows = []
    for solver in solvers:
        learned, nearest = times["learned"], times[solver]
        step = nearest.median / chunk
        alone = time_alone(config, problem, solver, checked[solver]) if num_devices == 1 else {}
        rows.append(
            {
                "case": case,
                "dtype": dtype,
                "batch": len(problem.batches[0].labels),
                "dim": len(checked[solver]["class_means"]),
                "classes": problem.num_classes,
                "devices": num_devices,
                "virtual_devices": jax.default_backend() == "cpu" and num_devices > 1,
                "cores": len(os.sched_getaffinity(0)),
                "solver": solver,
                "learned_seconds": learned.median / chunk,
                "learned_seconds_minimum": learned.minimum / chunk,
                "nearest_seconds": step,
                "nearest_seconds_minimum": nearest.minimum / chunk,
                "repeats": nearest.repeats,
                "steps_per_repeat": chunk,
                "first_step_seconds": checked[solver][
                    "first_seconds"
                ],  # compilation, and the first step's second solve
                "share": 1 - learned.median / nearest.median,
                "share_noise": learned.median / nearest.median * math.hypot(_noise(learned), _noise(nearest)),
                "head_seconds": alone.get("nearest"),
                "learned_head_seconds": alone.get("learned"),
                "head_share": (alone["nearest"] - alone["learned"]) / step if alone else None,
                "solve_seconds": alone.get("solve"),
                "solve_share": alone["solve"] / step if alone else None,
                "losses": {head: checked[head]["loss"] for head in ("learned", solver)},
                "frame_error": checked[solver]["frame_error"],
                "solve_status": checked[solver]["status"],
            }
        )
    return rows


def _noise(timing: harness.Timing) -> float:
    return (timing.upper_quartile - timing.lower_quartile) / 2 / timing.median


def check(name: str, run: Run) -> dict[str, Any]:
    """Take steps until every class has occurred. Then take one more, and compare its frame with NumPy's in float64.

    Returns:
        "loss" and "first_seconds" of the first step; for a nearest head also "class_means", "previous" (the rotation
        before the step), "frame_error" and "status" of the last step.

    Raises:
        WrongAnswerError: if the frame is wrong, or a loss is not finite.
    """
    start = time.perf_counter()
    metrics = jax.block_until_ready(run.take_step())
    checked: dict[str, Any] = {"loss": float(metrics.loss), "first_seconds": time.perf_counter() - start}
    if name != "learned":
        for _ in range(run.num_batches - 1):
            run.take_step()
        previous = run.head_variables()["rotation"]
        metrics = run.take_step()
        found = run.head_variables()
        means = found["class_means"].astype(np.float64)
        template = problems.simplex_template(means.shape[1])
        rank = len(template)
        matrix = 2 * (means / np.linalg.norm(means)) @ template.T / math.sqrt(rank) + PROX_WEIGHT * previous
        expected = problems.polar(matrix) @ template * math.sqrt((rank + 1) / rank)
        error = harness.require_close(f"the {name} head's frame", found["frame"], expected, FRAME_TOLERANCE)
        checked |= {
            "class_means": found["class_means"],
            "previous": previous,
            "frame_error": error,
            "status": int(metrics.solve_status),
        }
    harness.require_at_most(f"the loss of the {name} head", float(metrics.loss), sys.float_info.max)
    return checked


def check_devices_agree(rows: Sequence[dict[str, Any]]) -> None:
    """Raise a WrongAnswerError unless the first loss of a case is the same on any number of devices."""
    reference: dict[Any, float] = {}
    for row in rows:
        for head, loss in row["losses"].items():
            expected = reference.setdefault((row["case"], row["dtype"], head), loss)
            what = f"the loss of {row['case']}, {head} head, on {row['devices']} devices"
            harness.require_close(what, loss, expected, LOSS_TOLERANCE[row["dtype"]])


# --- How the head is timed alone. ---


def time_alone(config: Config, problem: Problem, solver: Solver, step: dict[str, Any]) -> dict[str, float]:
    """Time both heads on given features, and the inner solve, as they were in a training step.

    Args:
        config: gives the number of repeats and the budget.
        problem: gives the labels.
        solver: solver of the nearest head.
        step: the result of `check`.

    Returns:
        Medians in seconds: "learned" and "nearest" of a head's forward and backward pass, "solve" of the solve and its
        derivative.
    """
    calls = {
        "learned": _head_alone(learned_head(problem.num_classes), problem, step),
        "nearest": _head_alone(nearest_head(problem.num_classes, solver), problem, step),
        "solve": _solve_alone(solver, step),
    }
    times = harness.compare(calls, repeats=5 * config.repeats, budget=config.budget)
    return {name: timing.median for name, timing in times.items()}


def _head_alone(head: Any, problem: Problem, step: dict[str, Any]) -> Callable[[], Any]:
    """Return the forward and backward pass of a head, on features scattered about the step's class means."""
    labels, means = jnp.asarray(problem.batches[0].labels), jnp.asarray(step["class_means"])
    features = means.T[labels] + jnp.std(means) * jax.random.normal(jax.random.key(0), (len(labels), len(means)))
    variables = head.init(jax.random.key(1), features)
    params = variables.pop("params", {})
    if "nearest" in variables:
        # The state before a step that is not the first one, because the first step solves twice.
        stored = {"class_means": means, "rotation": jnp.asarray(step["previous"]), "steps": jnp.ones((), jnp.int32)}
        variables = {"nearest": variables["nearest"] | stored}

    @jax.jit
    def passes(features: jax.Array, params: Any, variables: Any) -> Any:
        def loss(features: jax.Array, params: Any) -> Any:
            collections = {"params": params, **variables}
            output, updated = head.apply(collections, features, labels, train=True, mutable=list(variables))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)), updated

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(features, params)

    return functools.partial(passes, features, params, variables)


def _solve_alone(solver: Solver, step: dict[str, Any]) -> Callable[[], Any]:
    """Return the inner solve from a warm start, and its derivative for a cotangent of the frame."""

    @jax.jit
    def solve(means: jax.Array, previous: jax.Array, cotangent: jax.Array) -> Any:
        def frame_of(means: jax.Array) -> jax.Array:
            return nearest_simplex_etf(
                means, prox_point=previous, prox_weight=PROX_WEIGHT, solver=solver, init=previous
            ).frame

        frame, pull_back = jax.vjp(frame_of, means)
        return frame, pull_back(cotangent)

    means, previous = jnp.asarray(step["class_means"]), jnp.asarray(step["previous"])
    return functools.partial(solve, means, previous, jax.random.normal(jax.random.key(0), means.shape))


# --- Virtual devices. ---


def time_cases(config: Config, num_devices: int) -> list[dict[str, Any]]:
    """Time all cases on a number of devices, on a CPU on virtual ones if needed; return [] if that is impossible."""
    if jax.local_device_count() >= num_devices:
        return _time_cases(config, num_devices)
    if jax.default_backend() != "cpu":
        print(f"{num_devices} devices: left out, this machine has {jax.local_device_count()}")
        return []
    return with_virtual_devices(num_devices, _time_cases, config, num_devices)


def _time_cases(config: Config, num_devices: int) -> list[dict[str, Any]]:
    rows = []
    for case in config.cases:
        for dtype in config.dtypes if parse(case)[0] != "mlp" else ("float32",):
            rows += time_case(config, case, dtype, num_devices)
            print(f"timed: {case}, {dtype}, {num_devices} device(s)", flush=True)
    return rows


def with_virtual_devices(num_devices: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process whose CPU looks like several devices, which share its cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _cut_cpu, (num_devices,)) as pool:
        return pool.submit(function, *args).result()


def _cut_cpu(num_devices: int) -> None:
    """Set the flag that JAX reads when a process first uses its CPU; if it is given several times, the last counts."""
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


# --- What is shown. ---


def _claims(row: dict[str, Any]) -> list[harness.Claim]:
    case = f"{row['case']}, batch {row['batch']}, {row['dtype']}, {row['solver']}"
    target = TARGETS[parse(row["case"])[0]]
    return [
        harness.Claim("nearest head's share of a step, by difference", case, 100 * row["share"], None, target, "%"),
        harness.Claim("nearest head's share of a step, timed alone", case, 100 * row["head_share"], None, target, "%"),
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    devices = f"{row['devices']}{' virtual' if row['virtual_devices'] else ''}"
    names = [row["case"], str(row["batch"]), row["dtype"], devices, row["solver"].replace("_", " ")]
    steps = [harness.duration(row[f"{head}_seconds"]) for head in ("learned", "nearest")]
    difference = f"{_percent(row['share'])} ± {_percent(row['share_noise'])}"
    alone = [
        "-"
        if row[f"{what}_share"] is None
        else f"{harness.duration(row[f'{what}_seconds'])}, {_percent(row[f'{what}_share'])}"
        for what in ("head", "solve")
    ]
    return [*names, *steps, difference, *alone]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    axes = figure.subplots()
    positions = np.arange(len(rows))
    kinds = {"share": "by difference", "head_share": "head alone", "solve_share": "solve and its derivative alone"}
    for offset, (kind, label) in zip((-0.27, 0, 0.27), kinds.items(), strict=True):
        heights = [math.nan if row[kind] is None else 100 * row[kind] for row in rows]
        noise = [100 * row["share_noise"] for row in rows] if kind == "share" else None
        axes.bar(positions + offset, heights, 0.27, yerr=noise, label=label)
    names = [f"{row['case']}\n{row['dtype']}\n{row['devices']} x {row['solver'].replace('_', ' ')}" for row in rows]
    axes.set_xticks(positions, names, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("nearest head's share of a training step, %")
    axes.margins(x=0.02)
    figure.legend(loc="outside upper center", ncols=3)


if __name__ == "__main__":
    harness.main(run, PRESETS)
