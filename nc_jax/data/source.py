"""The interface of all sets of examples, and what two sets have in common."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from nc_jax.data.batch import Batch


@runtime_checkable
class ExampleSource(Protocol):
    """N examples with random access by number: `LabelledArrays`, or an `ImageSource` that decodes images on demand."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray, seed: int = 0) -> Batch:
        """Return a batch of M examples, which depends only on the arguments. Random crops are drawn with the seed."""
        ...


class Decoding(NamedTuple):
    """How image files become the inputs of a set, in bytes; new images are decoded alike.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: height and width, in pixels, to which images of any size are brought; None for images that have the
            inputs' size and are taken as they are stored.
        stretch: whether the whole image is resized, and not its central square.
    """

    channels: int
    size: int | None = None
    stretch: bool = False


def decoding_of(source: ExampleSource) -> Decoding | None:
    """How image files become inputs like those of a set; None for inputs that are no images in bytes."""
    own = getattr(source, "decoding", None)  # of images that are decoded on demand
    inputs = getattr(source, "inputs", None)
    if own is None and inputs is not None and inputs.dtype == np.uint8 and inputs.ndim == 4:
        return Decoding(inputs.shape[3]) if inputs.shape[3] in (1, 3) else None
    return own


def class_names_of(source: ExampleSource) -> tuple[str, ...]:
    """Names of the K classes of a set; their numbers, where a set has no names."""
    names = getattr(source, "class_names", ())
    return tuple(names) or tuple(str(label) for label in range(source.num_classes))


def labels_of(source: ExampleSource) -> Int[np.ndarray, " examples"] | None:
    """Labels of all examples, shape (N,), where a set knows them without reading its examples; else None."""
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = getattr(getattr(source, "records", None), "labels", None)  # of images in files
    return None if labels is None else np.asarray(labels, np.int32)


def check_fit(train_set: ExampleSource, test_set: ExampleSource) -> np.ndarray:
    """First training input, shape (1, ...), after a check that the test set is of the same kind.

    Raises:
        ValueError: if number or names of the classes differ, or the shapes or kinds of the inputs.
    """
    for what, of in (("number of classes", lambda one: one.num_classes), ("class names", class_names_of)):
        train, test = of(train_set), of(test_set)
        if train != test:
            raise ValueError(
                f"the test set must have the {what} of the training set, {_short(train)}; got {_short(test)}"
            )
    train, test = (np.asarray(one.take(np.zeros(1, np.int64)).inputs) for one in (train_set, test_set))
    if train.shape != test.shape or train.dtype.kind != test.dtype.kind:
        wanted, got = (f"shape {one.shape[1:]} and dtype {one.dtype}" for one in (train, test))
        raise ValueError(f"test inputs must be like the training inputs, of {wanted}; got {got}")
    return train


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value[:5]) + (", ..." if len(value) > 5 else "")
    return str(value)
