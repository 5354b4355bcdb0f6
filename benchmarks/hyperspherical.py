"""Can even frames be computed for thousands of classes: how long, how much memory, and how good are they?

Claim     1,000 class vectors in 64 dimensions are spread within two minutes on two CPU cores, 10,000 in 128 dimensions
          with less than 2 GB. Where the least energy is known, it is reached.
Command   python -m benchmarks.hyperspherical [smoke|default]
Checked   the energy against the known least one, to 1e-5; where none is known, that it is below that of random vectors.
Writes    benchmarks/results/hyperspherical-<preset>-<device>-<time>.json and .png

Nothing is read from the cache of frames, and closed forms are switched off. The time includes compilation, because a
frame is computed once.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.memory import peak_memory
from nc_jax.energies import riesz_energy
from nc_jax.frames import HypersphericalSolution, hyperspherical_solution, least_energy, random_unit

TOLERANCE = 1e-5  # of a known least energy, in float32


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        sizes: numbers of classes and dimensions (K, d).
        s: exponent of the Riesz energy.
    """

    sizes: tuple[tuple[int, int], ...] = ((24, 3), (100, 50), (1000, 64), (10_000, 128))
    s: float = 1.0


PRESETS = {"smoke": Config(sizes=((6, 3),)), "default": Config()}


def solve(num_classes: int, dim: int, s: float) -> HypersphericalSolution:
    """Spread the class vectors, without closed forms and stored frames."""
    with tempfile.TemporaryDirectory() as folder:
        return hyperspherical_solution(num_classes, dim, s=s, closed=False, cache=folder)


def prepare(num_classes: int, dim: int, s: float) -> Callable[[], Any]:
    """Return the whole computation. `benchmarks.memory.peak_memory` runs this in a new process."""
    return functools.partial(solve, num_classes, dim, s)


def measure(num_classes: int, dim: int, config: Config) -> dict[str, Any]:
    """Time one size.

    Raises:
        WrongAnswerError: if a known energy is missed, or the frame is no better than random vectors.
    """
    harness.progress(f"{num_classes} classes in {dim} dimensions")
    start = time.perf_counter()
    found = solve(num_classes, dim, config.s)
    seconds = time.perf_counter() - start
    drawn = float(riesz_energy(random_unit(num_classes, dim, key=jax.random.key(1)), config.s))
    least = least_energy(num_classes, dim, config.s)
    if least is None:
        harness.require_at_most("the energy relative to random vectors", found.value / drawn, 1)
    else:
        harness.require_close("the energy", found.value, least, TOLERANCE)
    return {
        "K": num_classes,
        "d": dim,
        "seconds": seconds,
        "energy": found.value,
        "least_energy": least,
        "random_energy": drawn,
        "status": found.status.name,
        "grad_norm": float(found.grad_norms[found.best]),
        "starts": len(found.values),
        "peak_bytes": peak_memory(prepare, num_classes, dim, config.s).peak,
    }


def run(config: Config) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The document of `harness.report`.
    """
    rows = [measure(*size, config) for size in config.sizes]
    case = "K = {K}, d = {d}".format
    return harness.report(
        "hyperspherical",
        config,
        rows=rows,
        table=harness.Table(
            f"hyperspherical frames, s = {config.s:g}, float32, compilation included",
            ("K", "d", "starts", "time", "peak", "energy", "of random vectors", "relative gradient", "status"),
            [_cells(row) for row in rows],
        ),
        claims=[
            *(
                harness.Claim(
                    "time of a frame", case(**row), row["seconds"], unit="s", at_most=120 if row["K"] <= 1000 else None
                )
                for row in rows
            ),
            *(
                harness.Claim("extra peak memory", case(**row), row["peak_bytes"] / 1e6, unit="MB", at_most=2000)
                for row in rows
            ),
        ],
        draw=functools.partial(_draw, rows),
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        *(str(row[name]) for name in ("K", "d", "starts")),
        harness.duration(row["seconds"]),
        f"{harness.number(row['peak_bytes'] / 1e6)} MB",
        f"{row['energy']:.6f}",
        f"{row['random_energy']:.6f}",
        harness.number(row["grad_norm"]),
        row["status"],
    ]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    sizes = [row["K"] for row in rows]
    times.loglog(sizes, [row["seconds"] for row in rows], "o-")
    times.set_ylabel("time, s")
    memory.loglog(sizes, [row["peak_bytes"] / 1e6 for row in rows], "o-")
    memory.set_ylabel("extra peak memory, MB")
    for axes in (times, memory):
        axes.set_xlabel("classes")


if __name__ == "__main__":
    harness.main(run, PRESETS)
