"""Templates: frames in their own coordinates, before a rotation takes them into feature space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nc_jax.arrays import matmul, safe_norm, transpose


@runtime_checkable
class Template(Protocol):
    """What the nearest and the rotated frame need of a template T, shape (r, K), whatever form it is kept in.

    An instance is a JAX tree: its arrays may be traced, and gradients reach them.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(r, K): the dimensions that the class vectors span, and their number."""
        ...

    @property
    def dtype(self) -> DTypeLike | None:
        """Of its arrays; None if it has none, and takes the dtype of what it is multiplied with."""
        ...

    @property
    def centred(self) -> bool:
        """Whether the columns sum to zero, so that class means are to be centred before they are compared with them."""
        ...

    def rotate(self, rotation: Float[Array, "dim rank"]) -> Float[Array, "dim classes"]:
        """Return U T."""
        ...

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T."""
        ...

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the class vectors, which no rotation changes."""
        ...

    def unit(self) -> tuple["Template", Any]:
        """Return the template scaled to unit Frobenius norm, and the factor that takes it back."""
        ...

    def astype(self, dtype: DTypeLike) -> "Template":
        """Return the template with arrays of this dtype."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseTemplate:
    """A template that is a matrix.

    Attributes:
        matrix: T, shape (r, K).
        centred: whether its columns sum to zero; see `as_template`, which finds out.
    """

    matrix: Float[Array, "rank classes"]
    # Static: it decides what a head computes, so it is known when a program is traced.
    centred: bool = field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix, (r, K)."""
        rank, num_classes = self.matrix.shape
        return rank, num_classes

    @property
    def dtype(self) -> DTypeLike:
        """Dtype of the matrix."""
        return self.matrix.dtype

    def rotate(self, rotation: Float[Array, "dim rank"]) -> Float[Array, "dim classes"]:
        """Return U T."""
        return matmul(rotation, self.matrix)

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T."""
        return matmul(means, transpose(self.matrix))

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the columns."""
        return safe_norm(self.matrix, axis=0)[0]

    def unit(self) -> tuple["DenseTemplate", Array]:
        """Return the template scaled to unit Frobenius norm, and its norm."""
        norm = safe_norm(self.matrix)
        return DenseTemplate(self.matrix / norm, self.centred), norm

    def astype(self, dtype: DTypeLike) -> "DenseTemplate":
        """Return the template in another dtype."""
        return DenseTemplate(self.matrix.astype(dtype), self.centred)


def as_template(template: Any, *, centred: bool | None = None) -> Template:
    """Return a matrix as a template, and a template as it is.

    Args:
        template: shape (r, K), or a `Template`.
        centred: whether the columns sum to zero; None finds out, which a traced matrix does not allow: it counts as not
            centred then.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(template, Template) and not isinstance(template, jax.Array | np.ndarray):
        return template
    matrix = jnp.asarray(template)
    if jnp.issubdtype(matrix.dtype, jnp.integer):
        matrix = matrix.astype(jnp.float32)
    if matrix.ndim != 2:
        raise ValueError(f"a template must have shape (rank, classes); got shape {matrix.shape}")
    if centred is None:
        centred = _is_known(matrix) and _sums_to_zero(matrix)
    return DenseTemplate(matrix, centred)


def _is_known(matrix: Array) -> bool:
    from jax.core import Tracer  # not an attribute that type checkers know

    return not isinstance(matrix, Tracer)


def _sums_to_zero(matrix: Array) -> bool:
    # Entries are rounded to the matrix's own dtype, so a row that sums to zero is off by about eps times the sum of
    # their sizes, in bfloat16 too; here with room. Columns of another frame differ from this by orders of magnitude.
    rows = np.asarray(matrix, np.float64)
    tolerance = 10 * float(jnp.finfo(matrix.dtype).eps) * np.abs(rows).sum(axis=1).max(initial=0)
    return bool(np.all(np.abs(rows.sum(axis=1)) <= tolerance))


@dataclass(frozen=True, eq=False)
class LearnedTemplate:
    """A template with parameters of its own, which a head trains together with the network's.

    Attributes:
        initial: () -> the parameters at the start, a dictionary of arrays.
        build: parameters -> template.
        shape: (r, K) of what `build` returns.
    """

    initial: Callable[[], dict[str, Array]]
    build: Callable[[dict[str, Array]], Template]
    shape: tuple[int, int]
