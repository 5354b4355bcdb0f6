"""A data set as the tasks of one run: what a seed trains and tests on."""

import dataclasses
import functools
from typing import Any

import numpy as np

from nc_jax.data import LabelledArrays
from nc_jax.data.images import ImageSource
from nc_jax.data.tasks import class_order, domains, equal_tasks, few_shots, in_order, task_of_class
from nc_jax.methods import ContinualOptions
from nc_jax.study.data import Data


def arranged(data: Data, options: ContinualOptions, seed: int) -> Data:
    """Return a data set as a sequence of tasks, of which the classes or inputs may depend on the seed.

    In the scenarios "class" and "task", labels are numbered anew, such that each task has labels in a row and later
    tasks have larger ones: task t has the K / T labels from t K / T on, if all tasks are alike. Images in files are
    decoded, as they are stored: all must have one size and fit into memory.

    Args:
        data: the data set.
        options: how many tasks, and what a task is.
        seed: seed of the run.

    Raises:
        ValueError: if the images do not have one size, the tasks do not divide the classes, a task has no training or
            no test example, a class has fewer examples than are to be kept of it, or the classes of a label tree are to
            be ordered by the seed.
    """
    if options.tasks == 1:
        return data
    data = both_in_memory(data, "be cut into tasks")
    train: Any = data.train
    test: Any = data.test
    if options.scenario == "domain":
        train, test = (domains(part, options.tasks, options.change, seed=seed) for part in (train, test))
        numbers = [np.repeat(np.arange(options.tasks), len(part) // options.tasks) for part in (train, test)]
        # Moved pixels do not keep the bounds of their places.
        return data._replace(train=train, test=test, tasks=(numbers[0], numbers[1]), bounds=None)
    tasks = tasks_of_classes(data.num_classes, options)
    if options.order == "seed":
        data = in_seed_order(data, seed, "--continual.order given")
        train, test = data.train, data.test
    if options.shots is not None:
        train = train.subset(few_shots(train.labels, tasks, options.shots, seed=seed))
    numbers = tasks[train.labels], tasks[test.labels]
    for part in numbers:
        empty = np.flatnonzero(np.bincount(part, minlength=options.tasks) == 0)
        if empty.size:
            raise ValueError(f"every task needs an example; task {empty[0]} of 0..{options.tasks - 1} has none")
    return data._replace(train=train, tasks=numbers)


def both_in_memory(data: Data, purpose: str) -> Data:
    """Return a data set of which training and test set are arrays.

    Raises:
        ValueError: if they cannot be; `purpose` says what they had to be arrays for.
    """
    train, test = (_in_memory(part) for part in (data.train, data.test))
    if not (isinstance(train, LabelledArrays) and isinstance(test, LabelledArrays)):
        raise ValueError(f"a set must be in memory to {purpose}; got {train!r}")
    return data._replace(train=train, test=test)


def in_seed_order(data: Data, seed: int, flag: str) -> Data:
    """Return a data set with its classes in an order that the seed draws.

    Raises:
        ValueError: if there is a label tree; `flag` is what keeps the order of its classes.
    """
    if data.tree is not None:
        raise ValueError(f"the classes of a label tree keep their order ({flag}); got an order drawn by the seed")
    order = class_order(data.num_classes, seed)
    train, test = (in_order(part, order) for part in (data.train, data.test))  # pyright: ignore[reportArgumentType]
    return data._replace(train=train, test=test, order=order if data.order is None else data.order[order])


def tasks_of_classes(num_classes: int, options: ContinualOptions) -> np.ndarray:
    """Return the number of the task of each class, in the order in which `arranged` numbers the classes, shape (K,).

    Raises:
        ValueError: if the tasks do not divide the classes.
    """
    return task_of_class(equal_tasks(num_classes, options.tasks, base=options.base), num_classes)


@functools.lru_cache(maxsize=2)  # the two sets of a run; decoding takes long
def _in_memory(source: Any) -> Any:
    """Return images that are decoded on demand as arrays: tasks need the labels of all examples."""
    if not isinstance(source, ImageSource):
        return source
    whole = dataclasses.replace(source, size=None, seed=None, stretch=False)
    return whole.in_memory(whole[0]["image"].shape)
