"""A toy problem that every test of training shares."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from nc_jax.data import ExampleSource, LabelledArrays
from nc_jax.models import MLP, BatchNorm, Classifier, NearestHead
from nc_jax.training import LoopOptions, MetricsLog, StepOptions, Trainer, read_metrics

NUM_CLASSES = 4


def blobs(num_examples: int, seed: int = 0) -> LabelledArrays:
    """Four Gaussian classes in six dimensions that overlap a little."""
    generator = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(99).normal(size=(NUM_CLASSES, 6))
    labels = np.arange(num_examples) % NUM_CLASSES
    inputs = centres[labels] + generator.normal(size=(num_examples, 6))
    return LabelledArrays(inputs.astype(np.float32), labels, NUM_CLASSES)


def make_trainer(
    num_devices: int,
    *,
    learning_rate: float = 0.05,
    epochs: int = 3,
    resident: bool | None = None,
    checkpoint_every: int = 1,
    step: StepOptions = StepOptions(),
    backbone: Any = MLP((16,), 8),
    threads: int = 1,
    **head,
) -> Trainer:
    model = Classifier(backbone, NearestHead(NUM_CLASSES, **head))
    options = LoopOptions(
        epochs=epochs,
        batch_size=24,
        checkpoint_every=checkpoint_every,
        resident=resident,
        threads=threads,
        devices=num_devices,
    )
    return Trainer(model, optax.sgd(learning_rate, 0.9), options, step=step)


class NormalisedMLP(nn.Module):
    """A layer with batch normalisation: the smallest backbone with everything that an image model needs."""

    @nn.compact
    def __call__(self, inputs, *, train=False, mask=None):
        hidden = nn.Dense(8)(inputs.reshape(inputs.shape[0], -1))
        return nn.relu(BatchNorm()(hidden, train=train, mask=mask))


def fit(trainer: Trainer, train_set: ExampleSource, test_set: ExampleSource, directory: Path, **keywords):
    directory.mkdir(exist_ok=True)
    with MetricsLog(directory) as log:
        options = {"seed": 0, "run": "run"} | keywords
        return trainer.fit(train_set, test_set, directory=directory, log=log, **options)


def rows_of(directory: Path) -> list[dict]:
    """The lines of the log, without the times."""
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step/seconds"} for row in rows]
