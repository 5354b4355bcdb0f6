"""How many images a second does a training step take, next to the same network in PyTorch?

Claim     On a GPU, a ResNet-18 training step is at least 1.5 times as fast as PyTorch's eager step, and at least as
          fast as its compiled step. On two CPU cores the ratios are reported without a target. Training on the digits
          spends at most 10 % of an epoch outside compiled code, including evaluation and logs, after the first epoch.
Command   python -m benchmarks.throughput [smoke|default]
Checked   the first loss of a peer, with the same parameters on the same batch, against ours: to 1e-3 in float32 and to
          3e-2 in bfloat16. A peer that misses this gets no time. Our own loss must have fallen after five more steps.
Compared  ResNet-18 with the stem for small images (32x32), a linear classifier, SGD with momentum, parameters in
          float32, activations in float32 or bfloat16 (PyTorch: autocast; channels last). The batch is on the device.
Writes    benchmarks/results/throughput-<preset>-<device>-<time>.json and .png
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.networks import make_problem
from benchmarks.torch_networks import copy_parameters, resnet18, training_step
from nc_jax.models import Classifier, LearnedHead
from nc_jax.training import AXIS, create_state, data_parallel, make_train_step

Dtype = Literal["float32", "bfloat16"]
OURS, EAGER, COMPILED = "nc_jax", "PyTorch eager", "PyTorch compiled"
LEARNING_RATE, MOMENTUM = 0.05, 0.9
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
TARGETS = {EAGER: 1.5, COMPILED: 1.0}  # times as fast, on a GPU
MOST_OUTSIDE = 10.0  # percent of an epoch of digits


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        width: channels of the stem; 64 gives ResNet-18.
        num_classes: number of classes K.
        batch_size: images per step.
        dtypes: dtypes of the activations.
        peers: programs to compare with: "PyTorch eager", "PyTorch compiled".
        epochs: epochs on the digits, to measure the share of time outside compiled code; 0 leaves this out.
        repeats: timed steps of each program.
        budget: seconds after which a program gets no more timed steps, if it has had three.
    """

    width: int = 64
    num_classes: int = 10
    batch_size: int = 32
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    peers: tuple[str, ...] = (EAGER, COMPILED)
    epochs: int = 20
    repeats: int = 10
    budget: float = 20.0


PRESETS = {
    "default": Config(),
    # Leaves out what takes too long to compile for a test.
    "smoke": Config(width=4, batch_size=4, dtypes=("float32",), peers=(EAGER,), epochs=3, repeats=2),
}


def run(config: Config) -> dict[str, Any]:
    """Check and time every program, and write the result.

    Raises:
        WrongAnswerError: if our own loss does not fall.
    """
    rows: list[dict[str, Any]] = []
    for dtype in config.dtypes:
        harness.progress(f"ResNet-18, {dtype}")
        rows += time_steps(config, dtype)
    digits = [share_outside(config.epochs)] if config.epochs else []
    claims = [claim for row in rows for claim in claims_of(row, rows)]
    for row in digits:
        share = 100 * row["digits_share_outside"]
        claims.append(
            harness.Claim("share of an epoch outside compiled code", "digits", share, None, MOST_OUTSIDE, "%")
        )
    return harness.report(
        "throughput",
        config,
        rows=rows + digits,
        table=harness.Table(
            f"a training step of ResNet-18, batch {config.batch_size}, {jax.devices()[0].device_kind}",
            ("program", "dtype", "step", "quartiles", "images per second", "times ours"),
            [cells(row, rows) for row in rows],
        ),
        claims=claims,
        draw=partial(draw, rows),
    )


def time_steps(config: Config, dtype: Dtype) -> list[dict[str, Any]]:
    """Time our step and the peers', in turns."""
    problem = make_problem(f"resnet18:{config.num_classes}", config.batch_size, dtype)
    batch = problem.batches[0]
    model = Classifier(problem.backbone(width_multiplier=config.width / 64), LearnedHead(config.num_classes))
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    # Not the default random generator: on a CPU, XLA needs a second per kernel to compile it, for twenty kernels.
    state = create_state(model, optimizer, jax.random.key(0, impl="rbg"), batch.inputs[:1])
    params = jax.device_get(state.params)
    step = data_parallel(
        make_train_step(model, optimizer, axis_name=AXIS), devices=jax.local_devices()[:1], donate=True
    )
    batch_on_device = jax.device_put(batch)

    def ours() -> float:
        nonlocal state
        state, metrics = step(state, batch_on_device)
        return float(metrics.loss)

    functions: dict[str, Callable[[], float]] = {OURS: ours}
    if config.peers and harness.available("torch"):
        for peer in config.peers:
            network = resnet18(config.width, config.num_classes)
            copy_parameters(network, params)
            functions[peer] = training_step(
                network,
                batch.inputs,
                batch.labels,
                device="cuda" if jax.default_backend() == "gpu" else "cpu",
                bfloat16=dtype == "bfloat16",
                compiled=peer == COMPILED,
                learning_rate=LEARNING_RATE,
                momentum=MOMENTUM,
            )
    rows: dict[str, dict[str, Any]] = {}

    def check(name: str, loss: float) -> bool:
        row = {"program": name, "dtype": dtype, "batch": config.batch_size, "loss": loss}
        try:
            if name == OURS:
                after = [functions[name]() for _ in range(5)][-1]
                harness.require_at_most("the loss after five more steps", after, loss)
            else:
                expected = rows[OURS]["loss"]
                harness.require_close(f"the first loss of {name}", loss, expected, LOSS_TOLERANCE[dtype])
        except harness.WrongAnswerError as error:
            if name == OURS:
                raise
            row["refused"] = str(error)
        rows[name] = row
        return "refused" not in row

    timings = harness.compare(functions, repeats=config.repeats, budget=config.budget, check=check)
    for name, timing in timings.items():
        rows[name] |= timing.row() | {"images_per_second": config.batch_size / timing.median}
    return list(rows.values())


