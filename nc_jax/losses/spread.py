"""How evenly class vectors are spread over the unit sphere, as a loss: energy, separation, Gram determinant."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import at_least_float32
from nc_jax.checks import Mask, Reals, check_key, check_whole, real_array
from nc_jax.energies import log_gram_determinant, riesz_energy, separation
from nc_jax.pairs import angle_between

Objective = Literal["mhe", "mhs", "mgd"]
Reduction = Literal["mean", "sum"]


def between_class(
    frame: Reals,
    *,
    objective: Objective = "mhe",
    s: float = 2.0,  # Liu et al. (2023), released program
    gamma: float = 1.0,  # the scale of the golden values of the Gram determinant; distances lie in [0, 2]
    distance: Literal["chord", "angle"] = "chord",
    half_space: bool = False,
    reduction: Reduction = "mean",
    present: Mask | None = None,
    tile: int | None = None,
) -> Float[Array, ""]:
    r"""How far class vectors are from being spread evenly, to be minimised.

    - "mhe", minimum hyperspherical energy: the Riesz energy :math:`E_s` (`nc_jax.energies.riesz_energy`). Every pair
      repels, near pairs most.
    - "mhs", maximum hyperspherical separation: minus the least distance :math:`\min_{i \ne j} \|\hat w_i - \hat w_j\|`.
      Only the nearest pair gets a gradient.
    - "mgd", maximum Gram determinant: :math:`-\log \det G` with :math:`G_{ij} = \exp(-\gamma \|\hat w_i - \hat
      w_j\|^2)`, minus the logarithm of a volume.

    For K <= d + 1, a simplex ETF has the least value of each. For very many classes, apply it to a `class_subset`.

    Args:
        frame: class vectors as columns, shape (d, K), of any length, K >= 2.
        objective: "mhe", "mhs" or "mgd".
        s: exponent of the energy, above -2; 0 for the logarithmic one.
        gamma: of the Gram determinant, > 0, per squared distance.
        distance: "chord", the distance in space, or "angle", in radians (the distance on the sphere). The Gram matrix
            takes chords only: that of angles need not be positive.
        half_space: spread the 2 K vectors :math:`\pm \hat w_k`. Then class vectors avoid each other's opposites, too.
            The pairs of a vector with its own opposite add a constant.
        reduction: of the energy: its mean over ordered pairs, or their sum. The other objectives do not depend on it.
        present: shape (K,), which classes count; None: all of them.
        tile: number of columns whose distances to all others are in memory at once. None chooses it. The result
            depends on it by rounding only.

    Returns:
        A scalar. For equal directions it is inf (with s >= 0, or "mgd"), and this pair has no gradient. NaN for a class
        vector that is zero or not finite, and if fewer than two classes count.

    Raises:
        ValueError: if an option is unknown or out of its range, or the frame does not have shape (d, K), K >= 2.

    Example:
        >>> frame = jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]])
        >>> [round(float(between_class(frame, objective=one)), 4) for one in ("mhe", "mhs", "mgd")]
        [0.4167, -1.4142, 0.037]

    Reference: Liu et al., Generalizing and decoupling neural collapse via hyperspherical uniformity gap (HUG, 2023);
    Liu et al., Learning towards minimum hyperspherical energy (2018), for angles and half spaces; Liu et al., Learning
    with hyperspherical uniformity (2021), for separation and Gram determinant.
    """
    for name, value, allowed in (
        ("objective", objective, get_args(Objective)),
        ("distance", distance, ("chord", "angle")),
        ("reduction", reduction, get_args(Reduction)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    frame = at_least_float32(real_array(frame, "class vectors"))
    if frame.ndim != 2 or frame.shape[1] < 2:
        raise ValueError(f"class vectors must have shape (dim, classes) with classes >= 2; got {frame.shape}")
    if half_space:
        frame = jnp.concatenate([frame, -frame], axis=1)
        present = None if present is None else jnp.tile(jnp.asarray(present), 2)
    if objective == "mgd":
        if distance != "chord":
            raise ValueError(f'a Gram determinant takes distance="chord"; got {distance!r}')
        return -log_gram_determinant(frame, gamma, present=present)
    if objective == "mhs":
        least = separation(frame, present=present, tile=tile)
        return -(least if distance == "chord" else angle_between(least**2, 4 - least**2))
    return riesz_energy(frame, s, reduction=reduction, distance=distance, present=present, tile=tile)


def class_subset(frame: Reals, size: int, key: PRNGKeyArray) -> Float[Array, "dim size"]:
    """Draw class vectors at random, without repetition: a cheap estimate of `between_class` for very many classes.

    The mean energy ("mhe") of the subset is unbiased for the mean energy of all classes, and so is its gradient. The
    other two objectives are biased: the least distance of a subset is at least that of all, and its Gram determinant,
    too. Draw a new subset at every step. The cost falls with the square of `size`.

    Args:
        frame: class vectors as columns, shape (d, K).
        size: number of class vectors to draw, 2..K.
        key: random key.

    Returns:
        Shape (d, size).

    Raises:
        ValueError: if the size does not lie in 2..K, the frame is no matrix, or the key is none.

    Example:
        >>> class_subset(jnp.eye(5), 3, jax.random.key(0)).shape
        (5, 3)
    """
    frame = real_array(frame, "class vectors")
    check_key(key)
    check_whole("size", size)
    if frame.ndim != 2 or not 2 <= size <= frame.shape[1]:
        raise ValueError(f"size must lie in 2..K for class vectors of shape (dim, K); got {size} for {frame.shape}")
    return jnp.take(frame, jax.random.permutation(key, frame.shape[1])[:size], axis=1)
