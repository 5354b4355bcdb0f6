"""Random class vectors: unit length, uniform on the sphere, independent of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nc_jax.frames import random_unit

KEY = jax.random.key(0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-2), ("float32", 1e-6), ("float64", 1e-14)])
def test_columns_have_unit_length_in_any_dtype(x64, dtype, tolerance):
    frame = random_unit(20, 7, key=KEY, dtype=dtype)
    assert frame.shape == (7, 20)
    assert frame.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(np.asarray(frame, float), axis=0), 1, atol=tolerance)


def test_in_one_dimension_there_are_two_vectors():
    frame = np.asarray(random_unit(100, 1, key=KEY))
    assert set(frame.ravel()) == {-1.0, 1.0}


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_columns_are_uniform_on_the_sphere(dim):
    """By the law of a uniform vector's coordinate, (1 + x) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2), in any direction."""
    count = 5000
    frame = np.asarray(random_unit(count, dim, key=KEY), float)
    law = scipy.stats.beta((dim - 1) / 2, (dim - 1) / 2)
    directions = np.random.default_rng(0).normal(size=(5, dim))
    for direction in directions:
        coordinates = direction @ frame / np.linalg.norm(direction)
        assert scipy.stats.kstest((1 + coordinates) / 2, law.cdf).pvalue > 1e-3
    # The same law holds for the cosine of two independent columns.
    cosines = np.sum(frame[:, ::2] * frame[:, 1::2], axis=0)
    assert scipy.stats.kstest((1 + cosines) / 2, law.cdf).pvalue > 1e-3


@pytest.mark.slow
def test_the_key_determines_the_draw():
    first, again, other = (np.asarray(random_unit(4, 9, key=jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_is_drawn_under_jit_and_vmap():
    frames = jax.jit(jax.vmap(lambda key: random_unit(4, 9, key=key)))(jax.random.split(KEY, 3))
    assert frames.shape == (3, 9, 4)
    np.testing.assert_allclose(jnp.linalg.norm(frames, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1, "dim": 3, "key": KEY}, "need num_classes >= 2 and dim >= 1; got 1 and 3"),
        ({"num_classes": 4, "dim": 0, "key": KEY}, "need num_classes >= 2 and dim >= 1; got 4 and 0"),
        ({"num_classes": 4, "dim": 3}, "need a key; got None"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        random_unit(**arguments)
    assert str(error.value) == f"random class vectors {sentence}"