def share_outside(epochs: int) -> dict[str, float]:
    """Train on the digits as `experiments.nearest_etf` does; return what an epoch spends outside compiled programs.

    Results are medians over all epochs except the first. Every compiled program is waited for, so nothing overlaps.

    Returns:
        "digits_share_outside", and the "digits_seconds" of an epoch.
    """
    from experiments import nearest_etf
    from nc_jax.study.settings import expand
    from nc_jax.study.trainers import data_of, make_trainer
    from nc_jax.training import MetricsLog, parallel
    from nc_jax.training import evaluate as evaluation

    inside = 0.0

    def timed(compile_: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(function: Callable[..., Any], *args: Any, **keywords: Any) -> Callable[..., Any]:
            program = compile_(function, *args, **keywords)

            def call(*inputs: Any, **keywords: Any) -> Any:
                nonlocal inside
                began = time.perf_counter()
                result = jax.block_until_ready(program(*inputs, **keywords))
                inside += time.perf_counter() - began
                return result

            return call

        return compiled

    class Timed:
        """The module `jax` with `jit` and `pmap` replaced by versions that measure time."""

        def __getattr__(self, name: str) -> Any:
            return timed(getattr(jax, name)) if name in ("jit", "pmap") else getattr(jax, name)

    loop = dataclasses.replace(nearest_etf.DEFAULT.loop, epochs=epochs)
    config = dataclasses.replace(nearest_etf.DEFAULT, methods=("nearest",), loop=loop)
    modules: list[Any] = [parallel, evaluation]
    shared = {name: getattr(evaluation, name) for name in ("numbers_of", "centred_numbers_of")}
    marks: list[tuple[float, float]] = []
    try:
        for module in modules:
            module.jax = Timed()
        for name, program in shared.items():
            setattr(evaluation, name, timed(lambda function: function)(program))
        (group,) = expand(config)[""]
        data = data_of(config)
        trainer = make_trainer(group, data)
        with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder)) as log:
            trainer.fit(
                data.train,
                data.test,
                seed=0,
                run="run",
                directory=Path(folder),
                log=log,
                on_epoch=lambda epoch, metrics: marks.append((time.perf_counter(), inside)),
            )
    finally:
        for module in modules:
            module.jax = jax
        for name, program in shared.items():
            setattr(evaluation, name, program)
    # There is a mark at the end of each epoch, including epoch 0. Leave out the first epoch, which compiles.
    walls, compiled = np.diff(np.array(marks)[1:], axis=0).T
    return {"digits_share_outside": float(np.median(1 - compiled / walls)), "digits_seconds": float(np.median(walls))}


def claims_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[harness.Claim]:
    """Return the claim how many times as fast as a peer our step is."""
    ours = next(other for other in rows if other["program"] == OURS and other["dtype"] == row["dtype"])
    if row["program"] not in TARGETS or "seconds" not in row:
        return []
    target = TARGETS[row["program"]] if jax.default_backend() == "gpu" else None
    case = f"batch {row['batch']}, {row['dtype']}"
    return [
        harness.Claim(f"times as fast as {row['program']}", case, row["seconds"] / ours["seconds"], target, unit="x")
    ]


def cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line of the table."""
    if "seconds" not in row:
        return [row["program"], row["dtype"], "wrong", "-", "-", "-"]
    ours = next(other for other in rows if other["program"] == OURS and other["dtype"] == row["dtype"])
    return [
        row["program"],
        row["dtype"],
        harness.duration(row["seconds"]),
        harness.quartiles(row),
        harness.number(row["images_per_second"]),
        harness.number(row["seconds"] / ours["seconds"]),
    ]


def draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    """Images per second."""
    axes = figure.subplots()
    timed = [row for row in rows if "images_per_second" in row]
    names = [f"{row['program']}\n{row['dtype']}" for row in timed]
    axes.bar(names, [row["images_per_second"] for row in timed])
    axes.set_ylabel("images per second")
    axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    harness.main(run, PRESETS)
