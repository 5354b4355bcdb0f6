"""The optimum of the orthogonal layer-peeled model: solvers reach it from anywhere, and nothing feasible is below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nc_jax import theory
from nc_jax.frames import nonnegative_orthogonal
from nc_jax.losses import cross_entropy
from nc_jax.theory import orthogonal_features, orthogonal_value

pytestmark = pytest.mark.usefixtures("x64")
K, DIM, ENERGY = 4, 9, 6.0
certificate = jax.jit(theory.orthogonal_certificate, static_argnums=3)
LABELS = np.arange(8) % K


@pytest.fixture
def frame():
    return nonnegative_orthogonal(K, DIM, key=jax.random.key(0), dtype=jnp.float64)


@pytest.fixture
def loss_of(frame):
    return jax.jit(jax.value_and_grad(lambda h, y: cross_entropy((h @ frame)[None], y[None])[0]))


def solve(loss_of, frame, label, start, *, second):
    """Minimise one example's loss by sequential quadratic programming, with or without the second condition."""
    others = np.asarray(frame) @ (np.arange(K) != label)
    conditions = [{"type": "ineq", "fun": lambda h: ENERGY - h @ h, "jac": lambda h: -2 * h}]
    if second:
        conditions.append({"type": "ineq", "fun": lambda h: others @ h, "jac": lambda h: others})
    found = scipy.optimize.minimize(
        lambda h: [np.asarray(part) for part in loss_of(h, jnp.asarray(label))],
        start,
        jac=True,
        method="SLSQP",
        constraints=conditions,
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@pytest.mark.slow
def test_solvers_reach_the_minimiser_from_random_starts(frame, loss_of):
    starts = 3 * np.random.default_rng(0).normal(size=(len(LABELS), DIM))
    found = [solve(loss_of, frame, label, start, second=True) for label, start in zip(LABELS, starts, strict=True)]
    check = certificate(np.stack(found), LABELS, frame, ENERGY)
    np.testing.assert_allclose(check, 0, atol=1e-6)  # SLSQP stops where the value no longer changes
    np.testing.assert_allclose(np.stack(found), orthogonal_features(LABELS, frame, ENERGY), atol=1e-5)


@pytest.mark.slow
def test_without_the_second_condition_the_simplex_is_lower(frame, loss_of):
    found = solve(loss_of, frame, 1, np.ones(DIM), second=False)
    check = certificate(found[None], np.array([1]), frame, ENERGY)
    expected = np.log1p((K - 1) * np.exp(-np.sqrt(ENERGY * K / (K - 1))))
    np.testing.assert_allclose(check.gap + orthogonal_value(K, ENERGY), expected, atol=1e-9)
    assert check.gap < -0.01
    assert check.deficit > 0.1
    assert check.excess < 1e-6


@pytest.mark.slow
def test_nothing_that_meets_both_conditions_is_below(frame):
    rng = np.random.default_rng(1)
    features = np.abs(rng.normal(size=(500, DIM)))  # non-negative, so the second condition holds
    features *= (np.sqrt(ENERGY) * rng.uniform(size=500) / np.linalg.norm(features, axis=1))[:, None]
    labels = rng.integers(K, size=500)
    logits = features @ np.asarray(frame)
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(500), labels]
    assert losses.min() > orthogonal_value(K, ENERGY)
    check = certificate(features, labels, frame, ENERGY)
    np.testing.assert_allclose(check.gap, losses.mean() - np.log1p((K - 1) * np.exp(-np.sqrt(ENERGY))), rtol=1e-9)
    assert check.excess == check.deficit == 0
    gaps = features - np.sqrt(ENERGY) * np.asarray(frame).T[labels]
    np.testing.assert_allclose(check.distance, np.sqrt(np.mean(np.sum(gaps**2, axis=1)) / ENERGY), rtol=1e-9)


@pytest.mark.slow
def test_violations_are_those_of_the_worst_example_without_padding(frame):
    features = np.array(orthogonal_features(LABELS, frame, ENERGY))
    features[2] *= 1.5
    features[3] = -np.sqrt(ENERGY) * np.asarray(frame)[:, 0]  # of class 3: its wrong classes sum to -sqrt(E)
    features[4] *= 100
    labels = np.where(np.arange(len(LABELS)) == 4, -1, LABELS)
    check = certificate(features, labels, frame, ENERGY)
    np.testing.assert_allclose([check.excess, check.deficit], [1.25, 1.0], rtol=1e-9)
    padding = orthogonal_features(labels, frame, ENERGY)[4]
    np.testing.assert_array_equal(padding, 0)


def test_what_does_not_exist_is_nan(frame):
    assert np.isnan(certificate(np.ones((2, DIM)), np.array([-1, -1]), frame, ENERGY)).all()
    scaled = certificate(np.ones((2, DIM)), np.array([0, 1]), 2 * frame, ENERGY)  # traced, so it cannot be refused
    assert np.isnan([scaled.gap, scaled.distance]).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda frame: theory.orthogonal_certificate(np.ones((2, DIM)), np.array([0, 1]), 2 * frame, ENERGY),
            "the frame must have orthonormal columns; got inner products that are off by up to 3",
        ),
        (
            lambda frame: theory.orthogonal_certificate(np.ones((2, 3)), np.array([0, 1]), frame, ENERGY),
            "features and frame must have shapes (batch, dim) and (dim, classes); got (2, 3) and (9, 4)",
        ),
        (
            lambda frame: orthogonal_features(LABELS, frame, 0.0),
            "the energy must be positive and finite; got 0.0",
        ),
        (
            lambda frame: orthogonal_value(1, 2.0),
            "the orthogonal layer-peeled model needs num_classes >= 2; got 1",
        ),
    ],
)
def test_what_has_no_optimum_is_refused(frame, call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call(frame)
    assert str(error.value) == sentence
