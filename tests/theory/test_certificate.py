"""Minima are certified, saddles are not, and the predicted curvature is the Hessian's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory.catalogue import FLOAT64, GOLDEN, golden_problem, minimised

from nc_jax import theory
from nc_jax.frames.properties import cosines
from nc_jax.theory import (
    Point,
    UnconstrainedFeatures,
    hessian_eigenvalues,
    optimal_point,
)

# Compiled once per problem: one by one the operations take ten times as long to compile.
certificate, escape_direction, lower_bound, duality_gap, nuclear_objective, objective = (
    jax.jit(function, static_argnums=0)
    for function in (
        theory.certificate,
        theory.escape_direction,
        theory.lower_bound,
        theory.duality_gap,
        theory.nuclear_objective,
        theory.objective,
    )
)


@partial(jax.jit, static_argnums=0)
def curvature(problem, point, direction):
    return theory.curvature(lambda at: theory.objective(problem, at), point, direction)


pytestmark = pytest.mark.usefixtures("x64")
SADDLES = GOLDEN["ufm"]["strict_saddle"]
DECAYS = {"weight_decay": 0.005, "feature_decay": 0.001, "bias_decay": 0.01}
PROBLEM = UnconstrainedFeatures.balanced(4, 3, dim=6, **DECAYS)
IMBALANCED = {name: case for name, case in GOLDEN["ufm_imbalanced"].items() if "_lz" in name}


def golden_saddle(dim):
    """The rank-2 point of the golden file, which the authors of the file minimised in two dimensions."""
    stored = {name: np.array(SADDLES["rank2_point"][name]) for name in ("W2", "H2", "b2")}
    wider = ((0, dim - 2), (0, 0))
    return Point(np.pad(stored["W2"].T, wider), np.pad(stored["H2"], wider).T, stored["b2"])


def origin(dim):
    return UnconstrainedFeatures.balanced(4, 3, dim=dim, **DECAYS).origin()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "golden"),
    [
        (origin(6), "origin_K4_n3_d6"),
        (golden_saddle(6), "rank2_embedded_K4_n3_d6"),
        (golden_saddle(4), "rank2_embedded_K4_n3_d4_equals_K"),
    ],
    ids=["origin", "rank 2", "rank 2, d = K"],
)
def test_golden_saddles(point, golden):
    golden = SADDLES["cases"][golden]
    problem = UnconstrainedFeatures.balanced(4, 3, dim=point.frame.shape[0], **DECAYS)
    point = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), point)
    found, escape = certificate(problem, point), escape_direction(problem, point)
    np.testing.assert_allclose(objective(problem, point), golden["f"], **FLOAT64)
    np.testing.assert_allclose(found.spectral_norm, golden["spectral_norm_grad_g"], **FLOAT64)
    np.testing.assert_allclose(found.threshold, golden["sqrt_lWlH"], **FLOAT64)
    np.testing.assert_allclose(escape.curvature, golden["predicted"], **FLOAT64)
    assert found.is_critical
    assert not found.is_global
    assert escape.residual < 1e-12
    measured = curvature(problem, point, escape.direction)
    assert measured == pytest.approx(float(escape.curvature), rel=1e-5)
    least = hessian_eigenvalues(lambda at: objective(problem, at), point)[0]
    assert least <= measured / escape.norm**2 * (1 - 1e-9) < 0
    # The direction does lead down.
    lower = jax.tree.map(lambda here, way: here + 1e-2 * way, point, escape.direction)
    assert objective(problem, lower) < golden["f"] - 0.4e-4 * abs(float(measured))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["ufm"]["cases"])
def test_the_optimum_is_certified_and_nothing_leads_down(name):
    problem = golden_problem(name)
    point = optimal_point(problem, key=jax.random.key(0))
    found = certificate(problem, point)
    assert found.is_global
    assert found.grad_norm < 1e-12
    np.testing.assert_allclose(found.threshold, GOLDEN["ufm"]["cases"][name]["sqrt_lW_lH"], **FLOAT64)
    if not GOLDEN["ufm"]["cases"][name]["closed"]["trivial"]:
        np.testing.assert_allclose(found.spectral_norm, found.threshold, rtol=1e-9)
    assert escape_direction(problem, point).curvature > -1e-12


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dim", [3, 4])
@pytest.mark.parametrize("options", [{}, {"bias_decay": 0.02}, {"loss": "mse"}], ids=str)
def test_minima_of_lower_rank_are_strict_saddles(rank, dim, options):
    """Minima in fewer dimensions, embedded into more: critical points that are never certified."""
    settings = {"weight_decay": 0.01, "feature_decay": 0.004} | options
    low = UnconstrainedFeatures.balanced(4, 2, dim=rank, **settings)
    problem = UnconstrainedFeatures.balanced(4, 2, dim=dim, **settings)
    _, found = minimised(low, starts=1)
    found = found._replace(features=jnp.repeat(found.features, 2, axis=0))
    # Rotated at random, because with zeros in the last rows the null vector would be trivial.
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (dim, dim)))[0][:, :rank]
    point = found._replace(frame=turn @ found.frame, features=found.features @ turn.T)
    assert certificate(problem, point).is_critical
    assert not certificate(problem, point).is_global
    escape = escape_direction(problem, point)
    assert escape.residual < 1e-12
    assert escape.curvature < -1e-4
    measured = curvature(problem, point, escape.direction)
    assert measured == pytest.approx(float(escape.curvature), rel=1e-5)


@pytest.mark.slow
def test_a_full_dimension_is_told_by_the_residual():
    """At d = K - 1 a point of full rank leaves no orthogonal axis: the prediction does not hold, and says so."""
    problem = UnconstrainedFeatures.balanced(4, 3, dim=3, **DECAYS)
    assert escape_direction(problem, optimal_point(problem)).residual > 0.1


@pytest.mark.slow
def test_a_point_that_is_not_critical_is_not_certified():
    point = PROBLEM.random_point(jax.random.key(0), scale=1e-3)
    assert not certificate(PROBLEM, point).is_critical
    # Past the minimum the gradient in the logits is small enough, but the point could be shorter.
    long = jax.tree.map(lambda array: 2 * array, optimal_point(PROBLEM))
    found = certificate(PROBLEM, long)
    assert found.spectral_norm < found.threshold
    assert not found.is_global


@pytest.mark.slow
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        PROBLEM,
        UnconstrainedFeatures((7, 2, 2, 1), dim=3, weight_decay=0.03, feature_decay=0.02, bias_decay=0.3),
        UnconstrainedFeatures((7, 2, 2, 1), dim=5, weight_decay=0.03, feature_decay=0.02, loss="mse"),
        UnconstrainedFeatures((3, 3), dim=5, weight_decay=0.01, feature_decay=0.05, bias_decay=1.0, loss="mse"),
    ],
    ids=str,
)
def test_no_point_lies_below_the_lower_bound_of_another(problem, per_class):
    keys = jax.random.split(jax.random.key(0), 40)
    scales = jnp.geomspace(1e-2, 3, 40)
    points = jax.vmap(lambda key, scale: problem.random_point(key, scale=scale, per_class=per_class))(keys, scales)
    values = jax.vmap(lambda point: objective(problem, point))(points)
    bounds = jax.vmap(lambda point: lower_bound(problem, point))(points)
    convex = jax.vmap(lambda point: nuclear_objective(problem, point))(points)
    assert jnp.max(bounds) < jnp.min(convex)
    assert jnp.all(convex <= values)
    np.testing.assert_allclose(values - bounds, jax.vmap(lambda point: duality_gap(problem, point))(points))
    value, best = minimised(problem, starts=2, per_class=per_class)
    if problem.dim >= problem.num_classes:
        assert duality_gap(problem, best) == pytest.approx(0, abs=1e-8)
        assert nuclear_objective(problem, best) == pytest.approx(value, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMBALANCED)
def test_unequal_counts_reach_the_golden_minimum_with_a_certificate(name):
    golden, decay = IMBALANCED[name], float(name.split("lz")[1])
    # The golden file does not name the decay of its bias: 0.02 is what its stationarity gives.
    problem = UnconstrainedFeatures((20, 20, 2, 2), dim=4, weight_decay=decay, feature_decay=decay, bias_decay=0.02)
    value, point = minimised(problem, starts=2)
    np.testing.assert_allclose(value, golden["f"], **FLOAT64)
    assert duality_gap(problem, point) < 1e-8
    # The error of a point by L-BFGS is about the root of the rounding error of the value, in the golden file and here.
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(jnp.linalg.norm(point.frame, axis=0), golden["w_norms"], **close)
    np.testing.assert_allclose(jnp.linalg.norm(point.features, axis=1), golden["h_norms"], **close)
    np.testing.assert_allclose(point.bias, golden["b"], **close)
    if golden["cos_W_minority"] is not None:
        assert certificate(problem, point).is_global
        found = cosines(point.frame)
        expected = [golden[f"cos_W_{pair}"] for pair in ("majority", "minority", "cross")]
        np.testing.assert_allclose([found[0, 1], found[2, 3], found[0, 2]], expected, atol=1e-5)


@pytest.mark.parametrize("function", [certificate, lower_bound, escape_direction, nuclear_objective])
def test_unit_vectors_have_no_certificate(function):
    problem = UnconstrainedFeatures.balanced(3, 2, dim=2, temperature=5.0)
    with pytest.raises(ValueError, match="unit vectors have no convex form, and so no certificate; got temperature=5"):
        function(problem, optimal_point(problem))


def test_a_free_bias_has_no_lower_bound():
    problem = UnconstrainedFeatures.balanced(3, 2, dim=2, weight_decay=0.1, feature_decay=0.1, bias_decay=0.0)
    with pytest.raises(ValueError, match="the lower bound needs a bias_decay > 0, or no bias; got bias_decay=0"):
        lower_bound(problem, problem.origin())


@pytest.mark.slow
def test_certificates_in_float32():
    with jax.enable_x64(False):
        found = certificate(PROBLEM, optimal_point(PROBLEM, key=jax.random.key(0)))
        assert found.spectral_norm.dtype == jnp.float32
        assert found.is_global
        assert not certificate(PROBLEM, PROBLEM.origin()).is_global
