"""Heads for a label tree: a softmax among siblings, and a classifier for every level."""

from typing import Literal

import jax
import jax.numpy as jnp

from nc_jax.arrays import safe_norm
from nc_jax.heads.head import Declared, Head, Initial
from nc_jax.heads.learned import bias_of
from nc_jax.heads.output import HeadOutput, LevelOutput, check_width, scale_features
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import feature_slices, tree_log_softmax


def tree_softmax(tree: LabelTree) -> Head:
    """Linear classifier of a label tree's nodes, with a softmax among the children of each node (YOLO9000).

    The probability of a class is the product of the probabilities of the nodes on the path from the root to its leaf.
    The logits of this head are the logarithms of the class probabilities.

    Args:
        tree: label tree whose classes are in the order of the labels.

    Raises:
        ValueError: from `apply`, if the features do not have shape (N, d).

    Reference: Redmon and Farhadi, YOLO9000 (2017), section 4.
    """
    nodes = len(tree.nodes) - 1

    def declare(dim, dtype):
        del dtype
        kernel = Initial(lambda key: jax.nn.initializers.lecun_normal()(key, (dim, nodes)))
        return Declared({"kernel": kernel} | bias_of(nodes, True), {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, None)
        kernel, bias = params["kernel"], params["bias"]
        check_width(features, kernel.shape[0])
        # A class's log-probability is the sum of the node logits on its path, minus the softmax normalisers. So the
        # class vector is the sum of the node vectors on the path.
        paths = jnp.asarray(tree.membership[1:])
        logits = tree_log_softmax(features @ kernel + bias[None], tree)
        return HeadOutput(logits, features, kernel @ paths, bias @ paths), state

    return Head("tree softmax", len(tree.classes), declare, forward)


def levels(tree: LabelTree, kind: Literal["flamingo", "hafeature"] = "flamingo", *, spread: bool = False) -> Head:
    """A linear classifier for every level of a label tree. The finest level gives the logits of the classes.

    Args:
        tree: label tree whose classes are in the order of the labels.
        kind: "flamingo": the features are cut into one part per level. The classifier of a level gets the part of its
            own level and the parts of finer levels; no gradient flows to the finer parts. "hafeature": the classifier
            of every level gets all features and has class vectors of unit length.
        spread: how "flamingo" cuts the features if their number is not a multiple of the number of levels; see
            `nc_jax.losses.feature_slices`.

    Raises:
        ValueError: for "flamingo", from `init` and `apply`, if there are fewer dimensions than levels; from `apply`, if
            the features do not have shape (N, d).

    Reference: Chang et al., Your "Flamingo" is my "bird" (2021); Garg, Sani and Anand, Learning hierarchy aware
    features for reducing mistake severity (2022).
    """
    sizes = [int(level.max()) + 1 for level in tree.levels()]

    def slices_of(dim: int) -> list[tuple[int, int]]:
        return feature_slices(dim, len(sizes), spread) if kind == "flamingo" else [(0, dim)] * len(sizes)

    def declare(dim, dtype):
        del dtype
        params = {}
        for number, ((start, _), size) in enumerate(zip(slices_of(dim), sizes, strict=True), start=1):
            shape = (dim - start, size)
            params[f"kernel{number}"] = Initial(lambda key, shape=shape: jax.nn.initializers.lecun_normal()(key, shape))
            params[f"bias{number}"] = bias_of(size, True)["bias"]
        return Declared(params, {})

    def forward(params, state, features, labels, *, train, mask, axis_name):
        del labels, train, mask, axis_name
        features = scale_features(features, None)
        check_width(features, params["kernel1"].shape[0])  # the coarsest level gets all features
        logits, frames = [], []
        for number, (start, end) in enumerate(slices_of(features.shape[-1]), start=1):
            kernel = params[f"kernel{number}"]
            if kind == "hafeature":
                kernel = kernel / safe_norm(kernel, axis=0)
            inputs = jnp.concatenate([features[:, start:end], jax.lax.stop_gradient(features[:, end:])], axis=1)
            logits.append(inputs @ kernel + params[f"bias{number}"][None])
            frames.append(jnp.pad(kernel, ((start, 0), (0, 0))))
        bias = params[f"bias{len(sizes)}"]
        found = LevelOutput(tuple(logits), tuple(frames))
        return HeadOutput(logits[-1], features, frames[-1], bias, levels=found), state

    return Head(kind, len(tree.classes), declare, forward)
