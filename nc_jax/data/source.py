"""The interface of all sets of examples."""

from typing import Protocol, runtime_checkable

import numpy as np

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
