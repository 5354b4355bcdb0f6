r"""Continual learning: what is left of old tasks, from the accuracies after each task.

All functions take the matrix R of shape (T, T): :math:`R_{t i}` is the accuracy on task i after training on the tasks
0..t, in the order in which they came. Entries above the diagonal are accuracies on tasks that are still to come. Only
`forward_transfer` reads them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nc_jax.checks import Reals, real_array


def average_accuracy(matrix: Reals) -> Float[Array, ""]:
    r"""Mean accuracy over all tasks after the last one: :math:`\frac1T \sum_i R_{T-1,i}`.

    Args:
        matrix: R, shape (T, T).

    Raises:
        ValueError: if the matrix is not square.

    Example:
        >>> round(float(average_accuracy(jnp.array([[0.9, 0.0], [0.6, 0.8]]))), 6)
        0.7
    """
    return jnp.mean(_square(matrix)[-1])


def forgetting(matrix: Reals) -> Float[Array, ""]:
    r"""How much accuracy old tasks have lost since they were at their best, on average.

    .. math:: \frac{1}{T-1} \sum_{i<T-1} \Big( \max_{i \le t < T-1} R_{t i} - R_{T-1,i} \Big)

    Args:
        matrix: R, shape (T, T).

    Returns:
        A difference of accuracies, in their unit; negative if old tasks have gained. NaN for one task.

    Raises:
        ValueError: if the matrix is not square.

    Example:
        >>> round(float(forgetting(jnp.array([[0.9, 0.0], [0.6, 0.8]]))), 6)
        0.3

    Reference: Chaudhry et al., Riemannian walk for incremental learning (2018). (The released program of
    FNO lets the maximum run over the last row, too, so that no task can gain.)
    """
    matrix = _square(matrix)
    learned = jnp.tril(jnp.ones(matrix.shape, bool))[:-1]
    best = jnp.max(jnp.where(learned, matrix[:-1], -jnp.inf), axis=0, initial=-jnp.inf)
    return jnp.mean((best - matrix[-1])[:-1])


def backward_transfer(matrix: Reals) -> Float[Array, ""]:
    r"""How training on later tasks changes the accuracy on a task, on average.

    .. math:: \frac{1}{T-1} \sum_{i<T-1} (R_{T-1,i} - R_{i i})

    Args:
        matrix: R, shape (T, T).

    Returns:
        A difference of accuracies, in their unit; negative where tasks are forgotten. NaN for one task.

    Raises:
        ValueError: if the matrix is not square.

    Reference: Lopez-Paz and Ranzato, Gradient episodic memory for continual learning (2017), equation (3).
    """
    matrix = _square(matrix)
    return jnp.mean((matrix[-1] - jnp.diagonal(matrix))[:-1])


def forward_transfer(matrix: Reals, untrained: Reals) -> Float[Array, ""]:
    r"""How training on earlier tasks changes the accuracy on a task before it is trained, on average.

    .. math:: \frac{1}{T-1} \sum_{i>0} (R_{i-1,i} - b_i)

    Args:
        matrix: R, shape (T, T).
        untrained: accuracies b of the untrained model on every task, shape (T,).

    Returns:
        A difference of accuracies, in their unit. NaN for one task.

    Raises:
        ValueError: if the matrix is not square, or there is not one accuracy of the untrained model per task.

    Reference: Lopez-Paz and Ranzato, Gradient episodic memory for continual learning (2017), equation (4).
    """
    matrix, untrained = _square(matrix), real_array(untrained, "accuracies of the untrained model")
    if untrained.shape != matrix.shape[:1]:
        raise ValueError(
            f"the untrained model has an accuracy for each of the {len(matrix)} tasks; got shape {untrained.shape}"
        )
    return jnp.mean(jnp.diagonal(matrix, offset=1) - untrained[1:])


def _square(matrix: Reals) -> Float[Array, "tasks tasks"]:
    matrix = real_array(matrix, "accuracies")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"accuracies must have shape (tasks, tasks); got {matrix.shape}")
    return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
