"""Softmax over a part of the classes: logits of the other classes are filled, never multiplied."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from nc_jax.checks import Labels, Mask, Reals, as_array, checked_labels, real_array


def mask_logits(logits: Reals, allowed: Mask) -> Float[Array, "batch classes"]:
    r"""Fill logits with minus infinity, so that a softmax gives these classes the probability 0 and no gradient.

    (FNO's paper writes a product of the logits with a mask of ones and minus infinities. For logits that are zero or
    negative, that product is NaN or plus infinity. The released program fills.)

    Args:
        logits: shape (N, K).
        allowed: True where a class stays, shape (N, K) or (K,). A row needs at least one True.

    Returns:
        Shape (N, K).

    Raises:
        ValueError: if the logits do not have shape (N, K), or the mask is not boolean of shape (N, K) or (K,).

    Example:
        >>> mask_logits(jnp.array([[1.0, -2.0, 0.5]]), jnp.array([True, True, False])).tolist()
        [[1.0, -2.0, -inf]]
    """
    logits, allowed = real_array(logits, "logits"), as_array(allowed, "allowed")
    if allowed.dtype != bool:
        raise ValueError(f"allowed must be booleans, True where a class stays; got dtype {allowed.dtype}")
    if logits.ndim != 2 or allowed.shape not in (logits.shape, logits.shape[1:]):
        raise ValueError(
            f"logits must have shape (batch, classes), and a mask that or (classes,); got {logits.shape} "
            f"and {allowed.shape}"
        )
    return jnp.where(allowed, logits, -jnp.inf)


def same_task(labels: Labels, task_of_class: Int[ArrayLike, " classes"]) -> Bool[Array, "batch classes"]:
    """Return which classes belong to the task of each example's label.

    Args:
        labels: integer classes 0..K-1, shape (N,). All classes belong to the task of padding (-1).
        task_of_class: number of the task of each class, shape (K,).

    Returns:
        Shape (N, K).

    Raises:
        ValueError: if the labels are not integers of shape (N,) in -1..K-1, or the tasks not integers of shape (K,).

    Example:
        >>> same_task(jnp.array([2, 0]), jnp.array([0, 0, 1])).tolist()
        [[False, False, True], [True, True, False]]
    """
    tasks = as_array(task_of_class, "task_of_class")
    if tasks.ndim != 1 or not jnp.issubdtype(tasks.dtype, jnp.integer):
        raise ValueError(
            f"task_of_class must be integers of shape (classes,); got dtype {tasks.dtype}, shape {tasks.shape}"
        )
    tasks = jnp.asarray(tasks)
    labels = checked_labels(labels, len(tasks))
    return (tasks[jnp.clip(labels, 0, len(tasks) - 1)][:, None] == tasks) | (labels < 0)[:, None]
