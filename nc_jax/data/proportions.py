"""Whole numbers of examples by proportions: how many examples of each class each client gets."""

import numpy as np
import scipy.special
from jaxtyping import Float, Int, Num


def divided(
    totals: Int[np.ndarray, " classes"], weights: Int[np.ndarray, "clients classes"]
) -> Int[np.ndarray, "clients classes"]:
    """Divide each class among the clients in proportion to whole weights, with largest remainders.

    Args:
        totals: number of examples of each class, shape (K,).
        weights: shape (C, K), >= 0; some weight of each class that has an example is positive.

    Returns:
        Counts of shape (C, K), whose columns sum to the totals. Each is less than 1 from its exact share, and 0 where
        the weight is 0.

    Example:
        >>> divided(np.array([7, 3]), np.array([[1, 1], [1, 0], [2, 0]])).T
        array([[2, 2, 3],
               [3, 0, 0]])
    """
    counts = np.zeros_like(weights)
    for label in np.flatnonzero(totals):
        counts[:, label] = _shares(int(totals[label]), weights[:, label], counts.sum(axis=1))
    return counts


def divided_by_logs(
    totals: Int[np.ndarray, " classes"], logs: Float[np.ndarray, "classes clients"], *, capped: bool
) -> Int[np.ndarray, "clients classes"]:
    """Divide each class among the clients in proportion to weights whose logarithms are given.

    Args:
        totals: number of examples of each class, shape (K,), summing to N.
        logs: shape (K, C), finite; a weight may be too small to be a number itself.
        capped: leave out clients that have N / C examples or more of earlier classes.

    Returns:
        Counts of shape (C, K), whose columns sum to the totals.
    """
    counts = np.zeros(logs.T.shape, np.int64)
    for label in np.flatnonzero(totals):
        sizes = counts.sum(axis=1)
        # Fewer than all N examples have been dealt, so some client has fewer than N / C.
        closed = capped & (sizes * len(sizes) >= totals.sum())
        allowed = np.where(closed, -np.inf, logs[label])
        counts[:, label] = _shares(int(totals[label]), np.exp(allowed - allowed.max()), sizes)
    return counts


def filled(counts: Int[np.ndarray, "clients classes"], least: int) -> Int[np.ndarray, "clients classes"]:
    """Move examples of the largest clients, of the class that each has most of, until every client has enough.

    Args:
        counts: shape (C, K).
        least: number of examples that every client shall have, at most the mean number.

    Returns:
        Counts of shape (C, K) with the same columns' sums.

    Example:
        >>> filled(np.array([[4, 1], [0, 0]]), 2)
        array([[2, 1],
               [2, 0]])
    """
    counts = counts.copy()
    sizes = counts.sum(axis=1)
    for client in np.flatnonzero(sizes < least):
        for _ in range(least - sizes[client]):
            # Its size is above the mean, which is at least `least`, so it never becomes too small itself.
            largest = np.argmax(sizes)
            label = np.argmax(counts[largest])
            counts[largest, label] -= 1
            counts[client, label] += 1
            sizes[largest] -= 1
            sizes[client] += 1
    return counts


def log_gammas(beta: float, raw: np.ndarray) -> Float[np.ndarray, "classes clients"]:
    r"""Logarithms of Gamma(beta) variates, up to a constant for each class; their shares are Dirichlet proportions.

    G U^(1/beta) has the law Gamma(beta) if G has the law Gamma(beta + 1) and U is uniform. The logarithm of the product
    exists also where the product is below the smallest number: for beta = 0.001, nearly every second variate is.

    Args:
        beta: a finite number above 0.
        raw: raw random numbers of 64 bits, shape (2, K, C).

    Returns:
        Shape (K, C), finite.

    Reference: Marsaglia and Tsang (2000), section 6.
    """
    # 52 bits and a half, so neither 0 nor 1. G comes by the inverse of its distribution function: one raw number each.
    first, second = ((raw >> 12) + 0.5) * 2.0**-52
    powers = np.log(second)
    with np.errstate(over="ignore"):  # for beta below 1e-300, one client has a whole class, as it should
        powers = (powers - powers.max(axis=1, keepdims=True)) / beta
    powers = np.maximum(powers, -1e300)
    return powers + np.log(scipy.special.gammaincinv(beta + 1, first))


def _shares(
    total: int, weights: Num[np.ndarray, " clients"], sizes: Int[np.ndarray, " clients"]
) -> Int[np.ndarray, " clients"]:
    """Divide a number by weights with largest remainders; of equal remainders, that of the smaller client is larger."""
    shares, rest = np.divmod(weights * total, weights.sum())
    shares = shares.astype(np.int64)
    shares[np.lexsort((sizes, -rest))[: total - shares.sum()]] += 1
    return shares
