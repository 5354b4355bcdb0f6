"""A data set as a sequence of tasks.

A task is a part of the classes (class- and task-incremental learning), or has all classes, whose inputs are changed in
another way in each task (domain-incremental learning).

Reference: van de Ven and Tolias, Three scenarios for continual learning (2019).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int

from nc_jax.checks import check_at_least
from nc_jax.data.arrays import LabelledArrays
from nc_jax.data.draws import draws_for

Change = Literal["permute", "rotate"]
# The high half of the random key tells the purpose of the numbers.
_ORDER, _CHANGE, _SHOTS = 1 << 61, (1 << 61) + 1, (1 << 61) + 2


def equal_tasks(num_classes: int, num_tasks: int, *, base: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Divide the classes into tasks of equally many, in their order; the first task may have another number.

    Args:
        num_classes: K >= 1.
        num_tasks: T >= 1.
        base: number of classes of the first task, the base session; None: as many as in the others.

    Returns:
        For each task, its K / T classes; with a base session, (K - base) / (T - 1) in each task after it.

    Raises:
        ValueError: if the classes cannot be divided in this way.

    Example:
        >>> equal_tasks(6, 3)
        ((0, 1), (2, 3), (4, 5))
        >>> equal_tasks(6, 3, base=4)
        ((0, 1, 2, 3), (4,), (5,))
    """
    if base is not None:
        rest, later = num_classes - base, num_tasks - 1
        if base < 1 or later < 1 or rest < 1 or rest % later:
            raise ValueError(
                "a base session must leave equally many classes, at least one, to each task after it; "
                f"got {base} of {num_classes} classes and {num_tasks} tasks"
            )
        start, size = base, rest // later
        return (
            tuple(range(start)),
            *(tuple(range(first, first + size)) for first in range(start, num_classes, size)),
        )
    if num_tasks < 1 or num_classes < num_tasks or num_classes % num_tasks:
        raise ValueError(f"tasks must divide the classes into equal parts; got {num_tasks} for {num_classes} classes")
    size = num_classes // num_tasks
    return tuple(tuple(range(start, start + size)) for start in range(0, num_classes, size))


def task_of_class(tasks: Sequence[Sequence[int]], num_classes: int) -> Int[np.ndarray, " classes"]:
    """Return the number of the task of each class.

    Args:
        tasks: for each task, its classes; every class is in one task.
        num_classes: K.

    Returns:
        Numbers 0..T-1, shape (K,). `task_of_class(...)[arrays.labels]` are the tasks of examples.

    Raises:
        ValueError: if a task is empty, a number is no class, or a class is in two tasks or in none.

    Example:
        >>> task_of_class([(2, 0), (1, 3)], 4)
        array([0, 1, 0, 1])
    """
    found = np.full(num_classes, -1)
    for number, classes in enumerate(tasks):
        if not len(classes):
            raise ValueError(f"every task needs a class; task {number} has none")
        for label in classes:
            if not 0 <= label < num_classes:
                raise ValueError(f"classes must lie in 0..{num_classes - 1}; got {label} in task {number}")
            if found[label] >= 0:
                raise ValueError(f"a class belongs to one task; got class {label} in tasks {found[label]} and {number}")
            found[label] = number
    if (found < 0).any():
        raise ValueError(f"every class belongs to a task; class {np.argmin(found)} is in none")
    return found


def class_order(num_classes: int, seed: int) -> Int[np.ndarray, " classes"]:
    """Return a random order of the classes, shape (K,), which depends only on the arguments."""
    return np.argsort(draws_for(seed, _ORDER).random_raw(num_classes), kind="stable")


