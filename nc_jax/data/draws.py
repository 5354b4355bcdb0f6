"""Random numbers of the host, for sets and streams: a function of a seed and of what they are for."""

import numpy as np
from jaxtyping import Float, UInt64

from nc_jax.checks import checked_seed


def draws_for(seed: int, purpose: int, visit: int = 0) -> np.random.Philox:
    """Return a source of random numbers; its `random_raw` gives the same ones in all versions of NumPy.

    Args:
        seed: 0..2^64-1.
        purpose: 0..2^64-1. Each purpose has a number, or a range for its segments or classes, which its module names.
            Different keys give independent numbers (NumPy, Philox).
        visit: 0..2^64-1, of what is drawn several times, such as the crop of an image in each epoch.

    Raises:
        ValueError: if the seed is not a whole number in its range.
    """
    return np.random.Philox(key=checked_seed(seed) + (purpose << 64), counter=visit << 192)


def uniform(raw: UInt64[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return raw random numbers as float64 in [0, 1): the first 53 bits of each."""
    return (raw >> np.uint64(11)) * 2.0**-53
