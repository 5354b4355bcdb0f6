"""How does the nearest frame scale with K and d, and how many matrix products is it worth?

Claim     Forward + backward take O(d K^2 + K^3) time. With the polar solver at (d, K) = (2048, 1000), they take at most
          the time of 14 products of a K x d with a d x K matrix on the same machine, and 60 MB beyond their inputs.
Command   python -m benchmarks.scaling [smoke|default]
Measured  forward (all that `nearest_frame` returns) and forward + backward (with the pullback of the frame to the
          means). Both run in float32 from a warm start, in turns with three things that bound them: the product, for
          arithmetic; the eigendecomposition of the smaller Gram matrix, which the closed form needs; and moving as many
          bytes as the inputs and results have, for bandwidth. Exponents are slopes of log time over log size, with 95 %
          confidence intervals. They use only sizes at which fixed costs are negligible (`fit_from`).
Checked   against float64: rotation to 1e-4, gradient to 1e-3 and |U^T U - I| to 1e-5 in every entry, at every size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import harness, ours
from benchmarks.memory import Memory, peak_memory
from benchmarks.problems import Problem, make_problem
from nc_jax.nearest import NearestFrame

KEY_SIZE = (2048, 1000)  # ImageNet's classes in ResNet-50's features
# Targets of forward + backward (polar) at the key size.
MOST_PRODUCTS = 14
MOST_MEMORY = 60e6  # bytes
MOST_SECONDS_ON_GPU = 10e-3
PRODUCT, WIDE_PRODUCT = "(K x d)(d x K) product", "(d x K)(K x d) product"
EIGH = "eigendecomposition"
MOVE = "inputs and results moved once"
BOTH = "forward + backward"


@dataclasses.dataclass(frozen=True)
class Config(harness.SolverOptions):
    """Settings of the benchmark.

    Attributes:
        dim: the dimension d while K varies.
        classes: the values of K for this d.
        num_classes: the number of classes K while d varies.
        dims: the values of d for this K.
        fit_from: smallest d and smallest K that are used to fit the exponents.
        memory: pairs (d, K) at which peak memory is measured.
    """

    dim: int = 2048
    classes: tuple[int, ...] = (25, 50, 100, 200, 400, 700, 1000)
    num_classes: int = 100
    dims: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    fit_from: tuple[int, int] = (512, 100)
    memory: tuple[tuple[int, int], ...] = (KEY_SIZE,)
    minimum: int = 3


PRESETS = {
    "default": Config(),
    "smoke": Config(dim=24, classes=(5,), num_classes=5, dims=(24,), memory=(), repeats=2, minimum=1),
}


def run(config: Config) -> dict[str, Any]:
    """Check and time both solvers at every size, and write the result.

    Raises:
        WrongAnswerError: if an answer is not right.
    """
    sizes = [(config.dim, num_classes) for num_classes in config.classes]
    sizes += [(dim, config.num_classes) for dim in config.dims]
    rows = []
    for size in dict.fromkeys(sizes):
        harness.progress(f"(d, K) = {size}")
        rows += time_size(make_problem(*size, seed=config.seed), config)
    names = list(dict.fromkeys(row["program"] for row in rows))
    fits = [fit for name in names for fit in exponents(rows, name, config)]
    table = harness.Table(
        f"scaling of the nearest frame, {jax.devices()[0].device_kind}, float32",
        ("(d, K)", "program", "median", "quartiles", "products", "moves", "peak memory", "error"),
        [row_of_table(row) for row in rows],
    )
    claims = claims_of(rows, fits)
    return harness.report(
        "scaling",
        config,
        rows=rows + [fit._asdict() for fit in fits],
        table=table,
        claims=claims,
        draw=partial(draw, rows, config),
    )


def time_size(problem: Problem, config: Config) -> list[dict[str, Any]]:
    """Return one row per program at one size, all timed in turns with the product and the move.

    The product is the smaller one of the means with their transpose. Memory is measured at the first precision.
    """
    rows: dict[str, dict[str, Any]] = {}
    functions: dict[str, Callable[[], Any]] = {}
    memory: dict[str, Memory] = {}
    inputs, cotangent = ours.inputs_of(problem), jnp.asarray(problem.cotangent)
    means, product = inputs[0], product_of(problem)
    moved = (means, inputs[1], cotangent)  # as large as the frame, the rotation and the gradient, which are written
    functions[MOVE] = partial(jax.jit(lambda *arrays: [-array for array in arrays]), *moved)
    for precision in config.precisions:
        label = partial(ours.label, precision=precision, precisions=config.precisions)
        factors = (means.T + 0, means) if product == PRODUCT else (means, means.T + 0)
        functions[label(product)] = at_precision(precision, jax.jit(jnp.matmul), *factors)
        functions[label(EIGH)] = partial(jax.jit(jnp.linalg.eigh), jnp.matmul(*factors))
        for solver in ours.SOLVERS:
            functions[label(f"{solver}: forward")] = at_precision(precision, ours.compiled(solver), *inputs)
            functions[label(f"{solver}: {BOTH}")] = at_precision(
                precision, forward_and_backward, solver, cotangent, *inputs
            )
            if (problem.dim, problem.num_classes) in config.memory and precision == config.precisions[0]:
                memory[label(f"{solver}: {BOTH}")] = peak_memory(prepare, problem, solver, precision)
    for name in functions:
        rows[name] = {"d": problem.dim, "K": problem.num_classes, "program": name}

    def check(name: str, result: Any) -> bool:
        rows[name] |= check_result(name, problem, result)
        return True

    timings = config.compare(functions, check)
    for name, timing in timings.items():
        base = product + name[len(name.partition(", ")[0]) :]  # at the same precision
        rows[name] |= timing.row() | {"moves": harness.ratio(timing, timings[MOVE])}
        if name != MOVE:
            rows[name]["products"] = harness.ratio(timing, timings[base])
    rows[MOVE]["bytes"] = 2 * sum(array.nbytes for array in moved)  # read and written
    for name, used in memory.items():
        rows[name] |= {f"memory_{key}": value for key, value in used._asdict().items()}
    return list(rows.values())


def product_of(problem: Problem) -> str:
    """Return the name of the product that the cost is compared with."""
    return PRODUCT if problem.num_classes <= problem.dim else WIDE_PRODUCT


def at_precision(precision: str, function: Callable, *args: Any) -> Callable[[], Any]:
    """Return a call of the function at a precision of matrix products."""

    def call() -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return call


@partial(jax.jit, static_argnames="solver")
def forward_and_backward(solver: ours.SolverName, cotangent, means, *rest) -> tuple[NearestFrame, jax.Array]:
    """Return the result of `nearest_frame`, and the pullback of the frame's cotangent to the means."""

    def frame_of(means):
        found = ours.solve(solver, means, *rest)
        return found.frame, found

    _, pullback, found = jax.vjp(frame_of, means, has_aux=True)
    return found, pullback(cotangent)[0]


