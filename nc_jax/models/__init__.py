"""Linen modules: backbones and heads. Only this package and `nc_jax.training.state` depend on Linen."""

from nc_jax.extras import require

require("flax", "flax", __name__)

from nc_jax.heads import HeadOutput
from nc_jax.models.classifier import Classifier
from nc_jax.models.densenet import DenseNet
from nc_jax.models.efficientnet import EfficientNet
from nc_jax.models.heads import (
    FixedHead,
    HeadModule,
    LearnedHead,
    LevelsHead,
    NearestHead,
    RotatedHead,
    SampledHead,
    StagedHead,
    TreeSoftmaxHead,
)
from nc_jax.models.mlp import MLP
from nc_jax.models.normalization import BatchNorm
from nc_jax.models.resnet import ResNet
from nc_jax.models.transformation import Bottleneck, PReLU, Projection, Transformation, WithNeck
from nc_jax.models.vgg import VGG
from nc_jax.models.vit import ViT
from nc_jax.models.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "VGG",
    "BatchNorm",
    "Bottleneck",
    "Classifier",
    "DenseNet",
    "EfficientNet",
    "FixedHead",
    "HeadModule",
    "HeadOutput",
    "LearnedHead",
    "LevelsHead",
    "NearestHead",
    "PReLU",
    "Projection",
    "ResNet",
    "RotatedHead",
    "SampledHead",
    "StagedHead",
    "Transformation",
    "TreeSoftmaxHead",
    "ViT",
    "WideResNet",
    "WithNeck",
]
