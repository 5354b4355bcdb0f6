"""Classifier heads: where the frame lives, the nearest head's recipe step by step, labels that are missing."""

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
from head_steps import BATCHES, DIM, KEY, K, N, batch, evaluate, init, run, scaled, train, value_and_gradient

from nc_jax.frames import simplex_template
from nc_jax.models import FixedHead, LearnedHead, NearestHead
from nc_jax.solvers import Status

F32_EXACT = 2e-6  # rounding of logits of length 5
F32_RECIPE = 2e-5  # three steps of the recipe, whose derivative has a condition of about ten
F32_FULL = 2e-3  # the full template leaves a singular value of 1e-3, which magnifies rounding by a thousand


# --- Learned and fixed. ---


def test_a_learned_head_is_a_linear_classifier():
    features, _ = batch(0)
    head = LearnedHead(K)
    params = {"kernel": cases.random_rotation(np.random.default_rng(0), DIM, K), "bias": np.arange(K) * 1.0}
    params = jax.tree.map(jnp.float32, params)
    output = evaluate(head, {"params": params}, features)
    np.testing.assert_allclose(output.logits, features @ params["kernel"] + params["bias"], atol=F32_EXACT)
    np.testing.assert_array_equal(output.frame, params["kernel"])
    np.testing.assert_array_equal(output.bias, params["bias"])
    np.testing.assert_array_equal(output.features, features)
    assert output.solution is None
    assert jax.tree.map(jnp.shape, init(head)) == {"params": {"kernel": (DIM, K), "bias": (K,)}}


def test_a_learned_head_with_unit_columns_and_scaled_features():
    features, _ = batch(0)
    head = LearnedHead(K, radius=3.0, normalize_columns=True, use_bias=False)
    variables = init(head)
    assert list(variables["params"]) == ["kernel"]
    output = evaluate(head, variables, features)
    np.testing.assert_allclose(np.linalg.norm(output.frame, axis=0), 1, atol=F32_EXACT)
    np.testing.assert_allclose(output.features, scaled(features, 3), atol=F32_EXACT)
    np.testing.assert_allclose(output.logits, output.features @ output.frame, atol=F32_EXACT)
    longer = jax.tree.map(lambda kernel: 7 * kernel, variables)
    np.testing.assert_allclose(evaluate(head, longer, features).logits, output.logits, atol=F32_EXACT)
    zero = jax.tree.map(lambda kernel: kernel.at[:, 1].set(0), variables)
    assert np.isfinite(evaluate(head, zero, features).logits).all()


def test_a_fixed_head_draws_its_frame_once():
    features, _ = batch(0)
    head = FixedHead(K, radius=5.0)
    variables = init(head)
    assert list(variables) == ["frame"], "nothing to train"
    output = evaluate(head, variables, features)
    np.testing.assert_array_equal(output.frame, variables["frame"]["frame"])
    np.testing.assert_allclose(output.frame.T @ output.frame, oracles.gram_of_simplex(K), atol=F32_EXACT)
    np.testing.assert_allclose(output.logits, scaled(features) @ output.frame, atol=F32_EXACT)
    np.testing.assert_array_equal(output.bias, 0)
    same, other = init(head), init(head, jax.random.key(1))
    np.testing.assert_array_equal(same["frame"]["frame"], output.frame)
    assert np.abs(other["frame"]["frame"] - output.frame).max() > 0.1


def test_a_fixed_head_takes_any_frame():
    head = FixedHead(K, frame=lambda num_classes, dim, *, key, dtype: jnp.eye(dim, num_classes, dtype=dtype))
    features, _ = batch(0)
    np.testing.assert_allclose(evaluate(head, init(head), features).logits, features[:, :K], atol=F32_EXACT)


def test_a_fixed_head_may_learn_a_bias_and_nothing_else():
    head = FixedHead(K, use_bias=True)
    variables = init(head)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"bias": (K,)}
    shifted = {**variables, "params": {"bias": jnp.arange(float(K))}}
    features, _ = batch(0)
    moved = evaluate(head, shifted, features).logits - evaluate(head, variables, features).logits
    np.testing.assert_allclose(moved, np.broadcast_to(np.arange(K), moved.shape), atol=F32_EXACT)


# --- The nearest head, step by step. ---

