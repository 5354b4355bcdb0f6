"""Properties of frames against loops over pairs, on frames whose properties are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import properties, simplex_etf

F64_EXACT = 1e-13
angles = np.arange(3) * 2 * np.pi / 3
FRAMES = {
    "random": np.random.default_rng(0).normal(size=(3, 5)),
    "orthonormal": np.eye(4)[:, :3],
    "three in the plane": np.stack([np.cos(angles), np.sin(angles)]),
    "repeated": np.repeat(np.random.default_rng(1).normal(size=(3, 1)), 4, axis=1),
    "two bases": np.concatenate([np.eye(2), np.array([[1, 1], [1, -1]]) / np.sqrt(2)], axis=1),
    "with a zero column": np.random.default_rng(2).normal(size=(3, 5)) * [1, 1, 0, 1, 1],
}
TIGHT = {"orthonormal", "three in the plane", "repeated", "two bases"}


@jax.jit
def measure(frame):
    names = ("gram", "cosines", "coherence", "equiangularity_error", "frame_potential", "is_tight")
    return {name: getattr(properties, name)(frame) for name in names}


def cosine(u, v):
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    return u @ v / lengths if lengths else 0.0


@pytest.mark.parametrize("name", FRAMES)
def test_equals_the_definition(x64, name):
    frame = FRAMES[name]
    columns = list(frame.T)
    found = jax.device_get(measure(frame))
    cosines = [cosine(u, v) for u, v in itertools.combinations(columns, 2)]
    expected = {
        "gram": [[u @ v for v in columns] for u in columns],
        "cosines": [[cosine(u, v) for v in columns] for u in columns],
        "coherence": max(map(abs, cosines)),
        "equiangularity_error": max(cosines) - min(cosines),
        "frame_potential": sum((u @ v) ** 2 for u in columns for v in columns),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=F64_EXACT, err_msg=key)
    assert found["is_tight"] == (name in TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (4, 3), (4, 7)])
def test_a_simplex_etf_is_the_best_of_its_kind(x64, num_classes, dim):
    found = measure(simplex_etf(num_classes, dim, key=jax.random.key(0), dtype=jnp.float64))
    np.testing.assert_allclose(found["coherence"], 1 / (num_classes - 1), rtol=F64_EXACT)
    assert found["equiangularity_error"] < F64_EXACT
    np.testing.assert_allclose(found["frame_potential"], num_classes**2 / (num_classes - 1), rtol=F64_EXACT)
    assert found["is_tight"]


def test_the_bounds_of_welch_and_of_the_frame_potential(x64):
    dim, num_classes = 3, 5
    columns = np.random.default_rng(0).normal(size=(100, dim, num_classes))
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    found = jax.vmap(measure)(columns)
    assert (found["coherence"] >= np.sqrt((num_classes - dim) / (dim * (num_classes - 1)))).all()
    assert (found["frame_potential"] >= num_classes**2 / dim).all()
    assert not found["is_tight"].any()


def test_turning_the_frame_changes_nothing(x64):
    frame = FRAMES["random"]
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    for key, value in measure(rotation @ frame).items():
        np.testing.assert_allclose(value, measure(frame)[key], atol=F64_EXACT, err_msg=key)


@pytest.mark.slow
def test_a_single_column_has_no_pairs():
    frame = jnp.ones((3, 1))
    assert properties.coherence(frame) == 0
    assert properties.equiangularity_error(frame) == 0
    assert properties.is_tight(frame)


def test_tightness_has_a_tolerance(x64):
    frame = jnp.eye(3) * jnp.array([1, 1, 1.001])
    assert not properties.is_tight(frame)
    assert properties.is_tight(frame, tolerance=0.01)


@pytest.mark.slow
def test_bfloat16_is_measured_in_float32():
    frame = jnp.asarray(FRAMES["random"], jnp.bfloat16)
    found, expected = measure(frame), measure(frame.astype(jnp.float32))
    for key in found:
        assert found[key].dtype == (bool if key == "is_tight" else jnp.float32)
        np.testing.assert_array_equal(found[key], expected[key])
