"""What does the gradient of the nearest frame cost, how exact is it, and how much memory does it need?

Claim     The implicit gradient is exact to float32 (relative error at most 1e-3) at condition numbers from 1 to 1e3.
          (At 1 the classes have collapsed, and autodiff of the singular value decomposition fails.) It is faster than
          the dense declarative-node formula by a factor of at least 30 at (d, K) = (512, 10) and 2000 at (512, 100).
          It also works at (2048, 1000), where the dense formula would need terabytes.
Command   python -m benchmarks.implicit_gradient [smoke|default]
Compared  (a) the dense formula in PyTorch (benchmarks/declarative.py), with the blocks of the Hessian and, if it fits
          into memory, with the whole Hessian; (b) autodiff of the singular value decomposition; (c) autodiff of
          unrolled iterations: of a trust region (a fixed number of Newton steps from the warm start, each by a fixed
          number of steps of conjugate gradients) and of Newton-Schulz. All in float32.
Checked   against float64: every gradient to 1e-3. A peer that misses this gets no time; if one of our own gradients
          misses it, the program ends.
Backward  is a separate program. It receives a cotangent and the residuals of the forward pass (for our solvers: the
          solution, and the decomposition that shows whether it is unique). The dense formula receives the solution.
          The time of forward + backward in one program shows that no work was moved from one to the other.
Memory    peak of one forward + backward in a new process (`benchmarks.memory.peak_memory`), including results.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness, ours
from benchmarks.declarative import dense_backward, needed_bytes
from benchmarks.memory import peak_memory
from benchmarks.problems import Problem, make_problem
from nc_jax.arrays import matmul, transpose
from nc_jax.manifolds import Stiefel

TARGETS = {(512, 10): 30, (512, 100): 2000}  # times faster than the dense formula (two CPU cores)
DENSE, WHOLE = "dense formula (PyTorch)", "dense formula, whole Hessian (PyTorch)"
# Two Newton steps reach the minimiser from the warm starts here, and conjugate gradients reach the forcing term in less
# than eight products. More iterations, or a smaller forcing term, make the gradient worse: conjugate gradients then
# work on rounding errors, and their derivative is meaningless (a third step gave relative errors of 1e-1 to 1e6).
OUTER_ITERATIONS, INNER_ITERATIONS, FORCING = 2, 8, 1e-2
NEWTON_SCHULZ_ITERATIONS = 20  # two more than the fewest that suffice for (2048, 1000)

Frame = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Config(harness.SolverOptions):
    """Settings of the benchmark.

    Attributes:
        sizes: (d, K) of the problems.
        methods: names in `METHODS`.
        dense: compare with the dense formula.
        dense_limit: largest memory in GB for which the dense formula is run.
        whole_limit: largest d (K - 1) for which the dense formula is run with the whole Hessian.
        memory: names in `METHODS`, or that of the dense formula, whose memory is measured.
        conditions: condition numbers at which exactness is checked, too.
    """

    sizes: tuple[tuple[int, int], ...] = ((64, 10), (128, 10), (512, 10), (512, 100), (2048, 1000))
    methods: tuple[str, ...] = (
        "polar",
        "trust region",
        "autodiff of the SVD",
        "unrolled trust region",
        "unrolled Newton-Schulz",
    )
    dense: bool = True
    dense_limit: float = 6.0  # (512, 100) takes 2.1 GB
    whole_limit: int = 1200  # (128, 10) has 1152
    memory: tuple[str, ...] = (*methods, DENSE)
    conditions: tuple[float, ...] = (1.0, 1e3)  # 1: collapsed means, with equal singular values; 1e3: end of the claim
    budget: float = 10.0


PRESETS = {
    "default": Config(),
    "smoke": Config(sizes=((24, 5),), memory=("polar",), repeats=2, minimum=1),
}


# --- The methods: functions (means, previous, weight, init) -> frame, to be differentiated in the means. ---


def implicit_frame(solver: ours.SolverName, *inputs) -> jax.Array:
    """The frame by one of our solvers, with the implicit gradient."""
    return ours.solve(solver, *inputs).frame


def svd_frame(means, previous, weight, init) -> jax.Array:
    """The polar factor from a singular value decomposition that JAX differentiates."""
    del init
    left, _, right = jnp.linalg.svd(_matrix(means, previous, weight), full_matrices=False)
    return _frame(matmul(left, right))


def newton_schulz_frame(means, previous, weight, init) -> jax.Array:
    """The polar factor by a fixed number of steps X (3 I - X^T X) / 2."""
    del init
    matrix = _matrix(means, previous, weight)
    # The largest singular value is at most the root of the largest column sum times the largest row sum.
    columns, rows = (jnp.max(jnp.sum(jnp.abs(matrix), axis=axis)) for axis in (0, 1))

    def step(point, _):
        return 1.5 * point - 0.5 * matmul(point, matmul(transpose(point), point)), None

    point, _ = jax.lax.scan(step, matrix / jnp.sqrt(columns * rows), length=NEWTON_SCHULZ_ITERATIONS)
    return _frame(point)


def unrolled_trust_region_frame(means, previous, weight, init) -> jax.Array:
    """A trust region with a very large radius: a fixed number of Newton steps, with fixed conjugate gradients each."""
    matrix = _matrix(means, previous, weight)
    manifold = Stiefel(*matrix.shape)

    def newton(point, _):
        gradient = manifold.project(point, manifold.gradient(point, -matrix))
        hessian = manifold.hessian(point, -matrix)
        start_squared = manifold.inner(point, gradient, gradient)

        def conjugate(state, _):
            step, residual, direction, squared = state
            running = squared > FORCING**2 * start_squared
            product = hessian(direction, jnp.zeros_like(direction))
            alpha = _ratio(running, squared, manifold.inner(point, direction, product))
            step, residual = step + alpha * direction, residual + alpha * product
            new_squared = manifold.inner(point, residual, residual)
            beta = _ratio(running, new_squared, squared)
            return (step, residual, jnp.where(running, beta * direction - residual, direction), new_squared), None

        start = (jnp.zeros_like(gradient), gradient, -gradient, start_squared)
        (step, *_), _ = jax.lax.scan(conjugate, start, length=INNER_ITERATIONS)
        return manifold.retract(point, step), None

    point, _ = jax.lax.scan(newton, init, length=OUTER_ITERATIONS)
    return _frame(point)


def _matrix(means, previous, weight) -> jax.Array:
    return 2 * ours.template_of(means.shape[1]).correlate(means) + weight * previous


def _frame(rotation) -> jax.Array:
    return ours.template_of(rotation.shape[1] + 1).rotate(rotation)


def _ratio(running, numerator, denominator) -> jax.Array:
    """Return the ratio; once conjugate gradients have stopped, return zero, with derivative zero."""
    return jnp.where(running, numerator / jnp.where(running, denominator, 1), 0)


METHODS: dict[str, Frame] = {
    "polar": partial(implicit_frame, "polar"),
    "trust region": partial(implicit_frame, "trust region"),
    "autodiff of the SVD": svd_frame,
    "unrolled trust region": unrolled_trust_region_frame,
    "unrolled Newton-Schulz": newton_schulz_frame,
}


# --- The benchmark. ---


def run(config: Config) -> dict[str, Any]:
    """Check and time every gradient, and write the result.

    Raises:
        WrongAnswerError: if one of our own gradients is not right.
    """
    dense = config.dense and harness.available("torch")
    rows, claims = [], []
    for dim, num_classes in config.sizes:
        harness.progress(f"(d, K) = ({dim}, {num_classes})")
        problem = make_problem(dim, num_classes, seed=config.seed)
        new = time_methods(problem, dense, config)
        claims += claims_of(problem, new)
        rows += new + check_at_conditions(dim, num_classes, config)
    worst = max(row["error"] for row in rows if row["method"].startswith(ours.SOLVERS))
    claims.append(
        harness.Claim("largest relative error of our gradients", "all", worst, at_most=ours.GRADIENT_TOLERANCE)
    )
    table = harness.Table(
        f"gradient of the nearest frame, {jax.devices()[0].device_kind}, float32",
        ("(d, K)", "method", "forward", "forward + backward", "backward", "peak memory", "error"),
        [row_of_table(row) for row in rows],
    )
    return harness.report("implicit_gradient", config, rows=rows, table=table, claims=claims, draw=partial(draw, rows))


def time_methods(problem: Problem, dense: bool, config: Config) -> list[dict[str, Any]]:
    """Return one row per method, all timed in turns."""
    rows: dict[str, dict[str, Any]] = {}
    functions: dict[tuple[str, str], Callable[[], Any]] = {}
    for precision in config.precisions:
        for method in config.methods:
            name = ours.label(method, precision, config.precisions)
            rows[name] = _case(problem, name)
            for part, function in parts_of(problem, method, precision).items():
                functions[name, part] = function
    if dense:
        rows[DENSE] = _case(problem, DENSE) | {"needed_bytes": needed_bytes(problem)}
        if needed_bytes(problem) <= config.dense_limit * 1e9:
            rotation = problem.rotation.astype(np.float32)
            functions[DENSE, "backward"] = dense_backward(problem, rotation)
            if problem.previous.size <= config.whole_limit:
                rows[WHOLE] = _case(problem, WHOLE)
                functions[WHOLE, "backward"] = dense_backward(problem, rotation, whole_hessian=True)

    def check(key: tuple[str, str], result: Any) -> bool:
        name, part = key
        if part == "forward":
            return True
        try:
            rows[name]["error"] = ours.check_gradient(f"{name} at {problem.label}", problem, result)
        except harness.WrongAnswerError as error:
            if name.startswith(ours.SOLVERS):
                raise
            rows[name] |= {"refused": str(error), "error": harness.relative_error(result, problem.gradient)}
        return "refused" not in rows[name]

    timings = config.compare(functions, check)
    for name, row in rows.items():
        parts = {part: timing for (other, part), timing in timings.items() if other == name}
        if "refused" in row or not parts:
            continue
        for part, timing in parts.items():
            row |= {f"{part.replace(' + ', '_and_')}_{key}": value for key, value in timing.row().items()}
    for precision in config.precisions:
        for method in config.memory:
            name = ours.label(method, precision, config.precisions)
            if method in config.methods or (method, "backward") in functions:
                memory = peak_memory(prepare, problem, method, precision)
                rows[name] |= {f"memory_{key}": value for key, value in memory._asdict().items()}
    return list(rows.values())


def _case(problem: Problem, name: str) -> dict[str, Any]:
    return {"d": problem.dim, "K": problem.num_classes, "method": name}


def parts_of(problem: Problem, method: str, precision: str) -> dict[str, Callable[[], Any]]:
    """Return the programs to time for a method that JAX differentiates."""
    inputs, cotangent = ours.inputs_of(problem), jnp.asarray(problem.cotangent)

    def at_precision(function: Callable, *args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return {
        "forward": partial(at_precision, frame_of, method, *inputs),
        "forward + backward": partial(at_precision, gradient_of, method, cotangent, *inputs),
        "backward": partial(at_precision, pull_back, at_precision(residuals_of, method, *inputs), cotangent),
    }


@partial(jax.jit, static_argnames="method")
def frame_of(method: str, *inputs) -> jax.Array:
    """Return the frame by a method."""
    return METHODS[method](*inputs)


@partial(jax.jit, static_argnames="method")
def gradient_of(method: str, cotangent, means, *rest) -> jax.Array:
    """Return the pullback of the cotangent to the means."""
    return jax.vjp(lambda means: METHODS[method](means, *rest), means)[1](cotangent)[0]


@partial(jax.jit, static_argnames="method")
def residuals_of(method: str, means, *rest) -> Any:
    """Return the pullback of the forward pass, a tree of arrays."""
    return jax.vjp(lambda means: METHODS[method](means, *rest), means)[1]


@jax.jit
def pull_back(residuals: Any, cotangent) -> jax.Array:
    """Apply the pullback to a cotangent of the frame."""
    return residuals(cotangent)[0]


def prepare(problem: Problem, method: str, precision: str) -> Callable[[], Any]:
    """Return one compiled forward + backward (dense formula: backward only), for `benchmarks.memory.peak_memory`."""
    if method == DENSE:
        return dense_backward(problem, problem.rotation.astype(np.float32))
    inputs = (jnp.asarray(problem.cotangent), *ours.inputs_of(problem))
    with jax.default_matmul_precision(precision):
        return partial(gradient_of.lower(method, *inputs).compile(), *inputs)


def check_at_conditions(dim: int, num_classes: int, config: Config) -> list[dict[str, Any]]:
    """Check gradients for badly conditioned and for collapsed means, without a proximal term. The rows have no time.

    For collapsed means all singular values are equal, and autodiff of the decomposition divides by their differences.
    """
    rows = []
    for condition in config.conditions:
        problem = make_problem(dim, num_classes, seed=config.seed, condition=condition)
        for precision in config.precisions:
            for method in (*ours.SOLVERS, "autodiff of the SVD"):
                name = ours.label(f"{method}, condition {condition:g}", precision, config.precisions)
                row = _case(problem, name)
                gradient = parts_of(problem, method, precision)["forward + backward"]()
                try:
                    row["error"] = ours.check_gradient(f"{name} at {problem.label}", problem, gradient)
                except harness.WrongAnswerError as error:
                    if method in ours.SOLVERS:
                        raise
                    row |= {"refused": str(error), "error": harness.relative_error(gradient, problem.gradient)}
                rows.append(row)
    return rows


def claims_of(problem: Problem, rows: list[dict[str, Any]]) -> list[harness.Claim]:
    """How many times faster than the dense formula our gradients are."""
    by_method = {row["method"]: row for row in rows}
    dense = by_method.get(DENSE)
    if dense is None:
        return []
    if "backward_seconds" not in dense:
        needed = dense["needed_bytes"] / 1e9
        return [harness.Claim("dense formula: memory that it would need", problem.label, needed, unit="GB")]
    claims = []
    for method in ours.SOLVERS:
        if "backward_seconds" in by_method.get(method, {}):
            faster = dense["backward_seconds"] / by_method[method]["backward_seconds"]
            target = TARGETS.get((problem.dim, problem.num_classes)) if jax.default_backend() == "cpu" else None
            statement = f"{method}: backward, times faster than the dense formula"
            claims.append(harness.Claim(statement, problem.label, faster, at_least=target, unit="x"))
    return claims


def row_of_table(row: dict[str, Any]) -> list[str]:
    """One line of the table."""

    def time(key: str) -> str:
        return harness.duration(row[key]) if key in row else "-"

    memory = f"{row['memory_peak'] / 1e6:.1f} MB" if "memory_peak" in row else "-"
    if "needed_bytes" in row and "backward_seconds" not in row:
        memory = f"needs {harness.number(row['needed_bytes'] / 1e9)} GB"
    error = f"{row['error']:.1e}" if "error" in row else "-"
    return [
        f"({row['d']}, {row['K']})",
        row["method"],
        time("forward_seconds"),
        time("forward_and_backward_seconds"),
        time("backward_seconds"),
        memory,
        f"{error}: refused" if "refused" in row else error,
    ]


def draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Backward time, and memory, against problem size."""
    sizes = list(dict.fromkeys((row["d"], row["K"]) for row in rows))
    left, right = figure.subplots(1, 2)
    for axis, key, scale, label in (
        (left, "backward_seconds", 1.0, "backward, seconds"),
        (right, "memory_peak", 1e-6, "forward + backward, extra MB"),
    ):
        for method in dict.fromkeys(row["method"] for row in rows if key in row):
            chosen = [row for row in rows if row["method"] == method and key in row]
            positions = [sizes.index((row["d"], row["K"])) for row in chosen]
            axis.plot(positions, [row[key] * scale for row in chosen], "o-", label=method)
        axis.set_yscale("log")
        axis.set_xticks(range(len(sizes)), [f"({d}, {k})" for d, k in sizes])
        axis.set_xlabel("(d, K)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)


if __name__ == "__main__":
    harness.main(run, PRESETS, synchronous=True)
