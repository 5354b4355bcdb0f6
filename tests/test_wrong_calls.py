"""Calls that would give a plausible number for something else: each is refused, and the argument named."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.cluster.hierarchy

from nc_jax import heads
from nc_jax.data import LabelledArrays
from nc_jax.data.clients import partition_statistics
from nc_jax.data.partition import iid
from nc_jax.data.tasks import class_order, domains, equal_tasks
from nc_jax.frames import owner, simplex_etf
from nc_jax.hierarchy import LabelTree, from_linkage, similarity
from nc_jax.losses import arc_mixup, label_trees, levels, masks
from nc_jax.metrics import (
    AncestorCounts,
    ClassStatistics,
    HierarchyStatistics,
    Nci,
    collapse_metrics,
    equinorm,
    expected_calibration_error,
    similarity_errors,
    usual_top,
)
from nc_jax.models import MLP
from nc_jax.solvers import describe
from nc_jax.streams import Epochs, Replay, Weighted, batches, locate, steps_per_epoch
from nc_jax.theory import Point, UnconstrainedFeatures, certificate, objective
from nc_jax.training import (
    AlignmentSlerp,
    LogitMemory,
    LoopOptions,
    OptimizerOptions,
    StepOptions,
    TaskSoftmax,
    agd,
)

LABELS = np.repeat([0, 1, 2], 4)
SET = LabelledArrays(np.ones((12, 8, 8, 1)), LABELS, 3)
D = np.array([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
TREE = LabelTree.from_edges([("root", "a"), ("root", "b")])
LINKAGE = scipy.cluster.hierarchy.complete([1.0, 2.0, 3.0, 2.0, 3.0, 3.0])
SCORES, ONES = np.zeros((3, 3)), jnp.ones((3, 3))
PROBLEM = UnconstrainedFeatures((2, 2, 2), 3, 0.01, 0.01, 0.01)


def ranked(scores=SCORES, distances=D, **options):
    return HierarchyStatistics.from_batch(scores, np.arange(3), distances, (1, 2), **options)


WRONG = {
    "seed must be a whole number in 0..2^64-1; got 1.5": lambda: iid(LABELS, 2, seed=1.5),
    "seed must be a whole number in 0..2^64-1; got True": lambda: class_order(5, True),
    "seed must be a whole number in 0..2^64-1; got -1": lambda: class_order(5, -1),
    "seed must be a whole number in 0..2^64-1; got 2.0": lambda: batches(SET, 3, seed=2.0, num_steps=1),
    "name must be one of sgd, adam, adamw, agd, lbfgs; got 'Adam'": lambda: OptimizerOptions(name="Adam"),
    "schedule must be one of constant, step, multistep, cosine, one-cycle; got 'Cosine'": lambda: OptimizerOptions(
        schedule="Cosine"
    ),
    "change must be one of permute, rotate; got 'turn'": lambda: domains(SET, 2, "turn", seed=0),
    "tasks must divide the classes into equal parts; got 3 for 0 classes": lambda: equal_tasks(0, 3),
    "indices must lie in 0..11; got -1": lambda: SET.take(np.array([0, -1])),
    "top must hold the 2 values of from_batch; got (1, 2, 3)": lambda: ranked().compute((1, 2, 3)),
    "distances must be whole numbers of at least 0; got 0.5 for classes 0 and 1": lambda: ranked(distances=D / 2),
    "distances must be 0 from a class to itself; got 1.0 for 0": lambda: ranked(distances=np.ones((3, 3), int)),
    "distances must be at most max_distance=1; got 2": lambda: ranked(max_distance=1),
    "distances must have shape (3, 3); got (3, 4)": lambda: ranked(distances=np.ones((3, 4), int)),
    "statistics must agree in max_distance and the number of values of k; got (2, 2) and (4, 2)": lambda: (
        ranked().merge(ranked(max_distance=4))
    ),
    "a ranking needs num_classes of at least 2; got -1": lambda: usual_top(-1),
    "overlaps must have shape (classes, classes); got (3, 2)": lambda: AncestorCounts.from_batch(
        np.zeros(2, int), np.zeros(2, int), np.ones((3, 2), int)
    ),
    "similarity must have shape (3, 3), a cosine for each pair; got (3,)": lambda: similarity_errors(ONES, np.ones(3)),
    "allowed must be booleans, True where a class stays; got dtype float64": lambda: masks.mask_logits(
        ONES, np.array([0.0, -np.inf, 0.0])
    ),
    "task_of_class must be integers of shape (classes,); got dtype int64, shape ()": lambda: masks.same_task(
        np.arange(3), np.int64(3)
    ),
    "distributions must have the same shape (batch, nodes); got (3, 3) and ()": lambda: levels.jensen_shannon(
        ONES, 1.0
    ),
    "parents must be 3 numbers in 0..1, one for each node": lambda: levels.summed_probabilities(
        ONES, np.array([1, 1, 2]), 2
    ),
    "logits of level 0 must have shape (3, 2); got (3, 9)": lambda: levels.level_cross_entropies(
        [np.ones((3, 9)), np.ones((3, 3))], np.arange(3), np.array([[0, 0, 1], [0, 1, 2]])
    ),
    "distances must have shape (3, 3); got (3,)": lambda: label_trees.conditional_risk_scores(ONES, np.arange(3.0)),
    "distances must be finite numbers of at least 0; got -1.0 for classes 0 and 0": lambda: label_trees.soft_targets(
        -np.ones((2, 2))
    ),
    "distances must be above 0 for some pair of classes; got zeros only": lambda: label_trees.soft_targets(
        np.zeros((2, 2))
    ),
    "alpha must be a finite number of at least 0; got -1.0": lambda: label_trees.level_weights(TREE, -1.0),
    "a share of arc-mixup must lie in [0, 1]; got a number outside": lambda: arc_mixup.arc_weights(2.5),
    "weights must be two arrays of shape (3,), one number for each example; got [(), ()]": lambda: (
        arc_mixup.arc_log_loss(ONES, jnp.eye(3), np.arange(3), np.arange(3), (0.5, 0.5))
    ),
    "a frame must be finite; got a NaN or an infinity": lambda: owner(np.array([[np.nan, 0], [0, 1.0]])),
    "clip must lie in [-1, 1), a similarity of different classes; got 1.5": lambda: similarity(D, clip=1.5),
    "cuts must be ascending numbers of nodes; got [3, 2]": lambda: from_linkage(LINKAGE, "abcd", cuts=[3, 2]),
    "num_bins must be a whole number; got 2.5": lambda: expected_calibration_error(ONES, np.arange(3), num_bins=2.5),
    "parents must be -1 for the root and come before their children; got (-1, 2, 1)": lambda: LabelTree(
        ("r", "a", "b"), (-1, 2, 1), ("a", "b")
    ),
    "a tree needs a parent for each node, and its leaves as classes; got 3 nodes, 3 parents and 1 classes": lambda: (
        LabelTree(("r", "a", "b"), (-1, 0, 0), ("a",))
    ),
    "key must be a random key, as jax.random.key(0) makes one; got": lambda: simplex_etf(
        3, 4, key=jnp.zeros(3, jnp.uint32)
    ),
    "a status is one of": lambda: describe(-0.5),
    "a number of examples must be a whole number; got 2.5": lambda: UnconstrainedFeatures((2.5, 2, 2), 3, 0.01, 0.01),
    "bias must have shape (3,); got ()": lambda: objective(PROBLEM, Point(ONES, ONES, jnp.ones(()))),
    "capacity must be a whole number; got 2.5": lambda: LogitMemory(2.5, 1.0),
    "every of a correction must be a whole number; got nan": lambda: AlignmentSlerp(0.1, every=np.nan),
    "devices must be at least 1, or None; got 0": lambda: LoopOptions(devices=0),
    "the task of a class must be at least 0; got -1": lambda: TaskSoftmax((0, -1)),
    "the gain must be positive and finite; got nan": lambda: agd(np.nan),
    "accumulate must be a whole number; got 1.5": lambda: StepOptions(accumulate=1.5),
    "epochs must be a whole number; got nan": lambda: Epochs(SET, 4, np.nan),
    "draw_size of a replay memory must be a whole number; got nan": lambda: Replay(Epochs(SET, 4), 2, np.nan),
    "batch_size must be a whole number; got 2.5": lambda: steps_per_epoch(12, 2.5),
    "step must be a whole number; got 1.5": lambda: locate(Epochs(SET, 4), 1.5),
    "seed must be a whole number in 0..2^64-1; got False": lambda: Weighted(SET, 4, 1).plan(False, 0),
    "the number of steps of the first stage must be a whole number; got 1.5": lambda: heads.staged(
        heads.learned(3), heads.learned(3), 1.5
    ),
    "the number of sampled classes must be a whole number; got 1.5": lambda: heads.sampled(heads.learned(3), 1.5),
    "radius must be positive and finite, or None; got nan": lambda: heads.fixed(3, radius=np.nan),
    "num_classes must be a whole number; got None": lambda: ClassStatistics.from_batch(ONES, LABELS[:3], None),
    "num_classes must be a whole number; got '4'": lambda: ClassStatistics.init("4", 3),
    "stats must be class statistics, which ClassStatistics.from_batch(features, labels, num_classes) makes; got shape "
    "(12, 2) of float64": lambda: collapse_metrics(np.ones((12, 2)), LABELS),
    "ddof must be at least 0; got -1": lambda: equinorm(ONES, ddof=-1),
    "alpha must be a finite number of at least 0; got nan": lambda: Nci.fit(
        ClassStatistics.from_batch(ONES, np.arange(3), 3), ONES, np.nan
    ),
    "a width must be at least 1; got 0": lambda: MLP((0,), 3).init(jax.random.key(0), ONES),
    "tolerance must lie in (0, 1); got inf": lambda: certificate(
        PROBLEM, Point(ONES, ONES, jnp.ones(3)), tolerance=np.inf
    ),
}


@pytest.fixture(autouse=True)
def as_in_production(monkeypatch):
    """Without the types that the tests check around every function."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_call_is_refused_in_a_sentence(sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        WRONG[sentence]()


def test_what_is_not_defined_is_nan():
    assert np.isnan(similarity_errors(np.zeros((2, 3)), np.eye(3))["mean"])
    scores = np.array([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]])
    found = ranked(scores).compute((1, 2))
    assert np.isnan([found[name] for name in ("top1", "mistake_severity", "ahd@1", "rank_severity")]).all()


def test_numbers_of_numpy_are_seeds_and_large_counts_do_not_overflow():
    np.testing.assert_array_equal(class_order(5, np.int64(3)), class_order(5, 3))
    counts = np.array([[4_000_000_000, 0], [0, 4_000_000_000]], np.int64)
    assert partition_statistics(counts).effective_clients == pytest.approx(2)
