"""One-vs-rest margin: closed forms, an oracle that tries all faces of a hull, the certificate, degenerate vectors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import one_vs_rest, one_vs_rest_margin


def simplex(num_classes):
    return np.eye(num_classes) - 1 / num_classes


def polygon(num_classes):
    angles = np.arange(num_classes) * 2 * np.pi / num_classes
    return np.stack([np.cos(angles), np.sin(angles)])


def distance_by_faces(vector, others):
    """Least distance over all sets of points whose affine hull is nearest at a convex combination of them."""
    best = np.inf
    for size in range(1, len(others[:, 0]) + 2):
        for chosen in itertools.combinations(range(others.shape[1]), min(size, others.shape[1])):
            points = others[:, chosen]
            directions = points[:, 1:] - points[:, :1]
            weights = np.linalg.lstsq(directions, vector - points[:, 0], rcond=None)[0]
            if np.all(weights >= -1e-12) and weights.sum() <= 1 + 1e-12:
                best = min(best, np.linalg.norm(points[:, 0] + directions @ weights - vector))
    return best


# The first three values are those of a quadratic program solved by SLSQP.
@pytest.mark.parametrize(
    ("vectors", "margin"),
    [
        (simplex(4), 1.3333333333333333),
        (np.hstack([np.eye(3), -np.eye(3)]), 1.0),
        (polygon(5), 0.690983005625052),
        (polygon(12), 1 - np.cos(np.pi / 6)),
        (np.vstack([simplex(7), np.zeros((20, 7))]), 7 / 6),  # more dimensions than classes
        (np.array([[1.0, -2.0, 1.0, 3.0], [0.0, 1.0, -2.0, 1.0]]) * 1e-300, None),  # far too small to be squared
        (np.random.default_rng(0).normal(size=(3, 7)), None),
        (np.random.default_rng(1).normal(size=(6, 4)), None),
        (np.array([[1.0, 1.0, -1.0], [0.0, 0.0, 1.0]]), 0.0),  # two equal vectors
    ],
)
def test_margin_of_known_vectors(x64, vectors, margin):
    found = one_vs_rest_margin(vectors)
    units = vectors / np.abs(vectors).max()
    units = units / np.linalg.norm(units, axis=0)
    expected = [distance_by_faces(units[:, k], np.delete(units, k, axis=1)) for k in range(units.shape[1])]
    np.testing.assert_allclose(found.distances, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.margin, np.min(expected) if margin is None else margin, rtol=0, atol=1e-9)
    assert 0 <= found.gap < 1e-12


def test_a_vector_among_the_others_has_margin_zero(x64):
    vectors = np.random.default_rng(2).normal(size=(2, 30))  # the hull of 29 directions holds only a polygon's inside
    vectors = np.hstack([vectors, vectors[:, :1] * 3])
    found = one_vs_rest_margin(vectors)
    assert found.distances[0] < 1e-12
    assert found.margin < 1e-12
    assert found.gap < 1e-9  # rounding, relative to the distance of near directions


def test_lengths_and_absent_classes_do_not_count(x64):
    vectors = np.random.default_rng(3).normal(size=(3, 6))
    present = np.array([True, True, False, True, True, False])
    spoilt = np.where(present, vectors * [1, 2, 1, 1e-5, 1e200, 1], np.nan)
    found, expected = one_vs_rest_margin(spoilt, jnp.asarray(present)), one_vs_rest_margin(vectors[:, present])
    np.testing.assert_allclose(np.asarray(found.distances)[present], expected.distances, rtol=1e-9)
    assert np.isnan(np.asarray(found.distances)[~present]).all()
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-9)


def test_the_gap_tells_of_a_wrong_answer(x64, monkeypatch):
    """Equal weights are no solution for unequal vectors."""
    monkeypatch.setattr(one_vs_rest, "nnls", lambda matrix, _: (np.ones(matrix.shape[1]), 0.0))
    assert one_vs_rest_margin(np.random.default_rng(4).normal(size=(3, 6))).gap > 0.1


def test_a_problem_that_was_not_solved_is_nan(monkeypatch):
    def fail(*_):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(one_vs_rest, "nnls", fail)
    assert all(jnp.isnan(value).all() for value in one_vs_rest_margin(np.eye(3)))


@pytest.mark.parametrize(
    ("vectors", "present"),
    [
        (np.zeros((3, 3)), None),
        (np.diag([1.0, np.nan, 1.0]), None),
        (np.diag([1.0, np.inf, 1.0]), None),
        (np.eye(3), jnp.array([True, False, False])),
        (np.eye(3), jnp.zeros(3, bool)),
    ],
)
def test_without_directions_it_is_nan(vectors, present):
    assert all(jnp.isnan(value).all() for value in one_vs_rest_margin(vectors, present))


def test_narrow_vectors_are_read_and_traced_ones_refused():
    assert one_vs_rest_margin(jnp.eye(3, dtype=jnp.bfloat16)).margin.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"needs known class vectors; got traced ones: call it outside jax\.jit"):
        jax.jit(one_vs_rest_margin)(jnp.eye(3))
    with pytest.raises(ValueError, match=r"class vectors must have shape \(dim, classes\) with classes >= 2"):
        one_vs_rest_margin(np.eye(3)[0])


@pytest.mark.slow
def test_a_thousand_classes(x64):
    found = one_vs_rest_margin(np.random.default_rng(5).normal(size=(64, 1000)))
    assert 0.5 < found.margin < 0.8
    assert found.gap < 1e-12
