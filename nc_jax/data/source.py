"""What every set of examples offers to those who read it."""

from typing import Protocol, runtime_checkable

import numpy as np

from nc_jax.data.batch import Batch


@runtime_checkable
class ExampleSource(Protocol):
    """Examples by number: `LabelledArrays`, or images that are decoded when they are asked for."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray, seed: int = 0) -> Batch:
        """Return M examples, a function of the arguments; random crops draw from the seed."""
        ...
