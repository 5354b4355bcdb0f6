"""What callers hand over: arrays, labels, sizes, keys; checked here, so that a wrong one gives one sentence.

Arrays may be JAX or NumPy arrays, lists, or tensors of other libraries: PyTorch's may have a gradient, lie on an
accelerator or hold bfloat16. Inside `jax.jit` the values are unknown. Shapes and dtypes are checked there too, while
JAX traces the function. The range of labels is not: `without_class` finds such labels, so that callers can count them
or answer NaN.
"""

import contextlib
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nc_jax.arrays import at_least_float32

PADDING_LABEL = -1  # not a class number, so code that forgets the mask does not count padding as an example of a class

# Plain names for the type Any: shapes and dtypes come from the user, so they are checked below and not by annotations.
Reals = Any  # real numbers, in an array
Labels = Any  # class numbers of examples, in an array of integers
Mask = Any  # True for examples, False for padding, in an array of booleans
Rows = Any  # a number of rows: an integer or, in a program for jax.export, one that is still open


def is_traced(value: Any) -> bool:
    """Whether a value is not known yet, because JAX traces the program (under jit, grad or vmap)."""
    return isinstance(value, Tracer)


def as_array(value: Any, name: str) -> Array | np.ndarray:
    """Return JAX arrays as they are, and everything else as a NumPy array.

    Args:
        value: an array, a tensor of another library (with `__array__` or `__dlpack__`), or what `numpy.asarray` reads.
            Of a tensor with a gradient, the values are taken; what lies on an accelerator is copied to the host.
        name: name of the argument, for the error.

    Raises:
        ValueError: if neither NumPy nor JAX can read it.
    """
    if isinstance(value, jax.Array):
        return value
    host = value
    try:
        host = _without_gradient(value)
        return np.asarray(host)
    except Exception as error:  # whatever a foreign type raises
        if hasattr(host, "__dlpack__"):
            # PyTorch does not give bfloat16 to NumPy, but JAX reads it where it lies, without a copy.
            with contextlib.suppress(Exception):
                return np.asarray(jax.dlpack.from_dlpack(host))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name} must be an array; got a {type(value).__name__} that NumPy cannot read ({reason})"
        ) from None


def is_real(dtype: Any) -> bool:
    """Return whether a dtype is floating (bfloat16 included) or integer and has at most 64 bits."""
    number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return number and np.dtype(dtype).itemsize <= 8


