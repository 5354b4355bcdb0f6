"""Vision transformers of Dosovitskiy et al. (2021), as backbones: images -> features."""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32
from nc_jax.checks import check_at_least


class _Layout(NamedTuple):
    dim: int
    num_heads: int


LAYOUTS = {  # Touvron et al. (2021), table 1; their "base" equals that of Dosovitskiy et al. (2021), table 1
    "tiny": _Layout(192, 3),
    "small": _Layout(384, 6),
    "base": _Layout(768, 12),
}
EXPANSION = 4  # hidden units of a block's MLP in units of the dimension, Dosovitskiy et al. (2021), table 1
EPSILON = 1e-6  # of LayerNorm, released programs of Dosovitskiy et al. (2021) and Touvron et al. (2021)
# Released program of Touvron et al. (2021). It truncates at -2 and 2, which has no effect at this standard deviation.
WEIGHT_INIT = nn.initializers.normal(0.02)


class ViT(nn.Module):
    r"""Vision transformer without its classifier: patches as tokens, attention, the class token's last value.

    The features are the class token after the last LayerNorm, with the dimension d of the tokens. An average of all
    tokens would work equally well (Dosovitskiy et al., appendix D.3); the class token gives the published numbers of
    parameters. Up to the learnt scale and bias, LayerNorm puts the features on a sphere of radius :math:`\sqrt d` in
    the hyperplane of zero sum. Dropout and stochastic depth are left out: they would need a random key in every call.

    Attributes:
        layout: "tiny", "small" or "base": d = 192, 384 or 768 with 3, 6 or 12 attention heads.
        patch: side of a patch in pixels, for instance 16 for images of 224 pixels and 4 for images of 32 pixels. The
            position embeddings, and so the parameters, fit images of one size only.
        depth: number of blocks.
        width_multiplier: factor on d. The number of attention heads stays the same and must divide the product.
        dtype: dtype of activations and matrix products, for instance bfloat16. Parameters, features and the moments
            inside LayerNorm are at least float32. The softmax is always float32 (a choice of `jax.nn`), even if the
            matrix products are float64.

    Raises:
        ValueError: when called, if the layout, the patch, the depth or the width is not one of those above, or if the
            patches do not tile the image.

    Example:
        >>> model, images = ViT("tiny", patch=4, depth=2), jnp.zeros((2, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (2, 192)

    Reference: Dosovitskiy et al., An image is worth 16x16 words (2021); Touvron et al., Training data-efficient image
    transformers (2021), for the smaller layouts and the initial weights.
    """

    layout: Literal["tiny", "small", "base"]
    patch: int = 16  # Dosovitskiy et al. (2021), "/16"
    depth: int = 12  # of all three layouts, Touvron et al. (2021), table 1
    width_multiplier: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Return the features of a batch of images.

        Args:
            inputs: (N, H, W, C), any number of channels; H and W multiples of the patch.
            train: has no effect: nothing is random, and LayerNorm is the same in training and in evaluation.
            mask: has no effect: attention and LayerNorm combine tokens of one image, never different images.

        Returns:
            Features, shape (N, d).
        """
        del train, mask
        dim, num_heads = self._layout(*inputs.shape[1:3])
        # Flax's default initial weights, which scale with the fan-in: released program of Dosovitskiy et al. (2021).
        embedding = nn.Conv(dim, (self.patch, self.patch), self.patch, "VALID", dtype=self.dtype, name="embedding")
        tokens = embedding(inputs.astype(self.dtype)).reshape(inputs.shape[0], -1, dim)
        class_token = self.param("class_token", WEIGHT_INIT, (1, 1, dim)).astype(self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(class_token, (inputs.shape[0], 1, dim)), tokens], axis=1)
        tokens += self.param("positions", WEIGHT_INIT, (1, *tokens.shape[1:])).astype(self.dtype)
        for index in range(self.depth):
            tokens = _Block(num_heads=num_heads, dtype=self.dtype, name=f"block{index + 1}")(tokens)
        return nn.LayerNorm(EPSILON, name="last_norm")(at_least_float32(tokens[:, 0]))

    def _layout(self, height: int, width: int) -> _Layout:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        for name in ("patch", "depth"):
            check_at_least(name, getattr(self, name))
        dim, num_heads = LAYOUTS[self.layout]
        dim = round(dim * self.width_multiplier)
        if dim < 1 or dim % num_heads:
            raise ValueError(
                f"width_multiplier must leave a positive multiple of {num_heads} channels; got {self.width_multiplier}"
            )
        if height % self.patch or width % self.patch or not height * width:
            raise ValueError(f"sides of images must be multiples of patch={self.patch}; got {height} x {width}")
        return _Layout(dim, num_heads)


class _Block(nn.Module):
    """A transformer block: attention between the tokens of an image, then an MLP on each token, both with a shortcut.

    Attributes:
        num_heads: number of attention heads.
        dtype: dtype of activations and matrix products.
    """

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        dim = tokens.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=WEIGHT_INIT)
        norm = partial(nn.LayerNorm, EPSILON, dtype=self.dtype)

        heads = dense(3 * dim, name="query_key_value")(norm(name="norm1")(tokens))
        heads = heads.reshape(*tokens.shape[:2], 3, self.num_heads, dim // self.num_heads)
        attended = jax.nn.dot_product_attention(*jnp.unstack(heads, axis=2))
        tokens += dense(dim, name="projection")(attended.reshape(tokens.shape))

        hidden = nn.gelu(dense(EXPANSION * dim, name="mlp1")(norm(name="norm2")(tokens)), approximate=False)
        return tokens + dense(dim, name="mlp2")(hidden)
