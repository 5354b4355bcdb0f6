"""The nearest head where classes have unequal numbers of examples: class weights, and the centre of the classes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax import heads
from nc_jax.frames import simplex_template

K, DIM = 4, 6
KEY = jax.random.key(0)
SIZES = (12, 6, 3, 1)  # of a batch
LABELS = np.repeat(np.arange(K), SIZES).astype(np.int32)
WEIGHTS = (0.2, 0.5, 1.0, 4.0)
SETTINGS = {
    "weights": {"weights": WEIGHTS},
    "classes": {"centre": "classes"},
    "both": {"weights": WEIGHTS, "centre": "classes"},
    "both, trust region": {"weights": WEIGHTS, "centre": "classes", "solver": "trust_region"},
}


def features_of(seed, offset=0.0):
    return np.random.default_rng(seed).normal(size=(len(LABELS), DIM)) + offset


def means_of(features):
    return np.stack([features[k == LABELS].mean(axis=0) for k in range(K)], axis=1)


def after(head, *batches):
    """The state after batches of features and labels."""
    params, state = head.init(KEY, DIM)
    step = jax.jit(partial(head.apply, train=True))
    for features, labels in batches:
        output, state = step(params, state, jnp.asarray(features, jnp.float32), labels)
    return output, state


def nearest_by_svd(means, weights, prox=None, prox_weight=0.0):
    """The frame of unit columns nearest to weighted means of unit norm, by NumPy."""
    template = np.asarray(simplex_template(K), float)
    template /= np.linalg.norm(template)
    norm = np.sqrt(np.sum(weights * means**2))
    matrix = 2 * (means * weights / norm) @ template.T
    if prox is not None:
        matrix = matrix + prox_weight * prox
    frame = oracles.polar_by_svd(matrix) @ template
    return frame / np.linalg.norm(frame, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("centre", ["batch", "classes"])
def test_the_first_frame_is_that_of_numpy(centre, weights):
    features = features_of(0, offset=1.0)
    head = heads.nearest(K, weights=weights, centre=centre, radius=None)
    output, state = after(head, (features, LABELS))
    means = means_of(features)
    middle = means.mean(axis=1) if centre == "classes" else features.mean(axis=0)
    expected = nearest_by_svd(means - middle[:, None], np.ones(K) if weights is None else np.asarray(weights))
    np.testing.assert_allclose(state["frame"], expected, atol=2e-6)
    np.testing.assert_allclose(state["global_mean"], middle, atol=1e-6)
    np.testing.assert_allclose(output.logits, (features - middle) @ expected, atol=2e-5)


@pytest.mark.slow
def test_a_rare_class_gets_the_centre_of_the_moment():
    """The last class is in the first batch only; all features move by the same offset after it."""
    first, then = features_of(0), features_of(0, offset=3.0)
    kept = LABELS < K - 1
    frames = {}
    for centre in ("batch", "classes"):
        head = heads.nearest(K, centre=centre, radius=None, averaging="cma")
        _, state = after(head, (first, LABELS), *[(then[kept], LABELS[kept])] * 20)
        frames[centre] = state
    means = means_of(first)
    running = means + np.where(np.arange(K) < K - 1, 3.0 * 20 / 21, 0.0)
    found = frames["classes"]
    np.testing.assert_allclose(found["class_means"], running, atol=2e-5)
    np.testing.assert_allclose(found["global_mean"], running.mean(axis=1), atol=2e-5)
    # With the batch's centre, the rare class's mean still lies where the others were when it was seen.
    np.testing.assert_allclose(frames["batch"]["class_means"][:, -1], (means[:, -1] - first.mean(axis=0)), atol=2e-5)


def test_classes_not_seen_yet_neither_pull_nor_count_in_the_centre():
    features = features_of(0, offset=1.0)
    kept = LABELS < 2
    head = heads.nearest(K, centre="classes", weights=WEIGHTS, radius=None)
    _, state = after(head, (features[kept], LABELS[kept]))
    means = means_of(features)[:, :2]
    np.testing.assert_allclose(state["global_mean"], means.mean(axis=1), atol=1e-6)
    assert not np.any(np.asarray(state["class_means"])[:, 2:])
    centred = np.pad(means - means.mean(axis=1, keepdims=True), ((0, 0), (0, 2)))
    expected = nearest_by_svd(centred, np.asarray(WEIGHTS), np.eye(DIM, K - 1), 1e-3)  # the tie-break of a first step
    # Two classes fix one direction of three; rounding over the tie-break of 1e-3 moves the others.
    np.testing.assert_allclose(state["frame"], expected, atol=1e-3)


@pytest.mark.slow
def test_weights_may_be_traced():
    def frame(weights):
        head = heads.nearest(K, weights=weights)
        params, state = head.init(KEY, DIM)
        return head.apply(params, state, jnp.asarray(features_of(0)), LABELS, train=True)[1]["frame"]

    expected = after(heads.nearest(K, weights=WEIGHTS), (features_of(0), LABELS))[1]["frame"]
    np.testing.assert_allclose(jax.jit(frame)(jnp.asarray(WEIGHTS)), expected, atol=1e-6)


@pytest.mark.slow
def test_only_the_ratios_of_weights_matter():
    batch = features_of(0), LABELS
    _, state = after(heads.nearest(K, weights=WEIGHTS), batch)
    for scale in (1e-30, 1e30):
        _, other = after(heads.nearest(K, weights=np.asarray(WEIGHTS) * scale), batch)
        np.testing.assert_allclose(other["frame"], state["frame"], atol=1e-6)
    _, plain = after(heads.nearest(K), batch)
    _, equal = after(heads.nearest(K, weights=[7] * K), batch)
    np.testing.assert_allclose(equal["frame"], plain["frame"], atol=1e-6)
    assert np.abs(state["frame"] - plain["frame"]).max() > 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_is_that_of_finite_differences(name):
    head = heads.nearest(K, **SETTINGS[name])
    params, start = head.init(KEY, DIM)
    start = {key: value.astype(jnp.float64) if value.dtype == jnp.float32 else value for key, value in start.items()}
    _, state = head.apply(params, start, features_of(1), LABELS, train=True)
    kept = LABELS != 1  # a class is absent in the second step

    @jax.jit
    def loss(features):
        output, _ = head.apply(params, state, features, LABELS[kept], train=True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), jnp.asarray(LABELS[kept])[:, None], axis=1)
        return -jnp.mean(picked)

    at, way = jnp.asarray(features_of(2)[kept]), jnp.asarray(features_of(3)[kept])
    slope = jnp.vdot(jax.grad(loss)(at), way)
    step = 1e-5
    differences = (loss(at + step * way) - loss(at - step * way)) / (2 * step)
    np.testing.assert_allclose(slope, differences, rtol=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.slow
def test_eight_devices_find_what_one_finds():
    """Eight devices, of which none has seen all classes."""
    head = heads.nearest(K, **SETTINGS["both"])
    params, state = head.init(KEY, DIM)
    features = jnp.asarray(np.concatenate([features_of(0), np.zeros((2, DIM))]), jnp.float32)
    labels = np.append(LABELS, [-1, -1]).astype(np.int32)

    def slope(features, labels, axis_name=None):
        def loss(features):
            output, after = head.apply(params, state, features, labels, train=True, axis_name=axis_name)
            picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], axis=1)[:, 0]
            return -jnp.sum(jnp.where(labels >= 0, picked, 0)), after

        return jax.grad(loss, has_aux=True)(features)

    gradient, after_one = jax.jit(slope)(features, labels)
    split = features.reshape(8, -1, DIM), labels.reshape(8, -1)
    gradients, after_all = jax.pmap(partial(slope, axis_name="rows"), "rows", out_axes=(0, None))(*split)
    np.testing.assert_allclose(gradients.reshape(gradient.shape), gradient, atol=1e-4, rtol=1e-4)
    for name, value in after_one.items():
        np.testing.assert_allclose(after_all[name], value, atol=1e-5)


def test_the_state_has_the_shapes_of_the_default():
    shapes = [
        jax.tree.map(jnp.shape, heads.nearest(K, **settings).init(KEY, DIM)[1]) for settings in ({}, *SETTINGS.values())
    ]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.slow
def test_padding_counts_in_no_centre():
    features = features_of(0)
    head = heads.nearest(K, **SETTINGS["both"])
    _, expected = after(head, (features, LABELS))
    padded = np.concatenate([features, 100 * np.ones((3, DIM))]), np.append(LABELS, [-1] * 3)
    _, found = after(head, padded)
    np.testing.assert_allclose(found["frame"], expected["frame"], atol=1e-6)
    _, kept = after(head, (features, LABELS), (features, np.full(len(LABELS), -1)))
    np.testing.assert_allclose(kept["frame"], expected["frame"], atol=1e-5)
    np.testing.assert_array_equal(kept["global_mean"], expected["global_mean"])


def test_a_frame_that_is_not_centred_has_no_centre_of_classes():
    head = heads.nearest(K, template=jnp.eye(K), centre="classes")
    _, state = after(head, (features_of(0, 1.0), LABELS))
    assert not np.any(state["global_mean"])


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, 1.0], "weights must have shape (4,), one number for each class; got (2,)"),
        (["a"] * 4, "weights must be real numbers of at most 64 bits; got dtype <U1"),
        ([1, 1, 1, 0], "weights of classes must be finite and above 0; got 0"),
        ([1, 1, 1, np.inf], "weights of classes must be finite and above 0; got inf"),
        ([1, 1, np.nan, 1], "weights of classes must be finite and above 0; got nan"),
    ],
)
def test_wrong_weights_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        heads.nearest(K, weights=np.asarray(weights))
