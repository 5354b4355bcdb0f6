"""How long does it take to draw a randomly oriented simplex of thousands of classes?

Claim     `simplex_etf(4000, 4096, key=...)` takes at most the time of three (K x d)(d x K) products on this machine.
Command   python -m benchmarks.draws [smoke|default|gpu]
Measured  the frame, with a new key for every call, in turns with the product, and with the two steps from which it is
          made: the draw of the rotation and the product with the template. For comparison, the QR decomposition of a
          Gaussian matrix, which is a draw from the same distribution.
Checked   at every size: in float64, |W^T W - G| to 1e-6 in every entry for the Gram matrix G of a simplex, and
          |U^T U - I| for the rotation.
Writes    benchmarks/results/draws-<preset>-<device>-<time>.json and .png
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness
from nc_jax.frames import simplex_etf
from nc_jax.frames.simplex import SimplexTemplate
from nc_jax.manifolds import Stiefel
from nc_jax.manifolds.stiefel import orthogonal_factor

KEY_SIZE = (4000, 4096)
MOST_PRODUCTS = 3  # target at this size
TOLERANCE = 1e-6  # of an entry of a Gram matrix in float32
PRODUCT, FRAME = "(K x d)(d x K) product", "simplex_etf"
DRAW, ROTATE, DECOMPOSITION = "rotation", "product with the template", "QR of a Gaussian matrix"


@dataclasses.dataclass(frozen=True)
class Config(harness.Options):
    """Settings of the benchmark.

    Attributes:
        sizes: pairs (K, d).
        repeats: timed calls of each program.
        budget: seconds after which a program gets no more timed calls, if it has had three.
    """

    sizes: tuple[tuple[int, int], ...] = ((1000, 2048), (2000, 2048), KEY_SIZE)
    repeats: int = 5
    budget: float = 6.0


PRESETS = {"default": Config(), "smoke": Config(sizes=((5, 8),), repeats=2), "gpu": Config(repeats=20)}


def run(config: Config) -> dict[str, Any]:
    """Check and time the draw at every size, and write the result.

    Raises:
        WrongAnswerError: if a frame is no simplex, or a rotation is not orthonormal.
    """
    rows = []
    for size in config.sizes:
        harness.progress(f"(K, d) = {size}")
        rows += time_size(config, *size)
    return harness.report(
        "draws",
        config,
        rows=rows,
        table=harness.Table(
            f"draws of a simplex, {jax.devices()[0].device_kind}, float32",
            ("(K, d)", "program", "median", "quartiles", "products", "error"),
            [_cells(row) for row in rows],
        ),
        claims=[
            harness.Claim(
                f"{row['program']}, in (K x d)(d x K) products",
                f"K={row['K']}, d={row['d']}",
                row["products"],
                at_most=MOST_PRODUCTS if (row["K"], row["d"]) == KEY_SIZE else None,
                unit="x",
            )
            for row in rows
            if row["program"] == FRAME
        ],
        draw=functools.partial(_draw, rows),
    )


def time_size(config: Config, num_classes: int, dim: int) -> list[dict[str, Any]]:
    """Return one row for each program at a size."""
    keys = (jax.random.key(seed) for seed in itertools.count())
    rotation = Stiefel(dim, num_classes - 1).random_point(next(keys))
    frame = simplex_etf(num_classes, dim, key=next(keys))
    programs: dict[str, Callable[[], Any]] = {
        PRODUCT: lambda: product(frame),
        FRAME: lambda: simplex_etf(num_classes, dim, key=next(keys)),
        DRAW: lambda: Stiefel(dim, num_classes - 1).random_point(next(keys)),
        ROTATE: lambda: SimplexTemplate.of_unit_columns(num_classes).rotate(rotation),
        DECOMPOSITION: lambda: decomposition(next(keys), dim, num_classes - 1),
    }
    errors: dict[str, float] = {}

    def check(name: str, result: Any) -> bool:
        if name == PRODUCT:
            return True
        columns = np.asarray(result, np.float64)
        gram = columns.T @ columns
        wanted = np.eye(len(gram))
        if name in (FRAME, ROTATE):
            wanted = (num_classes * wanted - 1) / (num_classes - 1)
        what = f"the error of an entry of the Gram matrix of {name}"
        errors[name] = harness.require_at_most(what, float(np.max(np.abs(gram - wanted))), TOLERANCE)
        return True

    times = harness.compare(programs, repeats=config.repeats, budget=config.budget, check=check)
    return [
        {"program": name, "K": num_classes, "d": dim, "error": errors.get(name)}
        | timing.row()
        | {"products": harness.ratio(timing, times[PRODUCT])}
        for name, timing in times.items()
    ]


@jax.jit
def product(frame: jax.Array) -> jax.Array:
    """Compute frame^T frame, (K x d)(d x K), in full precision."""
    return jnp.matmul(frame.T, frame, precision="highest")


@functools.partial(jax.jit, static_argnums=(1, 2))
def decomposition(key: jax.Array, n: int, p: int) -> jax.Array:
    """Draw an n x p matrix with orthonormal columns as the QR factor of a Gaussian matrix."""
    return orthogonal_factor(jax.random.normal(key, (n, p)))


def _cells(row: dict[str, Any]) -> list[str]:
    error = "-" if row["error"] is None else f"{row['error']:.1e}"
    times = [harness.duration(row["seconds"]), harness.quartiles(row), harness.number(row["products"])]
    return [f"({row['K']}, {row['d']})", row["program"], *times, error]


def _draw(rows: Sequence[dict[str, Any]], figure: Figure) -> None:
    axes = figure.subplots()
    labels = list(dict.fromkeys(f"({row['K']}, {row['d']})" for row in rows))
    for name in dict.fromkeys(row["program"] for row in rows):
        axes.plot(labels, [row["products"] for row in rows if row["program"] == name], "o-", label=name)
    axes.set_xlabel("(K, d)")
    axes.set_ylabel("time, in products")
    axes.legend()


if __name__ == "__main__":
    harness.main(run, PRESETS)
