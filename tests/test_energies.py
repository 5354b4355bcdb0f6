"""Energies of class vectors: golden values, NumPy loops, finite differences, tiles, and what has no finite energy."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nc_jax.energies import (
    log_gram_determinant,
    riesz_energy,
    separation,
    smooth_separation,
)
from nc_jax.frames import simplex_etf
from nc_jax.pairs import squared_distances

GOLDEN = json.loads((Path(__file__).parent / "golden" / "hyperspherical.json").read_text())
EXACT = 1e-9  # what the golden values ask for in float64
EXPONENTS = (-1.5, -1, 0, 1, 2, 7.5)


def circle(num_classes):
    angles = 2 * np.pi * np.arange(num_classes) / num_classes
    return np.stack([np.cos(angles), np.sin(angles)])


def named(name):
    kind, *_, size = name.split("_")
    num_classes = int(size.removeprefix("C"))
    if kind == "simplex":
        return np.asarray(simplex_etf(num_classes, num_classes - 1, dtype="float64"))
    if kind == "circle":
        return circle(num_classes)
    return np.hstack([np.eye(num_classes // 2), -np.eye(num_classes // 2)])


def drawn(num_classes=7, dim=3, seed=0):
    """Vectors of unequal lengths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(dim, num_classes)) * rng.uniform(0.1, 10, num_classes)


def pair_distances(vectors, present=None):
    """Distances of all ordered pairs, by a loop."""
    unit = vectors if present is None else vectors[:, present]
    unit = unit / np.linalg.norm(unit, axis=0)
    classes = range(unit.shape[1])
    return np.array([np.linalg.norm(unit[:, i] - unit[:, j]) for i in classes for j in classes if i != j])


def kernel(distances, s):
    return -np.log(distances) if s == 0 else np.sign(s) * distances ** float(-s)


CONFIGURATIONS = [name for name in GOLDEN["hyperspherical_energy"] if "_C" in name]


def padded(vectors, rows, columns):
    """One shape for many configurations, so that one program serves them; the columns of zeros are absent classes."""
    dim, num_classes = vectors.shape
    return np.pad(vectors, ((0, rows - dim), (0, columns - num_classes))), np.arange(columns) < num_classes


@jax.jit
def every_energy(vectors, present):
    return {
        **{str(s): riesz_energy(vectors, s, reduction="sum", present=present) for s in (1, 2, -1)},
        "log": riesz_energy(vectors, 0, reduction="sum", present=present),
        "mean_inverse_sq": riesz_energy(vectors, 2, present=present),
        "separation": separation(vectors, present=present),
        "smooth": smooth_separation(vectors, present=present),
    }


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_golden_energies(x64, name):
    golden, vectors = GOLDEN["hyperspherical_energy"][name], 3 * named(name)
    found = every_energy(*(padded(vectors, 10, 20) if vectors.shape[1] <= 20 else padded(vectors, 99, 100)))
    for exponent, expected in golden["E_s"].items():
        if exponent != "-2":  # the same for every centred set, so it is no energy here
            np.testing.assert_allclose(found[exponent], expected, rtol=EXACT)
    np.testing.assert_allclose(found["separation"], golden["separation"], rtol=EXACT)
    if "mean_inverse_sq" in golden:
        np.testing.assert_allclose(found["mean_inverse_sq"], golden["mean_inverse_sq"], rtol=EXACT)
    if name.startswith("simplex"):  # all distances are equal
        np.testing.assert_allclose(found["smooth"], golden["separation"], rtol=EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GOLDEN["max_gram_determinant"] if "gamma" in name])
def test_golden_determinants(x64, name):
    kind, size, gamma = name.split("_")
    vectors = named(f"simplex_{size}" if kind == "simplex" else f"cross_C{2 * int(size[1:])}")
    expected = GOLDEN["max_gram_determinant"][name]
    np.testing.assert_allclose(log_gram_determinant(vectors, float(gamma[5:])), expected, rtol=EXACT)


