"""Class statistics: the definition, the monoid laws, streams, devices, numbers far from the origin."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from nc_jax.metrics import ClassStatistics, collapse_metrics, within_class_collapse

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
NUM_CLASSES, DIM, BATCH = 4, 3, 6
READ = ("counts", "means", "scatter", "class_scatter")


def by_definition(features, labels, num_classes):
    """Compute the four fields with loops, in float64."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    counts = np.array([np.sum(labels == k) for k in range(num_classes)])
    means = np.zeros((features.shape[1], num_classes))
    scatter = np.zeros((features.shape[1],) * 2)
    class_scatter = np.zeros(num_classes)
    for k in np.flatnonzero(counts):
        members = features[labels == k]
        means[:, k] = members.mean(axis=0)
        for gap in members - means[:, k]:
            scatter += np.outer(gap, gap)
            class_scatter[k] += gap @ gap
    return counts, means, scatter, class_scatter


def draw(seed, num=BATCH, num_classes=NUM_CLASSES, dim=DIM, dtype=jnp.float64):
    """Random features with labels from -1 (padding) to K - 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, num_classes, num)
    return jnp.asarray(rng.normal(size=(num, dim)) + 3 * labels[:, None], dtype), jnp.asarray(labels)


@jax.jit
def from_batch(features, labels):
    return ClassStatistics.from_batch(features, labels, NUM_CLASSES)


merge, update = jax.jit(ClassStatistics.merge), jax.jit(ClassStatistics.update)


def assert_same(found, expected, rtol=1e-12, atol=1e-12):
    """Compare what statistics mean. Their origins and units depend on the order of the examples."""
    if isinstance(expected, ClassStatistics):
        assert found.without_class == expected.without_class
        expected = [getattr(expected, name) for name in READ]
    for name, wanted in zip(READ, expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=rtol, atol=atol, err_msg=name)


def test_equals_the_definition(x64):
    features, labels = draw(0, num=40)
    assert_same(from_batch(features, labels), by_definition(features, labels, NUM_CLASSES))


def test_equals_the_definition_in_float32():
    features, labels = draw(0, num=40, dtype=jnp.float32)
    stats = from_batch(features, labels)
    assert all(field.dtype == jnp.float32 for field in stats[1:-1])
    assert_same(stats, by_definition(features, labels, NUM_CLASSES), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["feature_sets"])
def test_equals_the_released_programs(x64, name):
    data, zhu = GOLDEN["feature_sets"][name], GOLDEN["tding1_metrics"][name]
    rhubarbwu = GOLDEN["rhubarbwu_metrics"][name]
    stats = ClassStatistics.from_batch(jnp.array(data["X"]), jnp.array(data["y"]), len(data["W"]))
    moments = stats.compute()
    np.testing.assert_allclose(moments.class_means.T, zhu["class_means"], atol=1e-9)
    np.testing.assert_allclose(moments.global_mean, zhu["mu_G"], atol=1e-9)
    np.testing.assert_allclose(moments.balanced_mean, rhubarbwu["mG_unweighted"], atol=1e-9)
    np.testing.assert_allclose(jnp.trace(moments.within_covariance), zhu["trace_Sigma_W"], atol=1e-9)
    np.testing.assert_allclose(jnp.trace(moments.between_covariance), zhu["trace_Sigma_B"], atol=1e-9)
    np.testing.assert_allclose(stats.class_scatter / stats.counts, rhubarbwu["var_norms"], atol=1e-9)
    np.testing.assert_allclose(
        jnp.linalg.norm(stats.centred_means("balanced"), axis=0), rhubarbwu["mean_norms"], atol=1e-9
    )


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1))
def test_is_a_commutative_monoid(x64, seed):
    a, b, c = (from_batch(*draw([seed, part])) for part in range(3))
    empty = ClassStatistics.init(NUM_CLASSES, DIM, jnp.float64)
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_same(merge(a, b), merge(b, a))
    assert_same(merge(a, empty), a, rtol=0, atol=0)
    assert_same(merge(empty, a), a, rtol=0, atol=0)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(3 * BATCH)))
def test_order_and_batches_do_not_matter(x64, seed, order):
    features, labels = draw(seed, num=3 * BATCH)
    stats = ClassStatistics.init(NUM_CLASSES, DIM, jnp.float64)
    for part in np.split(np.array(order), 3):
        stats = update(stats, features[part], labels[part])
    assert_same(stats, by_definition(features, labels, NUM_CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [5, 40, 100])
def test_batches_smaller_and_larger_than_the_number_of_classes(x64, num_classes):
    """Sums go by class, or by first example; by a product, or row by row."""
    features, labels = draw(9, num=240, num_classes=num_classes)
    exact = by_definition(features, labels, num_classes)
    for size in (1, 8, 80, 240):
        stats = ClassStatistics.init(num_classes, DIM, jnp.float64)
        for start in range(0, 240, size):
            stats = update(stats, features[start : start + size], labels[start : start + size])
        assert_same(stats, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_a_mean_is_not_touched_by_batches_of_other_classes():
    stats = ClassStatistics.from_batch(jnp.full((1, 2), 0.1), jnp.array([3]), 200)
    more = update(stats, jnp.full((2, 2), 1e30), jnp.array([0, -1]))
    assert more.shifts[:, 3].tolist() == stats.shifts[:, 3].tolist()
    assert more.counts[3] == 1
    assert more.counts.sum() == 2


@pytest.mark.slow
def test_padding_is_ignored_whatever_it_holds(x64):
    features, labels = draw(1, num=10)
    garbage = jnp.array([[jnp.nan] * DIM, [jnp.inf] * DIM, [1e300] * DIM])
    padding = jnp.full(3, -1)
    padded = from_batch(jnp.concatenate([garbage, features]), jnp.concatenate([padding, labels]))
    assert_same(padded, from_batch(features, labels))
    assert padded.without_class == 0


@pytest.mark.slow
def test_labels_that_are_no_class_are_counted_under_jit(x64):
    features, labels = draw(1, num=10)
    nowhere = jnp.array([-2, NUM_CLASSES, 2**31 - 1])
    both = from_batch(jnp.concatenate([features, features[:3]]), jnp.concatenate([labels, nowhere]))
    assert both.without_class == 3
    assert_same(both._replace(without_class=0), from_batch(features, labels)._replace(without_class=0))
    assert merge(both, both).without_class == 6
    assert collapse_metrics(both)["without_class"] == 3


@pytest.mark.slow
def test_an_empty_stream_has_no_means():
    stats = ClassStatistics.init(NUM_CLASSES, DIM).update(jnp.ones((2, DIM)), jnp.array([-1, -1]))
    moments = stats.compute()
    assert not moments.present.any()
    assert jnp.isnan(moments.global_mean).all()
    assert jnp.isnan(moments.balanced_mean).all()
    assert not stats.centred_means().any()


@pytest.mark.slow
def test_the_centres(x64):
    features, labels = jnp.array([[0.0], [0.0], [0.0], [4.0]]), jnp.array([0, 0, 0, 2])
    stats = ClassStatistics.from_batch(features, labels, 3)
    assert stats.compute().global_mean.tolist() == [1.0]
    assert stats.compute().balanced_mean.tolist() == [2.0]
    assert stats.centred_means("balanced").tolist() == [[-2.0, 0.0, 2.0]]
    assert stats.centred_means("sample").tolist() == [[-1.0, 0.0, 3.0]]
    assert stats.centred_means("origin").tolist() == [[0.0, 0.0, 4.0]]
    assert stats.compute().between_covariance.tolist() == [[4.0]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_features_are_accumulated_in_float32(dtype):
    features, labels = draw(2, num=30, dtype=dtype)
    stats = ClassStatistics.init(NUM_CLASSES, DIM, dtype).update(features, labels)
    assert stats.means.dtype == stats.scatter.dtype == jnp.float32
    assert_same(stats, by_definition(features, labels, NUM_CLASSES), rtol=1e-5, atol=1e-5)


def test_float32_features_far_from_the_origin():
    """E[h h^T] - mu mu^T would be off by about 1e8 * 6e-8 = 6 here, where the true variance is 1."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, NUM_CLASSES, 640)
    features = np.float32(1e4 + rng.normal(size=(640, DIM)) + 2 * rng.normal(size=(NUM_CLASSES, DIM))[labels])
    exact = oracles.statistics_of(*by_definition(features, labels, NUM_CLASSES))
    stream = ClassStatistics.init(NUM_CLASSES, DIM)
    for part in np.split(np.arange(640), 20):
        stream = update(stream, jnp.asarray(features[part]), jnp.asarray(labels[part]))
    centred = exact.means - exact.means.mean(axis=1, keepdims=True)
    nc1 = np.trace(exact.scatter / 640 @ np.linalg.pinv(centred @ centred.T))
    np.testing.assert_allclose(within_class_collapse(stream), nc1, rtol=1e-4)
    np.testing.assert_allclose(np.trace(stream.scatter), np.trace(exact.scatter), rtol=1e-4)
    np.testing.assert_allclose(stream.class_scatter, exact.class_scatter, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_the_scale_of_float32_features_does_not_matter(scale):
    """The squares of these numbers are zero or infinite in float32."""
    features, labels = draw(5, num=40, dtype=jnp.float32)
    exact = by_definition(features, labels, NUM_CLASSES)
    features = jnp.asarray(np.float64(features) * scale, jnp.float32)
    parts = [from_batch(features[part], labels[part]) for part in (slice(0, 20), slice(20, 40))]
    stats = merge(*parts).at_unit_scale()
    size = float(stats.unit) / float(merge(*parts).unit)  # the features' unit is now this many times what it was
    np.testing.assert_allclose(np.float64(stats.means), exact[1] * scale * size, rtol=1e-5)
    np.testing.assert_allclose(np.float64(stats.scatter), exact[2] * (scale * size) ** 2, rtol=1e-4)
    np.testing.assert_allclose(np.float64(stats.class_scatter), exact[3] * (scale * size) ** 2, rtol=1e-4)


@pytest.mark.slow
def test_a_common_offset_does_not_matter():
    """The class means are rounded to 0.06 there, six times the deviation; their differences are not."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, NUM_CLASSES, 640)
    features = 1e6 + 1e-2 * rng.normal(size=(640, DIM)) + 2 * rng.normal(size=(NUM_CLASSES, DIM))[labels]
    features = np.float32(features)
    whole = from_batch(features, labels)
    streamed = ClassStatistics.init(NUM_CLASSES, DIM)
    for part in np.split(np.arange(640), 20):
        streamed = update(streamed, features[part], labels[part])
    merged = merge(from_batch(features[:320], labels[:320]), from_batch(features[320:], labels[320:]))
    split = features.reshape(8, 80, DIM), labels.reshape(8, 80)
    reduced = pmapped(lambda *batch: from_batch(*batch).all_reduce("devices"))(*split)
    _, means, scatter, _ = by_definition(features, labels, NUM_CLASSES)
    centred = means - means.mean(axis=1, keepdims=True)
    nc1 = np.trace(scatter / 640 @ np.linalg.pinv(centred @ centred.T))
    for stats in (whole, streamed, merged, reduced):
        np.testing.assert_allclose(stats.centred_means(), centred, atol=1e-6)
        np.testing.assert_allclose(within_class_collapse(stats), nc1, rtol=1e-5)


@pytest.mark.slow
def test_collapsed_classes_far_from_the_origin_have_no_scatter():
    """About means of plain float32 sums, off by 0.04 here, it would be 2e-3 per example."""
    centres = np.float32([[12345.67], [12346.89], [12344.56]])
    labels = jnp.asarray(np.random.default_rng(4).integers(0, 3, 1000))
    stats = ClassStatistics.from_batch(jnp.asarray(centres)[labels], labels, 3)
    assert jnp.max(stats.class_scatter / stats.counts) < 1e-10
    assert jnp.trace(stats.scatter) / 1000 < 1e-10


def test_centred_means_have_their_mean_at_zero_far_from_the_origin():
    means = np.float32(1e4 + np.random.default_rng(5).normal(size=(8, 500)))
    stats = oracles.statistics_of(np.arange(500) + 1, means, np.zeros((8, 8)), np.zeros(500))
    for centre, weights in {"balanced": np.ones(500), "sample": np.arange(500) + 1.0}.items():
        rest = np.asarray(stats.centred_means(centre), np.float64) @ weights / weights.sum()
        np.testing.assert_allclose(rest, 0, atol=1e-6)  # of 1e4, one float32 unit is 1e-3


@pytest.mark.slow
def test_one_large_float32_batch_keeps_its_means():
    """A running float32 sum of these would be off by 2e-6 of the mean."""
    features = np.float32(1e3 + np.random.default_rng(4).normal(size=(100_000, 1)))
    stats = ClassStatistics.from_batch(jnp.asarray(features), jnp.zeros(100_000, int), 1)
    np.testing.assert_allclose(stats.means[0, 0], features.astype(np.float64).mean(), rtol=1e-7)
    np.testing.assert_allclose(stats.scatter[0, 0] / 1e5, features.astype(np.float64).var(), rtol=1e-5)


@pytest.mark.slow
def test_counts_are_exact_where_float32_counts_stop():
    one = ClassStatistics.from_batch(jnp.ones((1, 1)), jnp.array([0]), 1)
    many = one._replace(counts=jnp.array([2**24], jnp.int32))
    assert many.merge(one).counts.tolist() == [2**24 + 1]
    assert many.merge(one).counts.dtype == jnp.int32


@pytest.mark.slow
def test_large_counts_do_not_overflow():
    left = ClassStatistics.init(1, 1)._replace(counts=jnp.array([2**29], jnp.int32))
    both = left.merge(left._replace(shifts=jnp.ones((1, 1))))
    assert both.means.tolist() == [[0.5]]
    assert both.scatter.tolist() == [[2.0**28]]  # n n' / (n + n') for a gap of 1


def shard_mapped(function):
    mesh = jax.sharding.Mesh(jax.devices(), "devices")
    parts = P("devices")
    mapped = jax.shard_map(lambda x, y: function(x[0], y[0]), mesh=mesh, in_specs=(parts, parts), out_specs=P())
    return jax.jit(mapped)  # without it, every operation would be compiled by itself


def pmapped(function):
    return jax.pmap(function, axis_name="devices", out_axes=None)


def vmapped(function):
    return jax.jit(jax.vmap(function, axis_name="devices", out_axes=None))


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [shard_mapped, pmapped, vmapped])
def test_devices_together_equal_one(x64, mapped):
    num_devices = jax.device_count()
    assert num_devices == 8
    features, labels = draw(5, num=num_devices * 5)
    # One device has padding only, and class 3 lives on the last device only.
    labels = jnp.where(labels == 3, 0, labels).at[:5].set(-1).at[-1].set(3)

    def reduced(features, labels):
        stats = ClassStatistics.init(NUM_CLASSES, DIM, features.dtype).update(features, labels)
        return stats.all_reduce("devices")

    together = mapped(reduced)(features.reshape(num_devices, 5, DIM), labels.reshape(num_devices, 5))
    assert_same(together, from_batch(features, labels))


@pytest.mark.slow
def test_scan_under_jit_equals_one_batch(x64):
    features, labels = draw(6, num=24)

    @jax.jit
    def stream(features, labels):
        init = ClassStatistics.init(NUM_CLASSES, DIM, features.dtype)
        return jax.lax.scan(lambda stats, batch: (stats.update(*batch), None), init, (features, labels))[0]

    assert_same(stream(features.reshape(4, 6, DIM), labels.reshape(4, 6)), from_batch(features, labels))


@pytest.mark.slow
def test_vmap_over_runs(x64):
    runs = [draw(seed) for seed in (7, 8)]
    stacked = jax.vmap(from_batch)(*map(jnp.stack, zip(*runs, strict=True)))
    for index, run in enumerate(runs):
        assert_same(jax.tree.map(lambda leaf, index=index: leaf[index], stacked), from_batch(*run))
