"""Heads as pure functions: in plain JAX, Linen, NNX and Equinox they give the same numbers."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracles
import pytest
from head_loops import (
    BATCHES,
    DIM,
    KEY,
    SAME,
    STEPS,
    WEIGHTS,
    K,
    assert_same,
    compiled,
    losses_in_equinox,
    losses_in_linen,
    losses_in_nnx,
    losses_in_plain_jax,
)
from trees import PAIRS, UNEVEN

from nc_jax import heads
from nc_jax.frames import as_template, simplex_etf, simplex_template
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import cross_entropy
from nc_jax.models import FixedHead, HeadModule
from nc_jax.solvers import Status

ORTHOGONAL = json.loads((Path(__file__).parents[1] / "golden" / "orthogonal.json").read_text())["fno"]
FLAT = LabelTree.from_edges([("root", name) for name in "abcd"])


# Every option of the nearest head is in one of them.
NEAREST = {
    "ema": {},
    "cma, random, drawn to the first rotation, by trust region": {
        "averaging": "cma",
        "initial": "random",
        "prox_point": "initial",
        "prox_weight": 0.5,
        "solver": "trust_region",
    },
    "full template, gradient stopped in some steps": {"reduced": False, "stop_gradient": (1, 3)},
    "dense and centred": {"template": simplex_template(K), "radius": 3.0, "min_alpha": 0.8},
    "dense and not centred": {"template": jnp.eye(K), "initial": "canonical", "radius": None},
    "learned template": {"template": heads.tree_template(LabelTree.from_edges(PAIRS), 2.0, learn=True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", NEAREST.values(), ids=NEAREST)
def test_the_nearest_head_in_linen_is_the_pure_one(settings):
    head = heads.nearest(K, **settings)
    start = head.init(KEY, DIM)
    found, expected = losses_in_linen(head, start), losses_in_plain_jax(head, start)
    assert_same(found, expected)
    assert expected[2]["steps"] == STEPS
    assert np.abs(expected[2]["rotation"] - start[1]["rotation"]).max() > 0.1, "the frame moves"


HEADS = {
    "learned": heads.learned(K, radius=5.0, normalize_columns=True),
    "fixed": heads.fixed(K, radius=5.0, use_bias=True, learn_scale=True),
    "nearest": heads.nearest(K),
    "nearest, learned template": heads.nearest(K, **NEAREST["learned template"]),
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


@pytest.mark.slow
@every_head
def test_nnx_and_equinox_give_the_same_numbers(head):
    start = head.init(KEY, DIM)
    expected = losses_in_plain_jax(head, start)
    assert_same(losses_in_nnx(head, start), expected)
    assert_same(losses_in_equinox(head, start), expected)


@pytest.mark.slow
@pytest.mark.parametrize("head", [HEADS["learned"], HEADS["fixed"], HEADS["nearest"]], ids=lambda head: head.name)
def test_a_loop_in_plain_jax_learns(head):
    inputs, labels = BATCHES[0][0], BATCHES[1][0]
    params, state = head.init(KEY, DIM)
    trained, losses = (WEIGHTS, params), []

    @compiled
    def step(trained, state):
        def loss(trained):
            weights, params = trained
            output, after = head.apply(params, state, inputs @ weights, labels, train=True)
            return jnp.mean(cross_entropy(output.logits, labels)), after

        (value, state), slopes = jax.value_and_grad(loss, has_aux=True)(trained)
        return jax.tree.map(lambda value, slope: value - 0.05 * slope, trained, slopes), state, value

    for _ in range(20):
        trained, state, value = step(trained, state)
        losses.append(float(value))
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.slow
def test_evaluation_returns_the_state_that_it_was_given():
    head = heads.nearest(K)
    params, state = head.init(KEY, DIM)
    output, after = head.apply(params, state, jnp.ones((2, DIM)))
    assert after is state
    np.testing.assert_array_equal(output.frame, state["frame"])


@pytest.mark.slow
def test_a_mask_says_as_much_as_negative_labels():
    head = heads.nearest(K)
    params, state = head.init(KEY, DIM)
    features, labels = BATCHES[0][-1] @ WEIGHTS, BATCHES[1][-1]
    apply = compiled(partial(head.apply, train=True))
    by_labels = apply(params, state, features, labels)
    by_mask = apply(params, state, features, jnp.maximum(labels, 0), mask=labels >= 0)
    jax.tree.map(np.testing.assert_array_equal, by_mask, by_labels)


# --- Whether the means are centred follows from the template. ---

TEMPLATES = {
    "simplex": (simplex_template(K), True),
    "full simplex": (simplex_template(K, reduced=False), True),
    "simplex in bfloat16": (simplex_template(100, dtype=jnp.bfloat16), True),
    "simplex in integers": (np.array([[1, -1, 0], [0, 1, -1]]), True),
    "orthogonal": (jnp.eye(K), False),
    "orthogonal in bfloat16": (jnp.eye(100, dtype=jnp.bfloat16), False),
    "flat tree": (heads.tree_template(FLAT), True),
    "balanced tree": (heads.tree_template(LabelTree.from_edges(PAIRS)), True),
    "uneven tree": (heads.tree_template(LabelTree.from_edges(UNEVEN)), False),
    "flat tree, least similarity on the grid": (heads.tree_template(FLAT, min_similarity=0.1), False),
}


@pytest.mark.parametrize(("template", "centred"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_is_centred_if_its_vectors_sum_to_zero(template, centred):
    assert as_template(template).centred == centred


def test_a_traced_matrix_counts_as_not_centred_unless_it_is_said_to_be():
    seen = []
    jax.eval_shape(lambda matrix: seen.append(as_template(matrix).centred), simplex_template(K))
    jax.eval_shape(lambda matrix: seen.append(as_template(matrix, centred=True).centred), simplex_template(K))
    assert seen == [False, True]


@pytest.mark.slow
def test_a_frame_that_is_not_centred_has_no_bias():
    head = heads.nearest(K, template=jnp.eye(K))
    params, state = head.init(KEY, DIM)
    output, after = compiled(partial(head.apply, train=True))(params, state, BATCHES[0][0] @ WEIGHTS, BATCHES[1][0])
    np.testing.assert_array_equal(output.bias, 0)
    np.testing.assert_array_equal(after["global_mean"], 0)
    np.testing.assert_allclose(output.frame.T @ output.frame, np.eye(K), atol=SAME)


# --- Precision. ---


def cosines(frame):
    frame = np.asarray(frame, float)
    return frame.T @ frame


def test_a_fixed_frame_is_stored_in_float32_under_bfloat16_features():
    features = jnp.ones((2, DIM), jnp.bfloat16)
    head = heads.fixed(K)
    params, state = head.init(KEY, DIM, jnp.bfloat16)
    output, _ = head.apply(params, state, features)
    in_linen = FixedHead(K).init(KEY, features)["frame"]["frame"]
    for frame in (state["frame"], output.frame, in_linen):
        assert frame.dtype == jnp.float32
        np.testing.assert_allclose(cosines(frame), oracles.gram_of_simplex(K), atol=1e-6)
    rounded = cosines(simplex_etf(K, DIM, key=KEY, dtype=jnp.bfloat16))
    assert np.abs(rounded - oracles.gram_of_simplex(K)).max() > 1e-4, "bfloat16 would not do"
    assert head.init(KEY, DIM, jnp.float16)[1]["frame"].dtype == jnp.float32


# --- The learned scale of a fixed frame. ---


@pytest.mark.parametrize(("scale", "logits"), [(1.0, "logits_w1"), (2.5, "logits_w2_5")])
def test_the_learned_scale_weighs_the_softmax_as_in_the_released_program(scale, logits):
    case = ORTHOGONAL["fno_forward_weighted"]
    frame = jnp.asarray(ORTHOGONAL["fno_Q_D10_K4"]["base"]).T
    head = heads.fixed(4, learn_scale=True, use_bias=True)
    params, state = head.init(KEY, 10)
    np.testing.assert_array_equal(params["scale"], ORTHOGONAL["fno_Q_D10_K4"]["w_init"])
    params = {"scale": jnp.asarray(scale), "bias": jnp.arange(4.0)}
    output, after = head.apply(params, state | {"frame": frame}, case["H"])
    np.testing.assert_allclose(output.logits - params["bias"], case[logits], atol=1e-6)
    np.testing.assert_allclose(output.features @ output.frame + output.bias, output.logits, atol=1e-6)
    np.testing.assert_array_equal(after["frame"], frame)  # the state keeps the frame without its scale


# --- What goes wrong in a user's own loop. ---


@pytest.mark.parametrize("bad", ["a NaN", "an infinity", "a label that is no class", "a label below -1"])
def test_a_bad_batch_leaves_the_state_as_it_was(bad):
    head = heads.nearest(K)
    params, state = head.init(KEY, DIM)
    step = compiled(partial(head.apply, train=True))
    features, labels = BATCHES[0][0] @ WEIGHTS, BATCHES[1][0]
    _, state = step(params, state, features, labels)
    spoiled = {
        "a NaN": (features.at[0, 0].set(jnp.nan), labels),
        "an infinity": (features.at[0, 0].set(jnp.inf), labels),
        "a label that is no class": (features, labels.at[0].set(K)),
        "a label below -1": (features, labels.at[0].set(-2)),
    }[bad]
    output, after = step(params, state, *spoiled)
    assert int(output.solution.status) == Status.NON_FINITE
    assert jnp.isnan(output.logits).any()
    jax.tree.map(np.testing.assert_array_equal, after, state)
    output, _ = step(params, after, features, labels)
    assert int(output.solution.status) == Status.CONVERGED


@pytest.mark.slow
def test_labels_without_train_are_worth_a_word():
    head = heads.nearest(K)
    params, state = head.init(KEY, DIM)
    with pytest.warns(UserWarning, match="a nearest head learns from labels only with train=True; got labels without"):
        head.apply(params, state, jnp.ones((2, DIM)), jnp.zeros(2, int))


@pytest.mark.parametrize("settings", [{}, *NEAREST.values()], ids=["default", *NEAREST])
def test_the_first_frame_is_that_of_the_first_rotation(settings):
    settings = {"initial": "random"} | settings
    head = heads.nearest(K, **settings)
    params, state = head.init(KEY, DIM)
    for found in (state, HeadModule(head).init(KEY, jnp.ones((2, DIM)))["nearest"]):
        cosines_of = np.linalg.norm(found["rotation"].T @ found["frame"]) / np.linalg.norm(found["frame"])
        np.testing.assert_allclose(cosines_of, 1, atol=1e-5)
        if "template" not in settings and settings.get("reduced", True):
            expected = found["rotation"] @ (np.sqrt(K / (K - 1)) * simplex_template(K))
            np.testing.assert_allclose(found["frame"], expected, atol=1e-5)
    assert params is not None


ANY_HEAD = HEADS | {
    "rotated": heads.rotated(K),
    "rotated by free numbers": heads.rotated(K, parametrisation="cayley"),
    "tree softmax": heads.tree_softmax(FLAT),
    "levels": heads.levels(LabelTree.from_edges(PAIRS)),
}


@pytest.mark.parametrize("head", ANY_HEAD.values(), ids=ANY_HEAD)
def test_features_of_another_width_are_refused(head):
    params, state = head.init(KEY, DIM)
    with pytest.raises(ValueError, match=r"^features must have .* the head was initialised; got"):
        head.apply(params, state, jnp.ones((2, DIM - 1)))
    with pytest.raises(ValueError, match=r"^features must have .* the head was initialised; got"):
        HeadModule(head).apply({"params": params, head.collection: state}, jnp.ones((2, DIM - 1)))


@pytest.mark.parametrize("head", ANY_HEAD.values(), ids=ANY_HEAD)
def test_wrong_labels_are_refused_by_every_head(head):
    params, state = head.init(KEY, DIM)
    for labels, sentence in [
        (np.eye(K), "take argmax"),
        (np.zeros((K, 1), int), r"take labels\[:, 0\]"),
        (np.arange(K) + 0.0, "got dtype float64"),
        (np.arange(K) + 1, "subtract 1 from labels that begin at 1"),
        (np.arange(K + 1), r"labels must have shape \(4,\), one label for each row of features"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            head.apply(params, state, jnp.ones((K, DIM)), labels, train=True)
    with pytest.raises(ValueError, match=r"mask must be booleans of shape \(4,\); got bool of shape \(3,\)"):
        head.apply(params, state, jnp.ones((K, DIM)), np.arange(K), train=True, mask=np.ones(3, bool))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: heads.learned(1), "a head needs num_classes >= 2; got 1"),
        (lambda: heads.learned(2.5), "num_classes must be a whole number; got 2.5"),
        (lambda: heads.learned(K).init(KEY, 0), "a head needs features of dim >= 1; got dim=0"),
        (lambda: heads.rotated(K).init(KEY, None), "dim must be a whole number; got None"),
        (lambda: heads.fixed(K).init(3, DIM), "key must be a random key, as jax.random.key(0) makes one; got int 3"),
        (
            lambda: heads.nearest(K).init(None, DIM),
            "a head needs a random key, as jax.random.key(0) makes one; got None",
        ),
    ],
)
def test_sizes_and_keys_are_checked(monkeypatch, call, sentence):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole sentence is compared below
        call()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_alpha": -0.1}, "min_alpha must lie in [0, 1]; got -0.1"),
        (
            {"stop_gradient": (3, 1)},
            "stop_gradient must be True, False or a pair of steps 0 <= start <= stop; got (3, 1)",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        heads.NearestOptions(**options)
