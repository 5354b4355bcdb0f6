"""Which problems are allowed, and their shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.theory import UnconstrainedFeatures, objective

DECAYS = {"weight_decay": 0.1, "feature_decay": 0.1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"counts": (3,)}, "num_classes >= 2; got 1"),
        ({"counts": (3, -1)}, r"every class needs at least one example; got counts=\(3, -1\)"),
        ({"counts": (3, 0)}, r"every class needs at least one example; got counts=\(3, 0\)"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"weight_decay": 0.0}, "weight_decay must be positive and finite, .*; got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be positive and finite, .*; got -1.0"),
        ({"feature_decay": float("nan")}, "feature_decay must be positive and finite, .*; got nan"),
        ({"feature_decay": float("inf")}, "feature_decay must be positive and finite, .*; got inf"),
        ({"bias_decay": -0.1}, "bias_decay must be at least 0 and finite, or None; got -0.1"),
        ({"temperature": 0.0}, "temperature must be positive and finite, or None; got 0.0"),
        ({"temperature": 5.0}, "a temperature goes with .* unit vectors, .*; got weight_decay=0.1"),
    ],
)
def test_what_is_no_problem_is_refused(options, sentence):
    settings = {"counts": (2, 2, 2), "dim": 3} | DECAYS | options
    with pytest.raises(ValueError, match=sentence):
        UnconstrainedFeatures(**settings)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_points_have_the_shapes_of_their_problem():
    problem = UnconstrainedFeatures((3, 1, 2), dim=5, bias_decay=0.0, **DECAYS)
    for per_class, rows in ((False, 6), (True, 3)):
        point = problem.random_point(jax.random.key(0), per_class=per_class)
        assert [array.shape for array in point] == [(5, 3), (rows, 5), (3,)]
    np.testing.assert_array_equal(problem.labels(jnp.zeros((6, 5))), [0, 0, 0, 1, 2, 2])
    np.testing.assert_array_equal(problem.labels(jnp.zeros((3, 5))), [0, 1, 2])
    assert UnconstrainedFeatures((3, 1, 2), dim=5, **DECAYS).origin().bias is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frame": jnp.zeros((3, 4))}, r"frame must have shape \(5, 3\); got \(3, 4\)"),
        ({"features": jnp.zeros((4, 5))}, r"features must have shape \(6, 5\), .*, or \(3, 5\), .*; got \(4, 5\)"),
        ({"bias": None}, "a point has a bias if, and only if, its problem has one; got bias=None"),
    ],
)
def test_points_of_another_problem_are_refused(changes, sentence):
    problem = UnconstrainedFeatures((3, 1, 2), dim=5, bias_decay=0.1, **DECAYS)
    with pytest.raises(ValueError, match=sentence):
        objective(problem, problem.origin()._replace(**changes))
