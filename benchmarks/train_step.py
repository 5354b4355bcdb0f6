"""What share of a training step does the nearest head take, compared with a learned head?

Claim     The nearest simplex ETF takes at most 15 % of a training step (forward and backward) of the digits MLP (batch
          256), and at most 3 % of a step of a ResNet-18 of full width (batch 128 on a CPU, 256 on a GPU).
Command   python -m benchmarks.train_step [smoke|default|devices]
Checked   the frame of a step against the polar factor of its class means in float64, to 1e-3; the first loss on several
          devices against the first loss on one device.
Writes    benchmarks/results/train_step-<preset>-<device>-<time>.json and .png

Both heads train the same network with the same optimiser and training step, in turns in one process: scaled features,
unit class vectors, no bias. Four shares of the step with the nearest head are reported:

- difference: 1 - learned / nearest of two compiled steps, called in rounds of alternating order (`benchmarks.paired`):
  the median over the rounds, with an interval of at least 95 % confidence. It includes all costs.
- small batch: for a ResNet on a CPU, where a step of seconds has more noise than the head has time. The difference in
  seconds at a small batch, of which there are many rounds, over the step at the full batch. The solve does not depend
  on the batch, so this sees it with a fraction of the noise; it leaves out what the head does for each further example,
  which is scaling a feature and adding it to its class ("head" has it).
- head: forward and backward pass of the nearest head on given features, minus those of the learned head.
- solve: the inner solve and its derivative, on the class means and the previous rotation of a training step.

If a CPU is to run more devices than it has, a new process divides it into virtual devices. These share the cores, and
each solves the same problem, so the head's share grows with their number; on real devices it does not. Float32 products
in the network have JAX's default precision, which is TF32 on recent GPUs; those of the solve have full precision.
"""

