"""The networks that `benchmarks.train_step` trains, their data, and the two heads that it compares."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from benchmarks.problems import PROX_WEIGHT
from nc_jax.data import Batch
from nc_jax.models import MLP, HeadModule, LearnedHead, NearestHead, ResNet

Solver = Literal["polar", "trust_region"]

MODELS = ("mlp", "resnet18", "resnet18-imagenet", "resnet50-imagenet")
FEATURES = {18: 512, 50: 2048}  # of a ResNet, by depth
RADIUS = 5.0  # tau of both heads, Markou et al. (2024)


def parse(case: str) -> tuple[str, int]:
    """Split "model:K" into the model and the number of classes K.

    The models are mlp (64-256-256-128), resnet18 (CIFAR stem, 32x32 pixels), resnet18-imagenet and resnet50-imagenet
    (224x224 pixels).

    Raises:
        ValueError: if there is no such model, or K is not a number of at least 2.
    """
    model, _, num_classes = case.partition(":")
    if model not in MODELS or not num_classes.isdecimal() or int(num_classes) < 2:
        raise ValueError(f"a case is one of {', '.join(MODELS)}, a colon and a number of classes; got {case!r}")
    return model, int(num_classes)


class Problem(NamedTuple):
    """A backbone without a head, and its data.

    Attributes:
        backbone: constructor of the backbone.
        batches: training batches in which every class occurs; inputs are float32.
        num_classes: number of classes K.
    """

    backbone: Callable[..., Any]
    batches: Sequence[Batch]
    num_classes: int


def make_problem(case: str, batch_size: int, dtype: DTypeLike) -> Problem:
    """Return the network of a case with its data: digits for the MLP, noisy class images for the ResNets.

    Args:
        case: "model:K", see `parse`.
        batch_size: examples per batch.
        dtype: dtype of the activations of a ResNet; those of the MLP are always float32.

    Raises:
        ValueError: if there is no such case.
    """
    model, num_classes = parse(case)
    if model == "mlp":
        return Problem(functools.partial(MLP, (256, 256), 128), [_digits(batch_size, num_classes)], num_classes)
    network, _, imagenet = model.partition("-")
    depth = int(network.removeprefix("resnet"))
    backbone = functools.partial(
        ResNet,
        depth=depth,
        stem="imagenet" if imagenet else "cifar",
        final_dim=None if num_classes <= FEATURES[depth] + 1 else 1 << (num_classes - 2).bit_length(),
        dtype=jnp.dtype(dtype),
    )
    return Problem(backbone, _class_images(batch_size, num_classes, 224 if imagenet else 32), num_classes)


def _digits(batch_size: int, num_classes: int) -> Batch:
    """Return scikit-learn's digits in [0, 1], directly from scikit-learn: not every machine with a GPU has TFDS."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero(labels < num_classes)[:batch_size]
    return Batch.of((images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int32))


def _class_images(batch_size: int, num_classes: int, size: int) -> list[Batch]:
    """Return images: a coarse random pattern of the class, plus noise that all batches share. Labels are cyclic."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(num_classes, 4, 4, 3)).astype(np.float32)
    noise = generator.normal(size=(batch_size, size, size, 3)).astype(np.float32)
    labels = np.arange(-(-num_classes // batch_size) * batch_size, dtype=np.int32) % num_classes
    return [
        Batch.of(patterns[part].repeat(size // 4, axis=1).repeat(size // 4, axis=2) + noise, part)
        for part in labels.reshape(-1, batch_size)
    ]


def learned_head(num_classes: int) -> HeadModule:
    """Return the baseline head. It differs from a nearest head only in how the class vectors move."""
    return LearnedHead(num_classes, radius=RADIUS, normalize_columns=True, use_bias=False)


def nearest_head(num_classes: int, solver: Solver) -> HeadModule:
    """Return the nearest head with a solver."""
    return NearestHead(num_classes, radius=RADIUS, prox_weight=PROX_WEIGHT, solver=solver)
