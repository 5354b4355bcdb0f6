r"""From which decay on the class vectors of small classes are equal, and from which on they are zero.

The global minimum of unconstrained features under cross-entropy minimises a convex function of the logits
(`nc_jax.theory.nuclear_objective`). With :math:`\lambda = \sqrt{\lambda_W\lambda_H}`, Z the logits without bias as
columns (one per class) and :math:`D = \mathrm{diag}(\sqrt{n_k})`:

.. math::
    \min_{Z, b} \; \frac1N \sum_k n_k \mathrm{CE}(z_k + b, k) + \lambda \|Z D\|_* + \frac{\lambda_b}{2} \|b\|^2 .

M = Z D is a minimum if -G, the negative gradient in M, is :math:`\lambda` times a subgradient of the nuclear norm at M:
on the directions that M leaves out, the singular values of G are at most :math:`\lambda`. Column k of G is
:math:`\sqrt{n_k} (p_k - e_k) / N`, where p_k is the softmax of class k. If some classes have equal counts, exchanging
them changes nothing. So the minimum is the same after the exchange, and G and M act as a single number on each space of
directions that only the exchange tells apart. What follows reads off these numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from nc_jax.checks import check_whole


def minority_collapse_thresholds(counts: Sequence[Any]) -> Float[np.ndarray, " classes"]:
    r"""Decay from which on classes of equal size have equal class vectors, at the global minimum.

    Two classes of n examples each have the same class vector and the same features if, and only if,

    .. math:: \sqrt{\lambda_W \lambda_H} \ge \frac{\sqrt n}{N}

    however many examples the other classes have, and whether or not there is a bias. Take the direction
    :math:`(e_j - e_k) / \sqrt 2` of the two classes. On it, G is the number :math:`-\sqrt n (1 - p_{jj} + p_{jk}) / N`.
    If the class vectors are equal, both probabilities are, and the number is :math:`-\sqrt n / N`. If they differ, its
    size must be :math:`\lambda`, which is less, because then :math:`p_{jj} > p_{jk}`.

    Args:
        counts: number of examples of each class, n_k.

    Returns:
        sqrt(n_k) / N of each class, shape (K,), to be compared with `UnconstrainedFeatures.threshold`. The smallest one
        is where minority collapse begins.

    Raises:
        ValueError: if there are fewer than two counts, or one is not a whole number >= 1.

    Example:
        >>> minority_collapse_thresholds([20, 20, 2, 2]).round(4)
        array([0.1016, 0.1016, 0.0321, 0.0321])

    Reference: derived here. Fang et al. (2021) describe minority collapse; Hong and Ling (2024) have the convex form.
    """
    sizes = _checked(counts)
    return np.sqrt(sizes) / np.sum(sizes)


def vanishing_threshold(counts: Sequence[Any], bias_decay: float | None = None) -> float:
    r"""Decay from which on the class vectors and features of all small classes are zero, at the global minimum.

    There are :math:`K_A` classes of :math:`n_A` examples and :math:`K_B` classes of :math:`n_B < n_A`. If the small
    classes have zero vectors, the large ones form a simplex ETF of their own with margin m, and the bias has one value
    per kind, with difference :math:`\delta`. Let :math:`s_A` and :math:`s_B` be the probability that an example of a
    large or small class is said to be in any large class. G then has the following number on the simplex of the large
    classes, and singular value on the directions that tell large from small classes:

    .. math::
        \lambda(m) = \frac{\sqrt{n_A}}{N} (1 - p_{own} + p_{other}), \qquad
        \sigma(m) = \frac1N \sqrt{\frac{K n_A (1 - s_A)^2}{K_B} + \frac{K n_B s_B^2}{K_A}} .

    The first one is the decay that belongs to m; the bias minimises for this m. The small classes are zero where
    :math:`\sigma \le \lambda`, and the threshold is the root of :math:`\sigma(m) = \lambda(m)`. Without a
    simplex, for :math:`K_A = 1`, it is :math:`\sigma(0)`.

    Args:
        counts: number of examples of each class, in any order; two different numbers among them.
        bias_decay: :math:`\lambda_b \ge 0`; None for a problem without a bias.

    Returns:
        The threshold on :math:`\sqrt{\lambda_W\lambda_H}` (`UnconstrainedFeatures.threshold`).

    Raises:
        ValueError: if the counts are not of two kinds, one is not a whole number >= 1, or bias_decay < 0.

    Example:
        >>> round(vanishing_threshold([20, 20, 2, 2], bias_decay=0.02), 4)
        0.0421

    Reference: derived here, with the convex form of Hong and Ling (2024).
    """
    sizes = _checked(counts)
    kinds, numbers = np.unique(sizes, return_counts=True)
    if len(kinds) != 2:
        raise ValueError(f"counts must be of two kinds, large and small; got {len(kinds)} different counts")
    if bias_decay is not None and not 0 <= bias_decay < math.inf:
        raise ValueError(f"bias_decay must be at least 0 and finite, or None; got {bias_decay}")
    step = _Step(int(numbers[1]), int(numbers[0]), float(kinds[1]), float(kinds[0]), bias_decay)
    if step.large == 1:
        return step.sigma(0.0)

    def excess(margin: float) -> float:
        return step.sigma(margin) - step.decay(margin)

    return step.decay(_root(excess, 0.0))


class _Step(NamedTuple):
    """Large and small classes, where the small ones have zero class vectors.

    Attributes:
        large: K_A.
        small: K_B.
        many: n_A.
        few: n_B.
        bias_decay: None without a bias.
    """

    large: int
    small: int
    many: float
    few: float
    bias_decay: float | None

    @property
    def number(self) -> float:
        return self.large * self.many + self.small * self.few

    def decay(self, margin: float) -> float:
        """Decay that belongs to the margin."""
        other, missed = self._probabilities(margin, self._bias(margin))
        # The share of all other classes stands for 1 - p_own, which would be rounded.
        return math.sqrt(self.many) / self.number * (self.large * other + missed)

    def sigma(self, margin: float) -> float:
        """Singular value on the directions between large and small classes."""
        bias = self._bias(margin)
        _, missed = self._probabilities(margin, bias)
        taken = self._taken(bias)
        total = self.large + self.small
        squares = self.many * missed**2 / self.small + self.few * taken**2 / self.large
        return math.sqrt(total * squares) / self.number

    def _probabilities(self, margin: float, bias: float) -> tuple[float, float]:
        """For an example of a large class: probability of each other large class, and that of all small ones."""
        logits = margin, 0.0, margin / self.large - bias
        largest = max(logits)
        own, other, small = (math.exp(logit - largest) for logit in logits)
        total = own + (self.large - 1) * other + self.small * small
        return other / total, self.small * small / total

    def _taken(self, bias: float) -> float:
        """Probability s_B that an example of a small class is said to be in a large one."""
        if bias < 0:
            return self.large * math.exp(bias) / (self.large * math.exp(bias) + self.small)
        return self.large / (self.large + self.small * math.exp(-bias))

    def _bias(self, margin: float) -> float:
        """The difference of the biases that minimises."""
        if self.bias_decay is None:
            return 0.0
        cost = self.bias_decay * self.number * self.large * self.small / (self.large + self.small)

        def pull(bias: float) -> float:
            _, missed = self._probabilities(margin, bias)
            return cost * bias + self.small * self.few * self._taken(bias) - self.large * self.many * missed

        # It rises in the bias.
        return _root(pull, 0.0) if pull(0.0) <= 0 else -_root(lambda bias: -pull(-bias), 0.0)


def _root(rising: Callable[[float], float], start: float) -> float:
    """Root of a function that is not above zero at the start, and above zero far to the right."""
    if rising(start) >= -1e-15:
        return start
    width = 1.0
    while rising(start + width) <= 0:
        width *= 2
    root: Any = brentq(rising, start, start + width, xtol=1e-14)
    return root


def _checked(counts: Sequence[Any]) -> Float[np.ndarray, " classes"]:
    for count in counts:
        check_whole("a count", count)
    if len(counts) < 2 or min(counts) < 1:
        raise ValueError(f"there must be two or more classes of at least one example each; got counts={tuple(counts)}")
    return np.asarray(counts, float)
