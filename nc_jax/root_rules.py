r"""The derivative of a root: the one place that uses jaxopt, and what could replace it.

Let F(x, theta) = 0 define x as a function of theta. By the implicit function theorem, its derivative in a direction
solves a linear system with the Jacobian of F in x:

.. math:: \partial_x F \, \dot x = -\partial_\theta F \, \dot\theta .

jaxopt is no longer maintained. Of all that it offers, nc_jax uses this rule alone, and `implicit_root_jvp` is the same
rule in four lines. To do without jaxopt, let `root_jvp` be that function and remove jaxopt from pyproject.toml.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax

with warnings.catch_warnings():
    # At import, jaxopt warns that it is no longer maintained.
    warnings.filterwarnings("ignore", message="JAXopt is no longer maintained", category=DeprecationWarning)
    from jaxopt.implicit_diff import root_jvp as jaxopt_root_jvp

Solve = Callable[[Callable[[Any], Any], Any], Any]  # (matvec, rhs) -> x, of arrays or trees of arrays


def implicit_root_jvp(
    stationarity: Callable[..., Any], point: Any, args: tuple[Any, ...], tangents: tuple[Any, ...], *, solve: Solve
) -> Any:
    """Return the derivative of a root in the direction of some tangents, by JAX alone.

    Args:
        stationarity: function (point, *args) -> arrays of the shapes of the point, zero at the point.
        point: the root, an array or a tree of arrays.
        args: arguments of `stationarity` after the point: trees of arrays.
        tangents: a direction for each of them, trees of the same structure.
        solve: function (matvec, rhs) -> the x with matvec(x) = rhs. If it can be differentiated and transposed, so can
            the result.

    Example:
        >>> def divide(matvec, rhs):
        ...     return rhs / matvec(jax.numpy.ones_like(rhs))
        >>> three, nine, one = jax.numpy.array([3.0, 9.0, 1.0])
        >>> slope = implicit_root_jvp(lambda x, t: x**2 - t, three, (nine,), (one,), solve=divide)
        >>> round(float(slope), 6)  # 1 / (2 sqrt(9))
        0.166667

    Reference: Blondel et al., Efficient and modular implicit differentiation (2022), section 2.1.
    """

    def times_jacobian(tangent: Any) -> Any:
        return jax.jvp(lambda at: stationarity(at, *args), (point,), (tangent,))[1]

    moved = jax.jvp(lambda *at: stationarity(point, *at), args, tangents)[1]
    return solve(times_jacobian, jax.tree.map(jax.numpy.negative, moved))


root_jvp = jaxopt_root_jvp  # or implicit_root_jvp
