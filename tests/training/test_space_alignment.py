"""Space alignment: what each extension removes of a known misalignment, and its memory."""

import json
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax import collective
from nc_jax.data import Batch
from nc_jax.heads import HeadOutput
from nc_jax.training import (
    AlignmentPenalty,
    AlignmentProjection,
    AlignmentSlerp,
    Context,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "space_alignment.json").read_text())
KEY = jax.random.key(0)
K, DIM = 4, 6
RNG = np.random.default_rng(0)


def error_exponent(means, frame):
    """Least half squared distance, from a class mean to where another class begins; class vectors are columns."""
    pairs = [(k, j) for k in range(means.shape[1]) for j in range(means.shape[1]) if k != j]
    gaps = {pair: frame[:, pair[0]] - frame[:, pair[1]] for pair in pairs}
    return min(max(gaps[k, j] @ means[:, k], 0) ** 2 / 2 / (gaps[k, j] @ gaps[k, j]) for k, j in pairs)


def context(step, train=True):
    return Context(jnp.asarray(step, jnp.int32), train)


def output_of(features, frame, bias=None):
    features, frame = jnp.asarray(features), jnp.asarray(frame)
    bias = jnp.zeros(frame.shape[1], frame.dtype) if bias is None else jnp.asarray(bias, frame.dtype)
    return HeadOutput(features @ frame + bias, features, frame, bias)


LIKE = output_of(np.zeros((1, DIM)), np.zeros((DIM, K)))  # what a head of these tests gives


def batch_of(labels):
    labels = jnp.asarray(labels, jnp.int32)
    return Batch(jnp.zeros((len(labels), 1)), labels, labels >= 0)


def corrected(extension, means, frame, features=None, offset=0.0):
    """Class vectors after a step in which the extension has seen one example at each class mean."""
    labels = np.arange(means.shape[1])
    seen = output_of(means.T + offset, frame)
    state = extension.update(context(0), extension.init(KEY, seen), seen, batch_of(labels))
    features = seen.features if features is None else features
    return extension.on_output(context(1), state, output_of(features, frame), batch_of(labels))


# --- What is removed. ---


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 4])
@pytest.mark.parametrize("degrees", [15, 30, 45, 60])
def test_a_tilt_out_of_the_span_is_removed_exactly(x64, classes, degrees):
    angle = np.radians(degrees)
    means = np.sqrt(classes / (classes - 1)) * (
        np.eye(10, classes) - np.eye(10)[:, :classes].mean(axis=1, keepdims=True)
    )
    beside = np.roll(means, 5, axis=0)  # in other dimensions
    frame = 2.5 * (np.cos(angle) * means + np.sin(angle) * beside)
    assert error_exponent(means, frame) == pytest.approx(GOLDEN["tilted"][f"C{classes}_theta{degrees}"], abs=1e-12)
    best = classes / (4 * (classes - 1))
    for kind in (AlignmentProjection, AlignmentSlerp):
        found = corrected(kind(1.0), means, frame, offset=0.3)  # a common offset plays no part
        np.testing.assert_allclose(found.frame, 2.5 * means, atol=1e-12)
        assert error_exponent(means, found.frame) == pytest.approx(best, abs=1e-12)
    # Half of the way: the part outside is halved, and the lengths stay.
    half = corrected(AlignmentProjection(0.5), means, frame).frame
    expected = np.cos(angle) * means + np.sin(angle) / 2 * beside
    np.testing.assert_allclose(half, 2.5 * expected / np.linalg.norm(expected, axis=0), atol=1e-12)


