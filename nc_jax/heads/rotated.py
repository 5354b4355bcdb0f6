"""Head whose class vectors are a given frame, turned by a rotation that is trained."""

from functools import partial
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from nc_jax.frames import SimplexTemplate
from nc_jax.frames.template import TemplateOrRule, template_rule
from nc_jax.heads.head import Declared, Head, Initial
from nc_jax.heads.learned import bias_of
from nc_jax.heads.output import HeadOutput, check_radius, check_width, scale_features
from nc_jax.heads.sampling import of_columns
from nc_jax.manifolds import PARAMETRISATIONS, Stiefel
from nc_jax.manifolds import Parametrisation as FreeRotation

Parametrisation = Literal["manifold", "cayley", "polar", "householder", "exponential"]


def rotated(
    num_classes: int,
    *,
    template: TemplateOrRule | None = None,
    parametrisation: Parametrisation = "manifold",
    radius: float | None = None,
    use_bias: bool = False,
) -> Head:
    r"""Classifier with given angles between class vectors and a trained orientation: W = U T.

    The template T (r, K) fixes all lengths and angles of the class vectors W (d, K). Training changes only the rotation
    U (d, r), a matrix with orthonormal columns (a point of the Stiefel manifold). There are two ways to train it:

    - `parametrisation="manifold"`: U is the parameter, named `rotation`. The optimiser must keep it on the manifold:
      wrap the optimiser with `nc_jax.optim.on_manifold` (`nc_jax.study` does so automatically).
    - Every other parametrisation: U is a function of free numbers, the parameter `free`, which any optimiser may train.
      `nc_jax.manifolds.PARAMETRISATIONS` holds these functions.

    Args:
        num_classes: K.
        template: template of the frame, shape (r, K) with r <= d: a matrix, a `nc_jax.frames.Template`, or a function
            from d to one of these. None: the template of the simplex ETF.
        parametrisation: "manifold", "cayley", "polar", "householder" or "exponential".
        radius: length to which every feature vector is scaled; None leaves the features as they are.
        use_bias: learn a bias.

    Raises:
        ValueError: if the parametrisation is unknown, the template does not have K columns or the radius is not
            positive; from `init`, if d < r; from `apply`, if the features do not have shape (N, d).

    Example:
        >>> import jax
        >>> head = rotated(4, parametrisation="cayley")
        >>> params, state = head.init(jax.random.key(0), dim=6)
        >>> output, _ = head.apply(params, state, jnp.ones((2, 6)))
        >>> bool(jnp.allclose(output.frame.T @ output.frame, 4 / 3 * jnp.eye(4) - 1 / 3, atol=1e-5))
        True

    Reference: Liu et al., Generalizing and decoupling neural collapse via hyperspherical uniformity gap (2023), for
    partially learnable proxies; the parametrisations as in Liu et al., Orthogonal over-parameterized training (2021).
    """
    names = ("manifold", *PARAMETRISATIONS)
    if parametrisation not in names:
        raise ValueError(f"parametrisation must be one of {', '.join(names)}; got {parametrisation!r}")
    at = template_rule(SimplexTemplate.of_unit_columns(num_classes) if template is None else template, num_classes)
    free = PARAMETRISATIONS.get(parametrisation)
    check_radius(radius)

    def declare(dim, dtype):
        del dtype  # parameters are float32, whatever the dtype of the features
        rank = at(dim).shape[0]
        rotation = {"rotation": Initial(Stiefel(dim, rank).random_point)}
        if free is not None:
            rotation = {"free": Initial(partial(_drawn, free, dim, rank))}
        return Declared(rotation | bias_of(num_classes, use_bias), {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        dim = features.shape[-1]
        if free is None:
            rotation = params["rotation"]
            check_width(features, rotation.shape[0])
            kept = at(dim)
        else:
            kept = at(dim)
            rank = kept.shape[0]
            wanted = free.shape(dim, rank)
            if params["free"].shape != wanted:
                raise ValueError(
                    f"features must have the dim for which the head was initialised; got dim={dim}, for which the "
                    f"free numbers have shape {wanted}, and numbers of shape {params['free'].shape}"
                )
            rotation = free.point(params["free"], dim, rank)
        frame = kept.rotate(rotation)
        bias = params["bias"] if use_bias else jnp.zeros((num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias[None], features, frame, bias), state

    manifolds = {"rotation": lambda dim: Stiefel(dim, at(dim).shape[0])} if free is None else {}
    return Head("rotated", num_classes, declare, forward, manifolds=manifolds, subsampled=of_columns)


def _drawn(free: FreeRotation, dim: int, rank: int, key: Array) -> Array:
    return free.init(key, dim, rank)
