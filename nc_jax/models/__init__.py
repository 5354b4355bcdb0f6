"""Linen modules: backbones and heads. Only this package and `nc_jax.training.state` know Linen."""

from nc_jax.models.classifier import Classifier
from nc_jax.models.heads import FixedHead, HeadOutput, LearnedHead, NearestHead
from nc_jax.models.mlp import MLP
from nc_jax.models.normalization import BatchNorm
from nc_jax.models.resnet import ResNet

__all__ = ["MLP", "BatchNorm", "Classifier", "FixedHead", "HeadOutput", "LearnedHead", "NearestHead", "ResNet"]
