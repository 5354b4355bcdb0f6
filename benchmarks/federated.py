"""What does a round cost beside plain training steps, and beside the simulation engine of Flower?

Claim     A local step of a client takes at most 1.5 times as long as a training step of the same batch and network. The
          target that rounds are 5 times faster than in Flower's own simulation engine is reached where rounds are
          short: the engine needs 0.1 to 0.2 s for the messages of a round. It trains a client on each core, so it is
          faster where clients make many steps.
Command   python -m benchmarks.federated [smoke|default|gpu]    (8 minutes on two CPU cores)
Checked   clients that train at the same time and one after another end in the same parameters; so do our first round
          and that of Flower's engine, which runs the same client update.
Writes    benchmarks/results/federated-<preset>-<device>-<time>.json and .png

Both halves train on random inputs. Clients train as `Rounds` has it by default: on a CPU one after another. "together"
is the ratio if they train at the same time, as one batched program (`Rounds.at_once`). "plain" is an epoch of as many
batches as all clients of a round make local steps, through the same loop over a set on the device. Times are medians of
calls in turns, and include the plans of the host. (Convolutions on a CPU train in pieces both ways.)

Flower's engine runs clients in processes of their own, one per core, through `nc_jax.federated.flower`. They keep their
programs from round to round, and the first rounds, in which they compile, do not count. Messages and the waiting times
of the engine do. Ours run on one device, and with a device for each core, among which they divide the clients
(`--xla_force_host_platform_device_count`). Each kind of run has a process of its own. This half needs the packages flwr
and ray; without them it is left out.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks import flower_engine, harness
from benchmarks.flower_engine import Case
from nc_jax.streams import Epochs, Stream
from nc_jax.training import ResidentSet, Trainer
from nc_jax.training.resident import padded

LIMIT = 1.5  # a local step may cost so many times the plain step
FASTER = 5.0  # so many times faster than Flower's engine, at least
TOLERANCE = 1e-4  # relative; the same steps, rounded differently
WARM = 2  # rounds of Flower's engine in which its processes compile


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        cases: network, shape of inputs, width, batch size and local steps of each client in a round.
        flower_cases: the same, of the comparison with Flower's engine.
        clients: number of clients of a round.
        rounds: rounds of the comparison with Flower's engine.
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls.
    """

    cases: tuple[tuple[str, tuple[int, ...], int, int, int], ...] = (
        ("mlp", (64,), 100, 10, 20),  # digits
        ("mlp", (64,), 100, 64, 20),
        ("mlp", (784,), 100, 10, 20),  # Fashion-MNIST
        ("mlp", (784,), 100, 64, 20),
        ("resnet18", (32, 32, 3), 8, 32, 1),  # CIFAR
    )
    flower_cases: tuple[tuple[str, tuple[int, ...], int, int, int], ...] = (
        ("mlp", (64,), 100, 64, 3),  # one local epoch of a tenth of the digits
        ("mlp", (64,), 100, 64, 30),  # ten: FedGELA's released settings
        ("mlp", (784,), 100, 64, 100),  # more work for each message
    )
    clients: int = 10
    rounds: int = 12
    repeats: int = 9
    budget: float = 20.0


PRESETS = {
    "smoke": Config(
        cases=(("mlp", (8,), 12, 5, 2),), flower_cases=(("mlp", (8,), 12, 5, 2),), clients=2, rounds=4, repeats=2
    ),
    "default": Config(),
    "gpu": Config(
        cases=(("mlp", (784,), 100, 64, 20), ("resnet18", (32, 32, 3), 8, 32, 10), ("resnet18", (32, 32, 3), 64, 64, 5))
    ),
}


class Program:
    """Some steps of a trainer on a set on the device: a round, or an epoch of plain steps.

    Args:
        case: what is trained.
        made: trains it.
        stream: the steps; its segment 1 is run.
    """

    def __init__(self, case: Case, made: Trainer, stream: Stream):
        self.trainer, self.stream = made, stream
        self.content = ResidentSet(flower_engine.source(case), case.batch, devices=made.devices).content
        self.state = made.init(flower_engine.source(case), 0)

    def __call__(self) -> Any:
        """Run the steps, and return the parameters."""
        plan = self.stream.plan(0, 1)
        self.state = self.trainer.segment(self.state, None, self.content, padded(plan), 0, len(plan.index))
        return self.state.params


def run(config: Config) -> dict[str, Any]:
    """Check and time every case; see the module docstring."""
    rows = [measure(config, make_case(config, *case)) for case in config.cases]
    claims = [
        harness.Claim(
            "time of a client's local step, of a plain step", case_of(row), row["ratio"], at_most=LIMIT, unit="x"
        )
        for row in rows
    ]
    if harness.available("flwr", "ray"):
        found = [compare(make_case(config, *case)) for case in config.flower_cases]
        for statement, name, target in (
            ("rounds, times faster than in Flower's engine", "ratio", FASTER),
            ("rounds on a device per core, times faster than in Flower's engine", "ratio_on_devices", None),
        ):
            claims += [harness.Claim(statement, case_of(row), row[name], at_least=target, unit="x") for row in found]
        rows += found
    return harness.report("federated", config, rows=rows, table=table(rows), claims=claims, draw=partial(draw, rows))


