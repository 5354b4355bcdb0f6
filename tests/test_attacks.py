"""Attacks: closed forms of linear models, a search over a fine grid, gradient masking by scale, and mistakes."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nc_jax.attacks import fgsm, pgd
from nc_jax.losses import cross_entropy
from nc_jax.metrics import logit_margins

BOX = (0.0, 1.0)
KEY = jax.random.key(0)
EXAMPLES, DIM, CLASSES = 24, 6, 4
RADII = (0.0, 0.03, 0.3)


def linear_problem(classes: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs, some of them at the ends of the box, labels, class vectors as columns, and biases."""
    draw = np.random.default_rng(seed)
    inputs = np.clip(draw.uniform(-0.3, 1.3, (EXAMPLES, DIM)), 0, 1)
    return (
        inputs,
        draw.integers(classes, size=EXAMPLES),
        draw.normal(size=(DIM, classes)),
        draw.normal(size=classes) / 9,
    )


def moved(inputs: np.ndarray, slopes: np.ndarray, radius: float) -> np.ndarray:
    """Where in the box and the ball a linear function with these slopes is largest, coordinate by coordinate."""
    return np.clip(inputs + radius * np.sign(slopes), *BOX)


def worst_gaps(inputs, labels, vectors, biases, radius) -> np.ndarray:
    """For every example and rival, the largest logit gap of the rival over the true class, shape (N, K)."""
    gaps = np.empty((len(inputs), vectors.shape[1]))
    for example, label in enumerate(labels):
        for rival in range(vectors.shape[1]):
            slope = vectors[:, rival] - vectors[:, label]
            gaps[example, rival] = moved(inputs[example], slope, radius) @ slope + biases[rival] - biases[label]
    return gaps