def prepare(problem: Problem, solver: ours.SolverName, precision: str) -> Callable[[], Any]:
    """Return one compiled forward + backward, for `benchmarks.memory.peak_memory`."""
    inputs = (jnp.asarray(problem.cotangent), *ours.inputs_of(problem))
    with jax.default_matmul_precision(precision):
        return partial(forward_and_backward.lower(solver, *inputs).compile(), *inputs)


def check_result(name: str, problem: Problem, result: Any) -> dict[str, float]:
    """Compare what a program returned with float64.

    Raises:
        WrongAnswerError: see the module's docstring.
    """
    what = f"{name} at {problem.label}"
    if name.startswith((PRODUCT, WIDE_PRODUCT, EIGH, MOVE)):
        return {}
    found, gradient = (result, None) if isinstance(result, NearestFrame) else result
    row = ours.check_rotation(what, problem, found.rotation)
    if gradient is not None:
        row["gradient_error"] = ours.check_gradient(what, problem, gradient)
    return row


class Fit(NamedTuple):
    """Fit of time ~ size ** exponent, with the half width of the 95 % confidence interval."""

    fit: str
    program: str
    exponent: float
    half_width: float


def exponents(rows: Sequence[dict[str, Any]], name: str, config: Config) -> list[Fit]:
    """Fit the time of a program against K and against d."""
    smallest_dim, smallest_classes = config.fit_from
    found = []
    for fit, key, fixed, value, smallest in (
        (f"time against K at d = {config.dim}", "K", "d", config.dim, smallest_classes),
        (f"time against d at K = {config.num_classes}", "d", "K", config.num_classes, smallest_dim),
    ):
        chosen = [row for row in rows if row["program"] == name and row[fixed] == value and row[key] >= smallest]
        if len(chosen) < 3:  # two points leave no degree of freedom for a confidence interval
            continue
        line: Any = stats.linregress([np.log(row[key]) for row in chosen], [np.log(row["seconds"]) for row in chosen])
        width = float(stats.t.ppf(0.975, len(chosen) - 2) * line.stderr)
        found.append(Fit(fit, name, float(line.slope), width))
    return found


