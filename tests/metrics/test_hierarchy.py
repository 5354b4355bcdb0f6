"""Metrics of mistakes by distance: the released program's values, loops over examples, batches that merge."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import PAIRS

from nc_jax.hierarchy import LabelTree
from nc_jax.losses import conditional_risk_scores
from nc_jax.metrics import ClassStatistics, HierarchyStatistics, self_duality, similarity_errors, usual_top

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())
DISTANCES = jnp.asarray(LabelTree.from_edges(PAIRS).distances())
CASE = GOLDEN["crm_and_metrics"]
LABELS = jnp.asarray(CASE["y"])
TOP = (1, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["plain", "crm"])
def test_the_released_programs_metrics(rule):
    scores = jnp.log(jnp.maximum(jnp.asarray(CASE["P"], jnp.float32), 1e-30))
    if rule == "crm":
        scores = conditional_risk_scores(scores, DISTANCES)
    found, golden = HierarchyStatistics.from_batch(scores, LABELS, DISTANCES, TOP).compute(TOP), CASE[f"metrics_{rule}"]
    np.testing.assert_allclose(100 * found["top1"], golden["top1"], rtol=1e-6)
    np.testing.assert_allclose(found["mistake_severity"], golden["mistake_mean"], rtol=1e-6)
    np.testing.assert_allclose(found["mistake_severity_std"], golden["mistake_std"], rtol=1e-6)
    for k in TOP:
        np.testing.assert_allclose(found[f"ahd@{k}"], golden[f"AHD@{k}"], rtol=1e-6)


@pytest.mark.slow
def test_batches_and_padding():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 4, 30).astype(np.int32)
    labels[7], scores[7] = -1, np.nan
    whole = HierarchyStatistics.from_batch(jnp.asarray(scores), jnp.asarray(labels), DISTANCES, TOP)
    step = jax.jit(lambda z, y: HierarchyStatistics.from_batch(z, y, DISTANCES, TOP, max_distance=2))
    merged = HierarchyStatistics.init(2, TOP)
    for part in np.split(np.arange(30), 3):
        merged = merged.merge(step(scores[part], labels[part]))
    for one, other in zip(whole, merged, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    found = whole.compute(TOP)
    used = labels >= 0
    own = np.asarray(DISTANCES)[labels[used]]
    order = np.argsort(-scores[used], axis=1)
    ranked = np.take_along_axis(own, order, axis=1)
    np.testing.assert_allclose(found["ahd@1"], ranked[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["ahd@4"], own.mean(), rtol=1e-5)  # K = 4: all of them
    precision = (2 - ranked[:, 0]) / 2
    np.testing.assert_allclose(found["hp@1"], precision.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["hp@4"], 1, rtol=1e-5)
    mistakes = ranked[:, 0] > 0
    chance = own.sum(axis=1)[mistakes].mean() / 3
    np.testing.assert_allclose(found["alignment"], ranked[mistakes, 0].mean() / chance, rtol=1e-5)
    discounted = (ranked / np.log2(np.arange(2, 6))).sum(axis=1)
    low, high = ((np.sort(sign * own, axis=1) * sign / np.log2(np.arange(2, 6))).sum(axis=1) for sign in (1, -1))
    np.testing.assert_allclose(found["rank_severity"], ((discounted - low) / (high - low)).mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_rank_aware_severity_knows_the_order_and_ahd_does_not():
    good, bad = jnp.array([[4.0, 3.0, 2.0, 1.0]]), jnp.array([[4.0, 2.0, 3.0, 1.0]])
    scores = [HierarchyStatistics.from_batch(z, jnp.array([0]), DISTANCES, (3,)).compute((3,)) for z in (good, bad)]
    assert scores[0]["ahd@3"] == scores[1]["ahd@3"]
    assert scores[0]["rank_severity"] == 0 < scores[1]["rank_severity"]


@pytest.mark.slow
def test_no_mistake_has_no_severity():
    found = HierarchyStatistics.from_batch(jnp.eye(4), jnp.arange(4), DISTANCES, (1,)).compute((1,))
    assert found["top1"] == 1
    assert jnp.isnan(found["mistake_severity"])


@pytest.mark.parametrize("top", [(0, 1), (1, 5), (1, 5, 20)])
def test_there_are_no_more_predictions_than_classes(top):
    sentence = rf"^top must hold numbers in 1\.\.4, the number of classes .*; got {re.escape(str(top))}$"
    with pytest.raises(ValueError, match=sentence):
        HierarchyStatistics.from_batch(jnp.eye(4), jnp.arange(4), DISTANCES, top)
    assert [usual_top(count) for count in (2, 6, 21)] == [(1,), (1, 5), (1, 5, 20)]


@pytest.mark.slow
def test_the_rank_aware_severity_does_not_depend_on_the_ks():
    scores, labels = jax.random.normal(jax.random.key(0), (9, 4)), jnp.arange(9) % 4
    one, other = (HierarchyStatistics.from_batch(scores, labels, DISTANCES, top).rank_sum for top in ((1,), TOP))
    assert one == other


@pytest.mark.slow
def test_devices_merge():
    scores = jax.random.normal(jax.random.key(0), (2, 6, 4))
    labels = jax.random.randint(jax.random.key(1), (2, 6), 0, 4)
    batch = lambda z, y: HierarchyStatistics.from_batch(z, y, DISTANCES, TOP, max_distance=2)  # noqa: E731
    reduced = jax.vmap(lambda z, y: batch(z, y).all_reduce("i"), axis_name="i")(scores, labels)
    whole = batch(scores.reshape(-1, 4), labels.reshape(-1))
    for one, other in zip(whole, reduced, strict=True):
        np.testing.assert_allclose(one, other[0], rtol=1e-5)


@pytest.mark.slow
def test_collapse_onto_the_frame():
    golden = GOLDEN["haf_nc_metrics"]
    means, frame = jnp.asarray(golden["M"], jnp.float32).T, jnp.asarray(golden["W"], jnp.float32).T
    found = similarity_errors(means, frame.T @ frame)
    np.testing.assert_allclose(found["mean"], golden["stats"]["HAF"]["mean_abs_shift"], rtol=1e-5)
    np.testing.assert_allclose(found["std"], golden["stats"]["HAF"]["std"], rtol=1e-5)
    statistics = ClassStatistics.from_batch(means.T, jnp.arange(4), 4)
    duality = self_duality(frame, statistics, form="difference", centre="origin")
    np.testing.assert_allclose(duality**2, golden["self_duality_sq_fro"], rtol=1e-5)
    absent = similarity_errors(means, frame.T @ frame, jnp.array([True, True, False, False]))
    np.testing.assert_allclose(absent["std"], 0, atol=1e-7)