@pytest.mark.slow
def test_a_turn_in_the_span_is_removed_by_slerp_alone(x64):
    golden = GOLDEN["slerp"]
    means, turned = np.array(golden["t1"]["W"]).T, np.array(golden["W0"]).T
    span = np.linalg.svd(means)[0][:, :3]
    rotation = oracles.polar_by_svd(span.T @ turned @ means.T @ span)  # the part of the golden turn that stays inside
    frame = span @ rotation @ span.T @ means
    assert np.mean(np.sum(frame * means, axis=0)) > 0.94
    assert error_exponent(means, frame) == pytest.approx(0.1719, abs=1e-4)  # where the cosine's square would say 0.305
    np.testing.assert_allclose(corrected(AlignmentProjection(1.0), means, frame).frame, frame, atol=1e-12)
    np.testing.assert_allclose(corrected(AlignmentSlerp(1.0), means, frame).frame, means, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_the_golden_values_of_slerp(x64, share):
    golden = GOLDEN["slerp"]
    means, frame = np.array(golden["t1"]["W"]).T, np.array(golden["W0"]).T
    assert error_exponent(means, frame) == pytest.approx(golden["t0"]["oee"], abs=1e-9)
    if share == 1:  # a part of this turn lies outside of the span
        projected = corrected(AlignmentProjection(share), means, frame).frame
        assert error_exponent(means, projected) == pytest.approx(0.1743, abs=1e-4)
    found = corrected(AlignmentSlerp(share), means, frame, offset=0.3).frame
    np.testing.assert_allclose(found.T, golden[f"t{share:g}"]["W"], atol=1e-9)
    assert error_exponent(means, found) == pytest.approx(golden[f"t{share:g}"]["oee"], abs=1e-9)


def test_a_projection_without_rescaling_never_lowers_the_error_exponent(x64):
    """For any centred means: what is projected away lengthens the gaps between class vectors and moves no mean."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means, frame = rng.normal(size=(2, DIM, K))
        means -= means.mean(axis=1, keepdims=True)
        projected = means @ np.linalg.lstsq(means, frame, rcond=None)[0]
        assert error_exponent(means, projected) >= error_exponent(means, frame)


@pytest.mark.slow
def test_the_projector_is_that_of_the_span_also_if_the_means_have_collapsed_or_depend(x64):
    means = RNG.normal(size=(DIM, K))
    means[:, 3] = means[:, 2] + 1e-5 * RNG.normal(size=DIM)  # a direction below the tolerance
    frame = RNG.normal(size=(DIM, K))
    found = corrected(AlignmentProjection(1.0), means, frame).frame
    left = np.linalg.svd(means - means.mean(axis=1, keepdims=True))[0][:, :2]
    inside = left @ left.T @ frame
    expected = inside * np.linalg.norm(frame, axis=0) / np.linalg.norm(inside, axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # the direction that is left out turns the span by 1e-5


# --- Logits. ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AlignmentSlerp, AlignmentProjection])
def test_logits_change_by_the_class_vectors_about_the_centre_of_the_means(x64, kind):
    means, frame, features = RNG.normal(size=(DIM, K)), RNG.normal(size=(DIM, K)), RNG.normal(size=(5, DIM))
    extension = kind(0.6)
    state = extension.update(context(0), extension.init(KEY, LIKE), output_of(means.T, frame), batch_of(range(K)))
    output = output_of(features, frame, np.arange(K))
    masked = output._replace(logits=output.logits.at[:, 0].set(-1e9))
    found, unmasked = (extension.on_output(context(1), state, one, batch_of([0] * 5)) for one in (masked, output))
    np.testing.assert_allclose(unmasked.logits, features @ unmasked.frame + unmasked.bias, rtol=1e-11, atol=1e-12)
    centre = means.mean(axis=1)
    np.testing.assert_allclose(centre @ unmasked.frame + unmasked.bias, centre @ frame + np.arange(K), rtol=1e-11)
    np.testing.assert_allclose(found.logits[:, 1:], unmasked.logits[:, 1:], rtol=1e-12)
    assert (found.logits[:, 0] < -9e8).all()
    np.testing.assert_array_equal(found.bias, unmasked.bias)
    np.testing.assert_allclose(np.linalg.norm(found.frame, axis=0), np.linalg.norm(frame, axis=0), rtol=1e-12)
    again = extension.on_output(context(1, train=False), state, output, batch_of([0] * 5))
    np.testing.assert_array_equal(again.logits, unmasked.logits)  # evaluation


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AlignmentSlerp, AlignmentProjection])
def test_gradients_reach_class_vectors_and_features_through_the_correction(x64, kind):
    means, frame, features, way = RNG.normal(size=(DIM, K)), RNG.normal(size=(DIM, K)), *RNG.normal(size=(2, 5, DIM))
    extension = kind(0.6)
    state = extension.update(context(0), extension.init(KEY, LIKE), output_of(means.T, frame), batch_of(range(K)))

    def value(step):
        output = output_of(features + step * way, frame + step * means)
        return jnp.sum(extension.on_output(context(1), state, output, batch_of([0] * 5)).logits ** 3)

    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), oracles.central_difference(value, 1e-3), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AlignmentSlerp, AlignmentProjection])
def test_classes_that_have_not_been_seen_keep_their_class_vectors(kind):
    frame = jnp.asarray(RNG.normal(size=(DIM, K)), jnp.float32)
    features = jnp.asarray(RNG.normal(size=(6, DIM)), jnp.float32)
    output = output_of(features, frame)
    extension = kind(1.0)
    start = extension.init(KEY, LIKE)
    untouched = extension.on_output(context(0), start, output, batch_of([0] * 6))
    np.testing.assert_array_equal(untouched.logits, output.logits)
    for labels, moved in (([2] * 6, []), ([0, 0, 2, 2, 0, 2], [0, 2])):  # a single class has no direction
        state = extension.update(context(0), start, output, batch_of(labels))
        found = extension.on_output(context(1), state, output, batch_of(labels)).frame
        assert [k for k in range(K) if np.abs(found[:, k] - frame[:, k]).max() > 1e-3] == moved
        kept = [k for k in range(K) if k not in moved]
        np.testing.assert_array_equal(found[:, kept], frame[:, kept])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AlignmentSlerp, AlignmentProjection, AlignmentPenalty])
def test_zero_class_vectors_have_finite_gradients(kind):
    extension = kind(1.0)
    labels = batch_of(range(K))
    means = jnp.asarray(RNG.normal(size=(K, DIM)), jnp.float32)
    state = extension.update(context(0), extension.init(KEY, LIKE), output_of(means, jnp.zeros((DIM, K))), labels)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def slopes_of(frame, features):
        output = output_of(features, frame)
        if kind is AlignmentPenalty:
            return jnp.mean(extension.penalties(context(1), state, output, labels)["misalignment"])
        return jnp.sum(extension.on_output(context(1), state, output, labels).logits ** 2)

    for features in (means, jnp.zeros((K, DIM))):
        assert all(np.isfinite(slope).all() for slope in slopes_of(jnp.zeros((DIM, K)), features))


# --- The penalty. ---


@pytest.mark.slow
def test_the_penalty_and_its_gradients(x64):
    """From the second batch on, so that old means take part; one class is in none, and one row is padding."""
    rng = np.random.default_rng(0)  # of its own: some draws have a slope near zero
    labels, features, frame = [0, 1, 1, 2, -1], rng.normal(size=(5, DIM)), rng.normal(size=(DIM, K))
    extension = AlignmentPenalty(0.7)
    first = output_of(rng.normal(size=(5, DIM)), frame)
    state = extension.update(context(0), extension.init(KEY, first), first, batch_of([0, 1, -1, -1, 0]))

    def value(step, ways):
        output = output_of(features + step * ways[0], frame + step * ways[1])
        each = extension.penalties(context(1), state, output, batch_of(labels))["misalignment"]
        assert each.shape == (5,)
        return each[0]

    def by_hand():
        before = np.asarray(first.features)
        old = {0: (before[0] + before[4]) / 2, 1: before[1]}
        means = {
            0: old[0] + 2 / 3 * (features[0] - old[0]),
            1: old[1] + 2 / 3 * ((features[1] + features[2]) / 2 - old[1]),
            2: features[3],
        }
        centre = sum(means.values()) / 3
        directions = {k: mean - centre for k, mean in means.items()}
        cosines = [
            frame[:, k] @ way / np.linalg.norm(frame[:, k]) / np.linalg.norm(way) for k, way in directions.items()
        ]
        return 0.7 * np.mean(1 - np.array(cosines))

    ways = rng.normal(size=(5, DIM)), rng.normal(size=(DIM, K))
    np.testing.assert_allclose(value(0.0, ways), by_hand(), rtol=1e-12)
    for here in (ways, (0 * ways[0], ways[1]), (ways[0], 0 * ways[1])):
        slope = jax.jit(jax.grad(partial(value, ways=here)))(0.0)
        np.testing.assert_allclose(slope, oracles.central_difference(partial(value, ways=here), 1e-3), rtol=1e-7)
        assert abs(slope) > 1e-3


# --- The memory. ---


def test_the_means_are_averaged_and_the_target_is_held_in_between(x64):
    extension = AlignmentSlerp(0.5, start=3, every=2)
    frame, state = RNG.normal(size=(DIM, K)), extension.init(KEY, LIKE)
    means, updates, target = np.zeros((DIM, K)), np.zeros(K, int), np.zeros((DIM, K))
    update = jax.jit(extension.update)
    for step in range(8):
        features, labels = RNG.normal(size=(9, DIM)), RNG.integers(-1, 3, size=9)  # class 3 is never there
        features[labels < 0] = np.nan  # padding may hold anything
        state = update(context(step), state, output_of(features, frame), batch_of(labels))
        for k in range(K):
            if (labels == k).any():
                updates[k] += 1
                means[:, k] += 2 / (updates[k] + 1) * (features[labels == k].mean(axis=0) - means[:, k])
        if step + 1 in (3, 5, 7):
            target = np.where(updates > 0, means - means[:, updates > 0].mean(axis=1, keepdims=True), 0)
        np.testing.assert_allclose(state["means"], means, rtol=1e-12)
        np.testing.assert_array_equal(state["updates"], updates)
        np.testing.assert_allclose(state["target"], target, atol=1e-12)


@pytest.mark.parametrize("kind", [AlignmentSlerp, AlignmentProjection, AlignmentPenalty])
@pytest.mark.parametrize("bad", ["a NaN", "a label that is no class"])
def test_a_bad_batch_leaves_the_memory_as_it_was(kind, bad):
    extension = kind(1.0)
    frame, features = jnp.ones((DIM, K)), jnp.asarray(RNG.normal(size=(K, DIM)), jnp.float32)
    before = extension.update(context(0), extension.init(KEY, LIKE), output_of(features, frame), batch_of(range(K)))
    labels = jnp.arange(K)
    if bad == "a NaN":
        features = features.at[1, 0].set(jnp.nan)
    else:
        labels = labels.at[1].set(K)
    after = extension.update(context(1), before, output_of(features, frame), batch_of(labels))
    chex.assert_trees_all_equal(after, before)


@pytest.mark.slow
@pytest.mark.parametrize("extension", [AlignmentPenalty(0.7), AlignmentProjection(0.7)], ids=str)
def test_devices_with_shares_of_a_batch_find_the_gradient_and_the_memory_of_the_whole(x64, extension):
    """As the step does: the gradient of the device's share of the mean, summed after differentiation."""
    features, frame = RNG.normal(size=(2, 8, DIM)), RNG.normal(size=(DIM, K))
    labels = jnp.array([0, 1, 2, 3, -1, -1, 0, 1])  # one of the four devices has padding only
    state = extension.update(context(0), extension.init(KEY, LIKE), output_of(features[0], frame), batch_of(labels))

    def share_of(frame, features, labels):
        batch, output = batch_of(labels), output_of(features, frame)
        if isinstance(extension, AlignmentPenalty):
            each = extension.penalties(context(1), state, output, batch)["misalignment"]
        else:
            each = jnp.sum(extension.on_output(context(1), state, output, batch).logits ** 2, axis=1)
        return jnp.sum(jnp.where(batch.mask, each, 0)) / 6, extension.update(context(1), state, output, batch)

    slopes_of = jax.grad(share_of, argnums=(0, 1), has_aux=True)

    def on_a_device(features, labels):
        with collective.over("devices"):
            (by_frame, by_features), after = slopes_of(frame, features, labels)
            return collective.all_sum(by_frame), by_features, after

    shares = jnp.asarray(features[1]).reshape(4, 2, DIM), labels.reshape(4, 2)
    by_frame, by_features, after = jax.jit(jax.vmap(on_a_device, axis_name="devices"))(*shares)
    expected, whole = jax.jit(slopes_of)(jnp.asarray(frame), jnp.asarray(features[1]), labels)
    np.testing.assert_allclose(by_features.reshape(8, DIM), expected[1], atol=1e-12)
    for device in range(4):
        np.testing.assert_allclose(by_frame[device], expected[0], atol=1e-12)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, d=device: leaf[d], after), whole, atol=1e-12)


# --- What is refused. ---

REFUSED = {
    "min_alpha must lie in [0, 1]; got 2.0": (AlignmentPenalty, (0.5,), {"min_alpha": 2.0}),
    "the strength of an alignment penalty must be positive and finite; got 0.0": (AlignmentPenalty, (0.0,), {}),
    "the strength of a correction must lie in (0, 1]; got 1.5": (AlignmentSlerp, (1.5,), {}),
    "start of a correction must be at least 1; got 0": (AlignmentSlerp, (0.5,), {"start": 0}),
    "every of a correction must be at least 1; got 0": (AlignmentProjection, (0.5,), {"every": 0}),
    "tolerance must lie in (0, 1); got 1.0": (AlignmentProjection, (0.5,), {"tolerance": 1.0}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_attributes_out_of_range_are_refused(sentence):
    kind, arguments, keywords = REFUSED[sentence]
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        kind(*arguments, **keywords)
    assert str(error.value) == sentence
