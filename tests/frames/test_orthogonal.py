"""The non-negative orthogonal frame: disjoint supports of nearly equal size, whatever the key."""

import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nc_jax.frames import nonnegative_orthogonal, owner

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]
SIZES = {
    tuple(map(int, size.split("x"))): {int(rows): count for rows, count in row["row_count_histogram"].items()}
    for size, row in GOLDEN["fno_Q_block_sizes"]["table"].items()
    if size != "5x8"  # d < K, which is refused here
}
KEY = jax.random.key(0)


@pytest.mark.parametrize("key", [None, KEY], ids=["canonical", "drawn"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_supports_are_disjoint_and_have_the_released_programs_sizes(size, key):
    dim, num_classes = size
    frame = np.asarray(nonnegative_orthogonal(num_classes, dim, key=key), float)
    assert frame.shape == (dim, num_classes)
    np.testing.assert_array_equal((frame != 0).sum(axis=1), 1)  # every feature is used, once
    numbers = (frame != 0).sum(axis=0)
    assert Counter(numbers.tolist()) == SIZES[size]
    np.testing.assert_allclose(frame.max(axis=0), 1 / np.sqrt(numbers), rtol=1e-7)
    np.testing.assert_allclose(frame.sum(axis=0), np.sqrt(numbers), rtol=1e-6)  # constant on its support
    if num_classes < 400:  # the Gram matrix follows from the supports
        np.testing.assert_allclose(frame.T @ frame, np.eye(num_classes), atol=1e-6)


def test_without_a_key_the_classes_take_turns():
    assert owner(nonnegative_orthogonal(3, 8)).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_every_feature_and_every_surplus_is_drawn_alike():
    """Over many keys, class 0 owns each feature equally often, and has one more feature as often as any class."""
    num_classes, dim, draws = 3, 5, 3000
    keys = jax.random.split(KEY, draws)
    frames = jax.jit(jax.vmap(lambda key: nonnegative_orthogonal(num_classes, dim, key=key)))(keys)
    supports = np.asarray(frames != 0)
    assert scipy.stats.chisquare(supports[:, :, 0].sum(axis=0)).pvalue > 1e-3
    assert scipy.stats.chisquare((supports.sum(axis=1) == 2).sum(axis=0)).pvalue > 1e-3


def test_the_key_determines_the_draw():
    first, again, other = (nonnegative_orthogonal(10, 64, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-2), ("float32", 1e-6), ("float64", 1e-14)])
def test_columns_have_unit_length_in_any_dtype(x64, dtype, tolerance):
    frame = nonnegative_orthogonal(3, 10, key=KEY, dtype=dtype)
    assert frame.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(np.asarray(frame, float), axis=0), 1, atol=tolerance)


@pytest.mark.slow
def test_sizes_are_static_under_jit_and_for_shapes():
    shape = jax.eval_shape(lambda key: nonnegative_orthogonal(4, 9, key=key), KEY)
    assert (shape.shape, shape.dtype) == ((9, 4), jnp.float32)
    compiled = jax.jit(lambda key: owner(nonnegative_orthogonal(4, 9, key=key)))(KEY)
    np.testing.assert_array_equal(compiled, owner(nonnegative_orthogonal(4, 9, key=KEY)))


def test_the_owner_is_recovered_from_the_frame():
    case = GOLDEN["fno_Q_D10_K4"]
    expected = np.empty(10, int)
    for number, features in enumerate(case["feat_indices"]):
        expected[features] = number
    for scale in (1, -2.5):
        found = owner(scale * np.asarray(case["base"]).T)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected)


def test_features_without_a_class_of_their_own_have_no_owner():
    assert owner(jnp.array([[1.0, 0.0], [0.0, 0.0]])).tolist() == [0, -1]
    assert jax.jit(owner)(jnp.array([[1.0, 0.0], [1.0, 1.0]])).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: nonnegative_orthogonal(8, 5, key=KEY),
            "a non-negative orthogonal frame needs dim >= num_classes >= 1, a feature for every class; "
            "got dim=5 and num_classes=8",
        ),
        (
            lambda: nonnegative_orthogonal(0, 5),
            "a non-negative orthogonal frame needs dim >= num_classes >= 1, a feature for every class; "
            "got dim=5 and num_classes=0",
        ),
        (
            lambda: owner([[1.0, 0.0], [0.5, 2.0]]),
            "class vectors must share no feature, as those of a non-negative orthogonal frame; "
            "got 2 that share feature 1",
        ),
        (lambda: owner([1.0, 0.0]), "a frame must have shape (dim, classes); got shape (2,)"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
