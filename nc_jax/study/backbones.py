"""Networks by name, and what may stand between one and its head."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nc_jax.models import (
    MLP,
    VGG,
    BatchNorm,
    Bottleneck,
    DenseNet,
    EfficientNet,
    Projection,
    ResNet,
    Transformation,
    ViT,
    WideResNet,
    WithNeck,
)
from nc_jax.training import read_checkpoint

SMALL = 64  # images of up to so many pixels get the "cifar" stem, larger ones that of ImageNet
NETWORKS: dict[str, Callable[..., Any]] = {
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "densenet40": partial(DenseNet, depth=40, growth=12, bottleneck=False),
    "densenet121": partial(DenseNet, depth=121),
    "efficientnet": EfficientNet,
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "wide-resnet28": WideResNet,
    "vit": partial(ViT, layout="tiny"),
}
BACKBONES = ("mlp", *NETWORKS)


@dataclasses.dataclass(frozen=True)
class BackboneOptions:
    """Which network gives the features.

    Attributes:
        name: name of the network: mlp, resnet18, resnet34, resnet50, densenet40, densenet121, efficientnet, vgg11,
            vgg13, vgg16, wide-resnet28 or vit.
        hidden: widths of the hidden layers of the MLP.
        dim: feature dimension d of the MLP. Other networks have a fixed one.
        width_multiplier: factor on the widths of all layers of a network other than the MLP.
        final_dim: feature dimension d of a residual network, set by its last convolution. None keeps the network's own.
        stem: first layers of a convolutional network: "imagenet" reduces the resolution to a quarter, "cifar" keeps it.
            None chooses by the size of the images.
        dtype: floating-point type of the activations of networks other than the MLP.
        neck: layer between backbone and head. "none": nothing. "norm": batch normalisation. "type1": batch
            normalisation, a linear layer, batch normalisation and ELU. "type2": a projection on K channels and the
            transformation layer. "transformation": the transformation layer alone. "relu": ReLU, which makes the
            features of the MLP, EfficientNet and ViT non-negative, as the fno methods need them; other networks end in
            ReLU. "mlp": ReLU and an MLP with one hidden layer.
        neck_dim: width of the necks "type1" and "mlp", which is the feature dimension. Other necks ignore it.
        rate_factor: factor on the learning rate of the parameters that --backbone.rate-part names.
        rate_part: parameters to which the rate factor applies: "backbone" (with the projection of the neck "type2"), or
            "all", which is everything but the head.
        checkpoint: folder of checkpoints that an earlier run wrote. The newest one gives the backbone's initial
            parameters; its batch statistics are estimated anew. None starts from random parameters.

    Raises:
        ValueError: if there is no such network, or a width is below 1.
    """

    name: str = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    dim: int = 128
    width_multiplier: float = 1.0
    final_dim: int | None = None
    stem: Literal["cifar", "imagenet"] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    neck: Literal["none", "norm", "type1", "type2", "transformation", "relu", "mlp"] = "none"
    neck_dim: int = 600  # Garg et al. (2022)
    rate_factor: float = 1.0
    rate_part: Literal["backbone", "all"] = "backbone"
    checkpoint: Path | None = None

    def __post_init__(self):
        if self.name not in BACKBONES:
            raise ValueError(f"a backbone must be one of {', '.join(BACKBONES)}; got {self.name!r}")
        if min((*self.hidden, self.dim)) < 1:
            raise ValueError(f"widths must be at least 1; got hidden={self.hidden}, dim={self.dim}")
        if self.final_dim is not None and not self.name.startswith("resnet"):
            raise ValueError(f"final_dim narrows the last block of residual networks; got {self.name!r}")


def make_backbone(
    options: BackboneOptions, *, size: int, num_classes: int | None = None, only_matrices: bool = False
) -> Any:
    """Return a network by name, with its neck.

    Args:
        options: which network, and where its parameters come from.
        size: height of the images.
        num_classes: K, needed by the neck "type2".
        only_matrices: without biases and scales, for automatic gradient descent.

    Raises:
        ValueError: if the network cannot be had that way.
    """
    network = _network(options, size, only_matrices)
    necks: dict[str, Callable[[], tuple[Any, ...]]] = {
        "none": lambda: (),
        "norm": lambda: (BatchNorm(),),
        "type1": lambda: (Bottleneck(options.neck_dim),),
        "type2": lambda: (Projection(num_classes or 0), Transformation()),
        "transformation": lambda: (Transformation(),),
        "relu": lambda: (jax.nn.relu,),
        "mlp": lambda: (jax.nn.relu, MLP((options.neck_dim,), options.neck_dim)),
    }
    chosen = necks[options.neck]()
    return WithNeck(network, chosen) if chosen else network


def slower_parts(options: BackboneOptions) -> list[str]:
    """Return the paths of the parameters whose learning rate `rate_factor` scales."""
    if options.rate_factor == 1:
        return []
    if options.rate_part == "all":
        return ["backbone"]
    return [_path(options), "backbone/necks_0"] if options.neck == "type2" else [_path(options)]


def loader(options: BackboneOptions) -> Callable[[Any, Any], Any] | None:
    """Return an `initialise` for `nc_jax.training.Trainer` that puts a checkpoint's backbone in the drawn one's place.

    The checkpoint is read here, once, and not when a program is traced. None if there is no checkpoint to read.

    Raises:
        FileNotFoundError: if the folder has no checkpoint.
        ValueError: when called, if the checkpoint has another backbone.
    """
    if options.checkpoint is None:
        return None
    if not options.checkpoint.is_dir():
        raise FileNotFoundError(f"a backbone's checkpoint must be a folder of checkpoints; got {options.checkpoint}")
    loaded = read_checkpoint(options.checkpoint)["params"]["backbone"]
    loaded = loaded.get("backbone", loaded)  # of a network with a neck
    *above, last = _path(options).split("/")

    def initialise(params: Any, key: Any) -> Any:
        del key
        place = params
        for name in above:
            place = place[name]
        here, there = (jax.tree.map(jnp.shape, tree) for tree in (place[last], loaded))
        if here != there:
            raise ValueError(f"the checkpoint in {options.checkpoint} has another backbone: {there} instead of {here}")
        place[last] = jax.tree.map(jnp.asarray, loaded)
        return params

    return initialise


def _path(options: BackboneOptions) -> str:
    return "backbone" if options.neck == "none" else "backbone/backbone"


def _network(options: BackboneOptions, size: int, only_matrices: bool) -> Any:
    name, dtype = options.name, jnp.dtype(options.dtype)
    if name in ("mlp", "vit") and only_matrices:
        raise ValueError(f'this network has biases, for which "agd" has no rule; got {name!r}')
    if name == "mlp" and options.dtype != "float32":
        raise ValueError(f"an MLP computes in float32; got dtype={options.dtype!r}, which is for other networks")
    if name == "mlp":
        return MLP(options.hidden, options.dim)
    chosen: dict[str, Any] = {"width_multiplier": options.width_multiplier, "dtype": dtype}
    if name.startswith("densenet"):
        # Its width is its growth.
        keywords: dict[str, Any] = NETWORKS[name].keywords  # pyright: ignore[reportFunctionMemberAccess]
        chosen = {"growth": max(round(options.width_multiplier * keywords.get("growth", 32)), 1), "dtype": dtype}
    if name == "vit":
        return NETWORKS[name](patch=_patch(size), **chosen)
    if name == "wide-resnet28":
        chosen["width_multiplier"] *= 10  # WRN-28-10
    elif name != "densenet121":  # which has the ImageNet stem only
        stem = options.stem or ("cifar" if size <= SMALL else "imagenet")
        chosen["top" if name.startswith("vgg") else "stem"] = stem
    if options.final_dim is not None:
        chosen["final_dim"] = options.final_dim
    scales = {"use_scale": False, "use_bias": False} if only_matrices else {}
    return NETWORKS[name](**chosen, **scales)


def _patch(size: int) -> int:
    """Return the ViT's patch: 16 pixels (Dosovitskiy et al., 2021), of small images so that about 8 make a side."""
    if size > SMALL:
        return 16
    # A patch of one pixel says nothing by itself, and attention costs the square of their number.
    return min((patch for patch in range(2, size + 1) if size % patch == 0), key=lambda patch: abs(size / patch - 8))
