"""Extensions that come with the library. Derive your own from `nc_jax.training.Extension`."""

from nc_jax.training.extensions.feature_decay import FeatureDecay

__all__ = ["FeatureDecay"]
