"""Thresholds of minority collapse, against direct minimisation by SciPy and the golden minima."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from nc_jax.theory import (
    Point,
    UnconstrainedFeatures,
    certificate,
    minority_collapse_thresholds,
    vanishing_threshold,
)
from nc_jax.theory.imbalance import _Step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())["ufm_imbalanced"]
# Counts and decay of the bias. In the last case the two kinds are close to each other, and so are the thresholds.
CASES = [
    ((20, 20, 2, 2), 0.02),
    ((20, 20, 2, 2), None),
    ((2, 20, 2, 20, 20), 0.0),
    ((30, 4, 4), 0.1),
    ((9, 9, 8, 8), 0.0),
]


def minimum(counts, decay, bias_decay):
    """Frame, features and bias at the minimum, by NumPy's own formulas and L-BFGS from a random start."""
    sizes, num_classes = np.array(counts, float), len(counts)
    cut = num_classes**2

    def parts(flat):
        bias = np.zeros(num_classes) if bias_decay is None else flat[2 * cut :]
        return flat[:cut].reshape(num_classes, -1), flat[cut : 2 * cut].reshape(num_classes, -1), bias

    def cost(flat):
        frame, features, bias = parts(flat)
        logits = features @ frame + bias
        logits = logits - logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1))
        slope = (np.exp(logits - total[:, None]) - np.eye(num_classes)) * sizes[:, None] / sizes.sum()
        squares = np.sum(frame**2) + np.sum(sizes[:, None] * features**2)
        value = sizes @ (total - np.diag(logits)) / sizes.sum() + decay / 2 * squares
        slopes = [features.T @ slope + decay * frame, slope @ frame.T + decay * sizes[:, None] * features]
        if bias_decay is not None:
            slopes.append(slope.sum(axis=0) + bias_decay * bias)
            value += bias_decay / 2 * np.sum(bias**2)
        return value, np.concatenate([one.ravel() for one in slopes])

    start = 0.3 * np.random.default_rng(0).normal(size=2 * cut + (num_classes if bias_decay is not None else 0))
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-17, "gtol": 1e-12, "maxcor": 30}
    return parts(minimize(cost, start, jac=True, method="L-BFGS-B", options=options).x)


@pytest.mark.parametrize(("counts", "bias_decay"), CASES)
def test_class_vectors_merge_and_vanish_at_the_thresholds(counts, bias_decay):
    merge, vanish = min(minority_collapse_thresholds(counts)), vanishing_threshold(counts, bias_decay)
    assert merge <= vanish
    first, second = np.flatnonzero(np.array(counts) == min(counts))[:2]
    largest = int(np.argmax(counts))

    def at(decay):
        frame, features, _ = minimum(counts, decay, bias_decay)
        apart = [np.linalg.norm(frame[:, first] - frame[:, second]), np.linalg.norm(features[first] - features[second])]
        length = np.linalg.norm(frame[:, first])
        return np.array(apart), length, np.linalg.norm(frame[:, largest])

    apart, length, _ = at(0.99 * merge)
    assert np.all(apart > 1e-2)
    apart, length, _ = at(1.01 * merge)
    assert np.all(apart < 1e-5)  # half of the digits of the value, as L-BFGS finds a point
    apart, length, _ = at(0.99 * vanish)
    assert length > 1e-2
    apart, length, long = at(1.01 * vanish)
    assert length < 1e-5
    assert long > 1e-2 or counts.count(max(counts)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_certificate_confirms_a_minimum_whose_small_classes_have_merged():
    counts, decay = (20, 20, 2, 2), 0.033
    point = Point(*(jnp.asarray(part) for part in minimum(counts, decay, 0.02)))
    assert certificate(UnconstrainedFeatures(counts, 4, decay, decay, 0.02), point, tolerance=1e-5).is_global


def test_the_golden_minima_lie_on_the_right_side():
    counts = (20, 20, 2, 2)
    merge, vanish = min(minority_collapse_thresholds(counts)), vanishing_threshold(counts, 0.02)
    for name, case in GOLDEN.items():
        if not name.startswith("n[20,20,2,2]"):
            continue
        decay, lengths = float(name.split("lz")[1]), np.array(case["w_norms"])
        assert (decay >= vanish) == (lengths[-1] < 1e-6)
        cosine = case["cos_W_minority"]
        assert (decay >= merge) == (cosine is None or cosine > 1 - 1e-6)


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.02, 10.0])
@pytest.mark.parametrize("kinds", [(5, 5, 1000, 1), (2, 8, 20, 19), (9, 1, 100, 10), (2, 2, 20, 2)])
def test_there_is_one_threshold(kinds, bias_decay):
    """The singular value crosses the decay once, and the decay falls as the margin grows."""
    large, small, many, few = kinds
    step = _Step(large, small, float(many), float(few), bias_decay)
    margins = np.linspace(0, 25, 60)
    decays = np.array([step.decay(margin) for margin in margins])
    above = np.array([step.sigma(margin) for margin in margins]) > decays
    assert np.all(np.diff(decays) < 0)
    assert np.sum(np.diff(above.astype(int)) != 0) == 1
    assert not above[0]
    counts = [many] * large + [few] * small
    assert minority_collapse_thresholds(counts)[-1] <= vanishing_threshold(counts, bias_decay) < decays[0]


def test_with_equal_counts_the_threshold_is_that_of_the_closed_form():
    np.testing.assert_allclose(minority_collapse_thresholds([7] * 5), 1 / (5 * np.sqrt(7)), rtol=1e-15)
    close = vanishing_threshold([10_000_000, 10_000_000, 9_999_999], 0.1)
    assert close == pytest.approx(1 / (3 * np.sqrt(10_000_000)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: minority_collapse_thresholds([3]), "there must be two or more classes of at least one example each"),
        (lambda: minority_collapse_thresholds([3, 0]), "there must be two or more classes of at least one example"),
        (lambda: minority_collapse_thresholds([3, 1.5]), "a count must be a whole number; got 1.5"),
        (lambda: vanishing_threshold([3, 3]), "counts must be of two kinds, large and small; got 1 different counts"),
        (lambda: vanishing_threshold([3, 2, 1]), "counts must be of two kinds, large and small; got 3 different"),
        (lambda: vanishing_threshold([3, 2], -1.0), "bias_decay must be at least 0 and finite, or None; got -1.0"),
    ],
)
def test_wrong_counts_are_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        call()