def claims_of(rows: Sequence[dict[str, Any]], fits: Sequence[Fit]) -> list[harness.Claim]:
    """The key numbers with their targets, and the exponents. With K > d, the numbers have no target."""
    claims = []
    for row in rows:
        wide = row["K"] > row["d"]
        if BOTH not in row["program"] or not (wide or (row["d"], row["K"]) == KEY_SIZE):
            continue
        case, polar = f"({row['d']}, {row['K']})", row["program"].startswith("polar") and not wide
        on_gpu = jax.default_backend() == "gpu"
        most = MOST_PRODUCTS if polar and not on_gpu else None
        product = WIDE_PRODUCT if wide else PRODUCT
        claims.append(harness.Claim(f"{row['program']}, in {product}s", case, row["products"], at_most=most))
        claims.append(harness.Claim(f"{row['program']}, in moves of its inputs and results", case, row["moves"]))
        if on_gpu:
            most = MOST_SECONDS_ON_GPU * 1e3 if polar else None
            claims.append(harness.Claim(row["program"], case, row["seconds"] * 1e3, at_most=most, unit="ms"))
        if "memory_peak" in row:
            most = MOST_MEMORY / 1e6 if polar else None
            statement = f"{row['program']}, extra peak memory"
            claims.append(harness.Claim(statement, case, row["memory_peak"] / 1e6, at_most=most, unit="MB"))
    for fit in fits:
        claims.append(harness.Claim(f"{fit.program}, exponent", fit.fit, fit.exponent, unit=f"± {fit.half_width:.2f}"))
    return claims


def row_of_table(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    error = row.get("gradient_error", row.get("error"))
    return [
        f"({row['d']}, {row['K']})",
        row["program"],
        harness.duration(row["seconds"]),
        harness.quartiles(row),
        harness.number(row["products"]) if "products" in row else "-",
        harness.number(row["moves"]),
        f"{row['memory_peak'] / 1e6:.0f} MB" if "memory_peak" in row else "-",
        f"{error:.1e}" if error is not None else "-",
    ]


def draw(rows: list[dict[str, Any]], config: Config, figure: Figure) -> None:
    """Time against K and against d."""
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["program"] for row in rows))
    panels = (("K", "d", config.dim), ("d", "K", config.num_classes))
    for axis, (key, fixed, value) in zip(axes, panels, strict=True):
        for name in names:
            chosen = sorted(
                (row[key], row["seconds"]) for row in rows if row["program"] == name and row[fixed] == value
            )
            axis.plot(*zip(*chosen, strict=True), "o-", label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(f"{key} ({fixed} = {value})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, median")
    axes[0].legend(fontsize=8)


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