FUNCTIONS = {
    **{f"s={s}": partial(riesz_energy, s=s) for s in EXPONENTS},
    "separation": separation,
    "smooth": partial(smooth_separation, sharpness=3.0),
}
EXPECTED = {
    **{f"s={s}": (lambda distances, s=s: kernel(distances, s).mean()) for s in EXPONENTS},
    "separation": np.min,
    "smooth": lambda distances: -np.log(np.mean(np.exp(-3 * distances))) / 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_tiles_and_classes_that_are_absent(x64, name):
    function, vectors = FUNCTIONS[name], drawn()
    np.testing.assert_allclose(function(vectors), EXPECTED[name](pair_distances(vectors)), rtol=1e-12)
    present = np.array([True, False, True, True, False, True, True])
    vectors[:, 1] = [np.nan, 0, 0]
    vectors[:, 4] = 0
    expected = EXPECTED[name](pair_distances(vectors, present))
    np.testing.assert_allclose(function(vectors, present=present), expected, rtol=1e-12)
    whole, slopes = jax.value_and_grad(function)(jnp.asarray(vectors), present=present)
    tiled, tiled_slopes = jax.value_and_grad(partial(function, tile=2))(jnp.asarray(vectors), present=present)
    np.testing.assert_allclose([whole, tiled], expected, rtol=1e-12)
    np.testing.assert_allclose(slopes, tiled_slopes, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(slopes[:, ~present], 0)
    assert np.isnan(function(vectors))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FUNCTIONS, "determinant"])
def test_gradients_equal_finite_differences(x64, name):
    function = {**FUNCTIONS, "determinant": log_gram_determinant}[name]
    vectors, direction = drawn(), np.random.default_rng(1).normal(size=(3, 7))
    slope = np.vdot(jax.grad(function)(jnp.asarray(vectors)), direction)
    step = 1e-5
    difference = function(vectors + step * direction) - function(vectors - step * direction)
    np.testing.assert_allclose(slope, difference / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_ties_share_the_gradient_of_the_separation_whatever_the_tile(x64):
    vectors = jnp.asarray(named("cross_C8"))
    slopes = [jax.grad(partial(separation, tile=tile))(vectors) for tile in (8, 3, 1)]
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=1e-12)  # the mean over all 24 pairs, which a cross-polytope balances


# --- Distances: a Gram matrix where pairs are far, differences where they are close. ---


