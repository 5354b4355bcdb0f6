"""Vision transformers of Dosovitskiy et al. (2021), as backbones: images -> features."""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from nc_jax.arrays import at_least_float32


class _Layout(NamedTuple):
    dim: int
    num_heads: int


LAYOUTS = {  # Touvron et al. (2021), table 1; "base" is that of Dosovitskiy et al. (2021), table 1
    "tiny": _Layout(192, 3),
    "small": _Layout(384, 6),
    "base": _Layout(768, 12),
}
EXPANSION = 4  # hidden units of a block's MLP in units of the dimension, Dosovitskiy et al. (2021), table 1
EPSILON = 1e-6  # of LayerNorm, released programs of both
# Released program of Touvron et al. (2021), which cuts off at -2 and 2, where nothing is left to cut.
WEIGHT_INIT = nn.initializers.normal(0.02)


class ViT(nn.Module):
    r"""Vision transformer without its classifier: patches as tokens, attention, the class token's last value.

    The features are the class token behind the last LayerNorm, not an average of all tokens: both work alike
    (Dosovitskiy et al., appendix D.3), and so the sizes are the published ones. LayerNorm puts them, up to its learnt
    scale and bias, on a sphere of radius :math:`\sqrt d` in the hyperplane of zero sum. Their dimension is the tokens'.
    Dropout and stochastic depth are left out: they would need a random key in every call.

    Attributes:
        layout: "tiny", "small" or "base": d = 192, 384 or 768 with 3, 6 or 12 heads.
        patch: side of a patch in pixels: 16 for images of 224 pixels, 4 for those of 32. The position embeddings, and
            so the parameters, fit images of one size only.
        depth: number of blocks.
        width_multiplier: multiplies d. The number of heads stays, and has to divide it.
        dtype: of activations and products, bfloat16 say; parameters, features and the moments inside LayerNorm are at
            least float32. The softmax is float32 in any case, jax.nn's choice, also between float64 products.

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
            inputs: channels last, any number of them, the sides multiples of the patch.
            train: has no effect: nothing is random, and LayerNorm does in training what it does in evaluation.
            mask: has no effect either: attention and LayerNorm join the tokens of an image, nothing joins the rows.
        """
        del train, mask
        dim, num_heads = self._layout(*inputs.shape[1:3])
        # Flax's own initial weights, as in the released program of Dosovitskiy et al. (2021): they know the fan-in.
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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
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
    """Attention between the tokens of an image, then an MLP on each: both add to the tokens what they make of them.

    Attributes:
        num_heads: of attention.
        dtype: of activations and products.
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