VARIANTS = {
    "ema": ({}, F32_RECIPE),
    "cma": ({"averaging": "cma"}, F32_RECIPE),
    "ema with a high floor": ({"min_alpha": 0.9, "radius": 2.0, "prox_weight": 0.5}, F32_RECIPE),
    "full template": ({"reduced": False}, F32_FULL),
    "trust region": ({"solver": "trust_region"}, F32_RECIPE),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recipe_step_by_step(variant):
    settings, tolerance = VARIANTS[variant]
    head = NearestHead(K, **settings)
    template = cases.full_template(K) if variant == "full template" else cases.reduced_template(K)
    recipe = oracles.NearestHeadRecipe(
        template,
        DIM,
        averaging=settings.get("averaging", "ema"),
        tau=settings.get("radius", 5.0),
        delta=settings.get("prox_weight", 1e-3),
        min_alpha=settings.get("min_alpha", 1e-4),
    )
    variables = init(head)
    for number, (features, labels) in enumerate(BATCHES):
        logits, frame = recipe.step(features.astype(float), labels)
        output, variables = train(head, variables, features, labels)
        state = variables["nearest"]
        np.testing.assert_allclose(state["class_means"], recipe.class_means, atol=F32_EXACT)
        np.testing.assert_allclose(state["global_mean"], recipe.global_mean, atol=F32_EXACT)
        np.testing.assert_array_equal(state["updates"], recipe.updates)
        np.testing.assert_array_equal(state["counts"], recipe.counts)
        assert state["steps"] == recipe.steps == number + 1
        np.testing.assert_allclose(output.frame, frame, atol=tolerance)
        np.testing.assert_allclose(output.logits, logits, atol=10 * tolerance)
        np.testing.assert_allclose(output.bias, -frame.T @ recipe.global_mean, atol=10 * tolerance)
        np.testing.assert_allclose(np.linalg.norm(output.frame, axis=0), 1, atol=F32_EXACT)
        np.testing.assert_array_equal(state["frame"], output.frame)
        np.testing.assert_array_equal(state["rotation"], output.solution.point)
        # The full template has rank K - 1: in the first step, without a proximal term, it leaves one direction open.
        one_of_several = variant == "full template" and number == 0
        assert output.solution.status <= (Status.NOT_UNIQUE if one_of_several else Status.CONVERGED_TO_PRECISION)


def test_a_class_that_the_batch_lacks_keeps_its_mean():
    head = NearestHead(K)
    (_, before), (_, after) = run(head, BATCHES[:1]), run(head, BATCHES[:2])
    means = [variables["nearest"]["class_means"] for variables in (before, after)]
    np.testing.assert_array_equal(means[1][:, 0], means[0][:, 0])
    assert (means[1][:, 1] != means[0][:, 1]).any()


def test_padding_counts_for_nothing():
    head = NearestHead(K)
    features, labels = batch(1, padding=6)
    garbage = np.where(labels[:, None] < 0, 1e3, features).astype(np.float32)
    for output, variables in (run(head, [(features, labels)]), run(head, [(garbage, labels)])):
        expected = oracles.NearestHeadRecipe(cases.reduced_template(K), DIM)
        expected.step(features[:-6].astype(float), labels[:-6])
        np.testing.assert_allclose(variables["nearest"]["class_means"], expected.class_means, atol=F32_EXACT)
        np.testing.assert_array_equal(variables["nearest"]["counts"], expected.counts)
        assert np.isfinite(output.logits).all()


def test_a_batch_of_padding_changes_nothing():
    head = NearestHead(K)
    _, variables = run(head, BATCHES[:1])
    features, labels = BATCHES[1]
    output, after = train(head, variables, features, np.full_like(labels, -1))
    for name in ("class_means", "global_mean", "updates", "counts", "steps"):
        np.testing.assert_array_equal(after["nearest"][name], variables["nearest"][name], err_msg=name)
    assert np.isfinite(output.logits).all()


@pytest.mark.slow
def test_a_class_that_is_never_seen_keeps_training_sound():
    head = NearestHead(K)
    variables = init(head)
    for seed in range(3):
        features, labels = batch(seed, absent=[2])
        loss, gradient = value_and_gradient(head, variables, features, labels)
        output, variables = train(head, variables, features, labels)
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradient, output, variables))]
        assert all(finite)
        np.testing.assert_allclose(output.frame.T @ output.frame, oracles.gram_of_simplex(K), atol=F32_EXACT)
    np.testing.assert_array_equal(variables["nearest"]["class_means"][:, 2], 0)
    assert variables["nearest"]["counts"][2] == 0


@pytest.mark.slow
def test_evaluation_uses_the_last_frame_and_changes_nothing():
    head = NearestHead(K)
    _, variables = run(head, BATCHES)
    features, _ = batch(7)
    output, after = head.apply(variables, jnp.asarray(features), mutable=["nearest"])
    frame, global_mean = variables["nearest"]["frame"], variables["nearest"]["global_mean"]
    np.testing.assert_array_equal(output.frame, frame)
    np.testing.assert_allclose(output.logits, (scaled(features) - global_mean) @ frame, atol=1e-5)
    assert output.solution is None
    jax.tree.map(np.testing.assert_array_equal, after, dict(variables))


def test_before_training_the_frame_is_a_simplex_etf():
    head = NearestHead(K)
    variables = init(head)
    assert "params" not in variables, "nothing to train"
    frame = evaluate(head, variables, batch(0)[0]).frame
    np.testing.assert_allclose(frame.T @ frame, oracles.gram_of_simplex(K), atol=F32_EXACT)
    jax.tree.map(np.testing.assert_array_equal, init(head, jax.random.key(5)), variables)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_state_keeps_its_dtypes(x64, dtype):
    head = NearestHead(K)
    variables = init(head)
    features, labels = BATCHES[0]
    output, after = train(head, variables, jnp.asarray(features, dtype), labels)
    assert output.logits.dtype == output.frame.dtype == dtype
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, variables)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32", "int32"}


