"""Data sets and networks by name, as the experiments on images take them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from nc_jax.data import LabelledArrays, digits, glyphs, sources, take_per_class
from nc_jax.data.augment import AUGMENTATIONS, make, make_preprocess
from nc_jax.data.images import ImageSource
from nc_jax.models import MLP, VGG, DenseNet, EfficientNet, FixedHead, LearnedHead, NearestHead, ResNet, ViT, WideResNet
from nc_jax.training import AXIS, StepOptions

# Stem "cifar" for images of up to 64 pixels, the ImageNet one beyond.
SMALL = 64
NETWORKS: dict[str, Callable[..., Any]] = {
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "densenet40": partial(DenseNet, depth=40, growth=12, bottleneck=False),
    "densenet121": partial(DenseNet, depth=121),
    "efficientnet": EfficientNet,
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "wide-resnet28": WideResNet,
    "vit": partial(ViT, layout="tiny"),
}
MODELS = ("mlp", *NETWORKS)
TrainCrop = Literal["random", "stretch"]
TestCrop = Literal["centre", "stretch"]
HeadName = Literal["learned", "fixed", "nearest"]


class Task(NamedTuple):
    """What to train on.

    Attributes:
        train: the training set.
        test: the test set.
        step: augmentation and preprocessing that go with it.
        size: height of the images, in pixels.
    """

    train: Any
    test: Any
    step: StepOptions
    size: int


def load(
    dataset: str,
    data_dir: str | None = None,
    *,
    flat: bool = False,
    num_classes: int | None = None,
    per_class: int | None = None,
    augmentation: str = "none",
    train_crop: TrainCrop = "random",
    test_crop: TestCrop = "centre",
    seed: int = 0,
) -> Task:
    """Load a data set by name.

    Digits come with the mean training image subtracted; other images stay bytes until the device normalises them.

    Args:
        dataset: as in `nc_jax.data.sources.load`.
        data_dir: where TFDS keeps prepared data; None is its own default.
        flat: digits as vectors, for an MLP, instead of images.
        num_classes: of the glyphs, 2 to 1000; other sets have the classes that they have.
        per_class: training images to keep of each class; None keeps all.
        augmentation: of `nc_jax.data.augment`.
        train_crop: of images that have no common size: "random", or "stretch", which resizes the whole image.
        test_crop: likewise, "centre" or "stretch".
        seed: of the choice that `per_class` makes, and of random crops.

    Raises:
        ValueError: if there is no such set or augmentation, or it cannot be had that way.
        FileNotFoundError: if the set has not been prepared.
    """
    base, _, preset = dataset.partition("/")
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {augmentation!r}")
    if num_classes is not None and base != "glyphs":
        raise ValueError(f"only the glyphs come with any number of classes; got num_classes={num_classes} of {dataset}")
    train: Any
    test: Any
    if base == "digits":
        train, test = (digits.load(split, data_dir) for split in ("train", "test"))
        shape = (64,) if flat else (8, 8, 1)
        mean = train.features.mean(axis=0)
        train, test = (_with_features(part, (part.features - mean).reshape(-1, *shape)) for part in (train, test))
    elif base == "glyphs":  # rendered at once: sooner than it is read from a folder
        options: dict[str, Any] = {"preset": preset or "default", "num_classes": num_classes or glyphs.NUM_CLASSES}
        train, test = (glyphs.load(split, **options) for split in ("train", "test"))
    else:
        splits = sources.splits(dataset, data_dir)
        if len(splits) < 2:
            raise ValueError(f"{dataset} must have a split to train on and one to test on; got {', '.join(splits)}")
        train, test = (sources.load(dataset, split, data_dir) for split in splits[:2])
        if isinstance(train, ImageSource):
            size = sources.IMAGE_SIZE
            train = train.stretched(size) if train_crop == "stretch" else train.cropped(size, seed=seed)
            test = test.stretched(size) if test_crop == "stretch" else test.cropped(size)
    if per_class is not None:
        if not isinstance(train, LabelledArrays):
            raise ValueError(f"per_class needs a set in memory; got {dataset}")
        train = take_per_class(train, per_class, seed=seed)
    step = StepOptions()
    if base != "digits":
        augment = None if augmentation == "none" else make(augmentation)
        step = StepOptions(augment=augment, preprocess=make_preprocess(dataset))
    elif augmentation != "none":
        raise ValueError(f"digits have no augmentation: they are centred vectors; got {augmentation!r}")
    size = train.take(np.zeros(1, np.int64))["features"].shape[1]
    return Task(train, test, step, size)


def make_backbone(
    model: str,
    *,
    size: int,
    hidden: tuple[int, ...] = (256, 256),
    dim: int = 128,
    width_multiplier: float = 1.0,
    only_matrices: bool = False,
    stem: Literal["cifar", "imagenet"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Any:
    """Return a network by name, its batch normalisation synchronous over the devices.

    Args:
        model: one of `MODELS`.
        size: height of the images.
        hidden: of the MLP.
        dim: of the MLP's features; other networks have the dimension that they have.
        width_multiplier: of networks other than the MLP.
        only_matrices: without biases and scales, for AGD.
        stem: None takes it from the size.
        dtype: of the activations.

    Raises:
        ValueError: if there is no such network, or it cannot be had that way.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {model!r}")
    if model == "mlp":
        if only_matrices:
            raise ValueError('the MLP has biases, for which AGD has no rule; got model="mlp"')
        return MLP(hidden, dim)
    options: dict[str, Any] = {"width_multiplier": width_multiplier, "dtype": dtype}
    if model.startswith("densenet"):
        # Its width is its growth.
        keywords: dict[str, Any] = NETWORKS[model].keywords  # pyright: ignore[reportFunctionMemberAccess]
        options = {"growth": max(round(width_multiplier * keywords.get("growth", 32)), 1), "dtype": dtype}
    if model == "vit":
        if only_matrices:
            raise ValueError('the ViT has biases, for which AGD has no rule; got model="vit"')
        return NETWORKS[model](patch=_patch(size), **options)
    if model == "wide-resnet28":
        options["width_multiplier"] *= 10  # WRN-28-10
    elif model != "densenet121":  # which has the ImageNet stem only
        options["top" if model.startswith("vgg") else "stem"] = stem or ("cifar" if size <= SMALL else "imagenet")
    scales = {"use_scale": False, "use_bias": False} if only_matrices else {}
    return NETWORKS[model](axis_name=AXIS, **options, **scales)