def real_array(value: Reals, name: str) -> Float[Array, "..."]:
    """Return real numbers as a floating JAX array, in their own dtype or, for integers, in float32.

    Args:
        value: an array, or what `numpy.asarray` reads.
        name: name of the argument, for the error.

    Raises:
        ValueError: if the numbers are not real, or are finite but too large for the dtype in which JAX keeps them.

    Example:
        >>> real_array([[1, 2]], "features").dtype
        dtype('float32')
    """
    array = as_array(value, name)
    if not is_real(array.dtype):
        raise ValueError(f"{name} must be real numbers of at most 64 bits; got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.integer):
        return jnp.asarray(array.astype(jnp.float32))  # in NumPy, because JAX would wrap 64-bit integers around
    if isinstance(array, np.ndarray):
        check_representable(array, name)
    return jnp.asarray(array)


def check_representable(array: np.ndarray, name: str) -> None:
    """Raise a ValueError if a finite number would become an infinity, or an integer another, in JAX's own dtypes.

    JAX keeps 64-bit numbers in 32 bits unless `jax_enable_x64` is set.
    """
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if kept == array.dtype or not array.size:
        return
    limits: Any = jnp.finfo(kept) if jnp.issubdtype(kept, jnp.floating) else jnp.iinfo(kept)
    largest = array.max(where=np.isfinite(array), initial=0)
    smallest = array.min(where=np.isfinite(array), initial=0)
    if largest > float(limits.max) or smallest < float(limits.min):
        worst = largest if largest > float(limits.max) else smallest
        raise ValueError(
            f"{name} must fit into {kept}, in which JAX keeps {array.dtype}; got {worst:.6g} "
            "(scale them, or set jax_enable_x64)"
        )


def checked_labels(
    labels: Labels, num_classes: int | None = None, *, rows: Rows | None = None, of: str = "features"
) -> Int[Array, " batch"]:
    """Return class labels as int32, once they are integers of shape (batch,) that name classes or padding.

    Args:
        labels: shape (N,), class numbers 0..K-1, or `PADDING_LABEL` (-1) for padding.
        num_classes: K; None for functions that use only the sign of labels.
        rows: N, the number of rows of the array that the labels belong to; None if there is none.
        of: name of that array, for the error.

    Raises:
        ValueError: if shape or dtype is wrong or, for values that are known, a label is no class.

    Example:
        >>> checked_labels([0, 2, -1], 3).tolist()
        [0, 2, -1]
    """
    array = as_array(labels, "labels")
    check_label_shape(array)
    if rows is not None and array.shape[0] != rows:
        raise ValueError(f"labels must have shape ({rows},), one label for each row of {of}; got shape {array.shape}")
    if not is_traced(array) and getattr(array, "is_fully_addressable", True):
        check_label_range(np.asarray(array), num_classes)
    return jnp.asarray(array if isinstance(array, jax.Array) else array.astype(np.int32)).astype(jnp.int32)


def checked_scores(logits: Reals, labels: Labels) -> tuple[Float[Array, "batch classes"], Int[Array, " batch"]]:
    """Return logits in at least float32, and their labels.

    Raises:
        ValueError: if the logits do not have shape (N, K), or the labels are not integers of shape (N,) in -1..K-1.
    """
    logits = checked_logits(logits)
    return logits, checked_labels(labels, logits.shape[1], rows=logits.shape[0], of="logits")


def checked_logits(logits: Reals) -> Float[Array, "batch classes"]:
    """Return logits in at least float32, once they have shape (N, K) with K >= 1."""
    logits = at_least_float32(real_array(logits, "logits"))
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits must have shape (batch, classes); got {logits.shape}")
    return logits


def checked_features(features: Reals) -> Float[Array, "batch dim"]:
    """Return features as a floating JAX array in at least float32.

    Raises:
        ValueError: if they are not real numbers of shape (N, d) with d >= 1.
    """
    features = real_array(features, "features")
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features must have shape (batch, dim) with dim >= 1; got {features.shape}")
    return at_least_float32(features)


def checked_per_class(
    values: Reals, name: str, num_classes: int | None = None, *, positive: bool = False, at_most: float = np.inf
) -> Float[Array, " classes"]:
    """Return one number for each class, such as counts or weights, in at least float32.

    Integers come in JAX's default floating dtype: in float64 if `jax_enable_x64` is set.

    Args:
        values: shape (K,).
        name: name of the argument, for the error.
        num_classes: K; None for any number of classes.
        positive: refuse zeros, too.
        at_most: largest number that is allowed.

    Raises:
        ValueError: if the numbers are not real or not one for each class or, for values that are known, one of them is
            negative, not finite, or outside of what is allowed.

    Example:
        >>> checked_per_class([30, 5], "counts", 2).tolist()
        [30.0, 5.0]
    """
    array = as_array(values, name)
    if not is_real(array.dtype):
        raise ValueError(f"{name} must be real numbers of at most 64 bits; got dtype {array.dtype}")
    if array.ndim != 1 or not len(array) or num_classes not in (None, len(array)):
        each = "each class" if num_classes is None else f"each of the {num_classes} classes"
        raise ValueError(f"{name} must hold one number for {each}; got shape {array.shape}")
    if not is_traced(array) and getattr(array, "is_fully_addressable", True):
        known = np.asarray(array).astype(np.float64)
        allowed = np.isfinite(known) & (known <= at_most) & (known > 0 if positive else known >= 0)
        if not allowed.all():
            wanted = "be finite and above 0" if positive else "be finite and at least 0"
            wanted = wanted if at_most == np.inf else f"lie in 0..{at_most:g}"
            first = int(np.argmin(allowed))
            raise ValueError(f"{name} must {wanted} for every class; got {known[first]:g} for class {first}")
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jax.dtypes.canonicalize_dtype(float))  # in NumPy, as in real_array
    return at_least_float32(real_array(array, name))


def checked_mask(mask: Mask, rows: Rows, name: str = "mask") -> Bool[Array, " batch"]:
    """Return the mask as a JAX array, once it is boolean and has shape (rows,)."""
    mask = as_array(mask, name)
    if mask.shape != (rows,) or mask.dtype != bool:
        raise ValueError(f"{name} must be booleans of shape ({rows},); got {mask.dtype} of shape {mask.shape}")
    return jnp.asarray(mask)


