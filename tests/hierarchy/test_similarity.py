"""Cosines from distances: golden values, the closed form against eigenvalues, what is refused."""

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from trees import real

from nc_jax import hierarchy
from nc_jax.hierarchy.similarity import broken_triple, grid_separation

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
CYCLE = np.array(GOLDEN["haf_infeasible_non_ultrametric"]["hdist"])
TOYS = [(name, case) for name in ("haf_frame_4class", "haf_frame_star4") for case in GOLDEN[name]["cases"]]


@pytest.mark.parametrize(("name", "case"), TOYS, ids=[f"{name}-{case['gamma']}" for name, case in TOYS])
def test_the_released_programs_values(name, case):
    distances, gamma = np.array(GOLDEN[name]["hdist"]), case["gamma"]
    matrix = hierarchy.kernel(distances, gamma)
    np.testing.assert_allclose(hierarchy.max_separation(matrix), case["s_min_exact_closed_form_unclipped"], atol=1e-12)
    np.testing.assert_allclose(grid_separation(matrix), case["s_min_reference_grid"], atol=1e-12)
    exact = hierarchy.similarity(distances, gamma)
    np.testing.assert_allclose(exact, case["S_exact_unclipped"], atol=1e-12)
    np.testing.assert_allclose(hierarchy.similarity(distances, gamma, "grid"), case["S_reference"], atol=1e-12)
    clipped = hierarchy.similarity(distances, gamma, clip=-1.0)
    np.testing.assert_allclose(clipped, hierarchy.similarity(distances, gamma, case["s_min_exact_clipped_at_minus1"]))


@pytest.mark.parametrize(
    ("name", "facts", "published"),
    [("inaturalist19", "inat", (5.0, -0.032024)), ("tiered_imagenet", "tiered", (3.0, -0.079478))],
)
def test_real_hierarchies_have_the_published_similarities(name, facts, published):
    distances, known = real(name).distances(), GOLDEN["haf_real_hierarchies"]["data"][facts]
    for gamma, case in known["by_gamma"].items():
        matrix = hierarchy.kernel(distances, float(gamma))
        exact = hierarchy.max_separation(matrix)
        assert abs(exact - case["s_min_exact"]) < 1e-9
        assert abs(grid_separation(matrix) - case["s_min_reference_grid"]) < 1e-9
        found = hierarchy.similarity(distances, float(gamma), exact)
        for distance, cosine in case["similarity_by_distance"].items():
            one, other = np.argwhere(distances == int(distance))[0]
            assert abs(found[one, other] - cosine) < 2e-2  # golden values: s of the grid, up to a step of 0.01 away
    assert abs(hierarchy.max_separation(hierarchy.kernel(distances, published[0])) - published[1]) < 5e-7


def grown(draws):
    """A tree in which the parent of every node has a smaller number."""
    edges = [(f"n{int(draw * node)}", f"n{node}") for node, draw in enumerate(draws, start=1)]
    return hierarchy.LabelTree.from_edges(edges)


DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=30)


@hypothesis.given(draws=DRAWS, gamma=st.floats(0.3, 10), linear=st.booleans())
def test_the_closed_form_is_where_the_smallest_eigenvalue_vanishes(draws, gamma, linear):
    tree = grown(draws)
    hypothesis.assume(len(tree.classes) >= 3)
    distances, mapping = tree.distances(), "linear" if linear else "exponential"
    found = hierarchy.similarity(distances, gamma, mapping=mapping)
    values = np.linalg.eigvalsh(found)
    assert abs(values[0]) < 1e-9
    assert values[1] > 1e-6
    lowest = hierarchy.max_separation(hierarchy.kernel(distances, gamma, mapping))
    with pytest.raises(ValueError, match="smallest eigenvalue is -"):
        hierarchy.similarity(distances, gamma, lowest - 1e-3 * (1 - lowest), mapping)


def test_a_mapping_may_be_a_function():
    distances = np.array(GOLDEN["haf_frame_4class"]["hdist"])
    found = hierarchy.similarity(distances, min_similarity=0.0, mapping=lambda u: 1 / (1 + u))
    np.testing.assert_allclose(found[0], [1, 1 / 1.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="a mapping takes 0 to 1"):
        hierarchy.similarity(distances, mapping=lambda u: u)


def test_distances_that_are_not_ultrametric_name_a_triple_that_breaks():
    i, j, k = broken_triple(CYCLE)
    assert CYCLE[i, k] > max(CYCLE[i, j], CYCLE[j, k])
    with pytest.raises(ValueError, match=r"classes 0, 1, 3 break it: d\(0,3\) = 3 > max\(d\(0,1\) = 1, d\(1,3\) = 1\)"):
        hierarchy.check_ultrametric(CYCLE)
    for gamma in (0.5, 1.0):
        with pytest.raises(ValueError, match=r"smallest eigenvalue of E is -.*not ultrametric: classes"):
            hierarchy.similarity(CYCLE, gamma)
    assert np.linalg.eigvalsh(hierarchy.similarity(CYCLE, 2.0))[0] > -1e-9
    assert hierarchy.similarity(CYCLE, 2.0, clip=-1.0)[0, 1] == pytest.approx(-1 + 2 * np.exp(-2 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_broken_triples_of_random_metrics(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(12, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    distances = (distances + distances.T) / 2
    i, j, k = broken_triple(distances)
    assert distances[i, k] > max(distances[i, j], distances[j, k])


def test_the_range_of_gamma_ends_where_the_frame_does():
    found = hierarchy.similarity_range(CYCLE)
    hierarchy.similarity(CYCLE, found.low * 1.001)
    with pytest.raises(ValueError, match="no s makes"):
        hierarchy.similarity(CYCLE, found.low * 0.999)
    assert hierarchy.similarity_range(np.array(GOLDEN["haf_frame_4class"]["hdist"])) == (0.0, True)


D2 = 1.0 - np.eye(3)
WRONG = {
    "nan": (np.where(np.eye(3) > 0, 0, np.nan), {}, "distances must be finite; got nan between class 0 and 1"),
    "a mapping to nan": (
        D2,
        {"mapping": lambda u: np.where(u > 0, np.inf, 1.0)},
        r"a mapping gives finite similarities; got inf for u = 1$",
    ),
    "asymmetric": (np.array([[0.0, 1], [2, 0]]), {}, "got 1.0 from class 0 to 1 and 2.0 back"),
    "diagonal": (np.ones((3, 3)), {}, "class 0 has not"),
    "equal classes": (np.zeros((3, 3)), {}, "got 0.0 between 0 and 1"),
    "gamma": (D2, {"gamma": 0.0}, "gamma must be positive"),
    "s": (D2, {"min_similarity": 1.0}, "below 1"),
    "infeasible s": (D2, {"min_similarity": -0.9}, "with s = -0.9 its smallest eigenvalue is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case):
    distances, options, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        hierarchy.similarity(distances, **options)
