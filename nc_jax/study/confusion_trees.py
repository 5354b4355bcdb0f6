"""A label tree made of a classifier's confusions, for data sets that come without one."""

from pathlib import Path

import jax
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance

from nc_jax import hierarchy
from nc_jax.data import LabelledArrays
from nc_jax.files import write_atomically
from nc_jax.hierarchy import LabelTree
from nc_jax.study.comparison import Measure, Session, nothing
from nc_jax.study.config import changed
from nc_jax.study.data import Data
from nc_jax.study.settings import Comparison, Group
from nc_jax.study.trainers import SPLITS, data_of, make_stream, make_trainer
from nc_jax.training import NonFiniteError, ResidentSet

SEED = 1000  # of the classifiers whose confusions are counted: none that a comparison uses


def make(config: Comparison, directory: Path, *, measure: Measure = nothing, score: str = "test/error") -> Path:
    """Write the tree of the confusions of plain cross-entropy, unless an earlier attempt at the run has.

    Args:
        config: settings of the training; where there are several learning rates, the best one is chosen first.
        directory: directory of the run.
        measure: finds the score of a run.
        score: name of the number that decides between learning rates; less is better.

    Returns:
        Path of the tree, as lines of parent and child.
    """
    path = directory / "tree.parent_child.txt"
    if not path.exists():
        settings = changed(config, {"data.tree": "flat"})
        # Named apart from the comparison's own runs of the method, which know the tree.
        group, data = Group("", "for the tree", "ce", settings), data_of(settings)
        if settings.candidates():
            total = len(settings.candidates()) * SPLITS * settings.loop.epochs
            with Session(directory, total, measure) as session:
                group = group.at(session.choose(group, data, score, settings.loop.epochs))
        write_atomically(path, _lines(confusion_tree(group, data)))
    return path


def confusion_tree(group: Group, data: Data) -> LabelTree:
    """Cluster the classes by what a method confuses on one half of the training set after learning the other.

    Complete linkage of 1 - (C + C^T) / 2, with C the mean predicted probabilities of each class; the test set plays no
    part. (Average linkage makes one large cluster of the digits and two of one class: all these distances are close to
    1.)

    Args:
        group: the method and its settings.
        data: the training set must be in memory.
    """
    train_set = data.train
    assert isinstance(train_set, LabelledArrays), "held-out parts are taken of sets in memory"
    count = train_set.num_classes
    confusion = np.zeros((count, count))
    halves = np.random.default_rng(0).permutation(len(train_set)) % 2
    for half in (0, 1):
        part = data.held_out(halves != half)
        trainer, stream = make_trainer(group, part), make_stream(group, part)
        state = trainer.init(part.train, seed=SEED)
        content = ResidentSet(part.train, stream.batch_size, devices=trainer.devices).content  # pyright: ignore
        for segment in range(len(stream.ends)):
            plan = stream.plan(SEED, segment)
            state = trainer.segment(state, None, content, plan, 0, len(plan.index))
        if not state.totals.finite:
            raise NonFiniteError(f"a classifier whose confusions make a tree must converge; {group.label} met a NaN")
        for output, batch in trainer.outputs(state, part.test):
            labels, softmax = map(batch.without_padding, (batch.labels, jax.nn.softmax(output.logits)))
            np.add.at(confusion, labels, softmax)
    confusion /= confusion.sum(axis=1, keepdims=True)
    distances = 1 - (confusion + confusion.T) / 2
    np.fill_diagonal(distances, 0)
    linkage = scipy.cluster.hierarchy.complete(scipy.spatial.distance.squareform(distances, checks=False))
    cuts = [cut for cut in (max(count // 10, 2), max(count // 3, 3)) if cut < count]
    return hierarchy.from_linkage(linkage, train_set.class_names, cuts=[*cuts, count]).ordered(train_set.class_names)


def _lines(tree: LabelTree) -> str:
    edges = zip(np.asarray(tree.parents)[1:], tree.nodes[1:], strict=True)
    return "".join(f"{tree.nodes[parent]}\t{child}\n" for parent, child in edges)
