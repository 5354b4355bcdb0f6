"""The problem of unconstrained features: its settings, and the points at which its objective is evaluated."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.checks import check_at_least, check_whole
from nc_jax.frames.simplex import check_num_classes

LossName = Literal["cross_entropy", "mse"]


class Point(NamedTuple):
    """A point at which the objective is evaluated. Directions and gradients have the same form.

    Attributes:
        frame: class vectors as columns, shape (d, K).
        features: one row per example, shape (N, d), sorted by class. Or one row per class, shape (K, d), which
            represents all n_k examples of the class: at a minimum, they have equal features, because the loss is convex
            in each feature.
        bias: shape (K,); None for a problem without a bias.
    """

    frame: Float[Array, "dim classes"]
    features: Float[Array, "rows dim"]
    bias: Float[Array, " classes"] | None = None


@dataclass(frozen=True)
class UnconstrainedFeatures:
    r"""Model of a network that can fit all data: the features of the examples are free variables, like the last layer.

    .. math::
        f(W, H, b) = \frac1N \sum_i \ell(W^\top h_i + b, y_i) + \frac{\lambda_W}{2} \|W\|_F^2
        + \frac{\lambda_H}{2} \|H\|_F^2 + \frac{\lambda_b}{2} \|b\|^2

    W is the frame (d, K), H holds the features of N examples as rows (N, d), and b is the bias (K,). The loss
    :math:`\ell` is the cross-entropy, or half the squared distance of the logits to the one-hot label. With a
    temperature :math:`\tau`, class vectors and features have unit length and no decay, and the logits are
    :math:`\tau w_k^\top h`.

    Attributes:
        counts: number of examples n_k of each of the K classes.
        dim: feature dimension d.
        weight_decay: decay of the frame, :math:`\lambda_W > 0` (0 with a temperature).
        feature_decay: decay of the features, :math:`\lambda_H > 0` (0 with a temperature).
        bias_decay: decay of the bias, :math:`\lambda_b \ge 0`; None for a problem without a bias.
        loss: "cross_entropy", or "mse" for half the squared distance to the one-hot label.
        temperature: factor :math:`\tau > 0` on the cosines of unit vectors; None: vectors of any length and decays.

    Raises:
        ValueError: if a count, the dimension, a decay or the temperature is out of its range, or if a temperature comes
            with a decay, a bias or the mse.

    Example:
        >>> UnconstrainedFeatures.balanced(3, 2, dim=4, weight_decay=0.01, feature_decay=0.01).num_examples
        6

    Reference: Zhu et al. (2021); Yaras et al. (2022) for the temperature.
    """

    counts: tuple[int, ...]
    dim: int
    weight_decay: float = 0.0
    feature_decay: float = 0.0
    bias_decay: float | None = None
    loss: LossName = "cross_entropy"
    temperature: float | None = None

    def __post_init__(self):
        check_num_classes(len(self.counts))
        check_at_least("dim", self.dim)
        for count in self.counts:
            check_whole("a number of examples", count)
        if min(self.counts) < 1:
            raise ValueError(f"every class needs at least one example; got counts={self.counts}")
        if self.loss not in get_args(LossName):
            raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}; got {self.loss!r}")
        if self.temperature is None:
            for name in ("weight_decay", "feature_decay"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(
                        f"{name} must be positive and finite, or the infimum is not reached; got {getattr(self, name)}"
                    )
            if self.bias_decay is not None and not 0 <= self.bias_decay < math.inf:
                raise ValueError(f"bias_decay must be at least 0 and finite, or None; got {self.bias_decay}")
            return
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, or None; got {self.temperature}")
        if self.weight_decay or self.feature_decay or self.bias_decay is not None or self.loss != "cross_entropy":
            raise ValueError(
                "a temperature goes with the cross-entropy of unit vectors, whose length no decay changes, without "
                f"bias; got weight_decay={self.weight_decay}, feature_decay={self.feature_decay}, "
                f"bias_decay={self.bias_decay}, loss={self.loss!r}"
            )

    @classmethod
    def balanced(cls, num_classes: int, per_class: int, **options) -> "UnconstrainedFeatures":
        """Return the problem with the same number of examples in every class.

        Args:
            num_classes: K.
            per_class: number n of examples of each class.
            **options: all other attributes of `UnconstrainedFeatures`, by name.

        Raises:
            ValueError: if `UnconstrainedFeatures` raises one.
        """
        return cls((per_class,) * num_classes, **options)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.counts)

    @property
    def num_examples(self) -> int:
        """Number of examples N."""
        return sum(self.counts)

    @property
    def is_balanced(self) -> bool:
        """Whether all classes have the same number of examples."""
        return len(set(self.counts)) == 1

    @property
    def threshold(self) -> float:
        r"""Cost :math:`\sqrt{\lambda_W \lambda_H}` of one unit of a singular value of the logits."""
        # A product of roots, because the product of two decays of 1e-162 underflows.
        return math.sqrt(self.weight_decay) * math.sqrt(self.feature_decay)

    @property
    def aspect(self) -> float:
        r"""Ratio :math:`(\lambda_H / \lambda_W)^{1/4}` of the length of class vectors to that at equal decays."""
        return (self.feature_decay / self.weight_decay) ** 0.25

    def row_counts(self, features: Float[Array, "rows dim"]) -> np.ndarray:
        """Return how many examples each row of the features represents: one, or the count of its class.

        Raises:
            ValueError: if the features do not have shape (N, d) or (K, d).
        """
        if features.shape == (self.num_examples, self.dim):
            return np.ones(self.num_examples)
        if features.shape == (self.num_classes, self.dim):
            return np.array(self.counts, float)
        raise ValueError(
            f"features must have shape {(self.num_examples, self.dim)}, one row per example, or "
            f"{(self.num_classes, self.dim)}, one per class; got {features.shape}"
        )

    def labels(self, features: Float[Array, "rows dim"]) -> Int[Array, " rows"]:
        """Return the class of each row of the features."""
        repeats = self.counts if len(features) == self.num_examples else (1,) * self.num_classes
        return jnp.asarray(np.repeat(np.arange(self.num_classes), repeats), jnp.int32)

    def point_from(self, frame: Array, class_features: Array, bias: Array, dtype: DTypeLike | None = None) -> Point:
        """Return the point in which every example has the features of its class.

        Args:
            frame: class vectors as columns, shape (d, K).
            class_features: features of each class as a row, shape (K, d).
            bias: shape (K,); not used if the problem has no bias.
            dtype: dtype of the arrays; None keeps their dtypes.
        """
        features = jnp.repeat(class_features, np.array(self.counts), axis=0, total_repeat_length=self.num_examples)
        return Point(
            jnp.asarray(frame, dtype),
            jnp.asarray(features, dtype),
            None if self.bias_decay is None else jnp.asarray(bias, dtype),
        )

    def origin(self, dtype: DTypeLike | None = None) -> Point:
        """Return the point of zeros, which is critical for equal counts. `dtype` None gives JAX's default dtype."""
        shapes = (self.dim, self.num_classes), (self.num_classes, self.dim), (self.num_classes,)
        return self.point_from(*(jnp.zeros(shape, dtype) for shape in shapes))

    def random_point(
        self,
        key: PRNGKeyArray,
        *,
        scale: float | Float[Array, ""] = 1.0,  # gives logits of the order of sqrt(d)
        per_class: bool = False,
        dtype: DTypeLike | None = None,
    ) -> Point:
        """Draw a point with independent normal entries of mean zero.

        Args:
            key: random key.
            scale: standard deviation of the entries.
            per_class: True for one row of features per class, False for one per example.
            dtype: a floating dtype; None for JAX's default.
        """
        wide = jnp.zeros((), dtype).dtype
        frame_key, features_key, bias_key = jax.random.split(key, 3)
        rows = self.num_classes if per_class else self.num_examples
        return Point(
            scale * jax.random.normal(frame_key, (self.dim, self.num_classes), wide),
            scale * jax.random.normal(features_key, (rows, self.dim), wide),
            None if self.bias_decay is None else scale * jax.random.normal(bias_key, (self.num_classes,), wide),
        )
