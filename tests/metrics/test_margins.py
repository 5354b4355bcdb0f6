"""Margins: loops as oracles, perfect collapse, padding, and their sums as a monoid."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import simplex_etf
from nc_jax.metrics import MarginSummary, MarginSums, cosine_margins, logit_margins

from_batch = jax.jit(MarginSums.from_batch)


def random_problem(num_examples=40, dim=6, num_classes=5, seed=0):
    """Features, a frame and labels; every seventh label is padding."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    labels[::7] = -1
    return rng.normal(size=(num_examples, dim)), rng.normal(size=(dim, num_classes)), labels


def loop_margins(scores, labels):
    """Margins of the examples, without padding."""
    rows = [(list(row), label) for row, label in zip(scores, labels, strict=True) if label >= 0]
    return np.array([row[label] - max(row[:label] + row[label + 1 :]) for row, label in rows])


def assert_sums_close(found, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), found, expected)


@pytest.mark.slow
def test_margins_equal_a_loop(x64):
    features, frame, labels = random_problem()
    used = labels >= 0
    lengths = np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(frame, axis=0))
    found = jax.jit(cosine_margins)(jnp.array(features), jnp.array(frame), jnp.array(labels))
    np.testing.assert_allclose(found[used], loop_margins(features @ frame / lengths, labels), rtol=1e-10)
    assert jnp.isnan(found[~used]).all()
    assert (jnp.abs(found[used]) <= 2).all()
    logits = features @ frame
    found = jax.jit(logit_margins)(jnp.array(logits), jnp.array(labels))
    np.testing.assert_allclose(found[used], loop_margins(logits, labels), rtol=1e-12)
    assert jnp.isnan(found[~used]).all()
    right = np.argmax(logits, axis=1) == labels
    assert 0 < right.sum() < used.sum()
    np.testing.assert_array_equal(found > 0, right)


@pytest.mark.slow
def test_a_tiny_case_by_hand():
    logits = jnp.array([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0], [4.0, 4.0, 0.0], [2.0, 5.0, 1.0]])
    # Only running code can meet a label that is no class.
    np.testing.assert_array_equal(jax.jit(logit_margins)(logits, jnp.array([1, 2, 0, 3])), [3.0, -4.0, 0.0, np.nan])
    # The cosines of (3, 4) with (1, 0) and (0, 1) are 0.6 and 0.8.
    found = cosine_margins(jnp.array([[3.0, 4.0], [3.0, 4.0]]), jnp.diag(jnp.array([10.0, 0.1])), jnp.array([0, 1]))
    np.testing.assert_allclose(found, [-0.2, 0.2], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (10, 9), (100, 128)])
