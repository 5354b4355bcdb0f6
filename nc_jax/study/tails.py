"""A data set with a long tail: which classes of a run are rare."""

import numpy as np

from nc_jax.data import LabelledArrays, profile_counts, subsample
from nc_jax.data.tasks import class_order, in_order
from nc_jax.methods import TailOptions
from nc_jax.study.data import Data
from nc_jax.study.tasks import in_memory


def tailed(data: Data, options: TailOptions, seed: int) -> Data:
    """Return a data set whose training classes have the sizes of a long tail.

    The most frequent class keeps as many examples as the smallest class of the set has, so that every class can be the
    most frequent one. Classes are numbered anew, from the most frequent to the rarest. All seeds then have the same
    class sizes, but other classes are rare, and other examples are kept. The test set keeps its examples. Images in
    files are decoded: all must have one size and fit into memory.

    Args:
        data: the data set.
        options: how unequal the classes are.
        seed: seed of the run.

    Raises:
        ValueError: if the images do not have one size, a class would have no example, or the classes of a label tree
            are to be ordered by the seed.
    """
    if options.ratio is None:
        return data
    train, test = (in_memory(part) for part in (data.train, data.test))
    if not (isinstance(train, LabelledArrays) and isinstance(test, LabelledArrays)):
        raise ValueError(f"a set must be in memory to get a long tail; got {train!r}")
    order = None
    if options.order == "seed":
        if data.tree is not None:
            raise ValueError(
                "the classes of a label tree keep their order (--tail.order given); got an order drawn by the seed"
            )
        order = class_order(data.num_classes, seed)
        train, test = (in_order(part, order) for part in (train, test))
    counts = profile_counts(options.profile, data.num_classes, int(train.class_counts().min()), options.ratio)
    return data._replace(train=subsample(train, np.asarray(counts), seed=seed), test=test, order=order)
