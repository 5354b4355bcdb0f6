"""Wrong features and labels at every door: a right answer, or one sentence that names the argument."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nc_jax import heads, losses, metrics
from nc_jax.checks import checked_labels, checked_mask, checked_per_class, real_array, without_class
from nc_jax.data import LabelledArrays

K, DIM, N = 4, 3, 6


class Foreign:
    """A tensor of another library that NumPy cannot read."""

    def __array__(self, *args, **keywords):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class Readable:
    """A tensor of another library that NumPy can read."""

    def __array__(self, *args, **keywords):
        return np.arange(4)


def test_foreign_tensors_are_read_or_named():
    assert checked_labels(Readable(), K).tolist() == [0, 1, 2, 3]
    for call, name in [(lambda x: checked_labels(x, K), "labels"), (lambda x: real_array(x, "frame"), "frame")]:
        sentence = f"{name} must be an array; got a Foreign that NumPy cannot read (Can't call numpy()"
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            call(Foreign())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_labels_of_every_integer_dtype_are_the_same(dtype):
    """One-hot products of int8 labels would take class 261 for class 5."""
    labels = checked_labels(np.arange(6, dtype=dtype), 300)
    assert labels.dtype == jnp.int32
    assert labels.tolist() == list(range(6))


def test_padding_is_no_mistake_unless_the_mask_says_so():
    labels = jnp.array([-2, -1, 0, K - 1, K])
    assert without_class(labels, K).tolist() == [True, False, False, False, True]
    mask = jnp.array([False, True, True, True, True])
    assert without_class(labels, K, mask).tolist() == [False, True, False, False, True]


def test_numbers_of_classes_keep_their_values_in_every_dtype():
    for dtype in ("int8", "uint64", "float16", "float64"):
        found = checked_per_class(np.array([3, 0], dtype), "counts", 2)
        assert found.dtype == jnp.float32
        assert found.tolist() == [3, 0]
    assert checked_per_class(jnp.array([3, 0], jnp.bfloat16), "counts").dtype == jnp.float32
    np.testing.assert_allclose(checked_per_class([10**12, 1], "counts"), [1e12, 1], rtol=1e-7)


def test_numbers_of_classes_are_refused_by_shape_where_values_are_unknown():
    refuse = jax.jit(lambda counts: checked_per_class(counts, "counts", 3, positive=True))
    assert refuse(jnp.array([1.0, -1.0, jnp.nan]))[1] == -1
    with pytest.raises(ValueError, match=r"counts must hold one number for each of the 3 classes; got shape \(2,\)"):
        refuse(jnp.ones(2))


def test_masks_are_booleans():
    assert checked_mask([True, False], 2).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"mask must be booleans of shape \(2,\); got int64 of shape \(2,\)"):
        checked_mask(np.zeros(2, int), 2)


# --- Fuzzing. ---

FLOATS = [np.float16, jnp.bfloat16, np.float32, np.float64, np.longdouble]
INTEGERS = [np.int8, np.uint8, np.int32, np.int64, np.uint64]
OTHERS = [bool, complex, object, "<U3", "datetime64[s]"]
SHAPES = [(N, DIM), (N,), (N, 1), (N, K), (0, DIM), (N, 0), (DIM, N), (), (N, DIM, 2), (N - 1, DIM), (N - 1,), (0,)]
VALUES = [0, 1, -1, -2, K - 1, K, 300, 2.5, 1e-30, 1e30, 1e300, 2**40, float("nan"), float("inf")]
NAMES = (
    "matrix|ETF|features|labels|inputs|logits|frame|class vectors|class_means|margins|bias|metrics|num_classes|dim|"
    "targets|distances|similarity"
)


@st.composite
def arrays(draw, dtypes, shapes):
    """An array, mostly of small numbers, with one special value at a random place; sometimes a list or a JAX array."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(shapes))
    values = np.random.default_rng(draw(st.integers(0, 3))).integers(0, K, shape)
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(dtype)
        if array.size and draw(st.booleans()) and np.dtype(dtype).kind in "fiuV":
            special = np.asarray(draw(st.sampled_from(VALUES)))
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = special.astype(dtype)
    form = draw(st.sampled_from(["numpy", "numpy", "jax", "list"]))
    if form == "jax" and np.dtype(dtype).kind in "fiubV" and np.dtype(dtype).itemsize <= 4:
        return jnp.asarray(array)
    return array.tolist() if form == "list" else array


