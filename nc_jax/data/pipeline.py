"""Batches of static shape from arrays in memory, on Grain: random access by step, so a run resumes exactly.

Batch number s depends only on (seed, s), never on the batches before it. That one property gives exact resume, the same
batches on every host, and prefetching in any order.
"""

import sys
import threading
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from nc_jax.data.arrays import LabelledArrays

PADDING_LABEL = -1  # outside every class: losses and metrics mask it, and jax.nn.one_hot gives a row of zeros

Batch = dict[str, np.ndarray]  # features (B, ...) and labels (B,)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Number of batches that hold every example once, the last one possibly padded.

    Args:
        num_examples: N >= 1.
        batch_size: examples per (global) batch, B >= 1.

    Returns:
        The ceiling of N / B.

    Raises:
        ValueError: if N < 1 or B < 1.

    Example:
        >>> steps_per_epoch(1437, 256)
        6
    """
    if num_examples < 1:
        raise ValueError(f"an epoch needs at least one example; got {num_examples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    return -(-num_examples // batch_size)


def batches(
    arrays: LabelledArrays,
    batch_size: int,
    *,
    seed: int,
    stratified: bool = False,
    shuffle: bool = True,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,  # gathering 256x64 takes 5 us: a deeper buffer only holds memory
) -> Iterator[Batch]:
    r"""Training batches, step after step, each epoch in a new order and each example once per epoch.

    Step s is batch s mod S of epoch s div S, where S = `steps_per_epoch(N, batch_size)`. All batches have one shape:
    the last of an epoch is filled up with features 0 and labels -1. Starting at `start_step=s` gives exactly what an
    unbroken run gives from step s on.

    Stratified order: the n_k shuffled members of class k take the positions :math:`(r + u_k) / n_k`, r = 0..n_k-1, with
    one uniform phase u_k per class, and the examples are sorted by position. A batch of B out of N then holds
    :math:`B n_k / N` members of class k to within :math:`1 + (K - 2) n_k / N`: less than 2 when the classes are
    balanced.

    Args:
        arrays: N >= 1 examples.
        batch_size: examples per step over all processes.
        seed: with the epoch number, determines the order; 0..2^64-1.
        stratified: spread each class evenly over the epoch; needs `shuffle`.
        shuffle: False keeps the order of `arrays` in every epoch.
        start_step: first step to yield, counted from the beginning of training.
        num_steps: how many batches to yield from there; None never ends.
        process_index: which slice of every batch is wanted (`jax.process_index()`).
        process_count: into how many equal contiguous slices every batch is cut (`jax.process_count()`).
        prefetch: batches prepared ahead by one thread; 0 prepares each when it is asked for.

    Returns:
        An iterator over dicts of new arrays: `features` (B / process_count, ...), scale and dtype as in `arrays`, and
        `labels` (B / process_count,), int32. A late process may see nothing but padding in the last batch of an epoch.

    Raises:
        ValueError: if an argument is out of its range, or `batch_size` is not a multiple of `process_count`.

    Example:
        >>> arrays = LabelledArrays(np.eye(5), np.arange(5), num_classes=5)
        >>> [batch["labels"].tolist() for batch in batches(arrays, 3, seed=0, shuffle=False, num_steps=3)]
        [[0, 1, 2], [3, 4, -1], [0, 1, 2]]

    Reference: evenly spaced picks from a random start are Madow and Madow's (1944) systematic sampling, here per class.
    """
    epoch_steps = steps_per_epoch(len(arrays), batch_size)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0..2^64-1; got {seed}")
    if stratified and not shuffle:
        raise ValueError("stratified batches are shuffled; got stratified=True with shuffle=False")
    if start_step < 0:
        raise ValueError(f"start_step must be at least 0; got {start_step}")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, or None for an endless iterator; got {num_steps}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must lie in 0..process_count-1; got {process_index} of {process_count}")
    if batch_size % process_count:
        raise ValueError(f"batch_size must be a multiple of process_count={process_count}; got {batch_size}")
    if prefetch < 0:
        raise ValueError(f"prefetch must be at least 0; got {prefetch}")

    local_size = batch_size // process_count
    sampler = EpochSampler(
        labels=arrays.labels,
        steps=epoch_steps,
        batch_size=batch_size,
        local=slice(process_index * local_size, (process_index + 1) * local_size),
        seed=seed,
        stratified=stratified,
        shuffle=shuffle,
    )
    stop = None if num_steps is None else start_step + num_steps
    # Threads, never processes: the arrays are in memory, and a fork after JAX has started its threads can deadlock.
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.source(sampler)[start_step:stop]
    return iter(steps.map(lambda indices: _gather(arrays, indices)).to_iter_dataset(options))


def eval_batches(
    arrays: LabelledArrays, batch_size: int, *, process_index: int = 0, process_count: int = 1, prefetch: int = 2
) -> Iterator[Batch]:
    """Every example once, in order, in batches of static shape; the last one padded as in `batches`.

    Args:
        arrays: N >= 1 examples.
        batch_size: examples per batch over all processes.
        process_index: as in `batches`.
        process_count: as in `batches`.
        prefetch: as in `batches`.

    Returns:
        An iterator of `steps_per_epoch(N, batch_size)` batches. Mask the padding with `labels >= 0`.

    Raises:
        ValueError: as `batches`.

    Example:
        >>> arrays = LabelledArrays(np.eye(5), np.arange(5), num_classes=5)
        >>> [batch["labels"].tolist() for batch in eval_batches(arrays, 3)]
        [[0, 1, 2], [3, 4, -1]]
    """
    return batches(
        arrays,
        batch_size,
        seed=0,
        shuffle=False,
        num_steps=steps_per_epoch(len(arrays), batch_size),
        process_index=process_index,
        process_count=process_count,
        prefetch=prefetch,
    )


class EpochSampler:
    """Which examples make up step s: a Grain data source of index batches without end.

    Example numbers come with -1 for padding, always at the end. `labels` matter only for stratified orders.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " examples"],
        *,
        steps: int,
        batch_size: int,
        local: slice,
        seed: int,
        stratified: bool,
        shuffle: bool,
    ) -> None:
        self._labels = labels
        self._steps = steps
        self._batch_size = batch_size
        self._local = local
        self._seed = seed
        self._stratified = stratified
        self._shuffle = shuffle
        self._lock = threading.Lock()
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Int[np.ndarray, " batch"]:
        epoch, batch = divmod(index, self._steps)
        first = batch * self._batch_size
        return self._order(epoch)[first + self._local.start : first + self._local.stop]

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:  # prefetching threads share the sampler: one of them sorts, the others wait
            if epoch not in self._orders:
                if self._shuffle:
                    order = epoch_order(self._labels, self._seed, epoch, self._stratified)
                else:
                    order = np.arange(len(self._labels))
                padding = self._steps * self._batch_size - len(order)
                # Two epochs: prefetching looks over the end of one into the next.
                self._orders = dict(list(self._orders.items())[-1:])
                self._orders[epoch] = np.concatenate([order, np.full(padding, -1, order.dtype)])
            return self._orders[epoch]


