"""Spread of class vectors: sums over pairs as oracle, closed forms, gradients, equal directions, wrong calls."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import simplex_etf
from nc_jax.losses.uniformity import between_class, class_subset

RNG = np.random.default_rng(0)
FRAME = RNG.normal(size=(3, 5)) * RNG.uniform(0.1, 10, size=5)
PRESENT = np.array([True, False, True, True, True])


def units(frame):
    return frame / np.linalg.norm(frame, axis=0)


def pair_distances(frame, distance):
    """Distances of all ordered pairs of different columns."""
    left, right = units(frame)[:, np.array([*itertools.permutations(range(frame.shape[1]), 2)]).T].swapaxes(0, 1)
    chords = np.linalg.norm(left - right, axis=0)
    return chords if distance == "chord" else 2 * np.arctan2(chords, np.linalg.norm(left + right, axis=0))


def kernel(distances, s):
    return -np.log(distances) if s == 0 else np.sign(s) * distances ** float(-s)


@pytest.mark.slow
@pytest.mark.parametrize("half_space", [False, True], ids=["", "half"])
@pytest.mark.parametrize("distance", ["chord", "angle"])
@pytest.mark.parametrize("s", [-1, 0, 1, 2])
def test_an_energy_is_the_sum_over_pairs(x64, s, distance, half_space):
    options = {"s": float(s), "distance": distance, "half_space": half_space}
    spread = np.concatenate([FRAME, -FRAME], axis=1) if half_space else FRAME
    expected = kernel(pair_distances(spread, distance), s)
    np.testing.assert_allclose(between_class(FRAME, **options), expected.mean(), rtol=1e-10)
    np.testing.assert_allclose(between_class(FRAME, reduction="sum", **options), expected.sum(), rtol=1e-10)
    tiled = between_class(FRAME, tile=4, present=PRESENT, **options)
    np.testing.assert_allclose(tiled, between_class(FRAME[:, PRESENT], **options), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["chord", "angle"])
def test_the_least_distance_and_the_gram_determinant(x64, distance):
    for half_space, spread in ((False, FRAME), (True, np.concatenate([FRAME, -FRAME], axis=1))):
        found = between_class(FRAME, objective="mhs", distance=distance, half_space=half_space)
        np.testing.assert_allclose(found, -pair_distances(spread, distance).min(), rtol=1e-12)
    vectors = units(FRAME)
    squares = np.sum((vectors[:, :, None] - vectors[:, None]) ** 2, axis=0)
    for gamma in (0.5, 2.0):
        expected = -np.linalg.slogdet(np.exp(-gamma * squares))[1]
        np.testing.assert_allclose(between_class(FRAME, objective="mgd", gamma=gamma), expected, rtol=1e-9)
    found = between_class(FRAME, objective="mgd", present=PRESENT)
    np.testing.assert_allclose(found, between_class(FRAME[:, PRESENT], objective="mgd"), rtol=1e-12)


OPTIONS = [
    {},
    {"distance": "angle"},
    {"distance": "angle", "half_space": True, "s": 0.0},
    {"distance": "angle", "s": -1.0, "tile": 2},
    {"objective": "mhs", "distance": "angle"},
    {"objective": "mgd", "half_space": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_finite_differences(x64, options):
    aside, step = RNG.normal(size=FRAME.shape), 1e-6
    value = jax.jit(lambda frame: between_class(frame, **options))
    rise = (value(FRAME + step * aside) - value(FRAME - step * aside)) / (2 * step)
    np.testing.assert_allclose(np.sum(jax.grad(value)(FRAME) * aside), rise, rtol=1e-6)


@pytest.mark.slow
def test_a_simplex_is_stationary_and_has_the_closed_form(x64):
    frame = np.array(simplex_etf(4, 4, dtype=jnp.float64))
    kernel = np.exp(-8 / 3) * (1 - np.eye(4)) + np.eye(4)
    for options, value in (
        ({}, 3 / 8),
        ({"distance": "angle", "s": 1.0}, 1 / np.arccos(-1 / 3)),
        ({"objective": "mgd"}, -np.linalg.slogdet(kernel)[1]),
    ):
        slope = jax.jit(jax.value_and_grad(lambda frame, options=options: between_class(frame, **options)))
        found, gradient = slope(frame)
        np.testing.assert_allclose(found, value, rtol=1e-10)
        np.testing.assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, np.inf),
        ({"s": 0.0}, np.inf),
        ({"distance": "angle"}, np.inf),
        ({"distance": "angle", "s": 0.0}, np.inf),
        ({"objective": "mgd"}, np.inf),
        ({"objective": "mhs"}, 0),
        ({"objective": "mhs", "distance": "angle"}, 0),
    ],
)
def test_equal_directions_are_the_worst_and_have_a_finite_gradient(options, value, half_space):
    frame = jnp.array([[1.0, 2.0, 0.6], [0.0, 0.0, 0.8]])  # the first two have one direction
    value_and_slope = jax.value_and_grad(lambda frame: between_class(frame, half_space=half_space, **options))
    found, gradient = jax.jit(value_and_slope)(frame)
    assert found == value
    assert np.isfinite(gradient).all()
    if options.get("objective", "mhe") == "mhe":  # the other pairs still repel
        assert np.abs(gradient[0, 2]) > 0.01


@pytest.mark.slow
def test_few_classes_and_vectors_without_direction_are_nan():
    frame = jnp.eye(2, 3)
    for objective in ("mhe", "mhs", "mgd"):
        for distance in ("chord", "angle")[: 1 if objective == "mgd" else 2]:
            value = jax.jit(lambda f, p, o=objective, d=distance: between_class(f, objective=o, distance=d, present=p))
            assert np.isnan(value(frame, jnp.ones(3, bool)))  # the third is zero
            assert np.isfinite(value(frame, jnp.array([True, True, False])))
            assert np.isnan(value(frame, jnp.array([True, False, False])))
            assert np.isnan(value(frame.at[0, 0].set(jnp.nan), jnp.array([True, True, False])))


@pytest.mark.slow
def test_near_directions_keep_their_digits():
    near = jnp.array([[1.0, 1.0], [0.0, 1e-4]])
    for distance in ("chord", "angle"):
        np.testing.assert_allclose(between_class(near, distance=distance), 1e8, rtol=1e-5)
        found = between_class(near.astype(jnp.bfloat16), distance=distance)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 1e8, rtol=0.01)


@pytest.mark.slow
def test_the_mean_energy_of_a_subset_is_unbiased(x64):
    subsets = [FRAME[:, list(chosen)] for chosen in itertools.combinations(range(5), 3)]
    mean = np.mean([between_class(subset) for subset in subsets])
    np.testing.assert_allclose(mean, between_class(FRAME), rtol=1e-12)
    drawn = jax.vmap(lambda key: class_subset(jnp.arange(5.0)[None], 3, key)[0])(
        jax.random.split(jax.random.key(0), 600)
    )
    found, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    assert len(found) == 10  # every subset occurs, and none has a class twice
    assert counts.min() > 35
    for objective in ("mhs", "mgd"):
        assert all(
            between_class(one, objective=objective) <= between_class(FRAME, objective=objective) for one in subsets
        )


bare = inspect.unwrap(between_class)
SHAPE = "class vectors must have shape (dim, classes) with classes >= 2; got "


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bare(FRAME, objective="max"), "objective must be one of mhe, mhs, mgd; got 'max'"),
        (lambda: bare(FRAME, distance="cosine"), "distance must be one of chord, angle; got 'cosine'"),
        (lambda: bare(FRAME, reduction="none"), "reduction must be one of mean, sum; got 'none'"),
        (lambda: bare(FRAME[:, :1]), f"{SHAPE}(3, 1)"),
        (lambda: bare(FRAME[0]), f"{SHAPE}(5,)"),
        (
            lambda: bare(FRAME, objective="mgd", distance="angle"),
            "a Gram determinant takes distance=\"chord\"; got 'angle'",
        ),
        (lambda: bare(FRAME, distance="angle", s=-2.0), "s must be a finite number above -2; got -2.0"),
        (lambda: bare(FRAME, distance="angle", tile=0), "tile must be at least 1; got 0"),
        (lambda: bare(["a"]), "class vectors must be real numbers of at most 64 bits; got dtype <U1"),
        (
            lambda: class_subset(FRAME, 6, jax.random.key(0)),
            "size must lie in 2..K for class vectors of shape (dim, K); got 6 for (3, 5)",
        ),
        (
            lambda: class_subset(FRAME, 1, jax.random.key(0)),
            "size must lie in 2..K for class vectors of shape (dim, K); got 1 for (3, 5)",
        ),
        (lambda: inspect.unwrap(class_subset)(FRAME, 2.5, jax.random.key(0)), "size must be a whole number; got 2.5"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence
