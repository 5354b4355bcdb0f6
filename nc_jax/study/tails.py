"""A data set with a long tail: which classes of a run are rare."""

from typing import Any

from nc_jax.data import profile_counts, subsample
from nc_jax.methods import TailOptions
from nc_jax.study.data import Data
from nc_jax.study.tasks import both_in_memory, in_seed_order


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
    data = both_in_memory(data, "get a long tail")
    if options.order == "seed":
        data = in_seed_order(data, seed, "--tail.order given")
    train: Any = data.train
    counts = profile_counts(options.profile, data.num_classes, int(train.class_counts().min()), options.ratio)
    return data._replace(train=subsample(train, counts, seed=seed))