import dataclasses
import functools
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness, paired
from benchmarks.head_alone import time_alone
from benchmarks.networks import Problem, Solver, learned_head, make_problem, nearest_head, parse
from benchmarks.training_runs import Run, check

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        cases: what to train, as "model:K" with K classes. Models: mlp (64-256-256-128), resnet18 (CIFAR stem, 32x32
            pixels), resnet18-imagenet and resnet50-imagenet (224x224 pixels). A ResNet has its own number of features,
            or the next larger power of two that a simplex ETF of K classes needs.
        dtypes: dtypes of the activations of a ResNet. Parameters and the solve are float32, and so is the whole MLP.
        devices: numbers of devices.
        solvers: solvers of the nearest head. On several devices, and in a ResNet on a CPU, only the first one is timed.
        mlp_batch: examples per step of the MLP, on all devices together.
        resnet_batch: examples per step of a ResNet, on all devices together.
        small_batch: examples per step of the small batch of a ResNet on one CPU; 0 leaves it out.
        rounds: largest number of rounds, in each of which every step is timed once.
        slow_rounds: the same for a ResNet on a CPU.
        budget: seconds after which no round of a case begins, if there were six.
        repeats: timed calls of the head alone.
        chunk: number of steps that are timed together, as a training loop runs them; a ResNet on a CPU takes 1.
    """

    cases: tuple[str, ...] = ("mlp:10", "resnet18:10")
    dtypes: tuple[Dtype, ...] = ("float32",)
    devices: tuple[int, ...] = (1,)
    solvers: tuple[Solver, ...] = ("polar", "trust_region")
    mlp_batch: int = 256
    resnet_batch: int = 128
    small_batch: int = 8  # at full width a step of ResNet-18 then takes a fraction of a second on two cores
    rounds: int = 200
    slow_rounds: int = 16  # two or three minutes on two cores; the interval is that of the 4th to the 13th value
    budget: float = 300.0
    repeats: int = 100
    chunk: int = 10


PRESETS = {
    # Leaves out what takes too long to compile for a test.
    "smoke": Config(cases=("mlp:10",), solvers=("polar",), mlp_batch=16, rounds=6, repeats=10, chunk=1),
    "default": Config(),
    "devices": Config(devices=(1, 2, 4, 8)),
}

# Largest share in percent of a step, by kind of network.
TARGETS = {"mlp": 15.0, "resnet": 3.0}
# Largest relative error of the loss on several devices, against one device.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

COLUMNS = (
    "step",
    "batch",
    "dtype",
    "devices",
    "solver",
    "learned",
    "nearest",
    "rounds",
    "difference",
    "small batch",
    "head",
    "solve",
)


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
        claims=[claim for row in rows if row["devices"] == 1 for claim in claims_of(row)],
        draw=functools.partial(_draw, rows),
    )


# --- How steps are timed. ---


def time_case(config: Config, case: str, dtype: Dtype, num_devices: int) -> list[dict[str, Any]]:
    """Check and time every head of a case on some of the local devices.

    Returns:
        A row per solver of the nearest head.

    Raises:
        WrongAnswerError: if a frame is wrong.
    """
    mlp, on_cpu = parse(case)[0] == "mlp", jax.default_backend() == "cpu"
    slow = on_cpu and not mlp  # a step takes seconds
    problem = make_problem(case, config.mlp_batch if mlp else config.resnet_batch, dtype)
    chunk = 1 if slow else config.chunk
    rounds = config.slow_rounds if slow else config.rounds
    solvers = config.solvers[:1] if slow or num_devices > 1 else config.solvers
    checked, times = time_steps(problem, solvers, num_devices, chunk, rounds, config.budget)
    small = {}
    if slow and num_devices == 1 and 0 < config.small_batch < config.resnet_batch:
        few = make_problem(case, config.small_batch, dtype)
        small = time_steps(few, solvers, num_devices, 1, config.rounds, config.budget)[1]
    rows = []
    for solver in solvers:
        step = float(np.median(times[solver]))
        alone = {}
        if num_devices == 1:
            alone = time_alone(problem, solver, checked[solver], repeats=config.repeats, budget=10)
        row = {
            "case": case,
            "dtype": dtype,
            "batch": len(problem.batches[0].labels),
            "dim": len(checked[solver]["class_means"]),
            "classes": problem.num_classes,
            "devices": num_devices,
            "virtual_devices": on_cpu and num_devices > 1,
            "cores": len(os.sched_getaffinity(0)),
            "solver": solver,
            "learned_seconds": float(np.median(times["learned"])),
            "learned_seconds_minimum": float(np.min(times["learned"])),
            "nearest_seconds": step,
            "nearest_seconds_minimum": float(np.min(times[solver])),
            "steps_per_call": chunk,
            "first_step_seconds": checked[solver]["first_seconds"],  # compilation, and the first step's second solve
            **paired.share(times["learned"], times[solver]).row("share"),
            "learned_rounds": times["learned"].tolist(),
            "nearest_rounds": times[solver].tolist(),
            "head_seconds": alone.get("nearest"),
            "learned_head_seconds": alone.get("learned"),
            "head_share": (alone["nearest"] - alone["learned"]) / step if alone else None,
            "solve_seconds": alone.get("solve"),
            "solve_share": alone["solve"] / step if alone else None,
            "losses": {head: checked[head]["loss"] for head in ("learned", solver)},
            "frame_error": checked[solver]["frame_error"],
            "solve_status": checked[solver]["status"],
        }
        if small:
            row |= {"small_batch": config.small_batch, "small_step_seconds": float(np.median(small[solver]))}
            row |= paired.median((small[solver] - small["learned"]) / step).row("small_batch_share")
        rows.append(row)
    return rows


def time_steps(
    problem: Problem, solvers: Sequence[Solver], num_devices: int, chunk: int, rounds: int, budget: float
) -> tuple[dict[str, dict[str, Any]], Mapping[str, np.ndarray]]:
    """Compile, check and time the steps of the learned head and of the nearest head with each solver.

    Returns:
        What `training_runs.check` found, and seconds of a step in each round, both by the name of the head.
    """
    heads: dict[str, Any] = {"learned": learned_head(problem.num_classes)}
    heads |= {solver: nearest_head(problem.num_classes, solver) for solver in solvers}
    runs = {name: Run(problem, head, num_devices, chunk) for name, head in heads.items()}
    checked = {name: check(name, run) for name, run in runs.items()}  # the checks are the warm-up
    harness.progress(f"batch {len(problem.batches[0].labels)}, {num_devices} device(s): timing in rounds")
    times = paired.in_rounds(runs, rounds=rounds, budget=budget)
    return checked, {name: seconds / chunk for name, seconds in times.items()}


def check_devices_agree(rows: Sequence[dict[str, Any]]) -> None:
    """Raise a WrongAnswerError unless the first loss of a case is the same on any number of devices."""
    reference: dict[Any, float] = {}
    for row in rows:
        for head, loss in row["losses"].items():
            expected = reference.setdefault((row["case"], row["dtype"], head), loss)
            what = f"the loss of {row['case']}, {head} head, on {row['devices']} devices"
            harness.require_close(what, loss, expected, LOSS_TOLERANCE[row["dtype"]])


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


def claims_of(row: dict[str, Any]) -> list[harness.Claim]:
    """Return the shares of one row. A difference has a target, and so has the upper end of its interval.

    If there is a small batch, its difference has the target. A step of seconds varies by more than the target from
    call to call, and so does the interval of the difference at the full batch.
    """
    case = f"{row['case']}, batch {row['batch']}, {row['dtype']}, {row['solver']}"
    target = TARGETS["mlp" if parse(row["case"])[0] == "mlp" else "resnet"]
    small = "small_batch" in row
    found = [
        ("by difference", "share", not small),
        ("by difference, upper end of its interval", "share_upper", not small),
    ]
    if small:
        how = f"by difference at batch {row['small_batch']}"
        found += [
            (how, "small_batch_share", True),
            (f"{how}, upper end of its interval", "small_batch_share_upper", True),
        ]
    found.append(("timed alone", "head_share", True))
    return [
        harness.Claim(
            f"nearest head's share of a step, {how}",
            case,
            100 * row[name],
            at_most=target if limited else None,
            unit="%",
        )
        for how, name, limited in found
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    devices = f"{row['devices']}{' virtual' if row['virtual_devices'] else ''}"
    names = [row["case"], str(row["batch"]), row["dtype"], devices, row["solver"].replace("_", " ")]
    steps = [harness.duration(row[f"{head}_seconds"]) for head in ("learned", "nearest")]
    alone = [
        "-"
        if row[f"{what}_share"] is None
        else f"{harness.duration(row[f'{what}_seconds'])}, {_percent(row[f'{what}_share'])} %"
        for what in ("head", "solve")
    ]
    small = interval(row, "small_batch_share") if "small_batch" in row else "-"
    return [*names, *steps, str(row["share_rounds"]), interval(row, "share"), small, *alone]


def interval(row: Mapping[str, Any], name: str) -> str:
    """Return a share in percent, with its interval."""
    ends = [row[f"{name}_{end}"] for end in ("lower", "upper")]
    return f"{_percent(row[name])} % ({_percent(ends[0])} to {_percent(ends[1])} %)"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}"


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    axes = figure.subplots()
    positions = np.arange(len(rows))
    kinds = {"share": "by difference", "head_share": "head alone", "solve_share": "solve and its derivative alone"}
    for offset, (kind, label) in zip((-0.27, 0, 0.27), kinds.items(), strict=True):
        heights = [math.nan if row[kind] is None else 100 * row[kind] for row in rows]
        ends = [[100 * abs(row[f"share_{end}"] - row["share"]) for row in rows] for end in ("lower", "upper")]
        axes.bar(positions + offset, heights, 0.27, yerr=ends if kind == "share" else None, label=label)
    names = [f"{row['case']}\n{row['dtype']}\n{row['devices']} x {row['solver'].replace('_', ' ')}" for row in rows]
    axes.set_xticks(positions, names, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("nearest head's share of a training step, %")
    axes.margins(x=0.02)
    figure.legend(loc="outside upper center", ncols=3)


if __name__ == "__main__":
    harness.main(run, PRESETS)
