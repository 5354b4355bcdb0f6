"""The usual linear classifier, whose class vectors are free parameters: the baseline of every comparison."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nc_jax.arrays import safe_norm
from nc_jax.heads.head import Declared, Head, Initial, constant
from nc_jax.heads.output import HeadOutput, check_radius, check_width, scale_features
from nc_jax.heads.sampling import of_columns
from nc_jax.manifolds import Oblique


def learned(
    num_classes: int,
    *,
    radius: float | None = None,  # as in a plain linear classifier
    normalize_columns: bool = False,  # as in a plain linear classifier
    use_bias: bool = True,  # as in a plain linear classifier
    class_scales: bool = False,  # as in a plain linear classifier
    on_sphere: bool = False,  # as in a plain linear classifier
) -> Head:
    """Linear classifier whose parameters `kernel` (d, K) and `bias` (K,) are trained.

    With `class_scales`, a third parameter `scales` (K,), at first 1, multiplies the class vectors. Learnable weight
    scaling (LWS) trains nothing else in its second stage; see `nc_jax.training.frozen`.

    With `on_sphere`, the columns of `kernel` start at unit length and are points of a manifold: wrap the optimiser with
    `nc_jax.optim.on_manifold`, which renormalises them after each step (`nc_jax.study` does so automatically). With
    `normalize_columns` instead, steps along the sphere make the columns longer, and then turn them less and less.

    Args:
        num_classes: K.
        radius: length to which every feature vector is scaled; None leaves the features as they are.
        normalize_columns: divide each column of `kernel` by its length, so that class vectors have unit length.
        use_bias: learn a bias.
        class_scales: learn a number for each class that multiplies its class vector, after `normalize_columns`, and not
            its bias. (In the released program it multiplies the bias, too.)
        on_sphere: keep the columns of `kernel` on the unit sphere.

    Raises:
        ValueError: if the radius is not positive; from `apply`, if the features do not have shape (N, d).

    Example:
        >>> params, state = learned(3).init(jax.random.key(0), dim=5)
        >>> jax.tree.map(jnp.shape, params), state
        ({'bias': (3,), 'kernel': (5, 3)}, {})

    Reference: for the scales, Kang et al., Decoupling representation and classifier for long-tailed recognition (2020),
    section 4.
    """
    check_radius(radius)

    def declare(dim, dtype):
        del dtype  # parameters are float32, whatever the dtype of the features
        shape = (dim, num_classes)
        drawn = Oblique(*shape).random_point if on_sphere else partial(_lecun_normal, shape=shape)
        scales = {"scales": constant(lambda: jnp.ones((num_classes,)))} if class_scales else {}
        return Declared({"kernel": Initial(drawn)} | bias_of(num_classes, use_bias) | scales, {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        frame = params["kernel"]
        check_width(features, frame.shape[0])
        if normalize_columns:
            norms = safe_norm(frame, axis=0)
            frame = frame / jnp.where(norms > 0, norms, 1)
        if class_scales:
            frame = frame * params["scales"][None]
        bias = params["bias"] if use_bias else jnp.zeros((num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias[None], features, frame, bias), state

    manifolds = {"kernel": lambda dim: Oblique(dim, num_classes)} if on_sphere else {}
    return Head("learned", num_classes, declare, forward, manifolds=manifolds, subsampled=of_columns)


def _lecun_normal(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "dim classes"]:
    return jax.nn.initializers.lecun_normal()(key, shape)


def bias_of(num_classes: int, use_bias: bool) -> dict[str, Initial]:
    """Declare a bias that is zero at the start, or nothing if the head has no bias."""
    return {"bias": constant(lambda: jnp.zeros((num_classes,)))} if use_bias else {}
