"""The hierarchy-aware frame: its Gram matrix, its rank, the derivative of its template in gamma."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nc_jax import frames, hierarchy
from nc_jax.frames.properties import gram

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
D4 = np.array(GOLDEN["haf_frame_4class"]["hdist"])
KEY = jax.random.key(0)


@pytest.mark.parametrize("case", GOLDEN["haf_frame_4class"]["cases"], ids=lambda case: f"gamma{case['gamma']}")
def test_the_gram_matrix_is_the_released_programs(case, x64):
    frame = frames.hierarchical(hierarchy.similarity(D4, case["gamma"], "grid"), key=KEY, dtype=jnp.float64)
    np.testing.assert_allclose(gram(frame), case["S_reference"], atol=1e-12)
    wide = frames.hierarchical(hierarchy.similarity(D4, case["gamma"], "grid"), 7, key=KEY, dtype=jnp.float64)
    np.testing.assert_allclose(gram(wide), case["S_reference"], atol=1e-12)


def test_at_the_maximal_separation_a_dimension_fewer_is_enough():
    similarity = hierarchy.similarity(D4, 2.0)
    np.testing.assert_allclose(gram(frames.hierarchical(similarity, 3, key=KEY)), similarity, atol=1e-6)
    assert frames.hierarchical(similarity, 3).shape == (3, 4)  # without a key: no rotation
    with pytest.raises(ValueError, match="dim >= 3; got dim=2"):
        frames.hierarchical(similarity, 2, key=KEY)
    with pytest.raises(ValueError, match="dim >= 4; got dim=3"):
        frames.hierarchical(hierarchy.similarity(D4, 2.0, 0.0), 3, key=KEY)


@pytest.mark.slow
def test_a_flat_tree_gives_the_simplex():
    frame = frames.hierarchical(hierarchy.similarity(1.0 - np.eye(5)), 4, key=KEY)
    np.testing.assert_allclose(gram(frame), oracles.gram_of_simplex(5), atol=1e-6)
    np.testing.assert_allclose(
        frames.separated_template(1.0 - np.eye(5), 30.0), frames.simplex_template(5) * 1.25**0.5, atol=1e-5
    )


@pytest.mark.slow
def test_a_thousand_classes_in_float32():
    edges = [("r", f"a{i}") for i in range(10)] + [(f"a{i % 10}", f"b{i}") for i in range(101)]
    edges += [(f"b{i % 101}", f"c{i}") for i in range(1010)]
    similarity = hierarchy.similarity(hierarchy.LabelTree.from_edges(edges).distances(), 5.0)
    frame = frames.hierarchical(similarity, 1010, key=KEY)
    assert np.abs(np.asarray(gram(frame)) - similarity).max() < 1e-5


@pytest.mark.slow
def test_the_separated_template_has_the_cosines_and_the_derivative(x64):
    tree = hierarchy.LabelTree.from_edges(
        [("r", "x"), ("r", "y"), ("r", "c"), *(("x", f"x{i}") for i in range(4)), ("y", "z"), ("y", "w")]
    )
    distances = tree.distances()

    def cosines(gamma):
        template = frames.separated_template(distances, gamma)
        return template.T @ template

    for gamma in (0.3, 2.0, 8.0):
        np.testing.assert_allclose(cosines(gamma), hierarchy.similarity(distances, gamma), atol=1e-12)
        slope = jax.jacfwd(cosines)(gamma)
        expected = oracles.central_difference(lambda h, g=gamma: hierarchy.similarity(distances, g + h), 1e-3)
        np.testing.assert_allclose(slope, expected, atol=1e-8)
        assert frames.separated_template(distances, gamma).shape == (len(distances) - 1, len(distances))


def test_a_known_gamma_is_checked_inside_jit_too():
    right, wrong = jnp.float32(2), jnp.float32(-2)  # JAX arrays, which the traced functions close over
    template = jax.eval_shape(lambda distances: frames.separated_template(distances, right), D4)
    assert template.shape == (3, 4)
    with pytest.raises(ValueError, match=r"^gamma must be positive; got -2.0"):
        jax.eval_shape(lambda distances: frames.separated_template(distances, wrong), D4)


def test_the_constructor_checks_the_number_of_classes():
    construct = frames.hierarchical_constructor(hierarchy.similarity(D4, 2.0))
    assert construct(4, 6, key=KEY).shape == (6, 4)
    with pytest.raises(ValueError, match="of 4 classes; got num_classes=5"):
        construct(5, 6, key=KEY)


@pytest.mark.parametrize(
    ("similarity", "sentence"),
    [
        (np.array([[1.0, -0.9, -0.9], [-0.9, 1, -0.9], [-0.9, -0.9, 1]]), "smallest eigenvalue of this one is -0.8"),
        (np.array([[1.0, 0.5], [0.4, 1]]), "symmetric"),
        (np.array([[1.0, 0.5], [0.5, 2]]), "class 1 has 2"),
    ],
)
def test_what_is_no_similarity_is_refused(similarity, sentence):
    with pytest.raises(ValueError, match=sentence):
        frames.hierarchical(similarity, 4, key=KEY)
