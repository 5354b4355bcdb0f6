"""A toy problem of federated learning, and a slow, obvious federation to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from toy_training import NUM_CLASSES, blobs

from nc_jax.data import Batch, ClientArrays, LabelledArrays
from nc_jax.federated import Rounds
from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.streams import Clients, read
from nc_jax.training import LoopOptions, StepOptions, Trainer, TrainState, create_state, make_train_step

SIZES = (7, 12, 3, 9, 5)  # with batches of 4: 2, 3, 1, 3 and 2 steps, and padding in four of the five passes
LOCAL_BATCH = 4


def spread(sizes: Sequence[int] = SIZES, seed: int = 0) -> ClientArrays:
    """Blobs of which so many belong to each client."""
    owners = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return ClientArrays.of(blobs(sum(sizes)), owners, len(sizes))


def small_model(head: Any = None, backbone: Any = MLP((8,), 6)) -> Classifier:
    return Classifier(backbone, LearnedHead(NUM_CLASSES) if head is None else head)


def trainer_of(
    stream: Clients,
    optimizer: optax.GradientTransformation,
    *,
    model: Any = None,
    devices: int = 1,
    resident: bool | None = None,
    evaluate_every: int = 1,
    step: StepOptions = StepOptions(),
    **rounds: Any,
) -> Trainer:
    """A trainer in the rounds of a stream."""
    return Trainer(
        small_model() if model is None else model,
        optimizer,
        LoopOptions(
            batch_size=stream.local_batch,
            checkpoint_every=1,
            evaluate_every=evaluate_every,
            resident=resident,
            devices=devices,
        ),
        step=step,
        rounds=Rounds(clients=stream.clients_per_round, local_batch=stream.local_batch, **rounds),
    )


def after_rounds(trainer: Trainer, stream: Clients, *, change: Any = lambda batch: batch) -> tuple[TrainState, list]:
    """Return the server's state after all rounds of a stream, and the metrics of each; `change` acts on batches."""
    state, reports = trainer.init(stream.source, seed=0), []
    for batch in read(stream.source, stream, seed=0):
        state, metrics = trainer.step(state, change(batch))
        reports.append(jax.device_get(metrics))
    return jax.device_get(state), reports


@dataclass(frozen=True)
class ByHand:
    """Trains clients one after another with the plain training step, in a loop of Python."""

    model: Any
    optimizer: optax.GradientTransformation
    step: StepOptions = field(default_factory=StepOptions)

    @cached_property
    def compiled(self) -> Any:
        return jax.jit(make_train_step(self.model, self.optimizer, options=self.step))

    def initial(self, source: LabelledArrays) -> TrainState:
        """Return the initial state that `Trainer.init` makes of seed 0."""
        return create_state(self.model, self.optimizer, jax.random.key(0), source.inputs[:1])

    def client(self, state: TrainState, batches: Sequence[Batch]) -> TrainState:
        """Return a client's state after its steps; it begins with a new state of the optimiser."""
        # Copies: `replace` must not share buffers with a state that someone else keeps.
        state = state.replace(opt_state=self.optimizer.init(state.params))
        for batch in batches:
            state, _ = self.compiled(state, batch)
        return state

    def rounds(self, stream: Clients, *, joined: Any = None) -> TrainState:
        """Return the server's state after all rounds; `joined` makes the next parameters of the clients' mean."""
        state = self.initial(stream.source)
        for segment in range(stream.rounds):
            ends, sizes = [], []
            for number, batches in batches_of(stream, segment).items():
                if batches:
                    ends.append(self.client(state, batches))
                    sizes.append(np.sum(stream.source.clients == number))
            state = state.replace(
                params=mean_of([end.params for end in ends], sizes),
                variables=mean_of([end.variables for end in ends], sizes),
            )
        return state


def mean_of(trees: Sequence[Any], weights: Sequence[Any]) -> Any:
    """Return the weighted mean of trees of arrays, in float64 until the end."""
    shares = np.asarray(weights, float) / np.sum(weights)

    def one(*leaves: Any) -> Any:
        whole = sum(share * np.asarray(leaf, float) for share, leaf in zip(shares, leaves, strict=True))
        return jnp.asarray(whole, leaves[0].dtype)

    return jax.tree.map(one, *trees)


def batches_of(stream: Clients, segment: int, seed: int = 0) -> dict[int, list[Batch]]:
    """Return the batches of each client in a round, without those that are all padding."""
    plan = stream.plan(seed, segment)
    found: dict[int, list[Batch]] = {}
    assert plan.client is not None
    for rows, owners in zip(
        plan.index.reshape(-1, stream.local_batch), plan.client.reshape(-1, stream.local_batch), strict=True
    ):
        taken = found.setdefault(int(owners[0]), [])
        if (rows >= 0).any():
            taken.append(batch_of(stream.source, rows))
    return found


def batch_of(source: LabelledArrays, rows: np.ndarray) -> Batch:
    """Return a batch of these examples; -1 is padding."""
    mask = rows >= 0
    inputs = np.where(mask[:, None], source.inputs[np.maximum(rows, 0)], 0)
    labels = np.where(mask, source.labels[np.maximum(rows, 0)], -1)
    return Batch(inputs.astype(np.float32), labels.astype(np.int32), mask)
