"""The closed forms against golden values, the objective at the point, and a minimiser that does not use the theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory.catalogue import FLOAT64, GOLDEN, golden_problem, minimised

from nc_jax.metrics import etf_distance
from nc_jax.theory import (
    UnconstrainedFeatures,
    certificate,
    lower_bound,
    objective,
    optimal_margin,
    optimal_point,
    optimal_value,
)

pytestmark = pytest.mark.usefixtures("x64")
CASES = GOLDEN["ufm"]["cases"]
SQUARED = {name: case for name, case in GOLDEN["ufm"]["mse_bias_free"].items() if name != "_closed"}
DECAYS = {"weight_decay": 0.02, "feature_decay": 0.01}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_golden_one(name):
    closed, problem = CASES[name]["closed"], golden_problem(name)
    np.testing.assert_allclose(optimal_value(problem), closed["f"], **FLOAT64)
    assert optimal_value(problem) == pytest.approx(CASES[name]["numeric_f"], abs=1e-12)
    assert (optimal_margin(problem) == 0) == closed["trivial"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [None, 3])
def test_the_point_is_the_golden_one_up_to_rotation(name, seed):
    closed, problem = CASES[name]["closed"], golden_problem(name)
    point = optimal_point(problem, key=None if seed is None else jax.random.key(seed))
    np.testing.assert_allclose(objective(problem, point), closed["f"], **FLOAT64)
    if closed["trivial"]:
        assert not any(np.any(array) for array in point)
        return
    scores = point.features @ point.frame + point.bias
    np.testing.assert_allclose(optimal_margin(problem), closed["margin"], **FLOAT64)
    np.testing.assert_allclose(scores[0, 0] - scores[0, 1:], closed["margin"], **FLOAT64)
    np.testing.assert_allclose(jnp.sum(point.frame**2, axis=0), closed["w_norm_sq"], **FLOAT64)
    np.testing.assert_allclose(jnp.sum(point.features**2, axis=1), closed["h_norm_sq"], **FLOAT64)
    np.testing.assert_allclose(jax.nn.softmax(scores)[0, :2], [closed["p_correct"], closed["p_wrong"]], **FLOAT64)
    np.testing.assert_allclose(jnp.linalg.norm(scores, ord="nuc"), closed["nuclear_norm_Z"], **FLOAT64)
    assert etf_distance(point.frame) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", SQUARED)
def test_squared_errors_end_in_an_orthogonal_frame(name):
    problem = golden_problem(name)
    np.testing.assert_allclose(optimal_value(problem), SQUARED[name]["f"], **FLOAT64)
    point = optimal_point(problem, key=jax.random.key(0))
    np.testing.assert_allclose(objective(problem, point), SQUARED[name]["f"], **FLOAT64)
    gram = np.asarray(point.frame.T @ point.frame)
    sigma = SQUARED[name]["sigma_star"] * np.sqrt(problem.feature_decay / problem.weight_decay)
    np.testing.assert_allclose(gram, sigma * np.eye(problem.num_classes), **FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GOLDEN["ufm"]["normalised_CE_tau"]["values"]])
def test_unit_vectors_with_a_temperature(name):
    num_classes, temperature = name[1:].split("_tau")
    problem = UnconstrainedFeatures.balanced(
        int(num_classes), 2, dim=int(num_classes) - 1, temperature=float(temperature)
    )
    golden = GOLDEN["ufm"]["normalised_CE_tau"]["values"][name]
    np.testing.assert_allclose(optimal_value(problem), golden, **FLOAT64)
    point = optimal_point(problem)
    np.testing.assert_allclose(objective(problem, point), golden, **FLOAT64)
    # The lengths do not matter: the objective scales them away.
    longer = point._replace(frame=3 * point.frame, features=0.5 * point.features)
    np.testing.assert_allclose(objective(problem, longer), golden, **FLOAT64)


@pytest.mark.parametrize(
    "problem",
    [
        UnconstrainedFeatures.balanced(3, 4, dim=5, **DECAYS),
        UnconstrainedFeatures.balanced(3, 4, dim=3, weight_decay=0.3, feature_decay=0.4, bias_decay=0.1),
        UnconstrainedFeatures.balanced(3, 4, dim=3, bias_decay=0.0, loss="mse", **DECAYS),
        UnconstrainedFeatures.balanced(3, 4, dim=3, bias_decay=0.05, loss="mse", **DECAYS),
        UnconstrainedFeatures.balanced(3, 4, dim=4, bias_decay=0.5, loss="mse", **DECAYS),
        UnconstrainedFeatures.balanced(3, 4, dim=4, bias_decay=5.0, loss="mse", **DECAYS),
        UnconstrainedFeatures((9, 4, 2, 1), dim=5, loss="mse", **DECAYS),
        UnconstrainedFeatures((9, 4, 2, 1), dim=4, loss="mse", weight_decay=0.1, feature_decay=0.1),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_blind_minimiser_finds_nothing_lower(problem):
    value, _ = minimised(problem, starts=2)
    assert optimal_value(problem) == pytest.approx(value, abs=1e-11)
    point = optimal_point(problem, key=jax.random.key(1))
    assert objective(problem, point) == pytest.approx(value, abs=1e-11)
    assert certificate(problem, point).is_global
    if problem.bias_decay != 0:
        assert lower_bound(problem, point) == pytest.approx(value, abs=1e-11)


@pytest.mark.slow
def test_a_strong_bias_decay_turns_the_simplex_of_squared_errors_towards_the_orthogonal_frame():
    def cosine(bias_decay):
        problem = UnconstrainedFeatures.balanced(4, 3, dim=4, bias_decay=bias_decay, loss="mse", **DECAYS)
        frame = optimal_point(problem).frame
        return float(frame[:, 0] @ frame[:, 1] / jnp.sum(frame[:, 0] ** 2))

    assert cosine(0.0) == pytest.approx(-1 / 3)
    assert -1 / 3 < cosine(1.0) < cosine(10.0) < cosine(1e3) < 0
    assert cosine(1e8) == pytest.approx(0, abs=1e-6)


def test_the_trivial_regime_begins_where_it_should():
    def value(decay):
        return optimal_value(UnconstrainedFeatures.balanced(4, 4, dim=3, weight_decay=decay, feature_decay=decay))

    assert value(0.125) == value(0.3) == pytest.approx(np.log(4))  # K sqrt(n) lambda = 1 at 1/8
    assert value(0.1249) < np.log(4)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (UnconstrainedFeatures.balanced(4, 2, dim=2, **DECAYS), "4 classes needs dim >= 3; got dim=2"),
        (UnconstrainedFeatures.balanced(4, 2, dim=2, temperature=5.0), "4 classes needs dim >= 3; got dim=2"),
        (UnconstrainedFeatures((3, 2), dim=2, **DECAYS), r"known in closed form for equal counts.*\(3, 2\)"),
        (UnconstrainedFeatures.balanced(4, 2, dim=3, loss="mse", **DECAYS), "needs dim >= 4; got dim=3"),
        (
            UnconstrainedFeatures.balanced(4, 2, dim=3, loss="mse", bias_decay=5.0, **DECAYS),
            "4 of them need dim >= 4; got",
        ),
    ],
    ids=str,
)
def test_without_a_closed_form_there_is_no_value(problem, sentence):
    for function in (optimal_value, optimal_point):
        with pytest.raises(ValueError, match=sentence):
            function(problem)


def test_the_margin_is_the_cross_entropy_s():
    with pytest.raises(ValueError, match="the margin is that of the cross-entropy; got loss='mse'"):
        optimal_margin(UnconstrainedFeatures.balanced(4, 2, dim=4, loss="mse", **DECAYS))
    assert optimal_margin(UnconstrainedFeatures.balanced(4, 2, dim=4, temperature=6.0)) == pytest.approx(8)


@pytest.mark.slow
def test_tiny_decays_neither_overflow_nor_underflow():
    problem = UnconstrainedFeatures.balanced(4, 1, dim=4, weight_decay=1e-300, feature_decay=1e-300)
    assert optimal_value(problem) == pytest.approx(3e-300 * 300 * np.log(10), rel=1e-2)
    assert np.isfinite(optimal_margin(problem))
