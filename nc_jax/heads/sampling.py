"""A softmax over the classes of the batch and a random subset of the others, for heads with very many classes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nc_jax.arrays import wider
from nc_jax.checks import PADDING_LABEL, Labels, check_whole, checked_labels
from nc_jax.collective import Axes, all_sum, axes, device, over
from nc_jax.heads.head import Arrays, Declared, Head, Initial, constant

UNUSED = -1  # class number of a candidate that is none: of a class that is among the candidates already


class Candidates(NamedTuple):
    """The classes that take part in the softmax of a training step: first those of the batch, then random ones.

    Attributes:
        classes: class numbers, shape (S,). Every class occurs once; the places that are left over hold -1.
        log_weights: logarithm of the number of classes that each candidate stands for, shape (S,), float32; minus
            infinity where `classes` is -1.
    """

    classes: Int[Array, " candidates"]
    log_weights: Float[Array, " candidates"]


def class_candidates(
    key: PRNGKeyArray, labels: Labels, num_classes: int, number: int, axis_name: Axes = None
) -> Candidates:
    r"""Draw the classes of a sampled softmax: all classes of the batch, and one class of each of n equal ranges.

    The K class numbers are cut into n consecutive ranges whose sizes s_j differ by at most 1, and one class is drawn
    from each, all alike. A class outside the batch is drawn with probability 1 / s_j, and then stands for s_j classes.
    So with A the classes of the batch and k_j the draws,

    .. math:: \hat Z = \sum_{k \in A} e^{z_k} + \sum_{j : k_j \notin A} s_j\, e^{z_{k_j}}

    has the expectation Z, the sum over all classes, whatever the logits z are. The cross-entropy log Ẑ - z_y has not
    exactly the expectation of the full one, because of the logarithm. For n = K it is the full one.

    Args:
        key: random key, the same on all devices.
        labels: integer classes 0..K-1 of this device's examples, shape (N,); -1 marks padding.
        num_classes: K.
        number: n, how many classes are drawn, from 1 to K.
        axis_name: name of the mapped axis over which the batch is split; see `Head.apply`.

    Returns:
        S = N times the number of devices + n candidates, the same on all devices.

    Raises:
        ValueError: if the labels are not integers of shape (N,) in -1..K-1, or n is not in 1..K.

    Example:
        >>> found = class_candidates(jax.random.key(0), jnp.array([7, 2, 7]), num_classes=10, number=5)
        >>> found.classes[:3].tolist(), sorted(set(found.classes.tolist()) | {-1})[0]
        ([2, 7, -1], -1)

    Reference: Bengio and Senécal, Adaptive importance sampling to accelerate training of a neural probabilistic
    language model (2008), and Jean et al., On using very large target vocabulary for neural machine translation (2015),
    for the softmax over a sample.
    """
    _check_number(number, num_classes)
    labels = checked_labels(labels, num_classes)
    everyone = _of_all_devices(jnp.where((labels >= 0) & (labels < num_classes), labels, UNUSED), axis_name)
    # `unique` sorts. Padding comes first in the order, but then the classes would not begin at the first place.
    last = jnp.unique(jnp.where(everyone < 0, num_classes, everyone), size=len(everyone), fill_value=num_classes)
    in_batch = jnp.zeros((num_classes,), bool).at[last].set(True, mode="drop")
    # NumPy's int64: the products overflow int32.
    bounds = np.arange(number + 1, dtype=np.int64) * num_classes // number
    sizes = np.diff(bounds).astype(np.int32)
    drawn = jnp.asarray(bounds[:-1].astype(np.int32)) + jax.random.randint(key, (number,), 0, jnp.asarray(sizes))
    new = ~in_batch[drawn]
    known = last < num_classes
    none = -jnp.inf
    return Candidates(
        jnp.concatenate([jnp.where(known, last, UNUSED), jnp.where(new, drawn, UNUSED)]).astype(jnp.int32),
        jnp.concatenate([jnp.where(known, 0.0, none), jnp.where(new, np.log(sizes), none)]).astype(jnp.float32),
    )


def places_among(classes: Int[Array, " candidates"], labels: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """Return the place that each label has among the candidates, shape (N,).

    Args:
        classes: class numbers of S candidates, shape (S,); -1 for none.
        labels: shape (N,). Padding (-1) stays padding. A label that is not among the candidates gets S, which losses
            and the training step treat as a label that is no class.

    Example:
        >>> places_among(jnp.array([2, 7, -1, 4]), jnp.array([7, -1, 4, 3])).tolist()
        [1, -1, 3, 4]
    """
    same = labels[:, None] == classes[None]
    found = jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), len(classes))
    return jnp.where(labels == PADDING_LABEL, PADDING_LABEL, found).astype(jnp.int32)


def sampled(head: Head, number: int) -> Head:
    """Classifier that is another head, with a softmax over few classes in training: for very many classes.

    In a training step, the output has columns for S candidates instead of all K classes: every class of the batch (of
    all devices), and `number` random ones; see `class_candidates`. `output.classes` says which class each column is.
    `output.bias`, and so the logits, have the logarithm of the number of classes that a candidate stands for added. So
    any loss that is a function of the logits by way of their softmax estimates its value over all classes. The
    training step numbers the labels anew, such that they count the columns: losses, penalties and the step's accuracy
    are those of a problem with S classes. (The accuracy of a training step is therefore not that of an evaluation.)
    What remembers numbers of all K classes, such as `nc_jax.training.LogitAdjustment`, does not fit such a step.

    In evaluation the head is the other head, with all classes. Logits of N examples take 4 N K bytes: choose the
    batches of an evaluation accordingly. (At K = 100,000, d = 128 and N = 256 they take 102 MB, and the evaluation of
    `nc_jax.training` plans 361 MB besides its sums.) Mixed examples need batches that are not cut into parts.

    Learned and fixed heads compute the sampled columns only; a rotated head computes its whole frame. A nearest head
    has no whole frame. It keeps H T^T up to date with what a batch changes, so a step costs no product of size d r K:
    O(d r N + r^3 + (d + S) r N) for N examples. It takes the closed form and the centre of the batch only. Its state
    has, in place of "frame", the "template" (r, K), its "sizes" (2,), H T^T as "correlation" (2, d, r), in two parts
    that are summed, and "squares" (K,), the squared lengths of the class means. Without a `radius`, means below about
    1e-19 count as zero.

    The state also has "seed", two uint32 that the key of `init` determines, and "draws", the number of training steps.

    Args:
        head: learned, fixed, rotated or nearest head.
        number: how many random classes take part, from 1 to K; with K, the softmax is the full one.

    Raises:
        ValueError: if the head has no sampled softmax (a tree's, a staged one, a nearest one with a learned template,
            with the trust region or with `centre="classes"`), or the number is out of its range; from `apply`, if
            labels are missing in training, and whatever the other head raises.

    Example:
        >>> from nc_jax import heads
        >>> head = heads.sampled(heads.learned(1000), number=20)
        >>> params, state = head.init(jax.random.key(0), dim=8)
        >>> output, state = head.apply(params, state, jnp.ones((4, 8)), jnp.array([3, 900, 3, 14]), train=True)
        >>> output.logits.shape, head.apply(params, state, jnp.ones((4, 8)))[0].logits.shape
        ((4, 24), (4, 1000))

    Reference: see `class_candidates`.
    """
    _check_number(number, head.num_classes)
    if head.subsampled is None:
        raise ValueError(f"only a learned, fixed, rotated or nearest head has a sampled softmax; got a {head.name} one")
    return head.subsampled(head, number)


def of_columns(head: Head, number: int) -> Head:
    """Return the sampled head of a head whose logits are `features @ frame + bias`: `Head.subsampled` of most heads.

    Args:
        head: the head for all classes.
        number: how many random classes take part.
    """

    def declare(dim, dtype):
        declared = head.declare(dim, dtype)
        return Declared(declared.params, declared.state | draws_of())

    def forward(params, state, features, labels, *, train, mask, axis_name):
        # Under `jax.jit`, the columns and logits of `output` that are not used are not computed.
        output, new = head.forward(params, state, features, labels, train=train, mask=mask, axis_name=axis_name)
        if not train:
            return output, state
        candidates, drawn = draw(state, labels, head.num_classes, number, axis_name)
        columns = jnp.maximum(candidates.classes, 0)
        frame, bias = output.frame[:, columns], output.bias[columns]
        bias = bias + candidates.log_weights.astype(bias.dtype)
        wide = wider(output.features.dtype, frame.dtype)
        logits = output.features.astype(wide) @ frame.astype(wide) + bias.astype(wide)[None]
        output = output._replace(logits=logits, frame=frame, bias=bias, classes=candidates.classes)
        return output, {**new, **drawn}

    return Head(
        f"sampled {head.name}", head.num_classes, declare, forward, collection=head.collection, manifolds=head.manifolds
    )


def draws_of() -> dict[str, Initial]:
    """Declare the state from which a sampled head draws."""
    return {
        "seed": Initial(lambda key: jax.random.bits(key, (2,), jnp.uint32)),
        "draws": constant(lambda: jnp.zeros((), jnp.int32)),
    }


def draw(state: Arrays, labels: Any, num_classes: int, number: int, axis_name: Axes) -> tuple[Candidates, Arrays]:
    """Return the candidates of a training step, and what the step changes in the state of `draws_of`."""
    if labels is None:
        raise ValueError("a sampled head needs labels in training; got None")
    key = jax.random.fold_in(jax.random.wrap_key_data(state["seed"], impl="threefry2x32"), state["draws"])
    return class_candidates(key, labels, num_classes, number, axis_name), {"draws": state["draws"] + 1}


def _check_number(number: int, num_classes: int) -> None:
    check_whole("num_classes", num_classes)
    check_whole("the number of sampled classes", number)
    if not 1 <= number <= num_classes:
        raise ValueError(f"the number of sampled classes must lie in 1..{num_classes}; got {number}")


def _of_all_devices(labels: Int[Array, " batch"], axis_name: Axes) -> Int[Array, " everyone"]:
    """Return the labels of all devices, the same on each: a sum, because the result of a gather may differ."""
    names = axes(axis_name)
    if not names:
        return labels
    with over(*names):
        own, devices = device()
    return all_sum(jnp.where(jnp.arange(devices)[:, None] == own, labels[None], 0), axis_name).reshape(-1)
