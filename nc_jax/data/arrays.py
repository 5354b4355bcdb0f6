"""A data set in memory: inputs and integer labels, checked once, when it is created."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int, Integer

from nc_jax.checks import as_array, check_at_least, check_label_range, check_label_shape, check_representable, is_real
from nc_jax.data.batch import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledArrays:
    """Inputs and labels that have been checked to fit each other.

    Code that receives such an object (batches, class counts, losses) can rely on the conditions below. They stay true:
    the labels are copied, and the inputs, which may be large, are not copied but *made read-only*. Writing to the array
    that was handed in is then an error of NumPy; hand in a copy if you want to go on changing it.

    Args:
        inputs: finite real numbers, shape (N, ...), with at least one number per example. Their dtype (bfloat16
            included) is kept; bytes of images are scaled later, on the device. 64-bit numbers must fit into 32 bits,
            in which JAX keeps them unless `jax_enable_x64` is set.
        labels: integers of shape (N,) in 0..K-1, stored as int32.
        num_classes: K >= 1. Classes without examples are allowed; see `absent_classes`.
        class_names: K names; empty uses the class numbers.

    Raises:
        ValueError: if shapes, dtypes, ranges, finiteness or the number of names do not meet these conditions.

    Example:
        >>> LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3)
        LabelledArrays(4 examples of shape (2,) float64, 3 classes)
    """

    # Plain types, not jaxtyping's: data come from the user, so shapes and dtypes are always checked below. Any is for
    # whatever else NumPy reads; it is stored as an array.
    inputs: np.ndarray | Any
    labels: np.ndarray | Any
    num_classes: int
    class_names: tuple[str, ...] = ()

    _PER_EXAMPLE: ClassVar[tuple[str, ...]] = ("inputs", "labels")  # the fields that a subset takes examples of

    def __post_init__(self) -> None:
        inputs = np.asarray(as_array(self.inputs, "inputs"))
        labels = np.asarray(as_array(self.labels, "labels"))
        check_at_least("num_classes", self.num_classes)
        _check_inputs(inputs)
        check_label_shape(labels)
        check_label_range(labels, self.num_classes, padding=False)
        if len(inputs) != len(labels):
            raise ValueError(
                f"inputs and labels must have the same length; got {len(inputs)} inputs and {len(labels)} labels"
            )
        names = tuple(self.class_names) or tuple(str(label) for label in range(self.num_classes))
        if len(names) != self.num_classes:
            raise ValueError(f"class_names must hold num_classes={self.num_classes} names; got {len(names)}")
        labels = labels.astype(np.int32)
        for array in (inputs, labels):
            _freeze(array)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape, dtype = self.inputs.shape[1:], self.inputs.dtype
        return f"LabelledArrays({len(self)} examples of shape {shape} {dtype}, {self.num_classes} classes)"

    def take(self, indices: Integer[np.ndarray, " chosen"], seed: int = 0) -> Batch:
        """Copy examples into a batch.

        Args:
            indices: example numbers in 0..N-1, of shape (M,).
            seed: ignored; other sources draw random crops with it.

        Returns:
            M examples, without padding.

        Example:
            >>> LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3).take(np.array([1, 3])).labels
            array([2, 0], dtype=int32)
        """
        del seed
        if np.min(indices, initial=0) < 0:
            raise ValueError(f"indices must lie in 0..{len(self) - 1}; got {np.min(indices)}")
        return Batch.of(self.inputs.take(indices, axis=0), self.labels.take(indices))

    def class_counts(self) -> Int[np.ndarray, " classes"]:
        """Number of examples of each class.

        Returns:
            Counts of shape (K,), summing to N.

        Example:
            >>> LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3).class_counts()
            array([2, 0, 2])
        """
        return np.bincount(self.labels, minlength=self.num_classes)

    def absent_classes(self) -> tuple[int, ...]:
        """The classes without examples. They have no class means.

        Returns:
            Class numbers, ascending; empty if every class has an example.

        Example:
            >>> LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3).absent_classes()
            (1,)
        """
        return tuple(np.flatnonzero(self.class_counts() == 0).tolist())

    def subset(self, indices: Integer[np.ndarray, " chosen"] | Bool[np.ndarray, " examples"]) -> "LabelledArrays":
        """The chosen examples, in the given order, with the same classes and class names.

        Args:
            indices: example numbers in 0..N-1, of shape (M,), repeats allowed; or a boolean mask of shape (N,).

        Returns:
            A copy of M examples with the same K.

        Raises:
            ValueError: if an index is not an integer in 0..N-1 (negative indices are not allowed), or if a mask does
                not have length N.

        Example:
            >>> arrays = LabelledArrays(np.zeros((4, 2)), np.array([0, 2, 2, 0]), num_classes=3)
            >>> arrays.subset(arrays.labels == 2).labels
            array([2, 2], dtype=int32)
        """
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise ValueError(f"a mask must have shape ({len(self)},), one entry per example; got {indices.shape}")
            indices = np.flatnonzero(indices)
        if indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or indices.size == 0):
            raise ValueError(f"indices must be integers on one axis; got {indices.dtype} of shape {indices.shape}")
        outside = np.flatnonzero((indices < 0) | (indices >= len(self)))
        if outside.size:
            first = outside[0]
            raise ValueError(f"indices must lie in 0..{len(self) - 1}; got {indices[first]} at position {first}")
        indices = indices.astype(np.intp)  # an empty list comes as floats
        return dataclasses.replace(self, **{name: getattr(self, name)[indices] for name in self._PER_EXAMPLE})


def _check_inputs(inputs: np.ndarray) -> None:
    if not is_real(inputs.dtype):
        raise ValueError(f"inputs must be real numbers of at most 64 bits; got dtype {inputs.dtype}")
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have shape (examples, ...) with at least two axes; got {inputs.shape}")
    if 0 in inputs.shape[1:]:
        raise ValueError(f"inputs must have at least one number per example; got shape {inputs.shape}")
    check_representable(inputs, "inputs")
    if np.issubdtype(inputs.dtype, np.integer):
        return
    finite = np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1) if inputs.size else np.array([True])
    if not finite.all():
        example = int(np.argmin(finite))
        found = "NaN" if np.isnan(inputs[example]).any() else "an infinity"
        raise ValueError(f"inputs must be finite; got {found} at example {example}")


def _freeze(array: np.ndarray) -> None:
    """Make an array read-only, and the arrays that it is a view of."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base.flags.writeable = False
        base = base.base
