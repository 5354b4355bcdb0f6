"""The simplex ETF and its template: the geometry, the orientation, the dtypes, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest

from nc_jax.frames import SimplexTemplate, aligned_etf, simplex_etf, simplex_template

F64_EXACT = 1e-14
F32_EXACT = 1e-6
SHAPES = [(2, 1), (2, 5), (3, 2), (4, 3), (5, 5), (10, 64)]  # (K, d)
KEY = jax.random.key(0)
etf = jax.jit(simplex_etf, static_argnums=(0, 1), static_argnames="dtype")


@pytest.mark.parametrize("key", [None, 7])
@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
def test_has_the_gram_matrix_of_a_simplex(x64, num_classes, dim, key):
    frame = np.asarray(etf(num_classes, dim, key=None if key is None else jax.random.key(key), dtype=jnp.float64))
    assert frame.shape == (dim, num_classes)
    np.testing.assert_allclose(frame.T @ frame, oracles.gram_of_simplex(num_classes), atol=F64_EXACT)
    np.testing.assert_allclose(frame.sum(axis=1), 0, atol=F64_EXACT)


def test_the_canonical_one_lies_in_the_first_coordinates():
    frame = np.asarray(etf(4, 9))
    assert (frame[3:] == 0).all()
    assert (frame[:3] != 0).all()


def test_a_key_draws_the_orientation():
    frames = [np.asarray(etf(4, 9, key=jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert np.abs(frames[0] - frames[2]).max() > 0.1


def test_the_orientation_is_uniform():
    """A Haar-random frame has mean zero and, for each column, covariance I / d."""
    count, dim = 4000, 3
    frames = np.asarray(jax.jit(jax.vmap(lambda key: simplex_etf(4, dim, key=key)))(jax.random.split(KEY, count)))
    five_sigma = 5 / np.sqrt(count * dim)
    assert np.abs(frames.mean(axis=0)).max() < five_sigma
    for column in range(4):
        covariance = frames[:, :, column].T @ frames[:, :, column] / count
        np.testing.assert_allclose(covariance, np.eye(dim) / dim, atol=five_sigma)


@pytest.mark.slow
def test_a_thousand_classes_are_exact_to_rounding():
    gram = np.asarray(etf(1000, 1024, key=KEY), float)
    gram = gram.T @ gram
    np.testing.assert_allclose(gram, oracles.gram_of_simplex(1000), atol=F32_EXACT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(x64, dtype):
    frame = simplex_etf(4, 6, dtype=dtype)
    assert frame.dtype == simplex_template(4, dtype=dtype).dtype == dtype
    exact = simplex_etf(4, 6, dtype=jnp.float64)
    np.testing.assert_allclose(np.asarray(frame, float), exact, atol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_templates_are_square_roots_of_the_centring_matrix(x64, num_classes):
    centring = np.eye(num_classes) - 1 / num_classes
    reduced = np.asarray(simplex_template(num_classes, dtype=jnp.float64))
    full = np.asarray(simplex_template(num_classes, reduced=False, dtype=jnp.float64))
    assert (reduced.shape, full.shape) == ((num_classes - 1, num_classes), (num_classes, num_classes))
    np.testing.assert_allclose(reduced.T @ reduced, centring, atol=F64_EXACT)
    np.testing.assert_allclose(full, centring, atol=F64_EXACT)
    np.testing.assert_allclose(reduced @ reduced.T, np.eye(num_classes - 1), atol=F64_EXACT)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_template_as_an_operator_equals_the_matrix(x64, num_classes):
    operator, dense = SimplexTemplate(num_classes, scale=0.3), 0.3 * simplex_template(num_classes, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    rotation, means = jnp.asarray(rng.normal(size=(7, num_classes - 1))), jnp.asarray(rng.normal(size=(7, num_classes)))
    assert operator.shape == dense.shape
    np.testing.assert_allclose(operator.rotate(rotation), rotation @ dense, atol=F64_EXACT)
    np.testing.assert_allclose(operator.correlate(means), means @ dense.T, atol=F64_EXACT)


REFUSED = {
    "a simplex ETF of 4 classes needs dim >= 3; got dim=2": partial(simplex_etf, 4, 2),
    "a simplex ETF needs num_classes >= 2; got 1": partial(simplex_etf, 1, 5),
    "a simplex ETF needs num_classes >= 2; got 0": partial(simplex_template, 0),
    "a simplex ETF on 4 coordinates needs dim >= 4; got dim=3": partial(aligned_etf, 4, 3),
    "num_classes must be a whole number; got 2.5": partial(simplex_etf, 2.5, 4),
    "dim must be a whole number; got 4.0": partial(simplex_etf, 3, 4.0),
    "a simplex ETF of 3 classes needs dim >= 2; got dim=0": partial(simplex_etf, 3, 0),
    "dtype must be a floating dtype; got int32": partial(simplex_etf, 3, 4, dtype=jnp.int32),
    "key must be a random key, as jax.random.key(0) makes one; got float 0.5": partial(simplex_etf, 3, 4, key=0.5),
    "key must be a random key, as jax.random.key(0) makes one; got shape (3,) of float32": partial(
        simplex_etf, 3, 4, key=jnp.ones(3)
    ),
}


@pytest.mark.parametrize("construct", [partial(aligned_etf, 1, 5), partial(SimplexTemplate, 1)])
def test_one_class_has_no_simplex(construct):
    with pytest.raises(ValueError, match=r"^a simplex ETF needs num_classes >= 2; got 1$"):
        construct()


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_what_does_not_fit_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
