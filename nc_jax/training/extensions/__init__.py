"""Extensions that come with the library; `nc_jax.training.Extension` is what to derive your own from."""

from nc_jax.training.extensions.feature_decay import FeatureDecay

__all__ = ["FeatureDecay"]