def without_own(gaps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    gaps = gaps.copy()
    gaps[np.arange(len(labels)), labels] = -np.inf
    return gaps.max(axis=1)


def costs_of(labels, vectors, biases):
    logits = lambda x: x @ jnp.asarray(vectors, x.dtype) + jnp.asarray(biases, x.dtype)  # noqa: E731
    return (
        lambda x: cross_entropy(logits(x), jnp.asarray(labels)),
        lambda x: -logit_margins(logits(x), jnp.asarray(labels)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("attack", [fgsm, partial(pgd, key=KEY, steps=6)], ids=["fgsm", "pgd"])
def test_two_linear_classes_are_moved_to_the_worst_input(attack, x64):
    """Both costs grow with the one gap there is, so each attack must find the corner of the closed form."""
    inputs, labels, vectors, biases = linear_problem(2)
    for cost in costs_of(labels, vectors, biases):
        run = jax.jit(lambda radius, cost=cost: attack(cost, inputs, radius, bounds=BOX))
        for radius in RADII:
            found = run(radius)
            slopes = (vectors[:, 1 - labels] - vectors[:, labels]).T
            expected = moved(inputs, slopes, radius)
            np.testing.assert_allclose(found.costs, cost(expected), rtol=1e-12)
            np.testing.assert_allclose(found.inputs, expected, atol=1e-12)
            assert not found.blind.any()
        assert run._cache_size() == 1  # the radius is no part of the program


@pytest.mark.slow
@pytest.mark.parametrize("radius", RADII)
def test_many_linear_classes_against_the_closed_form_of_each_rival(radius, x64):
    inputs, labels, vectors, biases = linear_problem(CLASSES)
    exact = worst_gaps(inputs, labels, vectors, biases, radius)
    for rival in range(CLASSES):
        gap = lambda x, rival=rival: jnp.sum(x * (vectors[:, [rival]] - vectors[:, labels]).T, axis=1)  # noqa: E731
        found = fgsm(gap, inputs, radius, bounds=BOX).costs + biases[rival] - biases[labels]
        np.testing.assert_allclose(found, exact[:, rival], rtol=1e-12, atol=1e-12)
    _, margin = costs_of(labels, vectors, biases)
    worst = without_own(exact, labels)
    single = fgsm(margin, inputs, radius, bounds=BOX).costs
    assert (single <= worst + 1e-12).all()
    # A step towards one rival may end where another one would have been worse; starts all over the ball meet each.
    many = pgd(margin, inputs, radius, bounds=BOX, key=KEY, steps=8, restarts=8)
    np.testing.assert_allclose(many.costs, worst, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(many.costs, margin(many.inputs), rtol=1e-12)


@pytest.mark.slow
def test_the_result_stays_in_the_ball_and_in_the_box_of_each_coordinate():
    draw = np.random.default_rng(1)
    low = -draw.uniform(size=DIM).astype(np.float32)
    inputs = draw.uniform(low, low + 1, (EXAMPLES, DIM)).astype(np.float32)
    weights = draw.normal(size=(DIM, DIM)).astype(np.float32)
    cost = lambda x: jnp.sum(jnp.sin(9 * x @ weights), axis=1)  # noqa: E731
    for attack in (fgsm, partial(pgd, key=KEY, step_size=0.07)):
        found = np.asarray(attack(cost, inputs, 0.1, bounds=(low, low + 1)).inputs)
        assert np.abs(found - inputs).max() <= 0.1 + 1e-6
        assert (found >= low).all()
        assert (found <= low + 1).all()


def small_network(x):
    """Two layers on two inputs, wavy enough that a step along the gradient is not the best one."""
    draw = np.random.default_rng(2)
    first, second = (jnp.asarray(draw.normal(size=shape), x.dtype) for shape in ((2, 16), (16,)))
    return jnp.tanh(jnp.tanh(3 * x @ first) @ second)


@pytest.mark.slow
def test_pgd_finds_what_a_fine_grid_finds(x64):
    inputs = np.random.default_rng(3).uniform(size=(8, 2))
    found = pgd(small_network, inputs, 0.2, bounds=BOX, key=KEY, steps=40, step_size=0.01, restarts=8)
    ticks = np.linspace(-0.2, 0.2, 201)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    best = [float(small_network(jnp.asarray(np.clip(x + grid, *BOX))).max()) for x in inputs]
    np.testing.assert_allclose(found.costs, best, atol=2e-3)  # the grid and the steps are a hundredth wide


@pytest.mark.slow
def test_pgd_keeps_the_worst_point_it_has_seen(x64):
    inputs = np.random.default_rng(4).uniform(size=(8, 2))
    at_its_worst = pgd(lambda x: -jnp.sum(jnp.abs(x - inputs), axis=1), inputs, 0.2, bounds=BOX, key=KEY)
    np.testing.assert_array_equal(at_its_worst.inputs, inputs)
    # With a step as wide as the ball, the last point is a corner wherever the best one was.
    few, many = (
        pgd(small_network, inputs, 0.2, bounds=BOX, key=KEY, steps=3, step_size=0.4, restarts=restarts)
        for restarts in (1, 4)
    )
    clean = small_network(jnp.asarray(inputs))
    assert (few.costs >= clean).all()
    assert (many.costs >= few.costs).all()
    assert (many.costs > few.costs).any()
    np.testing.assert_allclose(many.costs, small_network(many.inputs), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "blind"), [(14, False), (1e3, True)])
def test_long_logits_hide_the_gradient_of_cross_entropy_and_not_that_of_the_margin(scale, blind):
    """Softmax less label is rounded: it loses the true class first, then the rival; the model is as weak as before."""
    inputs = linear_problem(2)[0].astype(np.float32)
    # Larger inputs raise both logits, that of the true class twice as fast: an attack must lower them.
    vectors, biases = np.array([[2.0, 1.0]] * DIM), np.array([1.0, 0.0])
    margins = scale * (inputs.sum(axis=1) + 1)
    assert (margins > (110 if blind else 17)).all()
    assert blind or (margins < 87).all()
    cross, margin = costs_of(np.zeros(EXAMPLES, int), scale * vectors, scale * biases)
    seeing = fgsm(margin, inputs, 0.1, bounds=BOX)
    np.testing.assert_allclose(seeing.inputs, moved(inputs, -np.ones(DIM), 0.1), atol=1e-6)
    assert not seeing.blind.any()
    hidden = fgsm(cross, inputs, 0.1, bounds=BOX)
    assert (hidden.blind == blind).all()
    expected = inputs if blind else moved(inputs, np.ones(DIM), 0.1)  # towards the rival, and so away from the goal
    np.testing.assert_allclose(hidden.inputs, expected, atol=1e-6)


@pytest.mark.slow
def test_what_cannot_be_trusted_is_nan():
    inputs = np.full((3, 2), 0.5, np.float32)
    broken = lambda x: jnp.sum(x, axis=1) + jnp.sqrt(jnp.asarray([1.0, -1.0, 0.0]) * x[:, 0])  # noqa: E731
    for attack in (fgsm, partial(pgd, key=KEY, steps=2)):
        # The root of a negative number is NaN; that of zero is zero, and its gradient is 0 times infinity.
        found = attack(broken, inputs, 0.1, bounds=BOX)
        assert np.isnan(found.costs).tolist() == [False, True, True]
        run = jax.jit(lambda x, radius, attack=attack: attack(lambda x: jnp.sum(x, axis=1), x, radius, bounds=BOX))
        for radius in (-0.1, np.nan, np.inf):
            assert np.isnan(run(inputs, radius).costs).all()
            assert np.isnan(run(inputs, radius).inputs).all()
        outside = run(inputs + np.asarray([[0.0], [0.6], [np.nan]], np.float32), 0.1)
        assert np.isnan(outside.costs).tolist() == [False, True, True]
        assert np.isnan(outside.inputs).any(axis=1).tolist() == [False, True, True]
    assert np.isnan(
        jax.jit(lambda size: pgd(lambda x: jnp.sum(x, axis=1), inputs, 0.1, bounds=BOX, key=KEY, step_size=size).costs)(
            -0.1
        )
    ).all()


@pytest.mark.slow
def test_every_point_counts_for_what_is_said_about_an_attack():
    """The last point for the cost, all of them for NaN, and any gradient for not being blind."""
    inputs = np.full((2, 3), 0.5, np.float32)
    attack = partial(pgd, inputs=inputs, radius=0.1, bounds=BOX, key=KEY, steps=1, step_size=0.2)
    np.testing.assert_allclose(attack(lambda x: jnp.sum(x, axis=1)).costs, [1.8, 1.8], rtol=1e-6)
    nan_at_first = attack(lambda x: jnp.sum(jnp.where(x == 0.5, jnp.nan, x), axis=1))
    assert np.isnan(nan_at_first.costs).all()
    assert not attack(lambda x: jnp.sum(jnp.minimum(x, 0.55), axis=1)).blind.any()  # flat where the step ends
    assert attack(lambda x: jnp.sum(jnp.round(x), axis=1)).blind.all()


@pytest.mark.slow
def test_an_attack_is_a_constant_for_derivatives():
    inputs = jnp.full((2, 3), 0.5)
    for attack in (fgsm, partial(pgd, key=KEY, steps=2)):
        moves = jax.grad(
            lambda x, attack=attack: jnp.sum(attack(lambda y: jnp.sum(y, axis=1), x, 0.1, bounds=BOX).inputs)
        )
        np.testing.assert_array_equal(moves(inputs), np.zeros((2, 3)))


@pytest.mark.slow
def test_narrow_dtypes_are_widened_and_images_keep_their_shape():
    images = jnp.full((2, 4, 4, 1), 0.5, jnp.bfloat16)
    found = fgsm(lambda x: jnp.sum(x, axis=(1, 2, 3)), images, 2 / 255, bounds=BOX)
    assert found.inputs.dtype == jnp.float32
    np.testing.assert_allclose(found.inputs, np.full((2, 4, 4, 1), 0.5 + 2 / 255), rtol=1e-6)


GOOD = np.full((3, 2), 0.5, np.float32)
TOTAL = partial(jnp.sum, axis=1)
MISTAKES = {
    "radius must be a finite number of at least 0; got -0.1": partial(fgsm, TOTAL, GOOD, -0.1, bounds=BOX),
    "radius must be a finite number of at least 0; got nan": partial(fgsm, TOTAL, GOOD, np.nan, bounds=BOX),
    "radius must be a finite number of at least 0; got inf": partial(pgd, TOTAL, GOOD, np.inf, bounds=BOX, key=KEY),
    r"radius must be one number; got shape \(2,\)": partial(fgsm, TOTAL, GOOD, np.ones(2), bounds=BOX),
    "step_size must be a finite number of at least 0; got nan": partial(
        pgd, TOTAL, GOOD, 0.1, bounds=BOX, key=KEY, step_size=np.nan
    ),
    "inputs must be floating, because an attack moves them by fractions; got dtype uint8": partial(
        fgsm, TOTAL, np.ones((3, 2), np.uint8), 0.1, bounds=BOX
    ),
    r"inputs must have shape \(batch, ...\); got \(\)": partial(fgsm, TOTAL, np.float32(1), 0.1, bounds=BOX),
    "inputs must lie within bounds, 0 to 0.4; got 0.5 in example 0": partial(fgsm, TOTAL, GOOD, 0.1, bounds=(0, 0.4)),
    "inputs must lie within bounds, 0 to 1; got nan in example 0": partial(fgsm, TOTAL, GOOD * np.nan, 0.1, bounds=BOX),
    "inputs must lie within bounds, nan to 1; got 0.5": partial(fgsm, TOTAL, GOOD, 0.1, bounds=(np.nan, 1.0)),
    r"bounds must be two numbers, or two arrays that broadcast .* \(3, 2\); got shapes \(3,\), \(\)": partial(
        fgsm, TOTAL, GOOD, 0.1, bounds=(np.zeros(3), 1.0)
    ),
    r"cost must give one number for each of 3 examples, shape \(3,\); got shape \(\)": partial(
        fgsm, jnp.sum, GOOD, 0.1, bounds=BOX
    ),
    "steps must be at least 1; got 0": partial(pgd, TOTAL, GOOD, 0.1, bounds=BOX, key=KEY, steps=0),
    "restarts must be at least 1; got 0": partial(pgd, TOTAL, GOOD, 0.1, bounds=BOX, key=KEY, restarts=0),
    r"bounds must be two numbers, .*; got None": partial(fgsm, TOTAL, GOOD, 0.1, bounds=None),
    "key must be a random key": partial(pgd, TOTAL, GOOD, 0.1, bounds=BOX, key=0.5),
}


@pytest.mark.parametrize(("sentence", "call"), MISTAKES.items(), ids=map(str, range(len(MISTAKES))))
def test_a_mistake_is_one_sentence(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError, match=sentence):
        call()
