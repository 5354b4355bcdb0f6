"""Clients: golden angles and decisions, loops as oracles, collapse and opposite vectors, drift, what is refused."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import simplex_etf
from nc_jax.metrics import Answers, answers, client_drift, client_summary, group_angles

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fedgela.json").read_text())
angles_of_clients = jax.jit(jax.vmap(group_angles, in_axes=(None, 0)))
drift = jax.jit(client_drift)


# --- Angles. ---


def loop_angles(frame, existing):
    """Mean arccos over the pairs of each group; accurate for angles that are far from 0 and 180 degrees."""
    unit = frame / np.linalg.norm(frame, axis=0)
    found = np.degrees(np.arccos(np.clip(unit.T @ unit, -1, 1)))
    pairs = [(i, j) for i in range(len(existing)) for j in range(i)]
    groups = {(True, True): [], (False, False): [], (True, False): []}
    for i, j in pairs:
        groups[tuple(sorted((existing[i], existing[j]), reverse=True))].append(found[i, j])
    return [np.mean(values) for values in groups.values()]


def test_angles_are_the_means_over_the_pairs_of_each_group(x64):
    rng = np.random.default_rng(0)
    frame = rng.normal(size=(7, 9))
    existing = rng.permutation([[True] * 4 + [False] * 5, [True] * 7 + [False] * 2], axis=1)
    found = angles_of_clients(frame, existing)
    wanted = [loop_angles(frame, one) for one in existing]
    np.testing.assert_allclose(np.stack(found, axis=1), wanted, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 4, 10, 100])
def test_a_simplex_has_one_angle_in_all_groups(num_classes):
    wanted = GOLDEN["etf_pairwise_angle_deg_K"][str(num_classes)]
    existing = np.arange(num_classes) < num_classes // 2
    lengths = np.arange(1, num_classes + 1)
    found = group_angles(simplex_etf(num_classes, num_classes) * lengths, existing)
    np.testing.assert_allclose(found.between, wanted, rtol=1e-5)
    if num_classes >= 4:
        np.testing.assert_allclose(found, [wanted] * 3, rtol=1e-5)


def test_the_released_frame_has_the_angle_of_a_simplex():
    found = group_angles(np.array(GOLDEN["get_etf_d6_K4_npseed0"]), np.array(GOLDEN["Phi_K4"]["mask"][0], bool))
    np.testing.assert_allclose(found, [GOLDEN["etf_pairwise_angle_deg_K"]["4"]] * 3, rtol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 179.99])
def test_collapsed_and_opposite_vectors_keep_their_digits(angle):
    """In float32, the arccos of a cosine is 0 for angles up to 0.014 degrees."""
    radians = np.radians(angle)
    frame = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]) + np.outer([np.cos(radians) - 1, np.sin(radians)], [0, 1, 0])
    found = group_angles(frame.astype(np.float32), [False, False, True])
    np.testing.assert_allclose(found.missing, angle, rtol=1e-5)
    assert math.isnan(found.existing)


def test_a_vector_without_direction_does_not_count_but_nan_does():
    frame = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    found = group_angles(frame, [True, True, True, True])
    assert float(found.existing) == pytest.approx(60, rel=1e-6)
    assert math.isnan(found.missing)
    assert math.isnan(found.between)
    frame[0, 3] = np.nan
    assert math.isnan(group_angles(frame, [True, True, True, True]).existing)


# --- Answers. ---


def test_decisions_are_those_of_the_released_program():
    golden = GOLDEN["local_loss"]
    logits, existing = np.array(golden["logits_client0_T1"]), np.array(GOLDEN["Phi_K4"]["mask"][0], bool)
    unmasked, masked = np.array(golden["argmax_unmasked"]), np.array(golden["argmax_masked_to_existing_classes"])
    of_unmasked, of_masked = answers(logits, unmasked, existing), answers(logits, masked, existing)
    assert [*map(int, of_unmasked)] == [4, 3, 4]
    assert [*map(int, of_masked)] == [3, 4, 4]
    own = answers(logits, golden["labels"], existing)
    assert float(own.accuracy) == np.mean(unmasked == golden["labels"])
    assert float(own.masked_accuracy) == np.mean(masked == golden["labels"])


def test_clients_have_padding_and_classes_of_their_own():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 8, 5)), rng.integers(-1, 5, (3, 8))
    existing = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    found = jax.jit(jax.vmap(answers))(logits, labels, existing)
    for client in range(3):
        real = labels[client] >= 0
        chosen = np.where(existing[client], logits[client], -np.inf).argmax(axis=1)
        right = [logits[client].argmax(axis=1) == labels[client], existing[client][chosen] & (chosen == labels[client])]
        assert found.examples[client] == real.sum()
        assert [found.right[client], found.right_masked[client]] == [(one & real).sum() for one in right]
    assert found.right_masked[1] == 0
    halves = (
        jax.vmap(answers)(logits[:, :4], labels[:, :4], existing),
        jax.vmap(answers)(logits[:, 4:], labels[:, 4:], existing),
    )
    for one, whole in zip(halves[0].merge(halves[1]), found, strict=True):
        np.testing.assert_array_equal(one, whole)


def test_a_diverged_model_is_never_right_and_no_example_is_no_accuracy():
    existing = np.array([True, False])
    found = answers(np.full((3, 2), np.nan), [0, 0, 1], existing)
    assert [*map(int, found)] == [0, 0, 3]
    empty = answers(np.zeros((2, 2)), [-1, -1], existing)
    assert math.isnan(empty.accuracy)
    assert math.isnan(empty.masked_accuracy)
    assert float(Answers(*map(jnp.asarray, (1, 2, 4))).accuracy) == 0.25


# --- Summaries. ---


def test_a_summary_leaves_out_clients_without_a_number():
    accuracy = np.array([0.9, np.nan, 0.1, 0.5, 0.6, 0.4])
    found = client_summary(accuracy, [10, 0, 30, 20, 20, 20])
    known = accuracy[np.isfinite(accuracy)]
    assert (found.clients, found.left_out) == (5, 1)
    assert found.mean == pytest.approx(0.5)
    assert found.weighted_mean == pytest.approx((9 + 3 + 10 + 12 + 8) / 100)
    assert (found.worst, found.median) == (0.1, 0.5)
    # Between ranks 0..4: the 10th percentile is 0.4 of the way from 0.1 to 0.4.
    assert (found.low, found.high) == pytest.approx((0.22, 0.78))
    assert found.sd == pytest.approx(math.sqrt(np.mean((known - 0.5) ** 2)))


def test_a_summary_of_one_client_and_of_none():
    assert client_summary([0.25], [3])[:7] == (0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.0)
    none = client_summary([np.nan, np.nan], [0, 0])
    assert (none.clients, none.left_out) == (0, 2)
    assert all(map(math.isnan, none[:7]))
    assert math.isnan(client_summary([0.5, np.nan], [0, 7]).weighted_mean)


# --- Drift. ---


def test_drift_is_that_of_all_parameters_as_one_vector(x64):
    rng = np.random.default_rng(0)
    server = {"a": rng.normal(size=(2, 3)), "b": [rng.normal(size=4)]}
    clients = jax.tree.map(lambda array: rng.normal(size=(5, *array.shape)), server)
    weights = np.array([1, 0, 2, 3, 4])
    found = drift(clients, server, weights)
    flat = np.concatenate([clients["a"].reshape(5, -1), clients["b"][0]], axis=1)
    origin = np.concatenate([server["a"].ravel(), server["b"][0]])
    share = weights / weights.sum()
    mean = share @ flat
    np.testing.assert_allclose(found.squared, share @ np.sum((flat - origin) ** 2, axis=1), rtol=1e-12)
    apart = share @ np.linalg.norm(flat - mean, axis=1)
    np.testing.assert_allclose(found.relative, apart / np.linalg.norm(mean - origin), rtol=1e-12)
    # A client that took no part does not count, whatever its parameters are.
    lost = jax.tree.map(lambda array: array.at[1].set(jnp.nan), jax.tree.map(jnp.asarray, clients))
    np.testing.assert_array_equal(drift(lost, server, weights), found)


def test_equal_clients_do_not_drift_apart_and_opposite_ones_do_nothing_else():
    server = {"w": jnp.full(50, 3.0)}
    same = {"w": jnp.full((4, 50), 3.01)}
    assert float(drift(same, server, np.ones(4)).relative) < 1e-5
    opposite = {"w": 3 + jnp.array([1.0, -1, 1, -1])[:, None] * jnp.ones((4, 50))}
    found = drift(opposite, server, np.ones(4))
    assert float(found.squared) == pytest.approx(50)
    assert math.isinf(found.relative)
    assert math.isnan(drift({"w": jnp.full((4, 50), 3.0)}, server, np.ones(4)).relative)
    assert math.isnan(drift(same, server, np.zeros(4)).squared)


# --- What is refused. ---


def test_errors_say_what_was_expected_and_what_came():
    with pytest.raises(ValueError, match=r"a frame must have shape \(dim, classes\); got shape \(3,\)"):
        group_angles(np.ones(3), [True] * 3)
    with pytest.raises(
        ValueError, match=r"existing must be booleans of shape \(3,\), one for each class; got int64 of"
    ):
        group_angles(np.eye(3), np.array([1, 0, 1]))
    with pytest.raises(ValueError, match=r"existing must be booleans of shape \(2,\), .*; got bool of shape \(3,\)"):
        answers(np.zeros((1, 2)), [0], [True] * 3)
    with pytest.raises(ValueError, match=r"values must be real numbers, one .*; got float64 of shape \(1, 2\)"):
        client_summary([[0.5, 1.0]], [1])
    with pytest.raises(ValueError, match=r"at least 0, one for each of the 2 clients; got int64 of shape \(1,\)"):
        client_summary([0.5, 1.0], [1])
    with pytest.raises(ValueError, match=r"at least 0, one for each of the 2 clients; got \[ 1 -1\]"):
        client_summary([0.5, 1.0], [1, -1])
    with pytest.raises(ValueError, match=r"with a leading axis of 2 clients, .*; got shape \(3, 4\) for \(4,\)"):
        client_drift({"w": np.ones((3, 4))}, {"w": np.ones(4)}, [1, 1])
    with pytest.raises(ValueError, match=r"with a leading axis of 2 clients, .*; got trees that .*, of 1 and 2 arr"):
        client_drift({"w": np.ones((2, 4))}, {"w": np.ones(4), "b": np.ones(1)}, [1, 1])
    with pytest.raises(ValueError, match=r"one for each of the 0 clients; got float64 of shape \(\)"):
        client_drift({"w": np.ones((2, 4))}, {"w": np.ones(4)}, 1.0)
