"""Hyperspherical frames: known optima with closed forms switched off, determinism, tracing, and what is refused."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nc_jax import heads
from nc_jax.energies import log_gram_determinant, riesz_energy, separation
from nc_jax.frames import (
    as_template,
    hyperspherical,
    hyperspherical_solution,
    hyperspherical_template,
    least_energy,
)
from nc_jax.solvers import Status

RELATIVE = 1e-6  # of a known least energy
KEY = jax.random.key(0)
SOLUTIONS = (Status.CONVERGED, Status.CONVERGED_TO_PRECISION)


@pytest.fixture
def solve(tmp_path):
    """The solver itself: no closed form, nothing stored, float64."""
    return partial(hyperspherical_solution, closed=False, cache=tmp_path, dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 0, -1, 2, 1000])
def test_an_octahedron_is_found(x64, solve, s):
    """One program for every s. The kernels of s = 1000 span 150 orders of magnitude."""
    found = solve(6, 3, s=s, starts=2)
    assert found.name is None
    assert found.status in SOLUTIONS
    np.testing.assert_allclose(found.value, least_energy(6, 3, s), rtol=RELATIVE)
    np.testing.assert_allclose(found.value, riesz_energy(found.points, s), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.points, axis=0), 1, atol=1e-12)
    assert found.values.shape == found.statuses.shape == found.grad_norms.shape == (2,)
    assert found.value == found.values[found.best]
    np.testing.assert_allclose(found.value, np.min(found.values), rtol=1e-14)  # optima that are equal up to rounding
    assert found.grad_norms[found.best] < 1e-6


@pytest.mark.slow
def test_every_start_converges_however_large_its_first_forces(x64, solve):
    """Some of thirty random points on a circle nearly coincide. The circle has one optimum, so every start finds it."""
    found = solve(30, 2, s=2, starts=2)
    assert set(found.statuses) <= set(SOLUTIONS)
    np.testing.assert_allclose(found.values, least_energy(30, 2, 2), rtol=RELATIVE)
    assert found.grad_norms.max() < 1e-6


@pytest.mark.slow
def test_the_largest_separation_is_found(x64, solve):
    found = solve(6, 3, objective="separation", starts=2)
    np.testing.assert_allclose(found.value, math.sqrt(2), rtol=1e-3)
    np.testing.assert_allclose(found.value, separation(found.points), rtol=1e-12)
    assert found.value == np.max(found.values)


@pytest.mark.slow
def test_the_largest_determinant_is_found(x64, solve):
    found = solve(5, 4, objective="determinant", starts=2)
    assert found.status in SOLUTIONS
    expected = log_gram_determinant(hyperspherical(5, 4, dtype="float64"))
    np.testing.assert_allclose(found.value, expected, rtol=RELATIVE)


@pytest.mark.slow
def test_a_determinant_that_is_singular_to_rounding_has_no_solution(tmp_path):
    found = hyperspherical_solution(60, 2, objective="determinant", starts=1, cache=tmp_path)
    assert found.status == Status.NON_FINITE
    assert np.isnan(found.points).all()
    assert np.isnan(found.value)


KNOWN = [(4, 3), (10, 9), (100, 99), (5, 2), (12, 2), (100, 2), (8, 4), (20, 10), (100, 50), (12, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("size", KNOWN, ids=str)
def test_known_optima_are_found(x64, solve, size):
    """Simplex, polygon, cross-polytope and icosahedron, without their closed forms."""
    for s in (1, 0, -1, 2):
        found = solve(*size, s=s, starts=4)
        np.testing.assert_allclose(found.value, least_energy(*size, s), rtol=RELATIVE)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", range(2, 25))
def test_thomson(x64, solve, num_classes):
    """20 starts reach the least known energy of electrons on the sphere."""
    found = solve(num_classes, 3, s=1)
    np.testing.assert_allclose(found.value, least_energy(num_classes, 3, 1), rtol=RELATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "dim", "starts"), [(24, 4, None), (240, 8, 1)])
def test_kissing_configurations_are_found(x64, solve, num_classes, dim, starts):
    """As many directions as spheres that touch one of their size: the least angle is 60 degrees."""
    found = solve(num_classes, dim, objective="separation", starts=starts)
    np.testing.assert_allclose(2 * np.arcsin(found.value / 2), np.pi / 3, atol=1e-3)


@pytest.mark.slow
def test_a_large_frame_is_solved_in_blocks(tmp_path):
    """More classes than a block has, and not a multiple of it; better than a random frame, and told how much."""
    found = hyperspherical_solution(1100, 16, cache=tmp_path)
    drawn = riesz_energy(jax.random.normal(KEY, (16, 1100)))
    assert found.value < drawn - 1e-3  # random directions have the energy of the uniform density, 1.4e-3 above
    assert found.grad_norms[0] < 1e-3
    assert found.status in (*SOLUTIONS, Status.ITERATION_LIMIT)


# --- The constructors. ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_classes", "dim", "name"),
    [
        (4, 3, "simplex"),
        (4, 7, "simplex"),
        (2, 1, "simplex"),
        (7, 2, "regular polygon"),
        (6, 3, "cross-polytope"),
        (12, 3, "icosahedron"),
        (120, 4, "600-cell"),
        (240, 8, "E8 roots"),
    ],
)
def test_closed_forms(num_classes, dim, name):
    for objective in ("riesz", "separation"):
        found = hyperspherical_solution(num_classes, dim, objective=objective)
        assert (found.name, found.status, found.best) == (name, Status.CONVERGED, 0)
    angles = {"600-cell": np.pi / 5, "E8 roots": np.pi / 3, "icosahedron": np.arctan(2)}
    expected = angles.get(name, {"simplex": np.arccos(-1 / (num_classes - 1)), "cross-polytope": np.pi / 2}.get(name))
    expected = 2 * np.pi / num_classes if expected is None else expected
    np.testing.assert_allclose(2 * np.arcsin(found.value / 2), expected, rtol=1e-6)
    frame = hyperspherical(num_classes, dim, key=KEY)
    assert frame.shape == (dim, num_classes)
    np.testing.assert_allclose(np.linalg.norm(frame, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(riesz_energy(frame, 1), least_energy(num_classes, dim, 1), rtol=1e-5)


@pytest.mark.slow
def test_the_key_turns_one_configuration(tmp_path):
    make = partial(hyperspherical, 5, 3, starts=1, cache=tmp_path)
    one, other, plain = make(key=jax.random.key(1)), make(key=jax.random.key(2)), make()
    assert np.abs(np.asarray(one - other)).max() > 0.1
    for frame in (one, other):
        np.testing.assert_allclose(frame.T @ frame, plain.T @ plain, atol=1e-5)
    np.testing.assert_array_equal(plain, hyperspherical_template(5, 3, starts=1, cache=tmp_path))
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    assert as_template(plain).shape == (3, 5)
    assert make(dtype="bfloat16").dtype == jnp.bfloat16
    assert len(list(tmp_path.rglob("*.npz"))) == 1


@pytest.mark.slow
def test_frames_are_built_while_jax_traces(tmp_path):
    """From the solver, inside of jit, vmap over keys, and a head."""
    constructor = partial(hyperspherical, starts=1, cache=tmp_path)
    frames = jax.jit(jax.vmap(lambda key: constructor(5, 3, key=key)))(jax.random.split(KEY, 2))
    expected = constructor(5, 3, key=jax.random.split(KEY, 2)[1])
    np.testing.assert_allclose(frames[1], expected, atol=1e-6)
    head = heads.fixed(5, frame=constructor)
    params, _ = jax.jit(lambda key: head.init(key, 3))(KEY)
    assert jax.tree.leaves(params) is not None


REFUSED = {
    "class vectors spread over a sphere need num_classes >= 2 and dim >= 2 (1 for two classes); got 1 and 3": (
        lambda: hyperspherical(1, 3)
    ),
    "class vectors spread over a sphere need num_classes >= 2 and dim >= 2 (1 for two classes); got 3 and 1": (
        lambda: hyperspherical(3, 1)
    ),
    "num_classes must be a whole number; got 2.5": lambda: hyperspherical(2.5, 3),
    "s must be a finite number above -2; got -2": lambda: hyperspherical(6, 3, s=-2),
    "s must be a finite number above -2; got nan": lambda: hyperspherical(6, 3, s=float("nan")),
    "objective must be one of riesz, separation, determinant; got 'energy'": (
        lambda: hyperspherical(6, 3, objective="energy")
    ),
    "gamma must be a finite number above 0; got 0": lambda: hyperspherical(6, 3, gamma=0),
    "starts must be at least 1; got 0": lambda: hyperspherical(6, 3, starts=0),
    "seed must be a whole number; got None": lambda: hyperspherical(6, 3, seed=None),
    "dtype must be a floating dtype; got int32": lambda: hyperspherical(6, 3, dtype="int32"),
    "key must be a random key, as jax.random.key(0) makes one; got int 3": lambda: hyperspherical(6, 3, key=3),
    "4 class vectors spread over 3 dimensions at most; got rank=4": lambda: hyperspherical_template(4, 4),
    "the determinant of a kernel must have at most 4096 rows; got num_classes=5000": (
        lambda: hyperspherical(5000, 3, objective="determinant")
    ),
    "dim must be at least 1; got 0": lambda: least_energy(3, 0),
    "num_classes must be at least 2; got 1": lambda: least_energy(1, 3),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
