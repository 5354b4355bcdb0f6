"""Frames, solvers, metrics, losses and steps under JAX's strict modes, in which nothing is promoted without a word."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import PAIRS

from nc_jax import heads, implicit, losses, metrics, nearest_frame, nearest_simplex_etf, theory
from nc_jax.arrays import slerp
from nc_jax.data import Batch
from nc_jax.discrepancies import cosine
from nc_jax.frames import (
    hierarchical,
    local_lengths,
    nonnegative_orthogonal,
    properties,
    random_unit,
    separated_template,
    simplex_etf,
    simplex_template,
)
from nc_jax.hierarchy import LabelTree
from nc_jax.manifolds import Stiefel
from nc_jax.manifolds.orthogonal import PARAMETRISATIONS
from nc_jax.methods import METHODS, Setting
from nc_jax.models import MLP, Classifier, FixedHead, LearnedHead, NearestHead, RotatedHead, SampledHead
from nc_jax.training import Mixup, StepOptions, create_state, make_train_step

K, DIM, N = 4, 6, 12
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.normal(size=(N, DIM)).astype(np.float32), np.arange(N) % K
FRAME, BIAS = RNG.normal(size=(DIM, K)).astype(np.float32), np.ones(K, np.float32)
TREE = LabelTree.from_edges(PAIRS)
KEY = jax.random.key(0)
COUNTS = np.array([40, 20, 10, 5])
DISTANCES = np.ones((4, 4)) - np.eye(4)


def from_batch():
    return metrics.ClassStatistics.from_batch(FEATURES, LABELS, K)


def margins():
    sums = metrics.MarginSums.from_batch(metrics.cosine_margins(FEATURES, FRAME, LABELS), LABELS)
    return sums.merge(sums).compute()


def alignment():
    means = from_batch().means
    ratio = metrics.error_exponent_ratio(means, FRAME, BIAS)
    angles = metrics.class_angles(means, FRAME), metrics.principal_angles(means, FRAME)
    return ratio, angles, metrics.mean_cosine(FRAME, np.arange(2)), slerp(jnp.asarray(FRAME), means, 0.3)


def calibration():
    sums = metrics.CalibrationSums.from_batch(LOGITS, LABELS)
    return sums.merge(sums).compute()


def outliers():
    stats = from_batch()
    scores = [metrics.Neco.fit(stats, standardize=one).score(FEATURES, LOGITS) for one in (True, False)]
    scores += [metrics.Nci.fit(stats, FRAME, 0.1).score(FEATURES, LOGITS), metrics.energy_score(LOGITS, 2)]
    scores += [metrics.Vim.fit(stats, FRAME, BIAS).update(FEATURES, LOGITS, LABELS).score(FEATURES, LOGITS)]
    inside = (LABELS > 0).astype(int)
    scores += [metrics.auroc(scores[0], inside), metrics.false_positive_rate(scores[0], inside)]
    return scores, metrics.max_softmax(LOGITS), metrics.outlier_orthogonality(stats, FEATURES[0])


def by_depth():
    stats = {"last": from_batch()}
    found = metrics.collapse_by_depth(stats, metrics.nearest_centre_by_layer({"last": FEATURES}, LABELS, stats))
    return (
        found,
        metrics.few_shot_errors(FEATURES, LABELS, K, 1, key=KEY, ways=2, draws=2),
        metrics.effective_depth([0]),
    )


def regression():
    stats = metrics.RegressionStatistics.from_batch(FEATURES, LOGITS)
    return metrics.regression_collapse(stats.merge(stats.update(FEATURES, LOGITS)), FRAME)


def tag_wise():
    sets, numbers = metrics.tag_sets(np.array([[1, 0, 1], [0, 1, 1]])[:, LABELS % 3].T)
    return metrics.tag_wise_average(metrics.ClassStatistics.from_batch(FEATURES, numbers, len(sets)), sets)


def of_clients():
    existing, server = np.arange(K) < 2, {"w": means()[0], "b": means()[1]}
    drift = metrics.client_drift({"w": means("bfloat16"), "b": means()}, server, np.arange(12))
    angles, answers = metrics.group_angles(FRAME, existing), metrics.answers(LOGITS, LABELS, existing)
    return drift, angles, answers.accuracy, local_lengths(COUNTS)


def step(head, **options):
    model, optimizer = Classifier(MLP((8,), DIM), head), optax.sgd(0.1, 0.9)
    state = create_state(model, optimizer, jax.random.key(0), FEATURES[:1], average=True)
    take = make_train_step(model, optimizer, options=StepOptions(accumulate=2, average_decay=0.9, **options))
    return jax.jit(take)(state, Batch.of(FEATURES, LABELS))[1]


LOGITS = FEATURES @ FRAME
ORTHOGONAL = nonnegative_orthogonal(K, DIM, key=KEY)
ARC = {"extensions": (Mixup(curve="arc", pairs="balanced"),), "loss": METHODS["fno-arc"].loss(Setting(num_classes=K))}


def means(dtype="float32"):
    return jax.random.normal(KEY, (12, 4)).astype(dtype)


def gradient_of_frame(dtype, **how):
    return jax.grad(lambda means: jnp.sum(nearest_simplex_etf(means, **how).frame ** 3))(means(dtype))


CALLS = {
    "polar": lambda: gradient_of_frame("bfloat16", solver="polar"),
    "polar, weights": lambda: gradient_of_frame("float32", solver="polar", weights=jnp.ones(4)),
    "trust region": lambda: gradient_of_frame("float32", prox_point=Stiefel(12, 3).random_point(KEY)),
    "template": lambda: nearest_frame(means(), simplex_template(4, dtype=jnp.bfloat16), solver="polar"),
    "gram": lambda: implicit.polar_factor(means(), method="gram"),
    "products": lambda: jax.grad(lambda x: jnp.sum(implicit.polar_factor(x, derivative="products") ** 3))(means()),
    "cosine": lambda: cosine(means(), means() + 1),
    "frames": lambda: (simplex_etf(4, 6, key=KEY, dtype=jnp.bfloat16), random_unit(4, 6, key=KEY)),
    "hierarchical": lambda: hierarchical(1 - 0.5 * DISTANCES, 6, key=KEY),
    "separated": lambda: separated_template(DISTANCES, 1.0),
    "properties": lambda: (properties.coherence(means("bfloat16")), properties.is_tight(means("bfloat16"))),
    "parametrisations": lambda: [
        chosen.point(chosen.init(KEY, 5, 3, jnp.bfloat16), 5, 3) for chosen in PARAMETRISATIONS.values()
    ],
    "statistics": lambda: from_batch().update(FEATURES, LABELS).merge(from_batch()).compute(),
    "collapse": lambda: metrics.collapse_metrics(from_batch(), FRAME, BIAS),
    "vci": lambda: metrics.variability_collapse_index(from_batch()),
    "cdnv": lambda: metrics.within_class_collapse(from_batch(), "cdnv"),
    "cdnv, exponent": lambda: metrics.class_distance_normalized_variance(from_batch(), 1.5),
    "outliers": outliers,
    "depth": by_depth,
    "regression": regression,
    "tag-wise average": tag_wise,
    "ancestors": lambda: metrics.AncestorCounts.from_batch(
        LABELS, np.roll(LABELS, 1), metrics.ancestor_overlaps(TREE)
    ).compute(),
    "nearest centre": lambda: metrics.nearest_centre_agreement(FEATURES, FRAME, BIAS, from_batch().means),
    "zero-mean collapse": lambda: metrics.zero_mean_collapse(from_batch(), ORTHOGONAL),
    "nearest class": lambda: metrics.nearest_centre_accuracy(FEATURES, LABELS, from_batch().means),
    "occupancy": lambda: metrics.support_occupancy(FEATURES, LABELS, ORTHOGONAL),
    "orthogonal optimum": lambda: theory.orthogonal_certificate(FEATURES, LABELS, ORTHOGONAL, 3.0),
    "distance": lambda: metrics.nearest_etf_distance(FRAME),
    "margins": margins,
    "alignment of class vectors": alignment,
    "calibration": calibration,
    "clients": of_clients,
    "cross-entropy": lambda: losses.cross_entropy(LOGITS, LABELS),
    "alignment": lambda: losses.cosine_alignment(FEATURES, LABELS, FRAME, np.eye(K)),
    "soft labels": lambda: losses.soft_label_loss(LOGITS, LABELS, losses.soft_targets(TREE.distances())),
    "dot regression": lambda: losses.dot_regression(FEATURES, LABELS, FRAME, lengths=losses.class_lengths(COUNTS)),
    "long tails": lambda: (
        losses.balanced_softmax(LOGITS, LABELS, COUNTS),
        losses.ldam(LOGITS, LABELS, losses.ldam_margins(COUNTS), weights=losses.effective_number_weights(COUNTS)),
        losses.smoothed_cross_entropy(LOGITS, LABELS, losses.label_aware_smoothing(COUNTS)),
        losses.focal(LOGITS, LABELS),
    ),
    "levels": lambda: losses.hierarchy_aware_features(
        [jnp.asarray(LOGITS[:, :2]), jnp.asarray(LOGITS)],
        [jnp.asarray(FRAME[:, :2]), jnp.asarray(FRAME)],
        LABELS,
        TREE.levels(),
    ),
    "step, learned head": lambda: step(LearnedHead(K, radius=5.0)),
    "step, fixed head": lambda: step(FixedHead(K)),
    "step, learned scale": lambda: step(FixedHead(K, frame=nonnegative_orthogonal, learn_scale=True)),
    "step, arc-mixup": lambda: step(FixedHead(K, frame=nonnegative_orthogonal), **ARC),
    "step, nearest head": lambda: step(NearestHead(K)),
    "step, sampled nearest head": lambda: step(SampledHead(heads.nearest(K, template=jnp.asarray(FRAME)), 2)),
    "step, rotated head": lambda: step(RotatedHead(K, parametrisation="exponential")),
}


QUICK = ("polar", "cross-entropy", "step, nearest head")


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, call in CALLS.items()],
)
def test_runs_without_promotion(call):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = call()
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(found))
