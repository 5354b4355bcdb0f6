"""HUG: the released program's numbers, closed forms, class balance over devices, collapse, padding, wrong calls."""

import inspect
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import collective
from nc_jax.frames import simplex_etf
from nc_jax.losses import uniformity
from nc_jax.losses.uniformity import between_class, class_distances, within_class
from nc_jax.solvers import Status

# One program for each set of options: operations one by one would each be compiled.
STATIC = ("alpha", "beta", "objective", "reduction", "stop_gradient_proxies")
hug, hug_terms, hug_of_means = (
    jax.jit(function, static_argnames=names)
    for function, names in (
        (uniformity.hug, STATIC),
        (uniformity.hug_terms, STATIC[2:]),
        (uniformity.hug_of_means, ("num_classes", *STATIC[:4])),
    )
)
FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "hug.json").read_text())
SETS = json.loads((FOLDER / "methods.json").read_text())["feature_sets"]
NAMES = ("balanced_K4_d5_n3", "gnc_K5_d3_n2")
F64 = 1e-9
RNG = np.random.default_rng(0)
FEATURES, FRAME = RNG.normal(size=(8, 3)), RNG.normal(size=(3, 5))
LABELS = np.array([0, 2, 2, 4, 0, 2, -1, 3])  # class 1 is absent
COUNTS = np.array([2, 0, 3, 1, 1])


def features_of(name):
    found = SETS[name]
    return np.array(found["X"]), np.array(found["y"]), np.array(found["W"]).T


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_released_programs_numbers(x64, name):
    (features, labels, frame), golden = features_of(name), GOLDEN[name]
    terms = hug_terms(features, labels, frame)
    np.testing.assert_allclose(terms.between, golden["official_inter"], rtol=F64)
    np.testing.assert_allclose(terms.within, golden["official_intra"], rtol=F64)
    assert terms.status == Status.CONVERGED
    loss = jax.jit(jax.value_and_grad(lambda frame, features: hug(features, labels, frame), argnums=(0, 1)))
    value, (by_frame, by_features) = loss(frame, features)
    np.testing.assert_allclose(value, golden["official_total"], rtol=F64)
    np.testing.assert_allclose(by_frame.T, golden["grad_W"], rtol=F64, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(by_frame), golden["grad_W_norm"], rtol=F64)
    np.testing.assert_allclose(np.linalg.norm(by_features), golden["grad_X_norm"], rtol=F64)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sums_separation_and_gram_determinant_of_the_paper(x64, name):
    (features, labels, frame), golden = features_of(name), GOLDEN[name]
    terms = hug_terms(features, labels, frame, reduction="sum")
    np.testing.assert_allclose([terms.between, terms.within], [golden["inter_sum"], golden["intra_sum"]], rtol=F64)
    total = partial(hug, features, labels, frame, reduction="sum")
    np.testing.assert_allclose(total(), golden["MHE_sum_loss_to_MIN"], rtol=F64)
    np.testing.assert_allclose(total(objective="mhs"), golden["MHS_loss_to_MIN"], rtol=F64)
    np.testing.assert_allclose(total(objective="mgd"), golden["MGD_loss_to_MIN_gamma1"], rtol=F64)
    np.testing.assert_allclose(between_class(frame, objective="mhs"), -golden["min_dist"], rtol=F64)
    np.testing.assert_allclose(between_class(frame, objective="mgd"), -golden["logdet_gamma1"], rtol=F64)
    found = hug_of_means(features, labels, frame.shape[1], beta=0.0, reduction="sum")
    np.testing.assert_allclose(found, golden["E2_centered_class_means"], rtol=F64)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 100])
def test_collapse_onto_a_simplex(x64, num_classes):
    frame = simplex_etf(num_classes, num_classes, dtype=jnp.float64)
    found = hug(3 * frame.T, np.arange(num_classes), frame, alpha=0.5)
    np.testing.assert_allclose(found, GOLDEN["official_inter_at_simplex"][f"C{num_classes}"] / 2, rtol=1e-12)


