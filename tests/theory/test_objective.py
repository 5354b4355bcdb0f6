"""The objective against plain NumPy, and one row per class against one per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.theory import Point, UnconstrainedFeatures, data_loss, logit_gradient, objective, penalties

pytestmark = pytest.mark.usefixtures("x64")
DECAYS = {"weight_decay": 0.03, "feature_decay": 0.02}
PROBLEMS = [
    UnconstrainedFeatures((3, 1, 2), dim=4, **DECAYS),
    UnconstrainedFeatures((3, 1, 2), dim=4, bias_decay=0.5, **DECAYS),
    UnconstrainedFeatures((3, 1, 2), dim=2, bias_decay=0.0, loss="mse", **DECAYS),
    UnconstrainedFeatures((3, 1, 2), dim=4, temperature=7.0),
]


def by_numpy(problem, frame, features, bias):
    """The sum over examples, one after the other."""
    total = 0.0
    for row, label in zip(features, np.repeat(np.arange(problem.num_classes), problem.counts), strict=True):
        if problem.temperature is not None:
            row = row / np.linalg.norm(row)
            logits = problem.temperature * np.array([row @ w / np.linalg.norm(w) for w in frame.T])
        else:
            logits = frame.T @ row + (0 if bias is None else bias)
        if problem.loss == "mse":
            total += np.sum((logits - np.eye(problem.num_classes)[label]) ** 2) / 2
        else:
            total += np.log(np.sum(np.exp(logits))) - logits[label]
    decayed = problem.weight_decay * np.sum(frame**2) + problem.feature_decay * np.sum(features**2)
    if bias is not None:
        decayed += problem.bias_decay * np.sum(bias**2)
    return total / problem.num_examples + decayed / 2


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_objective_is_the_sum_over_examples(problem):
    point = problem.random_point(jax.random.key(0))
    arrays = [None if array is None else np.asarray(array) for array in point]
    assert objective(problem, point) == pytest.approx(by_numpy(problem, *arrays), rel=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_row_per_class_stands_for_all_of_its_examples(problem):
    short = problem.random_point(jax.random.key(0), per_class=True)
    long = short._replace(features=jnp.repeat(short.features, np.array(problem.counts), axis=0))
    assert objective(problem, short) == pytest.approx(float(objective(problem, long)), rel=1e-13)
    norms = [np.linalg.norm(logit_gradient(problem, point), ord=2) for point in (short, long)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    np.testing.assert_allclose(penalties(problem, short), penalties(problem, long), rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS[:3], ids=str)
def test_the_gradient_in_the_logits_is_autodiff_s(problem):
    point = problem.random_point(jax.random.key(1))
    ours = logit_gradient(problem, point)
    slope = jax.grad(lambda at: data_loss(problem, at))(point)
    np.testing.assert_allclose(point.features.T @ ours, slope.frame, atol=1e-14)
    np.testing.assert_allclose(ours @ point.frame.T, slope.features, atol=1e-14)


def test_low_precision_is_widened():
    problem = PROBLEMS[1]
    point = Point(*(array.astype("bfloat16") for array in problem.random_point(jax.random.key(0))))
    assert data_loss(problem, point).dtype == np.float32