def epoch_order(
    labels: Int[np.ndarray, " examples"], seed: int, epoch: int, stratified: bool = False
) -> Int[np.ndarray, " examples"]:
    """A random order of the examples that depends on nothing but the arguments; see `batches` for `stratified`.

    Args:
        labels: classes, shape (N,), non-negative.
        seed: in 0..2^64-1.
        epoch: in 0..2^64-1.
        stratified: spread each class evenly.

    Returns:
        A permutation of 0..N-1.

    Example:
        >>> labels = np.repeat([0, 1], 4)
        >>> labels[epoch_order(labels, seed=0, epoch=0, stratified=True)].reshape(4, 2).sum(axis=1)
        array([1, 1, 1, 1])
    """
    stream = np.random.Philox(key=seed + (epoch << 64))  # different keys give independent streams (NumPy, Philox)
    # Sorting the raw stream and not calling Generator.permutation: NumPy promises the former for all versions, so a run
    # resumes exactly after an upgrade too. 0.07 ms for 1437 examples, 0.25 s for the 1.28 million of ImageNet.
    priorities = stream.random_raw(len(labels))
    if not stratified:
        return np.argsort(priorities, kind="stable")
    members = np.lexsort((priorities, labels))  # by class, shuffled within each
    counts = np.bincount(labels)
    ranks = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    phases = (stream.random_raw(len(counts)) >> np.uint64(11)) * 2.0**-53  # the 53 bits of a float64 in [0, 1)
    positions = (ranks + np.repeat(phases, counts)) / np.repeat(counts, counts)
    return members[np.argsort(positions, kind="stable")]


def _gather(arrays: LabelledArrays, indices: Int[np.ndarray, " batch"]) -> Batch:
    count = np.count_nonzero(indices >= 0)
    if count == len(indices):
        return {"features": arrays.features.take(indices, axis=0), "labels": arrays.labels.take(indices)}
    features = np.zeros((len(indices), *arrays.features.shape[1:]), arrays.features.dtype)
    labels = np.full(len(indices), PADDING_LABEL, arrays.labels.dtype)
    features[:count], labels[:count] = arrays.features[indices[:count]], arrays.labels[indices[:count]]
    return {"features": features, "labels": labels}
