"""Riemannian optimisers: any optax optimiser, changed so that parameters stay on a manifold."""

from nc_jax.extras import require

require("optax", "train", __name__)

from typing import Any, Protocol, runtime_checkable

import jax
import optax
from jaxtyping import Array, PyTree

from nc_jax.arrays import at_least_float32


@runtime_checkable
class Manifold(Protocol):
    """Interface of a manifold that `on_manifold` uses; `nc_jax.manifolds.Stiefel` has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a point."""
        ...

    def gradient(self, point: Array, euclidean_gradient: Array) -> Array:
        """Riemannian gradient from the Euclidean gradient."""
        ...

    def project(self, point: Array, vector: Array) -> Array:
        """Orthogonal projection on the tangent space."""
        ...

    def retract(self, point: Array, tangent: Array) -> Array:
        """Move along a tangent vector to a point on the manifold, also if the start is off the manifold by rounding."""
        ...


# Fields in which optax optimisers keep a mean of past gradients, which is a tangent vector. Means of squares are not
# tangent vectors, and a projection could make them negative. It could do the same to the variance that
# `optax.scale_by_stddev` computes from its mean, so that optimiser is left out.
_MEAN_OF_GRADIENTS = {
    optax.TraceState: "trace",
    optax.EmaState: "ema",
    optax.ScaleByAdamState: "mu",
    optax.ScaleByAmsgradState: "mu",
    optax.ScaleByBeliefState: "mu",
    optax.ScaleByLionState: "mu",
    optax.ScaleByNovogradState: "mu",
}


def on_manifold(
    optimizer: optax.GradientTransformation, manifold: Manifold | PyTree
) -> optax.GradientTransformationExtraArgs:
    r"""Return the Riemannian form of an optimiser: parameters that start on a manifold stay on it.

    At the point x with Euclidean gradient g, the inner optimiser computes a step s from the Riemannian gradient:

    .. math:: x^+ = R_x\big(P_x\, s\big), \qquad s = \mathrm{optimizer}(\mathrm{grad} f(x)),
        \qquad \mathrm{grad} f(x) = P_x\, g ,

    P is the projection on the tangent space and R the retraction. The update is :math:`x^+ - x`, so that
    `optax.apply_updates` gives :math:`x^+`. Every retraction starts from the rounded point and ends on the manifold,
    so rounding errors do not accumulate over the steps.

    The momentum of `optax.sgd` and the first moment of Adam and similar optimisers are vectors of the surrounding
    space. Each step projects them to the tangent space at the new point (the vector transport of a submanifold). All
    other states are not changed. In particular, Adam's second moment scales each entry of the matrix separately; the
    Riemannian Adam of Becigneul and Ganea scales the whole matrix by one number. Without momentum, the step of either
    is a descent direction. Decoupled weight decay has no effect on the Stiefel manifold, because it acts along the
    normal. Do not use a line search of optax as the inner optimiser: it searches along straight lines.

    Args:
        optimizer: inner optimiser, including its learning rate, such as `optax.sgd(0.1, momentum=0.9)`.
        manifold: one manifold for all parameters, or a tree of manifolds that is a prefix of the tree of parameters.
            In such a tree, None marks parameters that the inner optimiser updates as usual.

    Returns:
        An optimiser, whose state is that of the inner optimiser. It may be used inside `optax.masked` and
        `optax.multi_transform`. In `optax.chain` it must be last, after transformations of gradients; a transformation
        after it would take the parameters off the manifold.

    Raises:
        ValueError: from `update`, if the parameters are missing or a parameter does not have the shape of its manifold.
            For a stack of points, use `jax.vmap`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nc_jax.manifolds import Stiefel
        >>> manifold, target = Stiefel(5, 3), jnp.eye(5, 3)
        >>> optimizer = on_manifold(optax.sgd(0.1, momentum=0.9), manifold)
        >>> point = manifold.random_point(jax.random.key(0))
        >>> state = optimizer.init(point)
        >>> gradient = jax.grad(lambda point: -jnp.vdot(target, point))(point)
        >>> updates, state = optimizer.update(gradient, state, point)
        >>> point = optax.apply_updates(point, updates)
        >>> bool(manifold.distance_from(point) < 1e-5)
        True

    Reference: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008), sections 4.1 and 8.1;
    Becigneul and Ganea, Riemannian adaptive optimization methods (2019), for momentum and adaptive steps.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("an optimiser on a manifold needs the parameters: update(gradients, state, params)")
        manifolds = jax.tree.broadcast(manifold, params, is_leaf=_is_none)

        def each(function: Any, *trees: Any) -> Any:
            return jax.tree.map(function, manifolds, *trees, is_leaf=_is_none)

        each(_check_shape, params)
        step, state = inner.update(each(_gradient, params, updates), state, params, **extra_args)
        moved = each(_move, params, step)

        def transport(node: Any) -> Any:
            name = _MEAN_OF_GRADIENTS.get(type(node))
            # If a mask inside the optimiser limits the mean to some of the parameters, the mean is not projected.
            if name is None or jax.tree.structure(getattr(node, name)) != jax.tree.structure(params):
                return node
            return node._replace(**{name: each(_project, moved, getattr(node, name))})

        state = jax.tree.map(transport, state, is_leaf=lambda node: type(node) in _MEAN_OF_GRADIENTS)
        return each(_difference, moved, params, step), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _is_none(node: Any) -> bool:
    return node is None


def _check_shape(manifold: Manifold | None, point: Array) -> None:
    if manifold is not None and point.shape != manifold.shape:
        raise ValueError(f"a parameter on {manifold} has shape {manifold.shape}; got {point.shape}")


# The functions below compute in at least float32; their results have the dtype of the array that they replace. For
# parameters without a manifold (None) they change nothing.


def _gradient(manifold: Manifold | None, point: Array, gradient: Array) -> Array:
    if manifold is None:
        return gradient
    return manifold.gradient(at_least_float32(point), at_least_float32(gradient)).astype(gradient.dtype)


def _project(manifold: Manifold | None, point: Array, vector: Array) -> Array:
    if manifold is None:
        return vector
    return manifold.project(at_least_float32(point), at_least_float32(vector)).astype(vector.dtype)


def _move(manifold: Manifold | None, point: Array, step: Array) -> Array:
    if manifold is None:
        return point
    wide = at_least_float32(point)
    return manifold.retract(wide, manifold.project(wide, at_least_float32(step))).astype(point.dtype)


def _difference(manifold: Manifold | None, moved: Array, point: Array, step: Array) -> Array:
    return step if manifold is None else moved - point