def test_the_margin_of_perfect_collapse(num_classes, dim):
    frame = simplex_etf(num_classes, dim, key=jax.random.key(0))
    labels = jnp.arange(2 * num_classes) % num_classes
    found = cosine_margins(3 * frame.T[labels], frame, labels)
    np.testing.assert_allclose(found, num_classes / (num_classes - 1), rtol=3e-6)
    swapped = cosine_margins(frame.T[labels], frame, (labels + 1) % num_classes)
    np.testing.assert_allclose(swapped, -num_classes / (num_classes - 1), rtol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_do_not_matter_to_cosine_margins(scale):
    features, frame, labels = (jnp.asarray(array) for array in random_problem())
    features, frame = features.astype(jnp.float32), frame.astype(jnp.float32)
    before = cosine_margins(features, frame, labels)
    after = cosine_margins(scale * features, frame * jnp.geomspace(1 / scale, 1, 5), labels)
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.slow
def test_a_vector_without_direction_has_no_margin():
    features, frame = jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.eye(2)
    np.testing.assert_array_equal(jnp.isnan(cosine_margins(features, frame, jnp.array([0, 1]))), [True, False])
    assert jnp.isnan(cosine_margins(features, frame.at[:, 0].set(0), jnp.array([0, 1]))).all()


def test_infinite_logits_of_other_classes_leave_a_margin():
    logits = jnp.array([[1.0, -jnp.inf, 0.5], [1.0, -jnp.inf, 0.5], [jnp.nan, 0.0, 1.0]])
    found = logit_margins(logits, jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(found, [0.5, -np.inf, np.nan])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_are_measured_in_float32(dtype):
    features, frame, labels = random_problem()
    features, frame, labels = jnp.asarray(features, dtype), jnp.asarray(frame, dtype), jnp.asarray(labels)
    found = cosine_margins(features, frame, labels)
    assert found.dtype == jnp.float32
    wide = cosine_margins(features.astype(jnp.float32), frame.astype(jnp.float32), labels)
    np.testing.assert_array_equal(found, wide)
    assert from_batch(found.astype(dtype), labels).mean.dtype == jnp.float32


@pytest.mark.slow
def test_summary_equals_numpy_and_ignores_padding(x64):
    features, frame, labels = random_problem()
    margins = logit_margins(jnp.array(features @ frame), jnp.array(labels))
    used = np.asarray(margins)[labels >= 0]
    sums = from_batch(margins, jnp.array(labels))
    assert sums.count.dtype == sums.correct.dtype == jnp.int32
    assert (sums.count, sums.correct) == (used.size, (used > 0).sum())
    expected = MarginSummary(*(jnp.array(x) for x in (used.mean(), used.std(), used.min(), (used > 0).mean())))
    assert_sums_close(sums.compute(), expected)
    assert_sums_close(from_batch(jnp.where(labels >= 0, margins, 99.0), jnp.array(labels)), sums)


def test_one_example_has_a_mean_and_no_spread():
    found = from_batch(jnp.array([0.5]), jnp.array([1])).compute()
    np.testing.assert_array_equal([found.mean, found.minimum], [0.5, 0.5])
    assert found.standard_deviation == 0


@pytest.mark.slow
def test_is_a_commutative_monoid_and_merging_equals_one_pass(x64):
    features, frame, labels = random_problem(num_examples=60)
    labels = jnp.array(labels).at[20:30].set(-1)
    margins = logit_margins(jnp.array(features @ frame), labels)
    cuts = [slice(0, 20), slice(20, 30), slice(30, 31), slice(31, 60)]  # one of them only padding
    parts = [from_batch(margins[cut], labels[cut]) for cut in cuts]
    whole = from_batch(margins, labels)
    a, b, c, d = parts
    assert_sums_close(a.merge(b).merge(c).merge(d), whole)
    assert_sums_close(d.merge(c).merge(b.merge(a)), whole)
    assert_sums_close(MarginSums.init(jnp.float64).merge(a), a)
    assert_sums_close(a.merge(MarginSums.init(jnp.float64)), a)
    reduced = jax.vmap(lambda part: part.all_reduce("batch"), axis_name="batch", out_axes=None)
    assert_sums_close(reduced(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)), whole)


@pytest.mark.slow
def test_devices_together_equal_one(x64):
    features, frame, labels = random_problem(num_examples=64)
    labels = jnp.array(labels)
    margins = logit_margins(jnp.array(features @ frame), labels)
    mesh, spec = jax.sharding.Mesh(jax.devices(), "batch"), jax.sharding.PartitionSpec
    assert mesh.size == 8
    mapped = jax.shard_map(
        lambda m, y: MarginSums.from_batch(m, y).all_reduce("batch"),
        mesh=mesh,
        in_specs=spec("batch"),
        out_specs=spec(),
    )
    assert_sums_close(jax.jit(mapped)(margins, labels), from_batch(margins, labels))


def test_nearly_equal_float32_margins_keep_their_deviation():
    """A mean of squares near 1.2 is rounded to 1e-7: it would take a deviation of 1e-5 for anything up to 3e-4."""
    margins = jnp.asarray(10 / 9 + 1e-5 * np.random.default_rng(0).normal(size=10_000), jnp.float32)
    labels = jnp.zeros(len(margins), int)
    expected = np.std(np.asarray(margins, np.float64))
    np.testing.assert_allclose(from_batch(margins, labels).compute().standard_deviation, expected, rtol=1e-3)
    merged = MarginSums.init()
    for cut in range(0, 10_000, 1000):
        merged = merged.merge(from_batch(margins[cut : cut + 1000], labels[cut : cut + 1000]))
    np.testing.assert_allclose(merged.compute().standard_deviation, expected, rtol=1e-3)


@pytest.mark.slow
def test_a_diverged_example_shows_and_an_empty_stream_is_nan():
    good = from_batch(jnp.array([0.5, 1.0]), jnp.array([0, 1]))
    bad = from_batch(jnp.array([jnp.nan, 1.0]), jnp.array([0, 1]))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), good, bad)
    reduced = jax.vmap(lambda part: part.all_reduce("batch"), axis_name="batch", out_axes=None)(both)
    for sums in (good.merge(bad), bad.merge(good), reduced):
        summary = sums.compute()
        for value in (summary.mean, summary.standard_deviation, summary.minimum):
            assert jnp.isnan(value)
        assert summary.share_positive == 0.75
    for sums in (
        MarginSums.init(),
        from_batch(jnp.ones(3), jnp.full(3, -1)),
        from_batch(jnp.ones(0), jnp.ones(0, int)),
    ):
        assert sums.count == 0
        assert all(jnp.isnan(value) for value in sums.compute())