def units(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_class(features, labels, frame):
    """Distances of each class's examples, from NumPy."""
    gaps = np.linalg.norm(units(features) - units(frame.T)[labels], axis=1)
    return {k: gaps[labels == k] for k in range(frame.shape[1]) if (labels == k).any()}


@pytest.mark.slow
def test_counts_make_the_mean_of_a_batch_one_over_classes(x64):
    expected = by_class(FEATURES, LABELS, FRAME)
    each = within_class(FEATURES, LABELS, FRAME, COUNTS)
    balanced = np.mean([gaps.mean() for gaps in expected.values()])
    np.testing.assert_allclose(np.mean(np.array(each)[LABELS >= 0]), balanced, rtol=1e-12)
    np.testing.assert_allclose(hug_terms(FEATURES, LABELS, FRAME).within, balanced, rtol=1e-12)
    for reduction, function in (("mean", np.mean), ("sum", np.sum), ("max", np.max)):
        found = class_distances(FEATURES, LABELS, FRAME, reduction=reduction)
        wanted = [function(expected[k]) if k in expected else np.nan for k in range(5)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


LOSSES = {
    "mhe": partial(hug, stop_gradient_proxies=False),
    "mhs": partial(hug, objective="mhs", stop_gradient_proxies=False),
    "means": lambda features, labels, frame: hug_of_means(features, labels, frame.shape[1], objective="mgd"),
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_the_number_of_devices_changes_nothing(x64, loss):
    def of_part(features, labels, frame):
        with collective.over("devices"):
            # Each device takes its share of the loss, and gradients are summed afterwards, as a training step does.
            value, gradient = jax.value_and_grad(
                lambda features, frame: LOSSES[loss](features, labels, frame) / 4, argnums=(0, 1)
            )(features, frame)
            return value, gradient[0], collective.all_sum(gradient[1])

    mapped = jax.pmap(of_part, axis_name="devices", in_axes=(0, 0, None), devices=jax.devices()[:4])
    value, by_features, by_frame = mapped(FEATURES.reshape(4, 2, 3), LABELS.reshape(4, 2), FRAME)
    expected, gradient = jax.value_and_grad(lambda x, w: LOSSES[loss](x, LABELS, w), argnums=(0, 1))(FEATURES, FRAME)
    np.testing.assert_allclose(4 * value, np.full(4, expected), rtol=1e-12)
    np.testing.assert_allclose(by_features.reshape(8, 3), gradient[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(by_frame[0], gradient[1], rtol=1e-9, atol=1e-12)
    assert not np.any(gradient[0][6])  # padding


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(x64, loss):
    value = jax.jit(lambda tree: LOSSES[loss](tree[0], LABELS, tree[1]))
    aside, step = (RNG.normal(size=FEATURES.shape), RNG.normal(size=FRAME.shape)), 1e-6
    ahead, behind = (
        value(tuple(at + sign * step * to for at, to in zip((FEATURES, FRAME), aside, strict=True))) for sign in (1, -1)
    )
    slopes = jax.grad(value)((FEATURES, FRAME))
    rise = sum(np.sum(slope * to) for slope, to in zip(slopes, aside, strict=True))
    np.testing.assert_allclose(rise, (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_means_take_the_place_of_class_vectors(x64):
    used = LABELS >= 0
    means = np.stack([FEATURES[k == LABELS].mean(axis=0) for k in (0, 2, 3, 4)], axis=1)
    centre = means.mean(axis=1)
    labels = np.array([0, -1, 1, 2, 3])[LABELS[used]]
    expected = hug(FEATURES[used] - centre, labels, means - centre[:, None])
    for moved in (FEATURES, 10 * FEATURES + 7):
        np.testing.assert_allclose(hug_of_means(moved, LABELS, 5), expected, rtol=1e-9)
    far = hug_of_means((FEATURES + 100).astype(np.float32), LABELS, 5)
    np.testing.assert_allclose(far, expected, rtol=1e-4)
    line = np.array([[-1.0, 0.1], [0.0, 0.1], [1.0, 0.1]])  # the second class mean is the centre
    assert np.isnan(hug_of_means(line, np.arange(3), 3))
    assert np.isnan(hug_of_means(line, np.zeros(3, int), 3))
    assert hug_of_means(line[[0, 2, 2]], np.arange(3), 3) == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("stop", [False, True])
def test_descent_from_perfect_collapse_stays_finite(normalise, stop):
    """At collapse every distance is 0, where the derivative of a plain norm is NaN."""
    frame = jnp.asarray(simplex_etf(10, 64, key=jax.random.key(0)))
    labels = np.arange(40) % 10

    def unit(tree):
        scales = [jnp.linalg.norm(one, axis=axis, keepdims=True) for one, axis in zip(tree, (1, 0), strict=True)]
        return tuple(one / scale for one, scale in zip(tree, scales, strict=True)) if normalise else tree

    def step(tree, _):
        loss, slopes = jax.value_and_grad(lambda one: hug(one[0], labels, one[1], stop_gradient_proxies=stop))(tree)
        return unit(jax.tree.map(lambda at, slope: at - 0.2 * slope, tree, slopes)), loss

    start = (frame.T[labels], frame)
    end, values = jax.jit(lambda tree: jax.lax.scan(step, tree, length=200))(start)
    assert all(np.isfinite(one).all() for one in end)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[0], 0.45, rtol=1e-6)
    assert values.max() < 0.45 + 0.05  # steps of constant length oscillate, but do not leave


@pytest.mark.slow
def test_failures_are_seen():
    equal = FRAME.copy()
    equal[:, 1] = 2 * equal[:, 0]
    terms = hug_terms(FEATURES, LABELS, equal)
    assert terms.between == np.inf
    assert np.isfinite(terms.within)
    assert terms.status == Status.NON_FINITE
    slope = jax.jit(jax.grad(lambda frame, features: hug(features, LABELS, frame, stop_gradient_proxies=False)))
    gradient = slope(equal, FEATURES)
    assert np.isfinite(gradient).all()
    assert hug(FEATURES, LABELS, equal) == np.inf
    assert np.isfinite(hug(FEATURES, LABELS, equal, alpha=0.0))
    assert hug_terms(FEATURES, LABELS, equal, objective="mhs").status == Status.NOT_UNIQUE
    zero = FEATURES.copy()
    zero[0] = 0
    assert np.isnan(within_class(zero, LABELS, FRAME)).tolist() == [True] + 7 * [False]
    assert hug_terms(zero, LABELS, FRAME).status == Status.NON_FINITE
    assert np.isfinite(slope(FRAME, zero)).all()
    found = jax.jit(class_distances)(FEATURES, np.array([0, 1, 2, 3, 5, 4, -1, 0]), FRAME)
    assert np.isnan(found).tolist() == [False, False, False, False, True]  # seen in some class
    assert np.isnan(hug(FEATURES, np.full(8, -1), FRAME))


@pytest.mark.slow
def test_narrow_dtypes_are_widened_and_near_features_keep_their_digits():
    found = hug(jnp.asarray(FEATURES, jnp.bfloat16), LABELS, jnp.asarray(FRAME, jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, hug(FEATURES, LABELS, FRAME), rtol=0.05)
    near = within_class(np.array([[1.0, 1e-5]], np.float32), [0], np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(near, 1e-5, rtol=1e-5)


SHAPES = (
    "features and frame must have shapes (batch, dim) and (dim, classes); got (8, 3) and (5, 3): transpose the latter"
)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: uniformity.hug(FEATURES, LABELS, FRAME.T), SHAPES),
        (lambda: within_class(FEATURES, LABELS, FRAME.T), SHAPES),
        (lambda: uniformity.hug(FEATURES, LABELS, FRAME, alpha=-1.0), "alpha must be at least 0 and finite; got -1.0"),
        (
            lambda: uniformity.hug_of_means(FEATURES, LABELS, 5, beta=np.inf),
            "beta must be at least 0 and finite; got inf",
        ),
        (
            lambda: inspect.unwrap(class_distances)(FEATURES, LABELS, FRAME, reduction="least"),
            "reduction must be one of mean, sum, max; got 'least'",
        ),
        (lambda: uniformity.hug_of_means(FEATURES[0], LABELS, 5), "features must have shape (batch, dim); got (3,)"),
        (
            lambda: uniformity.hug(FEATURES, LABELS[:2], FRAME),
            "labels must have shape (8,), one label for each row of features; got shape (2,)",
        ),
        (
            lambda: uniformity.hug_of_means(FEATURES, LABELS, 4),
            "labels must lie in 0..3 for num_classes=4, or be -1 for padding; got 4 at index 3 (1 such label)",
        ),
        (
            lambda: within_class(FEATURES, LABELS, FRAME, [1, 2]),
            "counts must hold one number for each of the 5 classes; got shape (2,)",
        ),
        (
            lambda: uniformity.hug(FEATURES, np.zeros(8, int), FRAME[:, :1]),
            "class vectors must have shape (dim, classes) with classes >= 2; got (3, 1)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence


def test_the_module_names_all_its_parts():
    assert all(callable(getattr(uniformity, name)) for name in uniformity.__all__)
