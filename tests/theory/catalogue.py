"""The problems that the tests of the theory run over, the golden values, and a minimiser to compare with."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from nc_jax.theory import UnconstrainedFeatures, objective

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}  # what the golden values promise


def golden_problem(name):
    """Read a problem off the name of its case."""
    number = {symbol: re.search(rf"{symbol}([\d.]+)", name) for symbol in ("K", "n", "d", "lW", "lH", "lb")}
    value = {symbol: float(found[1]) for symbol, found in number.items() if found}
    num_classes = int(value["K"])
    return UnconstrainedFeatures.balanced(
        num_classes,
        int(value["n"]),
        dim=int(value.get("d", num_classes)),
        weight_decay=value["lW"],
        feature_decay=value["lH"],
        bias_decay=value.get("lb"),
        loss="cross_entropy" if "d" in value else "mse",
    )


def minimised(problem, *, starts=4, per_class=True):
    """The best point that SciPy's L-BFGS finds from random starts, without use of the theory."""
    first = problem.random_point(jax.random.key(0), per_class=per_class)
    unravel = ravel_pytree(first)[1]
    slope = jax.jit(jax.value_and_grad(lambda flat: objective(problem, unravel(flat))))
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 0, "gtol": 1e-12, "maxcor": 50}
    found = []
    for seed in range(starts):
        start = ravel_pytree(problem.random_point(jax.random.key(seed), per_class=per_class))[0]
        found.append(
            minimize(
                lambda flat: tuple(np.asarray(part) for part in slope(flat)),
                np.asarray(start),
                jac=True,
                method="L-BFGS-B",
                options=options,
            )
        )
    best = min(found, key=lambda result: result.fun)
    return float(best.fun), unravel(jnp.asarray(best.x))
