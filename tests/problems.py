"""A small problem that every test of training shares."""

import jax
import numpy as np
import optax

from nc_jax.data import LabelledArrays
from nc_jax.models import MLP, Classifier, NearestHead
from nc_jax.training import AXIS, LoopOptions, Trainer

NUM_CLASSES = 4


def blobs(num_examples: int, seed: int = 0) -> LabelledArrays:
    """Four Gaussian classes in six dimensions that overlap a little."""
    generator = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(99).normal(size=(NUM_CLASSES, 6))
    labels = np.arange(num_examples) % NUM_CLASSES
    features = centres[labels] + generator.normal(size=(num_examples, 6))
    return LabelledArrays(features.astype(np.float32), labels, NUM_CLASSES)


def make_trainer(num_devices: int, *, learning_rate: float = 0.05, epochs: int = 3, **head) -> Trainer:
    model = Classifier(MLP((16,), 8), NearestHead(NUM_CLASSES, axis_name=AXIS, **head))
    options = LoopOptions(epochs=epochs, batch_size=24, checkpoint_every=1)
    return Trainer(model, optax.sgd(learning_rate, 0.9), options, devices=jax.local_devices()[:num_devices])
