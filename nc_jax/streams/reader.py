"""Batches of static shape, read ahead by threads with Grain. Random access by step lets a run resume exactly."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from nc_jax.checks import check_at_least, checked_seed
from nc_jax.data.batch import PADDING_LABEL, Batch
from nc_jax.data.source import ExampleSource
from nc_jax.streams.epochs import ENDLESS, Epochs, steps_per_epoch
from nc_jax.streams.stream import Plan, Stream, local_rows, locate


def read(
    source: ExampleSource,
    stream: Stream,
    *,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    parts: int = 1,
    prefetch: int = 2,  # gathering a batch of 256 x 64 numbers takes 5 us: more batches would only cost memory
    threads: int = 1,
) -> Iterator[Batch]:
    """Read the batches of a stream, step after step.

    All batches have the same shape; rows without an example are padding. With `start_step=s`, the batches are exactly
    those that an uninterrupted run reads from step s on.

    Args:
        source: the examples.
        stream: which examples make up which step.
        seed: random seed of the stream, 0..2^64-1.
        start_step: first step to yield, counted from the beginning of training.
        num_steps: number of batches to yield; None reads to the end of the stream.
        process_index: which slice of every batch to read (`jax.process_index()`).
        process_count: number of equal slices into which every batch is cut (`jax.process_count()`).
        parts: number of equal, contiguous parts of a batch; a slice takes an equal share of each part. The examples in
            a part, over all processes, then do not depend on the number of processes.
        prefetch: number of batches that threads prepare ahead; 0 prepares each batch when it is asked for.
        threads: number of threads that prepare batches. Use one per core if images must be decoded.

    Returns:
        An iterator over batches of new arrays: inputs (B / process_count, ...), with scale and dtype as in the source,
        and labels (B / process_count,), int32. In the last batch of an epoch, the slice of a process may be padding
        only.

    Raises:
        ValueError: if an argument is out of its range, or the batch size is not a multiple of `process_count` times
            `parts`.
    """
    batch_size = stream.batch_size
    seed = checked_seed(seed)
    if start_step < 0:
        raise ValueError(f"start_step must be at least 0; got {start_step}")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, or None for all that are left; got {num_steps}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must lie in 0..process_count-1; got {process_index} of {process_count}")
    check_at_least("parts", parts)
    if batch_size % (process_count * parts):
        times = f" times parts={parts}" if parts > 1 else ""
        raise ValueError(f"batch_size must be a multiple of process_count={process_count}{times}; got {batch_size}")
    if prefetch < 0:
        raise ValueError(f"prefetch must be at least 0; got {prefetch}")
    check_at_least("threads", threads)

    columns = np.arange(batch_size).reshape(parts, process_count, -1)[:, process_index].ravel()
    stop = None if num_steps is None else start_step + num_steps
    # Threads, never processes: the arrays are in memory, and a fork can deadlock once JAX has started its threads.
    options = grain.ReadOptions(
        num_threads=threads if prefetch else 0, prefetch_buffer_size=max(prefetch, threads) if prefetch else 0
    )
    steps: Any = grain.MapDataset.source(_Steps(stream, seed, columns))[start_step:stop]
    return iter(steps.map(lambda chosen: gather(source, *chosen)).to_iter_dataset(options))


def batches(
    source: ExampleSource,
    batch_size: int,
    *,
    seed: int,
    stratified: bool = False,
    shuffle: bool = True,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    parts: int = 1,
    prefetch: int = 2,
    threads: int = 1,
) -> Iterator[Batch]:
    """Read training batches: each example once per epoch, each epoch in a new order. See `Epochs` and `read`.

    Args:
        source: N >= 1 examples.
        batch_size: examples per step over all processes.
        seed: random seed, 0..2^64-1.
        stratified: spread each class evenly over the epoch; needs `shuffle`, and a source in memory.
        shuffle: draw a new random order in every epoch; False keeps the order of the source.
        start_step: first step to yield, counted from the beginning of training.
        num_steps: number of batches to yield; None never ends.
        process_index: which slice of every batch to read.
        process_count: number of equal slices into which every batch is cut.
        parts: number of equal, contiguous parts of a batch; a slice takes an equal share of each part.
        prefetch: number of batches that threads prepare ahead; 0 prepares each batch when it is asked for.
        threads: number of threads that prepare batches.

    Returns:
        An iterator over batches, as that of `read`.

    Raises:
        ValueError: if an argument is out of its range, or the batch size is not a multiple of `process_count` times
            `parts`; if stratified batches are asked for without shuffling, or for a source that is not in memory.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.eye(5), np.arange(5), num_classes=5)
        >>> [batch.labels.tolist() for batch in batches(arrays, 3, seed=0, shuffle=False, num_steps=3)]
        [[0, 1, 2], [3, 4, -1], [0, 1, 2]]
    """
    return read(
        source,
        Epochs(source, batch_size, ENDLESS, stratified, shuffle),
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
        process_index=process_index,
        process_count=process_count,
        parts=parts,
        prefetch=prefetch,
        threads=threads,
    )


def eval_batches(
    source: ExampleSource,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    threads: int = 1,
) -> Iterator[Batch]:
    """Read every example once, in order, in batches of static shape.

    Args:
        source: N >= 1 examples.
        batch_size: examples per batch over all processes.
        process_index: which slice of every batch to read.
        process_count: number of equal slices into which every batch is cut.
        prefetch: number of batches that threads prepare ahead; 0 prepares each batch when it is asked for.
        threads: number of threads that prepare batches.

    Returns:
        An iterator over `steps_per_epoch(N, batch_size)` batches; `Batch.mask` is False for padding.

    Raises:
        ValueError: if an argument is out of its range, or if the batch size is not a multiple of `process_count`.

    Example:
        >>> from nc_jax.data import LabelledArrays
        >>> arrays = LabelledArrays(np.eye(5), np.arange(5), num_classes=5)
        >>> [batch.mask.tolist() for batch in eval_batches(arrays, 3)]
        [[True, True, True], [True, True, False]]
    """
    return batches(
        source,
        batch_size,
        seed=0,
        shuffle=False,
        num_steps=steps_per_epoch(len(source), batch_size),
        process_index=process_index,
        process_count=process_count,
        prefetch=prefetch,
        threads=threads,
    )


class _Steps:
    """A stream as a Grain data source: step number -> (example numbers of this process, seed for random crops)."""

    def __init__(self, stream: Stream, seed: int, columns: np.ndarray):
        self._stream, self._seed, self._columns = stream, seed, columns
        self._lock = threading.Lock()
        self._plans: dict[int, Plan] = {}

    def __len__(self) -> int:
        return min(self._stream.ends[-1], sys.maxsize)

    def __getitem__(self, index: int) -> tuple[Plan, int]:
        segment, row = locate(self._stream, index)
        # A different seed in every segment: add a multiple of a fixed odd number (Knuth's multiplier) modulo 2^64.
        visit = (self._seed + segment * 6364136223846793005) % 2**64
        return local_rows(self._plan(segment), row, self._columns), visit

    def _plan(self, segment: int) -> Plan:
        with self._lock:  # prefetching threads share the plans: one thread makes a plan while the others wait
            if segment not in self._plans:
                plan = self._stream.plan(self._seed, segment)
                # Keep two plans: prefetching reads from the next segment before the current one has ended.
                self._plans = dict(list(self._plans.items())[-1:])
                self._plans[segment] = plan
            return self._plans[segment]


def gather(source: ExampleSource, chosen: Plan, seed: int = 0) -> Batch:
    """Read a batch; rows without an example are zero, and padding.

    Args:
        source: the examples.
        chosen: one row of a plan, arrays of shape (B,).
        seed: seed of random crops.
    """
    index = chosen.index
    mask = index >= 0
    extras: dict[str, Any] = chosen._asdict()
    if mask.all():
        return source.take(index, seed)._replace(**extras)
    # This slice of the last batch may be padding only. Then read example 0, only to learn the shape of the inputs.
    used = index[mask] if mask.any() else np.zeros(1, index.dtype)
    read = source.take(used, seed)
    inputs = np.zeros((len(index), *read.inputs.shape[1:]), read.inputs.dtype)
    labels = np.full(len(index), PADDING_LABEL, read.labels.dtype)
    if mask.any():
        inputs[mask], labels[mask] = read.inputs, read.labels
    return Batch(inputs, labels, mask, **extras)
