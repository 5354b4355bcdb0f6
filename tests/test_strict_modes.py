"""Metrics, losses and steps under JAX's strict modes, in which no rank and no dtype is promoted without a word."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import PAIRS

from nc_jax import losses, metrics
from nc_jax.data import Batch
from nc_jax.hierarchy import LabelTree
from nc_jax.models import MLP, Classifier, LearnedHead, NearestHead
from nc_jax.training import StepOptions, create_state, make_train_step

K, DIM, N = 4, 6, 12
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.normal(size=(N, DIM)).astype(np.float32), np.arange(N) % K
FRAME, BIAS = RNG.normal(size=(DIM, K)).astype(np.float32), np.ones(K, np.float32)
TREE = LabelTree.from_edges(PAIRS)


def from_batch():
    return metrics.ClassStatistics.from_batch(FEATURES, LABELS, K)


def margins():
    sums = metrics.MarginSums.from_batch(metrics.cosine_margins(FEATURES, FRAME, LABELS), LABELS)
    return sums.merge(sums).compute()


def step(head):
    model, optimizer = Classifier(MLP((8,), DIM), head), optax.sgd(0.1, 0.9)
    state = create_state(model, optimizer, jax.random.key(0), FEATURES[:1], average=True)
    take = make_train_step(model, optimizer, options=StepOptions(accumulate=2, average_decay=0.9))
    return jax.jit(take)(state, Batch.of(FEATURES, LABELS))[1]


LOGITS = FEATURES @ FRAME
CALLS = {
    "statistics": lambda: from_batch().update(FEATURES, LABELS).merge(from_batch()).compute(),
    "collapse": lambda: metrics.collapse_metrics(from_batch(), FRAME, BIAS),
    "vci": lambda: metrics.variability_collapse_index(from_batch()),
    "cdnv": lambda: metrics.within_class_collapse(from_batch(), "cdnv"),
    "nearest centre": lambda: metrics.nearest_centre_agreement(FEATURES, FRAME, BIAS, from_batch().means),
    "distance": lambda: metrics.nearest_etf_distance(FRAME),
    "margins": margins,
    "cross-entropy": lambda: losses.cross_entropy(LOGITS, LABELS),
    "alignment": lambda: losses.cosine_alignment(FEATURES, LABELS, FRAME, np.eye(K)),
    "soft labels": lambda: losses.soft_label_loss(LOGITS, LABELS, losses.soft_targets(TREE.distances())),
    "levels": lambda: losses.hierarchy_aware_features(
        [jnp.asarray(LOGITS[:, :2]), jnp.asarray(LOGITS)],
        [jnp.asarray(FRAME[:, :2]), jnp.asarray(FRAME)],
        LABELS,
        TREE.levels(),
    ),
    "step, learned head": lambda: step(LearnedHead(K, radius=5.0)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_runs_without_promoting_ranks(call):
    with jax.numpy_rank_promotion("raise"):
        jax.block_until_ready(call())


@pytest.mark.parametrize("call", [*CALLS.values(), lambda: step(NearestHead(K))], ids=[*CALLS, "step, nearest head"])
def test_runs_without_promoting_dtypes(call):
    with jax.numpy_dtype_promotion("strict"):
        jax.block_until_ready(call())
