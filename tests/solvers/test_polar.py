"""The orthogonal polar factor against the singular value decomposition, by every method."""

import sys
from typing import get_args

import cases
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest

from nc_jax import implicit
from nc_jax.solvers import PolarMethod, polar, polar_decomposition

METHODS = get_args(PolarMethod)
F64_SOLUTION = 1e-14  # times the condition of the matrix
F32_SOLUTION = 3e-6
SHAPE = (12, 4)
decompose = jax.jit(polar_decomposition, static_argnames="method")


def matrix_with(values, seed=0):
    rng = np.random.default_rng(seed)
    left, right = cases.random_rotation(rng, SHAPE[0], SHAPE[1]), cases.random_rotation(rng, SHAPE[1], SHAPE[1])
    return left * np.asarray(values, float) @ right.T


MATRICES = {
    "random": np.random.default_rng(0).normal(size=SHAPE),
    "equal values": matrix_with([2, 2, 2, 2]),
    "two equal values": matrix_with([2, 1, 1, 0.1]),
    "condition 1e3": matrix_with([1, 0.1, 0.01, 0.001]),
    "condition 1e6": matrix_with([1, 0.1, 1e-3, 1e-6]),
    "tiny": 1e-150 * matrix_with([4, 3, 2, 1]),
    "huge": 1e150 * matrix_with([4, 3, 2, 1]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MATRICES)
def test_equals_the_definition(x64, name, method):
    matrix = MATRICES[name]
    found = jax.device_get(decompose(matrix, method=method))
    values = np.linalg.svd(matrix, compute_uv=False)
    condition = values[0] / values[-1]
    np.testing.assert_allclose(found.factor, oracles.polar_by_svd(matrix), atol=F64_SOLUTION * condition)
    np.testing.assert_allclose(found.factor.T @ found.factor, np.eye(4), atol=F64_SOLUTION)
    assert found.unique
    if found.values is not None:
        np.testing.assert_allclose(np.sort(found.values)[::-1], values, atol=F64_SOLUTION * values[0])
        stretch = found.vectors * found.values @ found.vectors.T
        np.testing.assert_allclose(found.factor @ stretch, matrix, atol=1e2 * F64_SOLUTION * values[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], ids=str)
def test_a_matrix_of_deficient_rank_has_one_of_its_factors(x64, method, values):
    matrix = matrix_with(values)
    found = jax.device_get(decompose(matrix, method=method))
    assert not found.unique
    if method != "qdwh":  # which the table of methods does not promise
        np.testing.assert_allclose(found.factor.T @ found.factor, np.eye(4), atol=F64_SOLUTION)
        assert np.vdot(found.factor, matrix) == pytest.approx(sum(values), abs=1e-12), "it attains the maximum"


@pytest.mark.parametrize("method", METHODS)
def test_a_start_changes_the_way_not_the_end(x64, method):
    matrix = MATRICES["random"]
    expected = oracles.polar_by_svd(matrix)
    cold = decompose(matrix, method=method)
    for start in (expected, -expected, oracles.polar_by_svd(matrix + 0.1), np.zeros(SHAPE)):
        found = decompose(matrix, method=method, init=start)
        np.testing.assert_allclose(found.factor, expected, atol=1e-13)
        assert found.iterations <= cold.iterations
    if method == "newton_schulz":
        assert decompose(matrix, method=method, init=expected).iterations < cold.iterations - 2
        # The start tells the least singular value; a wrong one takes five iterations more than the right one here.
        thin = matrix_with([1, 1, 1, 0.01])
        cold = decompose(thin, method=method)
        assert decompose(thin, method=method, init=oracles.polar_by_svd(thin)).iterations < cold.iterations


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4, 4), (5, 1)], ids=str)
def test_shapes(x64, shape, method):
    matrix = np.random.default_rng(1).normal(size=shape)
    np.testing.assert_allclose(decompose(matrix, method=method).factor, oracles.polar_by_svd(matrix), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_nan(method):
    assert np.isnan(decompose(jnp.full(SHAPE, jnp.nan), method=method).factor).any()


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("float32",) * 2])
def test_narrow_dtypes_are_solved_in_float32(dtype, expected):
    matrix = jnp.asarray(MATRICES["random"], dtype)
    factor = polar(matrix)
    assert factor.dtype == expected
    np.testing.assert_allclose(factor, oracles.polar_by_svd(np.asarray(matrix, float)), atol=F32_SOLUTION)


@pytest.mark.slow
def test_a_batch_is_solved_like_its_members(x64):
    matrices = np.random.default_rng(0).normal(size=(3, *SHAPE))
    for found, matrix in zip(jax.vmap(polar)(matrices), matrices, strict=True):
        np.testing.assert_allclose(found, oracles.polar_by_svd(matrix), atol=1e-13)


@pytest.mark.parametrize("differentiate", [jax.grad, jax.jacfwd, jax.jacrev])
def test_the_bare_solver_refuses_to_be_differentiated(differentiate):
    with pytest.raises(TypeError) as error:
        differentiate(lambda matrix: jnp.sum(polar(matrix)))(jnp.ones(SHAPE))
    sentence = "solvers.polar has no derivative; use nc_jax.implicit.polar_factor, which has the exact one"
    assert str(error.value) == sentence


REFUSED = {
    "the polar factor needs a matrix of shape (n, p) with n >= p; got shape (3, 4)": (jnp.ones((3, 4)), "auto"),
    "method must be one of auto, svd, gram, qdwh, newton_schulz; got 'qr'": (jnp.ones((4, 3)), "qr"),
}


@pytest.mark.parametrize("call", [polar, polar_decomposition])
def test_a_start_of_another_shape_is_refused(monkeypatch, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError, match=r"init must have the matrix's shape \(12, 4\); got \(12, 3\)"):
        call(jnp.ones(SHAPE), init=jnp.ones((12, 3)))


@pytest.mark.parametrize("call", [polar, polar_decomposition, implicit.polar_factor])
@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    matrix, method = REFUSED[sentence]
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call(matrix, method=method)
    assert str(error.value) == sentence


@pytest.mark.parametrize("condition", [2, 10, 50, 300])  # the last one is too large for the refinement
def test_the_refined_gram_matrix_is_as_accurate_as_the_svd(monkeypatch, condition):
    monkeypatch.setattr(sys.modules["nc_jax.solvers.polar"], "_BLOCKS_FROM", 4)  # by blocks, as large ones are
    rng = np.random.default_rng(condition)
    left, right = cases.random_rotation(rng, 120, 40), cases.random_rotation(rng, 40, 40)
    matrix = (left * np.geomspace(1, 1 / condition, 40) @ right.T).astype(np.float32)
    expected = oracles.polar_by_svd(matrix.astype(float))
    error = {}
    for method in ("svd", "gram"):
        found = jax.device_get(polar_decomposition(jnp.asarray(matrix), method=method))
        error[method] = np.linalg.norm(found.factor - expected)
        np.testing.assert_allclose(found.factor.T @ found.factor, np.eye(40), atol=1e-6)
        np.testing.assert_allclose(found.left, found.factor @ found.vectors, atol=1e-7 * (2 + condition**2))
    assert error["gram"] <= 1.1 * error["svd"]