@pytest.mark.slow
def test_vmap_over_runs_equals_each_run(x64):
    runs = [random_problem(seed=seed) for seed in (1, 2)]

    def whole(features, frame, labels):
        return MarginSums.from_batch(cosine_margins(features, frame, labels), labels).compute()

    together = jax.jit(jax.vmap(whole))(*(jnp.stack([jnp.array(run[part]) for run in runs]) for part in range(3)))
    apart = [whole(*map(jnp.array, run)) for run in runs]
    assert_sums_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))


@pytest.mark.slow
def test_cosine_margins_have_a_gradient_that_keeps_the_length():
    features, frame, labels = (jnp.asarray(array) for array in random_problem())
    used = labels >= 0
    gradient = jax.grad(lambda h: jnp.sum(cosine_margins(h, frame, labels), where=used))(features)
    assert jnp.isfinite(gradient).all()
    assert gradient[used].any(axis=1).all()
    np.testing.assert_allclose(jnp.sum(gradient * features, axis=1), 0, atol=1e-5)


# The library's own error messages, without the shape checks that the tests install around every function.
@pytest.mark.slow
def test_errors_say_what_was_expected_and_what_came():
    cosine, logit = inspect.unwrap(cosine_margins), inspect.unwrap(logit_margins)
    labels = jnp.zeros(4, int)
    with pytest.raises(ValueError, match=r"shapes \(batch, dim\) and \(dim, classes\); got \(4, 3\) and \(2, 5\)"):
        cosine(jnp.ones((4, 3)), jnp.ones((2, 5)), labels)
    with pytest.raises(
        ValueError, match=r"labels must have shape \(4,\), one label for each row of features; got shape \(3,\)"
    ):
        cosine(jnp.ones((4, 3)), jnp.ones((3, 5)), labels[:3])
    with pytest.raises(ValueError, match=r"a margin needs classes >= 2; got 1"):
        cosine(jnp.ones((4, 3)), jnp.ones((3, 1)), labels)
    with pytest.raises(
        ValueError, match=r"labels must have shape \(3,\), one label for each row of logits; got shape \(4,\)"
    ):
        logit(jnp.ones((3, 5)), labels)
    with pytest.raises(
        ValueError, match=r"labels must have shape \(3,\), one label for each row of margins; got shape \(4,\)"
    ):
        inspect.unwrap(MarginSums.from_batch.__func__)(MarginSums, jnp.ones(3), labels)
