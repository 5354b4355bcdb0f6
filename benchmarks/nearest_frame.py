"""How fast is the nearest frame, and how exact?

Claim     Both solvers reach the minimiser to the precision of float32, from cold and warm starts, and at condition
          number 1e3. From a warm start they are faster than pymanopt's trust region (NumPy backend). At (d, K) =
          (512, 10), (512, 100) and (2048, 1000), polar is faster by factors of at least 30, 20 and 25, and the trust
          region by at least 10, 5 and 4.
Command   python -m benchmarks.nearest_frame [smoke|default]
Checked   against the polar factor in float64: relative error of the rotation at most 1e-4, and |U^T U - I| at most 1e-5
          in every entry. All trust regions stop at the same gradient norm: 10 eps of float32 times ||B||, our default.
          The gradient norm of every answer, computed in float64, must be at most twice this. A peer that misses a check
          gets no time; if one of our own solvers misses a check, the program ends.
Problem   benchmarks/problems.py; peers in benchmarks/peers.py. Our solvers run in float32, compiled, and compute all
          that `nearest_frame` returns. The peers run in float64.
Dispatch  jax_cpu_enable_async_dispatch is off for all of JAX, see benchmarks/README.md.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness, ours
from benchmarks.peers import PEERS
from benchmarks.problems import Problem, make_problem
from nc_jax.nearest import NearestFrame

# Targets on two CPU cores: how many times faster than pymanopt's trust region, from a warm start, by (d, K).
TARGETS = {
    "polar": {(512, 10): 100, (512, 100): 50, (2048, 1000): 60},
    "trust region": {(512, 10): 20, (512, 100): 10, (2048, 1000): 10},
}
REFERENCE = "pymanopt (NumPy)"

STOP = 10 * float(np.finfo(np.float32).eps)  # the default of TrustRegionOptions, relative to ||B||


@dataclasses.dataclass(frozen=True)
class Config(harness.SolverOptions):
    """Settings of the benchmark.

    Attributes:
        sizes: (d, K) of the problems.
        starts: "warm" and "cold".
        peers: names in `peers.PEERS`.
        geojax_limit: largest K for geojax, whose retraction needs the exponential of a 2 K x 2 K matrix.
        cold_peer_limit: largest K at which the peers also solve from a cold start; at 1000 this takes minutes.
        condition: condition number at which exactness is checked, too.
    """

    sizes: tuple[tuple[int, int], ...] = ((64, 10), (128, 10), (512, 10), (512, 100), (2048, 1000))
    starts: tuple[str, ...] = ("warm", "cold")
    peers: tuple[str, ...] = tuple(PEERS)
    geojax_limit: int = 100
    cold_peer_limit: int = 100
    condition: float = 1e3


PRESETS = {
    "default": Config(),
    "smoke": Config(sizes=((24, 5),), repeats=2, minimum=1),
}


def run(config: Config) -> dict[str, Any]:
    """Check and time every solver on every problem, and write the result.

    Raises:
        WrongAnswerError: if one of our own answers is not right.
    """
    peers = [name for name in config.peers if harness.available(*PEERS[name][1])]
    rows, claims = [], []
    for dim, num_classes in config.sizes:
        problem = make_problem(dim, num_classes, seed=config.seed)
        for start in config.starts:
            harness.progress(f"(d, K) = {problem.label}, {start} start")
            new = time_solvers(problem, start, peers, config)
            rows += new
            if start == "warm":
                claims += claims_of(problem, new)
        rows += check_at_condition(dim, num_classes, config)
    claims += exactness(rows, config)
    table = harness.Table(
        f"nearest frame, {jax.devices()[0].device_kind}",
        ("(d, K)", "start", "solver", "median", "quartiles", "times polar", "error", "gradient norm"),
        [row_of_table(row, rows) for row in rows],
    )
    return harness.report("nearest_frame", config, rows=rows, table=table, claims=claims, draw=partial(draw, rows))


def time_solvers(problem: Problem, start: str, peers: list[str], config: Config) -> list[dict[str, Any]]:
    """Return one row per solver, our own and the peers', all timed in turns."""
    stop = STOP * float(np.linalg.norm(problem.matrix))
    functions: dict[str, Callable[[], Any]] = {}
    for precision in config.precisions:
        for solver in ours.SOLVERS:
            name = ours.label(solver, precision, config.precisions)
            functions[name] = our_solver(problem, start, solver, precision)
    for name in peers:
        limit = config.geojax_limit if name == "geojax" else None
        if start == "cold":
            limit = min(config.cold_peer_limit, limit or config.cold_peer_limit)
        if limit is None or problem.num_classes <= limit:
            functions[name] = PEERS[name][0](problem, problem.start(start), stop)
    rows: dict[str, dict[str, Any]] = {}

    def check(name: str, result: Any) -> bool:
        rows[name] = {"d": problem.dim, "K": problem.num_classes, "start": start, "solver": name}
        try:
            rows[name] |= check_answer(name, problem, result, stop)
        except harness.WrongAnswerError as error:
            if name not in peers:
                raise
            rows[name]["refused"] = str(error)
            return False
        return True

    timings = config.compare(functions, check)
    for name, timing in timings.items():
        rows[name] |= timing.row()
    return list(rows.values())


