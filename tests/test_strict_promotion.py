"""Frames and solvers run where JAX is told to raise on implicit promotion of ranks and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import implicit, nearest_frame, nearest_simplex_etf
from nc_jax.discrepancies import cosine
from nc_jax.frames import hierarchical, properties, random_unit, separated_template, simplex_etf, simplex_template
from nc_jax.manifolds import Stiefel
from nc_jax.manifolds.orthogonal import PARAMETRISATIONS

KEY = jax.random.key(0)
DISTANCES = np.ones((4, 4)) - np.eye(4)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def means(dtype="float32"):
    return jax.random.normal(KEY, (12, 4)).astype(dtype)


def gradient_of_frame(dtype, **how):
    return jax.grad(lambda means: jnp.sum(nearest_simplex_etf(means, **how).frame ** 3))(means(dtype))


CASES = {
    "polar": lambda: gradient_of_frame("bfloat16", solver="polar"),
    "polar, weights": lambda: gradient_of_frame("float32", solver="polar", weights=jnp.ones(4)),
    "trust region": lambda: gradient_of_frame("float32", prox_point=Stiefel(12, 3).random_point(KEY)),
    "template": lambda: nearest_frame(means(), simplex_template(4, dtype=jnp.bfloat16), solver="polar"),
    "gram": lambda: implicit.polar_factor(means(), method="gram"),
    "products": lambda: jax.grad(lambda x: jnp.sum(implicit.polar_factor(x, derivative="products") ** 3))(means()),
    "cosine": lambda: cosine(means(), means() + 1),
    "frames": lambda: (simplex_etf(4, 6, key=KEY, dtype=jnp.bfloat16), random_unit(4, 6, key=KEY)),
    "hierarchical": lambda: hierarchical(1 - 0.5 * DISTANCES, 6, key=KEY),
    "separated": lambda: separated_template(DISTANCES, 1.0),
    "properties": lambda: (properties.coherence(means("bfloat16")), properties.is_tight(means("bfloat16"))),
    "parametrisations": lambda: [
        chosen.point(chosen.init(KEY, 5, 3, jnp.bfloat16), 5, 3) for chosen in PARAMETRISATIONS.values()
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_promoted_implicitly(case):
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(CASES[case]()))
