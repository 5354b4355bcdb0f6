"""Templates: class vectors in r coordinates of their own, which a rotation takes into the feature space."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nc_jax.arrays import matmul, normalized, safe_norm, transpose
from nc_jax.checks import is_traced, real_array


@runtime_checkable
class Template(Protocol):
    """Interface of a template T, shape (r, K), that the nearest and the rotated frame use.

    An instance is a JAX tree: its arrays may be traced, and gradients reach them.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(r, K): the number of coordinates and the number of class vectors."""
        ...

    @property
    def dtype(self) -> DTypeLike | None:
        """Dtype of the template's arrays. None: it has no arrays, and products have the dtype of the other factor."""
        ...

    @property
    def centred(self) -> bool:
        """Whether the columns sum to zero; if so, heads centre class means before they compare them with the frame."""
        ...

    def rotate(self, rotation: Float[Array, "dim rank"]) -> Float[Array, "dim classes"]:
        """Return the class vectors U T, shape (d, K), for a rotation U of shape (d, r)."""
        ...

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T, shape (d, r), for class means H of shape (d, K)."""
        ...

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the class vectors, shape (K,); a rotation does not change them."""
        ...

    def unit(self) -> tuple["Template", Any]:
        """Return the template scaled to unit Frobenius norm, and the factor that undoes the scaling."""
        ...

    def astype(self, dtype: DTypeLike) -> "Template":
        """Return the template with arrays of this dtype."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseTemplate:
    """A template stored as a matrix.

    Attributes:
        matrix: T, shape (r, K).
        centred: whether the columns of the matrix sum to zero. `as_template` tests this.
    """

    matrix: Float[Array, "rank classes"]
    # Static, because a head decides by it what to compute, when JAX traces the program.
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
        """Return U T for a rotation U, shape (d, K)."""
        return matmul(rotation, self.matrix)

    def correlate(self, means: Float[Array, "dim classes"]) -> Float[Array, "dim rank"]:
        """Return H T^T for class means H, shape (d, r)."""
        return matmul(means, transpose(self.matrix))

    def column_norms(self) -> Float[Array, " classes"]:
        """Return the lengths of the columns."""
        return safe_norm(self.matrix, axis=0)[0]

    def unit(self) -> tuple["DenseTemplate", Array]:
        """Return the template scaled to unit Frobenius norm, and its norm."""
        unit, norm = normalized(self.matrix)
        return DenseTemplate(unit, self.centred), norm

    def astype(self, dtype: DTypeLike) -> "DenseTemplate":
        """Return the template in another dtype."""
        return DenseTemplate(self.matrix.astype(dtype), self.centred)


def as_template(template: Any, *, centred: bool | None = None) -> Template:
    """Return a matrix as a `DenseTemplate`, and a template unchanged.

    Args:
        template: a matrix of shape (r, K), or a `Template`.
        centred: whether the columns of the matrix sum to zero. None: test the matrix; under `jax.jit`, where a traced
            matrix cannot be tested, None means False.

    Raises:
        ValueError: if `template` is neither a `Template` nor a matrix.
    """
    if isinstance(template, Template) and not isinstance(template, jax.Array | np.ndarray):
        return template
    matrix = real_array(template, "a template")
    if jnp.issubdtype(matrix.dtype, jnp.integer):
        matrix = matrix.astype(jnp.float32)
    if matrix.ndim != 2:
        raise ValueError(f"a template must have shape (rank, classes); got shape {matrix.shape}")
    if centred is None:
        centred = not is_traced(matrix) and _sums_to_zero(matrix)
    return DenseTemplate(matrix, centred)


def _sums_to_zero(matrix: Array) -> bool:
    # Entries are rounded to the dtype of the matrix (possibly bfloat16). So a row that sums to zero in exact arithmetic
    # is off by about eps times the sum of its absolute values. The factor 10 leaves room; the row sums of frames that
    # are not centred are larger by orders of magnitude.
    rows = np.asarray(matrix, np.float64)
    tolerance = 10 * float(jnp.finfo(matrix.dtype).eps) * np.abs(rows).sum(axis=1).max(initial=0)
    return bool(np.all(np.abs(rows.sum(axis=1)) <= tolerance))


@dataclass(frozen=True, eq=False)
class LearnedTemplate:
    """A template with parameters of its own, which a head trains together with the parameters of the network.

    Attributes:
        initial: function () -> the initial parameters, a dictionary of arrays.
        build: function from the parameters to the template.
        shape: shape (r, K) of the template that `build` returns.
    """

    initial: Callable[[], dict[str, Array]]
    build: Callable[[dict[str, Array]], Template]
    shape: tuple[int, int]


AnyTemplate = Template | LearnedTemplate
# A template that fits every feature dimension, or one for each: a frame of least energy depends on d.
TemplateOrRule = (
    AnyTemplate | Float[Array, "rank classes"] | Callable[[int], AnyTemplate | Float[Array, "rank classes"]]
)


def template_rule(template: TemplateOrRule, num_classes: int) -> Callable[[int], Any]:
    """Return the function that gives the template of a head with K classes for features of dimension d.

    Args:
        template: a matrix, a `Template` or a `LearnedTemplate`; or a function from d to one of these, which is called
            once for each d.
        num_classes: K.

    Returns:
        A function from d to a `Template` or a `LearnedTemplate`. It raises a ValueError if the template has more than d
        rows, or does not have K columns.

    Raises:
        ValueError: if the template is known and does not have K columns.
    """

    def checked(found: Any) -> Any:
        kept = found if isinstance(found, LearnedTemplate) else as_template(found)
        if kept.shape[1] != num_classes:
            raise ValueError(f"a template needs {num_classes} columns; got shape {kept.shape}")
        return kept

    rule: Any = template

    @functools.cache
    def computed(dim: int) -> Any:
        # A head asks for its template while JAX traces a step, and the template must not become part of the trace.
        with jax.ensure_compile_time_eval():
            return checked(rule(dim))

    known = None if callable(rule) else checked(rule)

    def at(dim: int) -> Any:
        kept = computed(dim) if known is None else known
        if kept.shape[0] > dim:
            raise ValueError(
                f"a template of {kept.shape[0]} rows needs features of dim >= {kept.shape[0]}; got dim={dim}"
            )
        return kept

    return at