def our_solver(problem: Problem, start: str, solver: ours.SolverName, precision: str) -> Callable[[], NearestFrame]:
    """Return a call of the compiled `nearest_frame`, with its inputs on the device."""
    inputs = ours.inputs_of(problem, start)

    def call() -> NearestFrame:
        with jax.default_matmul_precision(precision):
            return ours.compiled(solver)(*inputs)

    return call


def check_answer(name: str, problem: Problem, result: Any, stop: float) -> dict[str, Any]:
    """Compare an answer with float64.

    Raises:
        WrongAnswerError: see the module's docstring.
    """
    rotation = np.asarray(result.rotation if isinstance(result, NearestFrame) else result)
    what = f"{name} at {problem.label}"
    row: dict[str, Any] = {"dtype": str(rotation.dtype)} | ours.check_rotation(what, problem, rotation)
    reached = problem.gradient_norm(rotation)
    row["gradient_norm"] = harness.require_at_most(f"the gradient norm of {what}", reached, 2 * stop)
    row["gradient_norm_to_stop"] = stop
    if isinstance(result, NearestFrame):
        solution = result.solution
        row |= {name: int(getattr(solution, name)) for name in ("iterations", "inner_iterations", "status")}
    return row


def check_at_condition(dim: int, num_classes: int, config: Config) -> list[dict[str, Any]]:
    """Check our solvers for badly conditioned means, without a proximal term. The rows have no time."""
    problem = make_problem(dim, num_classes, seed=config.seed, condition=config.condition)
    stop = STOP * float(np.linalg.norm(problem.matrix))
    rows = []
    for precision in config.precisions:
        for solver in ours.SOLVERS:
            name = ours.label(solver, precision, config.precisions)
            result = jax.block_until_ready(our_solver(problem, "warm", solver, precision)())
            row = check_answer(f"{name}, condition {config.condition:.0e},", problem, result, stop)
            where = {"d": dim, "K": num_classes, "start": f"warm, condition {config.condition:.0e}", "solver": name}
            rows.append(where | row)
    return rows


def claims_of(problem: Problem, rows: list[dict[str, Any]]) -> list[harness.Claim]:
    """Return the claims how many times faster than the reference our solvers are."""
    medians = {row["solver"]: row["seconds"] for row in rows if "seconds" in row}
    on_cpu = jax.default_backend() == "cpu"  # the targets are for a CPU
    claims = []
    for name, seconds in medians.items():
        solver = name.partition(", ")[0]
        if solver in TARGETS and REFERENCE in medians:
            target = TARGETS[solver].get((problem.dim, problem.num_classes)) if on_cpu else None
            statement = f"{name}: times faster than {REFERENCE}, warm"
            claims.append(harness.Claim(statement, problem.label, medians[REFERENCE] / seconds, target, unit="x"))
    return claims


def exactness(rows: list[dict[str, Any]], config: Config) -> list[harness.Claim]:
    """Return the claims on the largest errors of our solvers over all problems and starts."""
    limits = {
        "error": ("relative error of the rotation", ours.ROTATION_TOLERANCE),
        "orthogonality": ("entry of |U^T U - I|", ours.ORTHOGONALITY_TOLERANCE),
    }
    claims = []
    for precision in config.precisions:
        names = {ours.label(solver, precision, config.precisions) for solver in ours.SOLVERS}
        for key, (statement, limit) in limits.items():
            worst = max(row[key] for row in rows if row["solver"] in names)
            statement = ours.label(f"largest {statement}", precision, config.precisions)
            claims.append(harness.Claim(statement, "all", worst, at_most=limit))
    return claims


def row_of_table(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """One line of the table."""
    same = [other for other in rows if all(other[key] == row[key] for key in ("d", "K", "start"))]
    first = same[0].get("seconds")  # polar
    seconds = row.get("seconds")
    return [
        f"({row['d']}, {row['K']})",
        row["start"],
        row["solver"],
        harness.duration(seconds) if seconds else "wrong" if "refused" in row else "-",
        harness.quartiles(row),
        harness.number(seconds / first) if seconds and first else "-",
        f"{row['error']:.1e}" if "error" in row else "-",
        f"{row['gradient_norm']:.1e}" if "gradient_norm" in row else "-",
    ]


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Time against problem size, one panel per start."""
    timed = [row for row in rows if "seconds" in row]
    starts = list(dict.fromkeys(row["start"] for row in timed))
    sizes = list(dict.fromkeys((row["d"], row["K"]) for row in timed))
    axes = np.atleast_1d(figure.subplots(1, len(starts), sharey=True))
    for axis, start in zip(axes, starts, strict=True):
        for solver in dict.fromkeys(row["solver"] for row in timed):
            chosen = [row for row in timed if row["start"] == start and row["solver"] == solver]
            positions = [sizes.index((row["d"], row["K"])) for row in chosen]
            axis.plot(positions, [row["seconds"] for row in chosen], "o-", label=solver)
        axis.set_yscale("log")
        axis.set_xticks(range(len(sizes)), [f"({d}, {k})" for d, k in sizes])
        axis.set_xlabel("(d, K)")
        axis.set_title(f"{start} start")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, median")
    axes[0].legend(fontsize=8)


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