# --- The proximal point. ---

# A proximal weight so large that the rotation stays at the proximal point, up to the part of the data term that float32
# can still represent.
HEAVY = 1e6
DRAWN = 1e-4


@pytest.mark.parametrize("initial", ["canonical", "random"])
def test_the_first_step_is_drawn_to_the_initial_rotation(initial):
    head = NearestHead(K, initial=initial, prox_weight=HEAVY)
    start = init(head)["nearest"]["rotation"]
    np.testing.assert_allclose(start.T @ start, np.eye(K - 1), atol=F32_EXACT)
    is_canonical = np.array_equal(start, np.eye(DIM, K - 1))
    assert is_canonical == (initial == "canonical")
    output, variables = run(head, BATCHES[:1])
    np.testing.assert_allclose(variables["nearest"]["rotation"], start, atol=DRAWN)
    template = simplex_template(K)
    np.testing.assert_allclose(output.frame, start @ template / np.linalg.norm(template, axis=0), atol=DRAWN)


def test_a_random_initial_rotation_is_the_keys():
    head = NearestHead(K, initial="random")
    first, same, other = (init(head, jax.random.key(seed))["nearest"]["rotation"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.max(np.abs(first - other)) > 0.1


@pytest.mark.slow
def test_without_an_initial_point_the_first_step_is_drawn_to_nothing():
    """Even with a very large proximal weight, the first frame is the nearest one to the class means alone."""
    heavy, light = (run(NearestHead(K, prox_weight=weight), BATCHES[:1])[0].frame for weight in (HEAVY, 0.0))
    np.testing.assert_array_equal(heavy, light)


@pytest.mark.parametrize("initial", ["unregularised", "canonical", "random"])
@pytest.mark.parametrize("prox_point", ["previous", "initial"])
def test_later_steps_are_drawn_to_the_proximal_point(initial, prox_point):
    """Every step's rotation solves the Procrustes problem, in NumPy, with the proximal point that the options name."""
    delta = 1.0  # about as large as the data term, so the choice of the proximal point changes the result
    template = np.asarray(simplex_template(K), float) / np.sqrt(K - 1)
    head = NearestHead(K, initial=initial, prox_point=prox_point, prox_weight=delta)
    variables = init(head)
    assert ("anchor" in variables["nearest"]) == (prox_point == "initial")
    start = np.asarray(variables["nearest"]["rotation"], float)
    previous = anchor = None if initial == "unregularised" else start
    for features, labels in BATCHES:
        output, variables = train(head, variables, features, labels)
        state = variables["nearest"]
        point = previous if prox_point == "previous" else anchor
        means = np.asarray(state["class_means"], float)
        means /= np.linalg.norm(means)
        weight = 0.0 if point is None else delta
        expected = oracles.procrustes_rotation(means, template, start if point is None else point, weight)
        np.testing.assert_allclose(output.solution.point, expected, atol=F32_RECIPE)
        previous = np.asarray(output.solution.point, float)
        anchor = previous if anchor is None else anchor


# --- What is refused. ---


FEATURES = jnp.ones((N, DIM))


def init_on(features, make_head, *args, train=False, **settings):
    return lambda: make_head(*args, **settings).init(KEY, features, train=train)


REFUSED = {
    "a nearest head needs labels in training; got None": init_on(FEATURES, NearestHead, K, train=True),
    "a simplex ETF of 8 classes needs dim >= 7; got dim=6": init_on(FEATURES, NearestHead, 8),
    "a simplex ETF of 9 classes needs dim >= 8; got dim=6": init_on(FEATURES, FixedHead, 9),
    'averaging must be "ema" or "cma"; got \'sma\'': init_on(FEATURES, NearestHead, K, averaging="sma"),
    'initial must be "unregularised", "canonical" or "random"; got \'haar\'': init_on(
        FEATURES, NearestHead, K, initial="haar"
    ),
    'prox_point must be "previous" or "initial"; got \'next\'': init_on(FEATURES, NearestHead, K, prox_point="next"),
    "features must have shape (batch, dim); got shape (24, 6, 1)": init_on(FEATURES[..., None], LearnedHead, K),
    "radius must be positive and finite, or None; got -1.0": init_on(FEATURES, LearnedHead, K, radius=-1.0),
    "radius must be positive and finite, or None; got 0.0": init_on(FEATURES, NearestHead, K, radius=0.0),
}


@pytest.mark.parametrize(("sentence", "call"), REFUSED.items())
def test_bad_input_is_refused(monkeypatch, sentence, call):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence


@pytest.mark.slow
def test_heads_are_modules_that_can_be_nested():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, features, labels=None, *, train=False):
            return NearestHead(K, name="head")(nn.Dense(DIM)(features), labels, train=train)

    variables = Network().init(KEY, FEATURES)
    assert set(variables) == {"params", "nearest"}
    assert variables["nearest"]["head"]["frame"].shape == (DIM, K)