FEATURES = st.one_of(
    arrays([np.float32], [(N, DIM)]), arrays([*FLOATS, *INTEGERS], [(N, DIM)]), arrays([*FLOATS, *OTHERS], SHAPES)
)
LABELS = st.one_of(
    arrays([np.int32], [(N,)]), arrays(INTEGERS, [(N,)]), arrays([*INTEGERS, np.float32, *OTHERS], SHAPES)
)
FRAME = np.random.default_rng(0).normal(size=(DIM, K)).astype(np.float32)
FIXED, NEAREST = heads.learned(K), heads.nearest(K)
START = {head: head.init(jax.random.key(0), DIM) for head in (FIXED, NEAREST)}


def counts_of(features, labels):
    """Counts and class means, by loops."""
    features, labels = np.asarray(features).astype(np.float64), np.asarray(labels)
    counts = np.array([np.sum(labels == k) for k in range(K)])
    return counts, {k: features[labels == k].mean(axis=0) for k in np.flatnonzero(counts)}


def statistics(features, labels):
    stats = metrics.ClassStatistics.from_batch(features, labels, K)
    counts, means = counts_of(features, labels)
    np.testing.assert_array_equal(stats.counts, counts)
    size = max([np.abs(mean[np.isfinite(mean)]).max(initial=0) for mean in means.values()], default=0)
    for k, mean in means.items():
        found = np.asarray(stats.means[:, k], np.float64)
        finite = np.isfinite(mean) & (np.abs(mean) < 1e38)
        if np.isfinite(np.asarray(features).astype(np.float64)).all():
            np.testing.assert_allclose(found[finite], mean[finite], rtol=1e-3, atol=1e-3 * size)


def arrays_in_memory(features, labels):
    found = LabelledArrays(features, labels, K)
    np.testing.assert_array_equal(found.class_counts(), counts_of(features, labels)[0])


DOORS = {
    "statistics": statistics,
    "arrays": arrays_in_memory,
    "cross-entropy": lambda features, labels: losses.cross_entropy(features, labels),
    "alignment": lambda features, labels: losses.cosine_alignment(features, labels, FRAME, np.eye(K)),
    "embedding": lambda features, labels: losses.cosine_embedding(features, labels, FRAME),
    "dot regression": lambda features, labels: losses.dot_regression(features, labels, FRAME),
    "focal": lambda features, labels: losses.focal(features, labels),
    "soft labels": lambda features, labels: losses.soft_label_loss(features, labels, np.eye(DIM)),
    "logit margins": metrics.logit_margins,
    "cosine margins": lambda features, labels: metrics.cosine_margins(features, FRAME, labels),
    "agreement": lambda features, labels: metrics.nearest_centre_agreement(features, FRAME, None, FRAME, labels=labels),
    "nearest centre": lambda features, labels: metrics.nearest_centre_accuracy(features, labels, FRAME),
    "occupancy": lambda features, labels: metrics.support_occupancy(features, labels, np.eye(DIM, K)),
    "learned head": lambda *batch: FIXED.apply(*START[FIXED], *batch, train=True),
    "nearest head": lambda *batch: NEAREST.apply(*START[NEAREST], *batch, train=True),
}


def refusal(call):
    """The message of the ValueError that a call raises; None if it answers."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def is_a_sentence(message):
    return re.search(rf"\b({NAMES})\b", message) and "\n" not in message and ("must" in message or "need" in message)


@pytest.mark.slow
@settings(max_examples=500)
@given(features=FEATURES, labels=LABELS)
def test_every_door_answers_or_refuses_in_a_sentence(features, labels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
        for name, door in DOORS.items():
            message = refusal(lambda door=door: door(features, labels))
            assert message is None or is_a_sentence(message), f"{name}: {message}"


@pytest.mark.slow
@settings(max_examples=200)
@given(frame=arrays([*FLOATS, *INTEGERS, *OTHERS], [*SHAPES, (DIM, K), (DIM, K), (K, DIM)]))
def test_every_frame_is_measured_or_refused_in_a_sentence(frame):
    features = np.random.default_rng(1).normal(size=(12, DIM)).astype(np.float32)
    stats = metrics.ClassStatistics.from_batch(features, np.arange(12) % K, K)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        for door in (
            lambda: metrics.collapse_metrics(stats, frame),
            lambda: metrics.collapse_metrics(stats, frame, rows=True),
            lambda: metrics.collapse_metrics(stats, FRAME, frame),
            lambda: metrics.etf_distance(frame),
            lambda: metrics.nearest_etf_distance(frame),
            lambda: metrics.effective_rank(frame),
        ):
            message = refusal(door)
            assert message is None or is_a_sentence(message), message
