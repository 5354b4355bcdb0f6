"""Heads that know a label tree, and the template of a frame that follows it."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax.arrays import safe_norm
from nc_jax.frames import hierarchical_template, separated_template
from nc_jax.hierarchy import LabelTree, Mapping, similarity
from nc_jax.losses import feature_slices, tree_log_softmax
from nc_jax.models.heads import HeadOutput


class LevelOutput(NamedTuple):
    """What a classifier per level gives, coarsest first.

    Attributes:
        logits: (N, K_l) each; the last are the classes'.
        frames: class vectors (d, K_l) each.
    """

    logits: tuple[Float[Array, "batch _"], ...]
    frames: tuple[Float[Array, "dim _"], ...]


class TreeSoftmaxHead(nn.Module):
    """Linear classifier with a logit for every node, a softmax among siblings and products along paths (YOLO-v2).

    Its logits are the leaves' log-probabilities.

    Attributes:
        tree: with its classes in the order of the labels.

    Reference: Redmon and Farhadi, YOLO9000 (2017), section 4.
    """

    tree: LabelTree

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch. Labels are not looked at."""
        del labels, train
        shape = (features.shape[-1], len(self.tree.nodes) - 1)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        # A leaf's logit is the sum along its path, less what depends on the example alone or is normalisation: so the
        # class vectors are the paths' sums.
        paths = jnp.asarray(self.tree.membership[1:])
        logits = tree_log_softmax(features @ kernel + bias, self.tree)
        return HeadOutput(logits, features, kernel @ paths, bias @ paths)


class LevelsHead(nn.Module):
    """A linear classifier for every level of a tree; the finest decides.

    Attributes:
        tree: with its classes in the order of the labels.
        kind: "flamingo", where the features are cut into a part per level, and a level's classifier sees its own part
            and, without a gradient, the finer ones; or "hafeature", where every classifier sees all features through
            unit class vectors.
        spread: see `nc_jax.losses.feature_slices`.

    Reference: Chang et al., Your "Flamingo" is my "bird" (2021); Garg, Sani and Anand, Learning hierarchy aware
    features for reducing mistake severity (2022).
    """

    tree: LabelTree
    kind: Literal["flamingo", "hafeature"] = "flamingo"
    spread: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"] | None = None, *, train: bool = False
    ) -> HeadOutput:
        """Classify a batch on all levels. Labels are not looked at.

        Raises:
            ValueError: if there are fewer dimensions than levels, for "flamingo".
        """
        del labels, train
        levels, dim = self.tree.levels(), features.shape[-1]
        slices = feature_slices(dim, len(levels), self.spread) if self.kind == "flamingo" else [(0, dim)] * len(levels)
        logits, frames, bias = [], [], jnp.zeros(())
        for number, ((start, end), level) in enumerate(zip(slices, levels, strict=True), start=1):
            seen = dim - start
            kernel = self.param(f"kernel{number}", nn.initializers.lecun_normal(), (seen, int(level.max()) + 1))
            bias = self.param(f"bias{number}", nn.initializers.zeros, kernel.shape[1:])
            if self.kind == "hafeature":
                kernel = kernel / safe_norm(kernel, axis=0)
            inputs = jnp.concatenate([features[:, start:end], jax.lax.stop_gradient(features[:, end:])], axis=1)
            logits.append(inputs @ kernel + bias)
            frames.append(jnp.pad(kernel, ((start, 0), (0, 0))))
        return HeadOutput(logits[-1], features, frames[-1], bias, levels=LevelOutput(tuple(logits), tuple(frames)))


class HierarchicalTemplate(nn.Module):
    """Template of a hierarchy-aware frame for `NearestHead`, (r, K), its columns of unit length.

    Attributes:
        tree: with its classes in the order of the labels.
        gamma: how fast similarity decays with distance; with `learn`, where it starts.
        learn: make gamma a parameter, in its logarithm. Its derivative comes through the most separated s, a root given
            in closed form, and through the inner problem of the nearest frame, by the implicit function theorem.
        min_similarity: see `nc_jax.hierarchy.similarity`; a learned gamma has the most separated s.
        mapping: as there.
    """

    tree: LabelTree
    gamma: float = 3.0  # as `nc_jax.hierarchy.similarity`
    learn: bool = False
    min_similarity: float | Literal["max-separation", "grid"] = "max-separation"
    mapping: Mapping = "exponential"

    @nn.compact
    def __call__(self) -> Float[Array, "rank classes"]:
        """Return the template.

        Raises:
            ValueError: as `nc_jax.hierarchy.similarity`; if gamma is to be learned where it, or s, plays no part.
        """
        if self.learn:
            if self.min_similarity != "max-separation" or self.mapping != "exponential":
                raise ValueError("a gamma is learned for the exponential map at the maximal separation only")
            start = nn.initializers.constant(float(np.log(self.gamma)))
            return separated_template(self.tree.distances(), jnp.exp(self.param("log_gamma", start, ())))
        wanted = similarity(self.tree.distances(), self.gamma, self.min_similarity, self.mapping)
        return jnp.asarray(hierarchical_template(wanted), jnp.float32)