@pytest.mark.slow
def test_close_pairs_are_as_accurate_as_far_ones():
    """Large enough that the Gram matrix would be used; distances down to 1e-6 in float32."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(80, 70))
    right = left + 10.0 ** rng.integers(-6, 1, size=70) * rng.normal(size=(80, 70))
    left, right = ((array / np.linalg.norm(array, axis=0)).astype(np.float32) for array in (left, right))
    right[:, :3] = left[:, :3]
    wide = [array.astype(float) for array in (left, right)]
    expected = np.sum((wide[0][:, :, None] - wide[1][:, None]) ** 2, axis=0)
    np.testing.assert_allclose(squared_distances(left, right), expected, rtol=1e-5)
    assert np.asarray(squared_distances(left, right)).diagonal()[:3].tolist() == [0, 0, 0]
    far = squared_distances(left, np.roll(left, 1, axis=1)[:, :69])
    assert far.shape == (70, 69)


@pytest.mark.slow
@pytest.mark.parametrize("s", [0, 2])
def test_the_energy_of_close_directions_in_a_large_block(s):
    vectors = drawn(100, 64).astype(np.float32)
    vectors[:, 1] = 3 * (vectors[:, 0] + 1e-4 * vectors[:, 2])
    expected = kernel(pair_distances(vectors.astype(float)), s).mean()
    np.testing.assert_allclose(riesz_energy(vectors, s), expected, rtol=2e-3 if s else 1e-5)  # normalisation rounds
    value, slopes = jax.value_and_grad(partial(riesz_energy, s=s, tile=64))(jnp.asarray(vectors))
    np.testing.assert_allclose(value, expected, rtol=2e-3 if s else 1e-5)
    assert np.isfinite(slopes).all()


# --- What has no finite energy. ---


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", [*FUNCTIONS, "determinant"])
def test_equal_directions_give_their_limit_and_no_nan_in_the_gradient(name, tile):
    vectors = jnp.asarray(drawn(), jnp.float32)
    vectors = vectors.at[:, 5].set(4 * vectors[:, 2])
    function = {**FUNCTIONS, "determinant": log_gram_determinant}[name]
    if name != "determinant":
        function = partial(function, tile=tile)
    value, slopes = jax.value_and_grad(function)(vectors)
    assert np.isfinite(slopes).all()
    if name == "determinant":
        assert value == -np.inf
    elif name == "separation":
        assert value == 0
    elif name.startswith("s=") and float(name[2:]) >= 0:
        assert value == np.inf
        assert np.abs(slopes).max() > 0  # of the other pairs
    else:
        assert np.isfinite(value)


@pytest.mark.slow
def test_all_directions_equal():
    same = jnp.ones((3, 4))
    for name, function in FUNCTIONS.items():
        value, slopes = jax.value_and_grad(function)(same)
        assert np.isfinite(slopes).all(), name
        assert not np.isnan(value), name


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_gives_nan(bad):
    vectors = jnp.asarray(drawn(), jnp.float32).at[:, 3].set(bad)
    for name, function in {**FUNCTIONS, "determinant": log_gram_determinant}.items():
        value, slopes = jax.value_and_grad(function)(vectors)
        assert np.isnan(value), name
        assert np.isfinite(slopes).all(), name


@pytest.mark.slow
def test_kernels_beyond_the_range_of_the_dtype():
    """A kernel of 2^-200 is zero in float32 and harmless; close pairs overflow; the energy between them is exact."""
    pair = jnp.asarray([[1.0, -1.0], [0.0, 0.0]])
    assert riesz_energy(pair, 200) == 0
    near = jnp.asarray([[1.0, 1.0, -1.0], [0.0, 1e-3, 0.0]])
    value, slopes = jax.value_and_grad(partial(riesz_energy, s=12))(near)
    np.testing.assert_allclose(value, 1e36 / 3, rtol=1e-4)
    assert np.isfinite(slopes).all()
    value, slopes = jax.value_and_grad(partial(riesz_energy, s=14))(near)
    assert value == np.inf
    assert np.isfinite(slopes).all()
    assert slopes[1, 0] > 0 > slopes[1, 1]  # descent moves the two apart
    np.testing.assert_allclose(smooth_separation(near, 1e6), 1e-3, rtol=1e-2)


@pytest.mark.slow
def test_a_kernel_that_is_singular_to_rounding_has_no_determinant():
    vectors = drawn(40, 2)
    assert log_gram_determinant(vectors.astype(np.float32)) == -np.inf
    value, slopes = jax.value_and_grad(partial(log_gram_determinant, jitter=1e-2))(jnp.asarray(vectors, jnp.float32))
    assert np.isfinite(value)
    assert np.isfinite(slopes).all()


@pytest.mark.slow
def test_fewer_than_two_classes_have_no_pairs():
    present = np.array([True, *[False] * 6])
    for name, function in FUNCTIONS.items():
        assert np.isnan(function(drawn(), present=present)), name
    assert riesz_energy(drawn(), reduction="sum", present=present) == 0


@pytest.mark.slow
def test_dtypes_and_transformations(x64):
    vectors = drawn()
    assert riesz_energy(jnp.asarray(vectors, jnp.bfloat16)).dtype == jnp.float32
    assert riesz_energy(vectors).dtype == jnp.float64
    assert riesz_energy([[1, 0, -1], [0, 1, 0]]).dtype == jnp.float32
    batch = jnp.stack([vectors, 2 * vectors])
    np.testing.assert_allclose(jax.jit(jax.vmap(riesz_energy))(batch), riesz_energy(vectors), rtol=1e-12)


REFUSED = {
    "s must be a finite number above -2; got -2": lambda: riesz_energy(jnp.eye(3), -2),
    "s must be a finite number above -2; got nan": lambda: riesz_energy(jnp.eye(3), float("nan")),
    "s must be a finite number above -2; got inf": lambda: riesz_energy(jnp.eye(3), float("inf")),
    "s must be a finite number above -2; got '1'": lambda: riesz_energy(jnp.eye(3), "1"),
    'reduction must be "mean" or "sum"; got \'none\'': lambda: riesz_energy(jnp.eye(3), reduction="none"),
    "vectors must have shape (dim, classes) with at least 2 classes; got shape (3, 1)": lambda: separation(
        jnp.ones((3, 1))
    ),
    "vectors must have shape (dim, classes) with at least 2 classes; got shape (3,)": lambda: separation(jnp.ones(3)),
    "vectors must be real numbers of at most 64 bits; got dtype complex64": lambda: separation(jnp.eye(2) * 1j),
    "tile must be at least 1; got 0": lambda: separation(jnp.eye(3), tile=0),
    "tile must be a whole number; got 2.5": lambda: separation(jnp.eye(3), tile=2.5),
    "present must be booleans of shape (3,); got int32 of shape (3,)": lambda: separation(
        jnp.eye(3), present=jnp.ones(3, jnp.int32)
    ),
    "sharpness must be a finite number above 0; got 0": lambda: smooth_separation(jnp.eye(3), 0),
    "gamma must be a finite number above 0; got -1.0": lambda: log_gram_determinant(jnp.eye(3), -1.0),
    "jitter must be a finite number of at least 0; got -1": lambda: log_gram_determinant(jnp.eye(3), jitter=-1),
    "unit vectors must have shapes (dim, M) and (dim, N); got (3, 3) and (2, 2)": lambda: squared_distances(
        jnp.eye(3), jnp.eye(2)
    ),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
