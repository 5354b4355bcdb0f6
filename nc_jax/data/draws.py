"""Random numbers of the host, for sets and streams: a function of a seed and of what they are for."""

import numpy as np

from nc_jax.checks import checked_seed


def draws_for(seed: int, purpose: int) -> np.random.Philox:
    """Return a source of random numbers; its `random_raw` gives the same ones in all versions of NumPy.

    Args:
        seed: 0..2^64-1.
        purpose: 0..2^64-1. Each purpose has a number, or a range for its segments or classes, which its module names.
            Different keys give independent numbers (NumPy, Philox).

    Raises:
        ValueError: if the seed is not a whole number in its range.
    """
    return np.random.Philox(key=checked_seed(seed) + (purpose << 64))
