"""Class vectors that are a frame times an orthogonal matrix that is trained."""

from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from nc_jax.frames import SimplexTemplate, Template, as_template
from nc_jax.heads.head import Declared, Head, Initial
from nc_jax.heads.learned import bias_of
from nc_jax.heads.output import HeadOutput, scale_features
from nc_jax.manifolds import PARAMETRISATIONS, Stiefel
from nc_jax.manifolds import Parametrisation as FreeRotation

Parametrisation = Literal["manifold", "cayley", "polar", "householder", "exponential"]


def rotated(
    num_classes: int,
    *,
    template: Template | Array | None = None,
    parametrisation: Parametrisation = "manifold",
    radius: float | None = None,
    use_bias: bool = False,
) -> Head:
    r"""Classifier whose angles between class vectors are given, and whose orientation is trained: W = U T.

    All angles and lengths are those of the template T; the loss only turns the figure as a whole. The rotation U, a
    point of the Stiefel manifold St(d, r), is either the parameter itself, `rotation`, which the optimiser must keep on
    the manifold (`nc_jax.optim.on_manifold`; `nc_jax.study` does it by itself), or a function of free numbers, `free`,
    which any optimiser may move (`nc_jax.manifolds.PARAMETRISATIONS`).

    Args:
        num_classes: K.
        template: of the frame, (r, K) with r <= d: a matrix or a `nc_jax.frames.Template`. None is the simplex ETF's.
        parametrisation: "manifold", or the name of a map from free numbers to rotations.
        radius: features are scaled to this length; None leaves them as they are.
        use_bias: learn a bias.

    Raises:
        ValueError: if the parametrisation is unknown, or the template has not K columns; from `init` and `apply`, if
            d < r.

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
    kept: Any = SimplexTemplate.of_unit_columns(num_classes) if template is None else as_template(template)
    if kept.shape[1] != num_classes:
        raise ValueError(f"a template needs {num_classes} columns; got shape {kept.shape}")
    rank = kept.shape[0]
    free = PARAMETRISATIONS.get(parametrisation)

    def declare(dim, dtype):
        del dtype  # parameters are float32, whatever the activations are
        if rank > dim:
            raise ValueError(f"a template of {rank} rows needs features of dim >= {rank}; got dim={dim}")
        rotation = {"rotation": Initial(Stiefel(dim, rank).random_point)}
        if free is not None:
            rotation = {"free": Initial(partial(_drawn, free, dim, rank))}
        return Declared(rotation | bias_of(num_classes, use_bias), {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, radius)
        rotation = params["rotation"] if free is None else free.point(params["free"], features.shape[-1], rank)
        frame = kept.rotate(rotation)
        bias = params["bias"] if use_bias else jnp.zeros((num_classes,), frame.dtype)
        return HeadOutput(features @ frame + bias, features, frame, bias), state

    manifolds = {"rotation": lambda dim: Stiefel(dim, rank)} if free is None else {}
    return Head("rotated", num_classes, declare, forward, manifolds=manifolds)


def _drawn(free: FreeRotation, dim: int, rank: int, key: Array) -> Array:
    return free.init(key, dim, rank)
