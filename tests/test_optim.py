"""Riemannian optimisers: one step by hand, known minima, rounding over many steps, optax's combinators."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from nc_jax.manifolds import Stiefel
from nc_jax.optim import on_manifold

MANIFOLD = Stiefel(5, 3)
KEY = jax.random.key(0)
F32_EXACT = 1e-6


def random_matrix(seed=0):
    """The matrix B whose polar factor minimises -<B, U>."""
    return np.random.default_rng(seed).normal(size=MANIFOLD.shape)


def project(point, vector):
    """Z - U sym(U^T Z), in NumPy."""
    return vector - point @ (point.T @ vector + vector.T @ point) / 2


def qr(matrix):
    q, r = np.linalg.qr(matrix)
    return q * np.sign(np.diag(r))


@partial(jax.jit, static_argnums=(0, 3))
def minimise(optimizer, matrix, point, steps):
    """Minimise -<B, U>; also how far the worst iterate was from the manifold."""
    manifold = Stiefel(*point.shape)

    def step(carry, _):
        point, state = carry
        gradient = jax.grad(lambda point: -jnp.vdot(matrix, point))(point)
        updates, state = optimizer.update(gradient, state, point)
        point = optax.apply_updates(point, updates)
        return (point, state), manifold.distance_from(point)

    (point, _), distances = jax.lax.scan(step, (point, optimizer.init(point)), None, length=steps)
    return point, jnp.max(distances)


@pytest.mark.slow
@pytest.mark.parametrize("retraction", ["qr", "polar"])
def test_a_step_is_the_riemannian_gradient_step(x64, retraction):
    manifold = Stiefel(5, 3, retraction=retraction)
    point, gradient = np.asarray(manifold.random_point(KEY, jnp.float64)), random_matrix()
    optimizer = on_manifold(optax.sgd(0.3), manifold)
    updates, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(point), jnp.asarray(point))
    retract = {"qr": qr, "polar": oracles.polar_by_svd}[retraction]
    np.testing.assert_allclose(point + updates, retract(point - 0.3 * project(point, gradient)), atol=1e-13)


def test_momentum_is_transported_by_projection(x64):
    """Two steps by hand, and the momentum between them tangent at the point where the second begins."""
    point, gradients = np.asarray(MANIFOLD.random_point(KEY, jnp.float64)), [random_matrix(1), random_matrix(2)]
    optimizer = on_manifold(optax.sgd(0.3, momentum=0.9), MANIFOLD)
    found, state = jnp.asarray(point), optimizer.init(jnp.asarray(point))
    momentum = np.zeros_like(point)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, found)
        found = optax.apply_updates(found, updates)
        momentum = 0.9 * momentum + project(point, gradient)
        point = qr(point - 0.3 * momentum)
        momentum = project(point, momentum)
        np.testing.assert_allclose(found, point, atol=1e-13)
        np.testing.assert_allclose(optax.tree.get(state, "trace"), momentum, atol=1e-13)


def test_of_adam_the_first_moment_is_transported_and_the_second_is_not(x64):
    point, gradient = MANIFOLD.random_point(KEY, jnp.float64), jnp.asarray(random_matrix())
    optimizer = on_manifold(optax.adam(0.1), MANIFOLD)
    updates, state = optimizer.update(gradient, optimizer.init(point), point)
    tangent = project(np.asarray(point), np.asarray(gradient))
    moved = np.asarray(point + updates)
    np.testing.assert_allclose(optax.tree.get(state, "mu"), project(moved, 0.1 * tangent), atol=1e-13)
    np.testing.assert_allclose(optax.tree.get(state, "nu"), 0.001 * tangent**2, atol=1e-13)


TO_ZERO = optax.cosine_decay_schedule(0.1, 1000)
INNER = {
    "sgd": optax.sgd(0.1),
    "sgd with momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(TO_ZERO),
    "adabelief": optax.adabelief(TO_ZERO),
    "centred rmsprop": optax.rmsprop(TO_ZERO, centered=True, momentum=0.5),
}


@pytest.mark.parametrize("name", INNER)
def test_converges_to_the_polar_factor(x64, name):
    matrix, start = random_matrix(), MANIFOLD.random_point(KEY, jnp.float64)
    found, distance = minimise(on_manifold(INNER[name], MANIFOLD), matrix, start, 1000)
    # The second moment of rmsprop forgets faster than its steps shrink.
    tolerance = 1e-8 if "rmsprop" in name else 1e-12
    np.testing.assert_allclose(found, oracles.polar_by_svd(matrix), atol=tolerance)
    assert distance < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "inner"),
    [((5, 3), optax.adam(1e-2)), ((4, 4), optax.sgd(1e-3, momentum=0.9))],
    ids=["adam", "sgd"],
)
def test_ten_thousand_steps_do_not_leave_the_manifold(shape, inner):
    """Noise keeps the point moving, so that the roundings of the steps could add up."""
    manifold = Stiefel(*shape)
    optimizer = on_manifold(optax.chain(optax.add_noise(1.0, 0.0, 1), inner), manifold)
    start = manifold.random_point(KEY)
    end, distance = minimise(optimizer, np.ones(shape, np.float32), start, 10_000)
    assert distance < F32_EXACT
    assert np.abs(end - start).max() > 0.1


@pytest.mark.slow
def test_a_start_off_the_manifold_is_on_it_after_one_step():
    optimizer, start = on_manifold(optax.sgd(0.1), MANIFOLD), 1.5 * MANIFOLD.random_point(KEY)
    updates, _ = optimizer.update(jnp.zeros_like(start), optimizer.init(start), start)
    assert MANIFOLD.distance_from(start + updates) < F32_EXACT


def test_weight_decay_acts_along_the_normal(x64):
    optimizer = on_manifold(optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.1)), MANIFOLD)
    start = MANIFOLD.random_point(KEY, jnp.float64)
    found, _ = minimise(optimizer, np.zeros(MANIFOLD.shape), start, 10)
    np.testing.assert_allclose(found, start, atol=1e-13)


# --- Trees of parameters, and optax's combinators. ---

PARAMS = {"rotation": jnp.asarray(qr(random_matrix(1)), jnp.float32), "bias": jnp.array([1.0, 1.0, 1.0])}
GRADIENTS = {"rotation": jnp.asarray(random_matrix(2), jnp.float32), "bias": jnp.array([1.0, 2.0, 3.0])}
PARTS = {"rotation": True, "bias": False}
RIEMANNIAN, EUCLIDEAN = on_manifold(optax.sgd(0.1, momentum=0.9), MANIFOLD), optax.sgd(0.1, momentum=0.9)
COMBINED = {
    "masked": optax.chain(optax.masked(RIEMANNIAN, PARTS), optax.masked(EUCLIDEAN, {"rotation": False, "bias": True})),
    "multi_transform": optax.multi_transform(
        {"manifold": RIEMANNIAN, "flat": EUCLIDEAN}, {"rotation": "manifold", "bias": "flat"}
    ),
    "a tree of manifolds": on_manifold(EUCLIDEAN, {"rotation": MANIFOLD, "bias": None}),
    "a chain inside": on_manifold(
        optax.chain(optax.clip_by_global_norm(1e6), EUCLIDEAN), {"rotation": MANIFOLD, "bias": None}
    ),
    "in a chain": optax.chain(
        optax.identity(),
        optax.inject_hyperparams(optax.scale)(1.0),
        on_manifold(EUCLIDEAN, {"rotation": MANIFOLD, "bias": None}),
    ),
}


def two_steps(optimizer, params, gradients):
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", COMBINED)
def test_combines_with_optax(name):
    found = jax.jit(partial(two_steps, COMBINED[name]))(PARAMS, GRADIENTS)
    for part, optimizer in {"rotation": RIEMANNIAN, "bias": EUCLIDEAN}.items():
        np.testing.assert_allclose(found[part], two_steps(optimizer, PARAMS[part], GRADIENTS[part]), atol=F32_EXACT)


def test_one_manifold_serves_all_parameters():
    points = {"first": MANIFOLD.random_point(KEY), "second": [MANIFOLD.random_point(jax.random.key(1))]}
    gradients = jax.tree.map(jnp.cos, points)
    found = two_steps(RIEMANNIAN, points, gradients)
    alone = two_steps(RIEMANNIAN, points["second"][0], gradients["second"][0])
    np.testing.assert_allclose(found["second"][0], alone, atol=F32_EXACT)


def test_a_mask_inside_the_optimiser_leaves_its_momentum():
    inner = optax.masked(EUCLIDEAN, PARTS)
    found = two_steps(on_manifold(inner, {"rotation": MANIFOLD, "bias": None}), PARAMS, GRADIENTS)
    assert MANIFOLD.distance_from(found["rotation"]) < F32_EXACT


def test_batches_are_optimised_like_their_members():
    points = jnp.asarray([qr(random_matrix(seed)) for seed in range(3)], jnp.float32)
    step = jax.jit(partial(two_steps, RIEMANNIAN))
    together = jax.jit(jax.vmap(partial(two_steps, RIEMANNIAN)))(points, jnp.cos(points))
    for found, point in zip(together, points, strict=True):
        np.testing.assert_allclose(found, step(point, jnp.cos(point)), atol=F32_EXACT)


@pytest.mark.parametrize("inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1, mu_dtype=jnp.bfloat16)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_stay(inner, dtype):
    optimizer, point = on_manifold(inner, MANIFOLD), MANIFOLD.random_point(KEY).astype(dtype)
    before = optimizer.init(point)
    updates, after = optimizer.update(jnp.cos(point), before, point)
    assert updates.dtype == dtype
    assert jax.tree.map(jnp.result_type, before) == jax.tree.map(jnp.result_type, after)
    assert MANIFOLD.distance_from((point + updates).astype(jnp.float32)) < 4 * jnp.finfo(dtype).eps


def test_an_update_without_parameters_is_refused():
    with pytest.raises(
        ValueError, match=r"^an optimiser on a manifold needs the parameters: update\(gradients, state, params\)$"
    ):
        RIEMANNIAN.update(PARAMS["rotation"], RIEMANNIAN.init(PARAMS["rotation"]))


def test_a_parameter_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"^a parameter on Stiefel\(.*\) has shape \(5, 3\); got \(3,\)$"):
        RIEMANNIAN.update(GRADIENTS, RIEMANNIAN.init(PARAMS), PARAMS)
