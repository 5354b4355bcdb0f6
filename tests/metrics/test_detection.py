"""AUROC and FPR95: scikit-learn's numbers with ties, exact counts in float32, padding, what has no value."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from nc_jax.metrics import auroc, false_positive_rate

RNG = np.random.default_rng(0)
N = 400
INSIDE = (np.arange(N) % 3 > 0).astype(int)
# Name: scores of N examples, of which a third are outliers.
SCORES = {
    "few ties": (RNG.normal(size=N) + 0.8 * INSIDE).astype(np.float32),
    "many ties": np.round(3 * RNG.normal(size=N) + INSIDE).astype(np.float32),
    "all equal": np.zeros(N, np.float32),
    "the wrong way round": (RNG.normal(size=N) - 3 * INSIDE).astype(np.float32),
    "apart": np.float32(INSIDE),
}
RATES = (0.5, 0.95, 1.0)
both = jax.jit(lambda scores, labels: (auroc(scores, labels), [false_positive_rate(scores, labels, r) for r in RATES]))


def first_false_positive_rate(labels, scores, rate):
    false, true, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    return false[np.argmax(true >= rate)]


@pytest.mark.parametrize("name", SCORES)
def test_equals_scikit_learn(name):
    scores = SCORES[name]
    area, rates = both(scores, INSIDE)
    # One rounding of a mean over 134 outliers in float32.
    np.testing.assert_allclose(area, sklearn.metrics.roc_auc_score(INSIDE, scores), atol=2e-7)
    expected = [first_false_positive_rate(INSIDE, scores, rate) for rate in RATES]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [19, 20, 21, 39, 40])
def test_the_rate_counts_whole_examples(number):
    """0.95 x 20 is 19 exactly, not 20 by rounding: one more example to pass would double the false positives."""
    scores = np.concatenate([np.arange(number) + 0.5, np.arange(number)]).astype(np.float32)
    labels = np.repeat([1, 0], number)
    found = false_positive_rate(scores, labels)
    np.testing.assert_allclose(found, first_false_positive_rate(labels, scores, 0.95), rtol=1e-6)


@pytest.mark.slow
def test_many_scores_keep_their_digits():
    """The number of pairs, 1.7e10, has no room in float32 or int32."""
    number = 2**18
    values = np.random.default_rng(1).integers(0, 50, number).astype(np.float32)
    labels = (np.arange(number) % 2).astype(int)
    values[labels == 1] += 1
    area, rates = both(values, labels)
    inside, outside = (np.bincount(values[labels == k].astype(int), minlength=51) for k in (1, 0))
    exact = sum(int(inside[v]) * (int(outside[:v].sum()) + int(outside[v]) / 2) for v in range(51))
    np.testing.assert_allclose(area, exact / (number / 2) ** 2, rtol=3e-7)
    np.testing.assert_allclose(rates[1], first_false_positive_rate(labels, values, 0.95), rtol=1e-6)


def test_padding_is_no_example():
    scores = np.concatenate([SCORES["many ties"], [np.nan, 99, -99]])
    labels = np.concatenate([INSIDE, [-1, -1, -1]])
    for one, other in zip(
        jax.tree.leaves(both(scores, labels)), jax.tree.leaves(both(scores[:N], INSIDE)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_infinite_scores_have_their_place():
    scores, labels = jnp.array([jnp.inf, 1.0, -jnp.inf, 0.0]), jnp.array([1, 1, 0, 0])
    assert float(auroc(scores, labels)) == 1
    assert float(false_positive_rate(scores, labels)) == 0
    assert float(auroc(-scores, labels)) == 0
    assert float(false_positive_rate(-scores, labels)) == 1


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]), ([1.0, np.nan], [1, 0]), ([1.0, 2.0], [-1, -1]), ([], [])],
    ids=["no outlier", "no example", "NaN", "padding", "nothing"],
)
def test_what_does_not_exist_is_nan(scores, labels):
    area, rates = both(np.float32(scores), np.array(labels, int))
    assert np.isnan(area)
    assert np.isnan(rates).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([[1.0]], [1]), r"scores must have shape \(batch,\); got \(1, 1\)"),
        (([1.0, 2.0], [1]), r"labels must have shape \(2,\), one label for each row of scores; got shape \(1,\)"),
        (([1.0, 2.0], [1, 2]), r"labels must lie in 0\.\.1 for num_classes=2"),
        (([1.0, 2.0], [1, 0], 0.0), r"true_positive_rate must lie in \(0, 1\]; got 0\.0"),
        (([1.0, 2.0], [1, 0], 95), r"true_positive_rate must lie in \(0, 1\]; got 95"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        inspect.unwrap(false_positive_rate)(*arguments)