def in_order(arrays: LabelledArrays, order: Int[np.ndarray, " classes"] | Sequence[int]) -> LabelledArrays:
    """Number the classes anew: the examples of class order[k], and its name, get the label k.

    Args:
        arrays: examples of K classes.
        order: a permutation of 0..K-1, shape (K,).

    Raises:
        ValueError: if the order is no permutation of the classes.

    Example:
        >>> arrays = LabelledArrays(np.zeros((3, 1)), np.array([0, 1, 2]), 3, ("a", "b", "c"))
        >>> found = in_order(arrays, np.array([2, 0, 1]))
        >>> found.labels, found.class_names
        (array([1, 2, 0], dtype=int32), ('c', 'a', 'b'))
    """
    order = np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(arrays.num_classes)):
        raise ValueError(f"an order must hold each of the {arrays.num_classes} classes once; got {order.tolist()}")
    names = tuple(arrays.class_names[label] for label in order)
    return dataclasses.replace(arrays, labels=np.argsort(order)[arrays.labels], class_names=names)


def few_shots(
    labels: Int[np.ndarray, " examples"], tasks: Int[np.ndarray, " classes"], shots: int, *, seed: int
) -> Bool[np.ndarray, " examples"]:
    """Choose some examples of each class of all tasks but the first, at random; of the first task, all examples.

    Args:
        labels: classes of the examples, shape (N,).
        tasks: number of the task of each class, shape (K,).
        shots: number of examples of each later class, >= 1.
        seed: random seed, 0..2^64-1.

    Returns:
        Which examples are kept, shape (N,).

    Raises:
        ValueError: if `shots` is below 1, or a later class has fewer examples.

    Example:
        >>> few_shots(np.array([0, 1, 0, 1, 1]), np.array([0, 1]), 2, seed=0)
        array([ True,  True,  True,  True, False])
    """
    later = np.flatnonzero(tasks > 0)
    counts = np.bincount(labels, minlength=len(tasks))[later]
    if shots < 1 or (counts < shots).any():
        least = later[np.argmin(counts)]
        raise ValueError(
            "shots must lie between 1 and the number of training examples of each class after the first task; "
            f"got {shots}, and class {least} has {counts.min()}"
        )
    numbers = draws_for(seed, _SHOTS).random_raw(len(labels))
    kept = tasks[labels] == 0
    for label in later:
        members = np.flatnonzero(labels == label)
        kept[members[np.argsort(numbers[members], kind="stable")[:shots]]] = True
    return kept


def domains(arrays: LabelledArrays, num_tasks: int, change: Change, *, seed: int) -> LabelledArrays:
    """Repeat a data set for each task, with inputs that are changed in another way each time.

    Task 0 has the inputs as they are. Example i of task t has the number t N + i.

    Args:
        arrays: N examples.
        num_tasks: T >= 1.
        change: "permute" puts the numbers of every input into another, random order. "rotate" rotates images by a
            random angle, uniform in [0, 180) degrees.
        seed: random seed of the changes, 0..2^64-1. Training and test set need the same.

    Returns:
        T N examples of the same classes.

    Raises:
        ValueError: if T < 1, or if vectors are to be rotated.

    Example:
        >>> domains(LabelledArrays(np.ones((4, 8, 8, 1)), np.arange(4), 4), 3, "rotate", seed=0)
        LabelledArrays(12 examples of shape (8, 8, 1) float64, 4 classes)

    Reference: permuted MNIST as in Kirkpatrick et al. (2017); rotated MNIST as in Lopez-Paz and Ranzato (2017).
    """
    check_at_least("num_tasks", num_tasks)
    if change not in get_args(Change):
        raise ValueError(f"change must be one of {', '.join(get_args(Change))}; got {change!r}")
    inputs = arrays.inputs
    if change == "rotate" and inputs.ndim < 3:
        raise ValueError(f"images are rotated; got inputs of shape {inputs.shape[1:]}")
    numbers = draws_for(seed, _CHANGE)
    changed = [inputs]
    for _ in range(1, num_tasks):
        if change == "permute":
            flat = inputs.reshape(len(inputs), -1)
            order = np.argsort(numbers.random_raw(flat.shape[1]), kind="stable")
            changed.append(flat[:, order].reshape(inputs.shape))
        else:
            angle = 180 * (int(numbers.random_raw()) >> 11) * 2.0**-53
            changed.append(scipy.ndimage.rotate(inputs, angle, axes=(1, 2), reshape=False, order=1))
    return dataclasses.replace(arrays, inputs=np.concatenate(changed), labels=np.tile(arrays.labels, num_tasks))