def make_head(name: HeadName, num_classes: int, *, radius: float, **nearest: Any) -> Any:
    """Return one of the heads that the experiments compare; only who moves the class vectors differs between them.

    Args:
        name: "learned" has unit class vectors and no bias, as "fixed" and "nearest" have.
        num_classes: K.
        radius: tau, the length to which features are scaled.
        nearest: settings of `nc_jax.models.NearestHead`; the others do not look at them.
    """
    heads: dict[HeadName, Callable[[], Any]] = {
        "learned": lambda: LearnedHead(num_classes, radius=radius, normalize_columns=True, use_bias=False),
        "fixed": lambda: FixedHead(num_classes, radius=radius),
        "nearest": lambda: NearestHead(num_classes, radius=radius, **nearest),
    }
    return heads[name]()


def _patch(size: int) -> int:
    """Return the ViT's patch: 16 pixels (Dosovitskiy et al., 2021), of small images so that about 8 make a side."""
    if size > SMALL:
        return 16
    # A patch of one pixel says nothing by itself, and attention costs the square of their number.
    return min((patch for patch in range(2, size + 1) if size % patch == 0), key=lambda patch: abs(size / patch - 8))


def _with_features(arrays: LabelledArrays, features: np.ndarray) -> LabelledArrays:
    return dataclasses.replace(arrays, features=features)