def check_label_shape(labels: Array | np.ndarray) -> None:
    """Raise a ValueError unless labels are integers on one axis."""
    wanted = "labels must be integers of shape (batch,)"
    if labels.ndim != 1:
        one_hot, column = labels.ndim == 2 and labels.shape[1] > 1, labels.ndim == 2 and labels.shape[1] == 1
        remedy = "; take argmax(axis=1) of one-hot labels" if one_hot else "; take labels[:, 0]" if column else ""
        raise ValueError(f"{wanted}; got shape {labels.shape}{remedy}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        if jnp.issubdtype(labels.dtype, jnp.number):
            remedy = "convert class numbers by labels.astype(int)"
        else:
            remedy = "number words by numpy.unique(labels, return_inverse=True)[1]"
        raise ValueError(f"{wanted}; got dtype {labels.dtype}; {remedy}")


def check_label_range(labels: np.ndarray, num_classes: int | None, *, padding: bool = True) -> None:
    """Raise a ValueError unless labels lie in 0..K-1.

    Args:
        labels: integers of shape (N,).
        num_classes: K; None: no upper end.
        padding: allow `PADDING_LABEL`, too.
    """
    wrong = labels < (PADDING_LABEL if padding else 0)
    if num_classes is not None:
        wrong |= labels >= num_classes
    outside = np.flatnonzero(wrong)
    if not outside.size:
        return
    such = "1 such label" if outside.size == 1 else f"{outside.size} such labels"
    wanted = "be at least 0" if num_classes is None else f"lie in 0..{num_classes - 1} for num_classes={num_classes}"
    from_one = num_classes is not None and labels.max() == num_classes and labels.min() >= 1
    raise ValueError(
        f"labels must {wanted}{', or be -1 for padding' if padding else ''}; "
        f"got {labels[outside[0]]} at index {outside[0]} ({such})"
        f"{'; subtract 1 from labels that begin at 1' if from_one else ''}"
        f"{'; numpy.where(labels == -100, -1, labels) makes padding of it' if labels[outside[0]] == -100 else ''}"
    )


def without_class(
    labels: Int[Array, " batch"], num_classes: int, mask: Bool[Array, " batch"] | None = None
) -> Bool[Array, " batch"]:
    """Return which examples have a label that is no class: a mistake that only running code can find.

    Args:
        labels: shape (N,).
        num_classes: K.
        mask: True for examples, False for padding, shape (N,). None: labels of -1 mark padding.
    """
    if mask is None:
        return (labels < PADDING_LABEL) | (labels >= num_classes)
    return mask & ((labels < 0) | (labels >= num_classes))


def nan_without_class(
    values: Float[Array, " batch"], labels: Int[Array, " batch"], num_classes: int
) -> Float[Array, " batch"]:
    """Return the values of the examples, with NaN for those whose label is neither a class nor padding."""
    return jnp.where(without_class(labels, num_classes), jnp.asarray(jnp.nan, values.dtype), values)


def check_features_fit(features: Array, vectors: Array, name: str = "frame") -> None:
    """Raise a ValueError unless features (N, d) and vectors as columns (d, K) have the same d.

    Args:
        features: features of a batch.
        vectors: one column for each class.
        name: what the vectors are called in the error.
    """
    if features.ndim != 2 or vectors.ndim != 2 or features.shape[1] != vectors.shape[0]:
        turned = ": transpose the latter" if features.shape[1:] == vectors.shape[1:] else ""
        raise ValueError(
            f"features and {name} must have shapes (batch, dim) and (dim, classes); "
            f"got {features.shape} and {vectors.shape}{turned}"
        )


def check_whole(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a whole number (of Python or NumPy)."""
    try:
        operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r}") from None


def check_at_least(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Raise a ValueError unless the value is a whole number of at least `least`, or None if it is optional."""
    if optional and value is None:
        return
    check_whole(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}{', or None' if optional else ''}; got {value}")


def checked_seed(seed: Any) -> int:
    """Return a seed as a Python int, in which it may be shifted; raise a ValueError unless it is in 0..2^64-1."""
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number in 0..2^64-1; got {seed}")
    return int(seed)


def checked_pairs(values: Reals, name: str, num_classes: int | None = None, *, whole: bool = False) -> Array:
    """Return distances or other numbers for all pairs of classes, shape (K, K), once they are finite and at least 0.

    Args:
        values: the matrix; of traced values, the shape alone is checked.
        name: what the error calls it.
        num_classes: K; None takes any.
        whole: whole numbers only.

    Raises:
        ValueError: if the matrix has another shape, or holds another number.
    """
    values = real_array(values, name)
    number = "classes" if num_classes is None else num_classes
    if values.ndim != 2 or values.shape[0] != values.shape[1] or num_classes not in (None, len(values)):
        raise ValueError(f"{name} must have shape ({number}, {number}); got {values.shape}")
    if not is_traced(values):
        known = np.asarray(values, float)
        wrong = np.argwhere(~np.isfinite(known) | (known < 0) | (whole & (known != np.round(known))))
        if len(wrong):
            one, other = wrong[0]
            kind = "whole" if whole else "finite"
            raise ValueError(
                f"{name} must be {kind} numbers of at least 0; got {known[one, other]} for classes {one} and {other}"
            )
    return values


def check_floating(dtype: DTypeLike) -> None:
    """Raise a ValueError unless the dtype is floating."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; got {jnp.dtype(dtype).name}")


def check_key(key: Any) -> None:
    """Raise a ValueError unless the value is a random key, typed or as two or four unsigned integers, or None."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = dtype is not None and dtype == jnp.uint32 and key.shape in ((2,), (4,))
    if not (key is None or typed or raw):
        raise ValueError(f"key must be a random key, as jax.random.key(0) makes one; got {kind_of(key)}")


def _without_gradient(value: Any) -> Any:
    """Return a tensor without its gradient, in the memory of the host; anything else as it is."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):  # files, too, have a method `detach`
        return value
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if hasattr(value, step) else value
    return value


def kind_of(value: Any) -> str:
    """Say what a value is, for the end of an error's sentence."""
    return (
        f"shape {value.shape} of {value.dtype}" if hasattr(value, "dtype") else f"{type(value).__name__} {value!r:.40}"
    )