def make_case(config: Config, network: str, inputs: tuple[int, ...], width: int, batch: int, steps: int) -> Case:
    """Return a case with the settings that all have in common."""
    return Case(network, inputs, width, batch, config.clients, steps, config.rounds)


def measure(config: Config, case: Case) -> dict[str, Any]:
    """Time one case: rounds with clients as by default and all at once, and plain steps."""
    harness.progress(f"{case}: rounds and plain steps")
    source, rounds = flower_engine.source(case), flower_engine.stream(case)
    programs: dict[str, Callable[[], Any]] = {
        "rounds": Program(case, flower_engine.trainer(case), rounds),
        "together": Program(case, flower_engine.trainer(case, at_once=case.clients), rounds),
        "plain": Program(case, flower_engine.trainer(case, in_rounds=False), Epochs(source, case.batch, case.rounds)),
    }
    first: dict[str, Any] = {}

    def check(name: str, params: Any) -> bool:
        first[name] = jax.device_get(params)
        if name == "together":
            same(f"parameters of {case}", first[name], first["rounds"])
        return True

    timings = harness.compare(programs, repeats=config.repeats, budget=config.budget, check=check)
    number = case.clients * case.steps
    seconds = {name: timing.median / number for name, timing in timings.items()}
    return row_of(case, "a plain step", seconds["rounds"], seconds["plain"]) | {
        "ratio": seconds["rounds"] / seconds["plain"],
        "ratio_together": seconds["together"] / seconds["plain"],
    }


def compare(case: Case) -> dict[str, Any]:
    """Time the rounds of one case: in Flower's engine, ours on one device, and ours with a device for each core."""
    cores = max(number for number in range(1, len(os.sched_getaffinity(0)) + 1) if case.clients % number == 0)
    theirs, flower = run_apart(case, "engine")
    found = {}
    for devices in (1, cores):
        model, found[devices] = run_apart(case, "ours", devices)
        same(f"Flower's parameters of {case}, {devices} devices,", theirs, model)
    return row_of(case, "Flower's engine", found[1], flower) | {
        "ratio": flower / found[1],
        "devices": cores,
        "ratio_on_devices": flower / found[cores],
    }


def run_apart(case: Case, what: str, devices: int = 1) -> tuple[dict[str, np.ndarray], float]:
    """Run all rounds of a case in a process of their own.

    Args:
        case: what is trained.
        what: "engine" or "ours", see `benchmarks.flower_engine`.
        devices: number of devices into which a CPU is cut.

    Returns:
        The parameters after the first round, and the median time of a round after the first ones, in seconds.

    Raises:
        RuntimeError: if the process ends with an error.
    """
    harness.progress(f"{case}: {what}, {devices} device{'s' if devices > 1 else ''}")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.npz"
        environment = {
            "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(harness.ROOT),
            "XLA_FLAGS": flags.strip(),
            flower_engine.CASE: json.dumps(case._asdict()),
        }
        command = [sys.executable, "-m", "benchmarks.flower_engine", what, str(output)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"rounds ({what}) must end without an error; got {done.returncode}:\n{done.stderr[-3000:]}"
            )
        with np.load(output) as found:
            model = {name: found[name] for name in found.files if name != "ends"}
            return model, float(np.median(np.diff(found["ends"])[WARM - 1 :]))


def same(what: str, found: Any, expected: Any) -> None:
    """Raise a `harness.WrongAnswerError` unless two trees of arrays are equal up to rounding."""
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected))
    harness.require_close(what, one, other, TOLERANCE)


def row_of(case: Case, beside: str, seconds: float, other: float) -> dict[str, Any]:
    """Return what rows of both halves have in common."""
    return case._asdict() | {"case": str(case), "beside": beside, "seconds": seconds, "other_seconds": other}


def case_of(row: dict[str, Any]) -> str:
    """Return a case in words."""
    return f"{row['case']}, {row['clients']} clients, {row['steps']} step{'s' if row['steps'] > 1 else ''} each"


def table(rows: list[dict[str, Any]]) -> harness.Table:
    """Return both times of every case."""
    lines = [
        [
            case_of(row),
            row["beside"],
            harness.duration(row["seconds"]),
            harness.duration(row["other_seconds"]),
            harness.number(row["ratio"]),
            harness.number(row["ratio_together"]) if "ratio_together" in row else "",
            harness.number(row["ratio_on_devices"]) if "ratio_on_devices" in row else "",
        ]
        for row in rows
    ]
    return harness.Table(
        "local steps, and rounds",
        ("case", "beside", "ours", "the other", "ratio", "together", "a device per core"),
        lines,
    )


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Draw the ratios."""
    axes = figure.subplots()
    axes.plot([row["ratio"] for row in rows], range(len(rows)), "o")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{case_of(row)}\nbeside {row['beside']}" for row in rows], fontsize=6)
    axes.set_xlabel("of a plain step: time of a local step; of Flower's engine: times faster")


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
