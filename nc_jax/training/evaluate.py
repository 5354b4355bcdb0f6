"""Evaluation of a state on a data set: loss, accuracy and the metrics of neural collapse."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nc_jax import collective, losses
from nc_jax.checks import without_class
from nc_jax.collective import all_sum
from nc_jax.data import Batch, known_labels
from nc_jax.heads import HeadOutput
from nc_jax.metrics import (
    Agreement,
    ClassStatistics,
    MarginSums,
    collapse_metrics,
    cosine_margins,
    effective_rank,
    nearest_centre_accuracy,
    nearest_centre_agreement,
    nearest_etf_distance,
    numerical_rank,
    variability_collapse_index,
)
from nc_jax.training.extension import Chain, Context
from nc_jax.training.parallel import AXIS, Devices, data_parallel, replicate
from nc_jax.training.resident import ResidentSet, resident_steps
from nc_jax.training.state import Model, TrainState, forward
from nc_jax.training.step import StepOptions, preprocessed, right_answers
from nc_jax.training.summary import Numbers

# Largest number of classes K with a confusion matrix, whose K^2 int32 entries then take 64 MB.
MOST_CONFUSED = 4096

Source = ResidentSet | Callable[[], Iterable[Batch]]


class Evaluation(NamedTuple):
    """Result of an evaluation.

    The metrics "loss" and "accuracy" are always there. Collapse metrics, if asked for, add:

    - those of `nc_jax.metrics.collapse_metrics`;
    - "nc4": share of examples for which the classifier and the nearest class centre of the training features agree
      (1 - nc4 is the mismatch);
    - "nearest_centre_accuracy": share of examples whose nearest class centre of the training features is that of their
      own class;
    - "cosine_margin", "cosine_margin_sd" and "cosine_margin_min": mean, standard deviation and minimum of the cosine
      margins, after the global mean was subtracted from the features and the mean class vector from the frame;
    - if d >= K - 1, "nearest_etf_means" and "nearest_etf_classifier": distance of the centred class means, and of the
      frame, to the nearest simplex ETF;
    - among the slow metrics, "vci": the variability collapse index; "rank_means" and "effective_rank_means": ranks of
      the centred class means.

    Attributes:
        metrics: numbers by name.
        statistics: class statistics of the features.
        frame: class vectors of the head as columns, shape (d, K).
        bias: biases of the head, shape (K,).
        confusion: number of examples of each true class (rows) and predicted class (columns), shape (K, K); None for
            more than `MOST_CONFUSED` classes.
    """

    metrics: dict[str, float]
    statistics: ClassStatistics
    frame: Float[Array, "dim classes"]
    bias: Float[Array, " classes"]
    confusion: Int[np.ndarray, "classes classes"] | None = None

    @property
    def class_accuracy(self) -> Float[np.ndarray, " classes"] | None:
        """Share of right answers per class, shape (K,), NaN for classes without examples; None without `confusion`."""
        if self.confusion is None:
            return None
        with np.errstate(invalid="ignore"):
            return np.diagonal(self.confusion) / self.confusion.sum(axis=1)


class EvalSums(NamedTuple):
    """Sums over examples, added batch by batch in the first pass of an evaluation.

    Attributes:
        loss: sum of the cross-entropies, in nats.
        correct: number of right answers.
        count: number of examples.
        statistics: class statistics of the features, as the classifier sees them.
        confusion: number of examples of each true class (rows) and predicted class (columns), shape (K, K); None for
            more than `MOST_CONFUSED` classes.
    """

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    count: Int[Array, ""]
    statistics: ClassStatistics
    confusion: Int[Array, "classes classes"] | None


class CentredSums(NamedTuple):
    """Sums over examples, added in the second pass of an evaluation, which needs the class means of the first pass.

    Attributes:
        agreement: how often the classifier and the nearest class centre agree (NC4).
        nearest: how often the nearest class centre is that of the example's class.
        margins: sums of the cosine margins of centred features with centred class vectors.
    """

    agreement: Agreement
    nearest: Agreement
    margins: MarginSums

    @classmethod
    def init(cls) -> "CentredSums":
        """Make the sums of no examples."""
        none = jnp.zeros((), jnp.int32)
        return cls(Agreement(none, none), Agreement(none, none), MarginSums.init())

    def merge(self, other: "CentredSums") -> "CentredSums":
        """Join the sums of two disjoint sets of examples."""
        return CentredSums(
            self.agreement.merge(other.agreement),
            self.nearest.merge(other.nearest),
            self.margins.merge(other.margins),
        )

    def all_reduce(self, axis_name: tuple[str, ...]) -> "CentredSums":
        """Merge over mapped axes: every device gets the sums of all devices' examples."""
        return CentredSums(
            self.agreement.all_reduce(axis_name),
            self.nearest.all_reduce(axis_name),
            self.margins.all_reduce(axis_name),
        )


@dataclass(frozen=True)
class Evaluated:
    """The model as evaluation runs it: a function (state, batch of stored inputs) -> the head's output.

    Preprocessing, averaged parameters and `on_output` of the extensions are part of it.

    Attributes:
        model: maps (inputs, labels, train=..., mask=...) to a `HeadOutput`.
        options: the options with which the model was trained.
    """

    model: Model
    options: StepOptions = field(default_factory=StepOptions)

    def __call__(self, state: TrainState, batch: Batch) -> HeadOutput:
        """Apply the model to a batch."""
        batch = preprocessed(batch._replace(inputs=jnp.asarray(batch.inputs)), self.options.preprocess)
        output, *_ = forward(self.model, state.evaluated_params, state.variables, batch, train=False)
        context = Context(state.step, train=False, client=state.client)
        return self._chain.on_output(context, state.extensions, output, batch)

    def parts(self, state: TrainState) -> TrainState:
        """Return the state with None for all that evaluation does not need.

        So methods that differ only in what training remembers share one compiled evaluation.
        """
        average = state.average is not None
        return state.replace(
            params=None if average else state.params,
            opt_state=None,
            key=None,
            totals=None,
            clients=None,
            extensions=self._chain.states_of("on_output", state.extensions),
        )

    @property
    def _chain(self) -> Chain:
        return Chain(self.options.extensions)


def make_eval_step(
    output_of: Evaluated, *, axis_name: str | None = None
) -> Callable[[tuple[TrainState, EvalSums], Batch], EvalSums]:
    """Make the step of the first pass: ((state, sums so far), batch) -> sums with the batch added.

    Args:
        output_of: the model in evaluation.
        axis_name: name of the mapped axis over which the batch is split; None for one device.
    """

    def step(carry: tuple[TrainState, EvalSums], batch: Batch) -> EvalSums:
        with collective.over(*([axis_name] if axis_name else [])):
            state, sums = carry
            output = output_of(state, batch)
            num_classes = output.logits.shape[-1]
            statistics = ClassStatistics.from_batch(output.features, known_labels(batch), num_classes)
            each = losses.cross_entropy(output.logits, batch.labels)
            loss, correct, count, confusion = all_sum(
                (
                    jnp.sum(jnp.where(batch.mask, each, 0)),
                    jnp.sum(right_answers(output.logits, batch), dtype=jnp.int32),
                    jnp.sum(batch.mask, dtype=jnp.int32),
                    None if sums.confusion is None else _confusion(output.logits, batch, num_classes),
                )
            )
            if collective.axes():
                statistics = statistics.all_reduce(collective.axes())
            return EvalSums(
                sums.loss + loss,
                sums.correct + correct,
                sums.count + count,
                sums.statistics.merge(statistics),
                None if sums.confusion is None else sums.confusion + confusion,
            )

    return step


def make_centred_step(
    output_of: Evaluated, *, axis_name: str | None = None
) -> Callable[[tuple[TrainState, ClassStatistics], Batch], CentredSums]:
    """Make the step of the second pass: ((state, class statistics of the training features), batch) -> sums.

    Args:
        output_of: the model in evaluation.
        axis_name: name of the mapped axis over which the batch is split; None for one device.
    """

    def step(carry: tuple[TrainState, ClassStatistics], batch: Batch) -> CentredSums:
        with collective.over(*([axis_name] if axis_name else [])):
            state, statistics = carry
            output, labels = output_of(state, batch), known_labels(batch)
            means, present = statistics.means, statistics.present
            sums = CentredSums(
                nearest_centre_agreement(output.features, output.frame, output.bias, means, present, labels),
                nearest_centre_accuracy(output.features, labels, means, present),
                MarginSums.from_batch(centred_margins(output, statistics, labels), labels),
            )
            names = collective.axes()
            return sums.all_reduce(names) if names else sums

    return step


def centred_margins(
    output: HeadOutput, statistics: ClassStatistics, labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Cosine margin of each example, shape (batch,), with centred features and centred class vectors.

    Subtracts the global mean of `statistics` from the features, and the mean class vector from the frame, as Markou et
    al. (2024) do. Features behind a ReLU have a large common part, which does not distinguish classes.
    """
    frame = output.frame - jnp.mean(output.frame, axis=1, keepdims=True)
    return cosine_margins(output.features - statistics.global_mean, frame, labels)


def _confusion(logits: Array, batch: Batch, num_classes: int) -> Int[Array, "classes classes"]:
    known = batch.mask & ~without_class(batch.labels, num_classes, batch.mask)
    rows = jnp.where(known, batch.labels, num_classes)  # others, and padding: out of range, so `add` drops them
    zeros = jnp.zeros((num_classes, num_classes), jnp.int32)
    return zeros.at[rows, jnp.argmax(logits, axis=-1)].add(1, mode="drop")


# Not functions of a model: evaluations of all methods on a data set share one program, which takes seconds to compile.
@partial(jax.jit, static_argnames=("collapse", "slow"))
def numbers_of(sums: EvalSums, frame: Array, bias: Array, *, collapse: bool, slow: bool) -> Numbers:
    """Return the metrics of the first pass."""
    numbers = {"loss": sums.loss / sums.count, "accuracy": sums.correct / sums.count}
    if collapse:
        numbers |= collapse_metrics(sums.statistics, frame, bias)
        means, present = sums.statistics.centred_means(), sums.statistics.present
        dim, num_classes = frame.shape
        if dim >= num_classes - 1:
            numbers["nearest_etf_means"] = nearest_etf_distance(means, present)
            numbers["nearest_etf_classifier"] = nearest_etf_distance(frame)
        if slow:
            numbers["vci"] = variability_collapse_index(sums.statistics)
            numbers["rank_means"] = numerical_rank(means)
            numbers["effective_rank_means"] = effective_rank(means)
    return Numbers.of(numbers)


@jax.jit
def centred_numbers_of(sums: CentredSums) -> Numbers:
    """Return the metrics of the second pass."""
    margins = sums.margins.compute()
    return Numbers.of(
        {
            "nc4": sums.agreement.compute(),
            "nearest_centre_accuracy": sums.nearest.compute(),
            "cosine_margin": margins.mean,
            "cosine_margin_sd": margins.standard_deviation,
            "cosine_margin_min": margins.minimum,
        }
    )


def make_evaluator(output_of: Evaluated, *, devices: Devices = None, slow: bool = False) -> Callable[..., Evaluation]:
    """Compile the evaluation of a model.

    Args:
        output_of: the model in evaluation.
        devices: local devices to use; None takes all of them.
        slow: add the slow metrics, which decompose d x d matrices, to the collapse metrics.

    Returns:
        A function evaluate(state, source, collapse=False, centres=None) -> `Evaluation`. `source` is a `ResidentSet`,
        or a function without arguments that returns an iterator over batches; it is called once, and twice for the
        collapse metrics, which `collapse` asks for. `centres` are the class statistics of the training features; None
        takes those of `source`, for an evaluation on the training set. Without any batch, evaluate raises ValueError.
    """
    eval_step = make_eval_step(output_of, axis_name=AXIS)
    centred_step = make_centred_step(output_of, axis_name=AXIS)
    one_eval_step = data_parallel(eval_step, devices=devices)
    one_centred_step = data_parallel(
        lambda carry, batch: carry[1].merge(centred_step(carry[0], batch)), devices=devices
    )
    all_eval_steps = resident_steps(lambda sums, state, batch: (eval_step((state, sums), batch), ()), devices=devices)
    all_centred_steps = resident_steps(
        lambda sums, constant, batch: (sums.merge(centred_step(constant, batch)), ()), devices=devices
    )
    # Zero sums by shape of the inputs, kept because making them takes a third of an evaluation.
    empty: dict[tuple[int, ...], EvalSums] = {}

    def no_sums(state: TrainState, example: Batch) -> EvalSums:
        shape = example.inputs.shape
        if shape not in empty:
            empty[shape] = replicate(zero_sums(state, example), devices)
        return empty[shape]

    def zero_sums(state: TrainState, example: Batch) -> EvalSums:
        shapes = jax.eval_shape(output_of, state, example)
        num_classes = shapes.logits.shape[-1]
        statistics = ClassStatistics.init(num_classes, shapes.features.shape[-1])
        zero = jnp.zeros((), jnp.int32)
        confusion = jnp.zeros((num_classes, num_classes), jnp.int32) if num_classes <= MOST_CONFUSED else None
        return EvalSums(jnp.zeros(()), zero, zero, statistics, confusion)

    @jax.jit
    def classifier_of(state: TrainState, example: Batch) -> tuple[Array, Array]:
        output = output_of(state, example)
        return output.frame, output.bias

    no_centred_sums = replicate(CentredSums.init(), devices)

    def sums_of(state: TrainState, source: Source) -> tuple[EvalSums, Batch]:
        """Return the sums of the first pass, and a batch of one example."""
        if isinstance(source, ResidentSet):
            example = source.arrays.take(np.zeros(1, np.int64))
            return all_eval_steps(no_sums(state, example), state, source.content, source.in_order, *source.all), example
        sums: Any = None
        example: Any = None
        for batch in source():
            if sums is None:
                example = jax.tree.map(lambda array: array[:1], batch)
                sums = no_sums(state, example)
            sums = one_eval_step((state, sums), batch)
        if sums is None:
            raise ValueError("evaluation needs at least one batch; got none")
        return sums, example

    def centred_sums_of(state: TrainState, statistics: ClassStatistics, source: Source) -> CentredSums:
        if isinstance(source, ResidentSet):
            return all_centred_steps(no_centred_sums, (state, statistics), source.content, source.in_order, *source.all)
        sums = no_centred_sums
        for batch in source():
            sums = one_centred_step(((state, statistics), sums), batch)
        return sums

    def evaluate(
        state: TrainState, source: Source, collapse: bool = False, centres: ClassStatistics | None = None
    ) -> Evaluation:
        # The caller's arrays may lie on other devices.
        state, centres = replicate((output_of.parts(state), centres), devices)
        sums, example = sums_of(state, source)
        frame, bias = classifier_of(state, example)
        found = [numbers_of(sums, frame, bias, collapse=collapse, slow=slow)]
        if collapse:
            found.append(centred_numbers_of(centred_sums_of(state, centres or sums.statistics, source)))
        found, confusion = jax.device_get((found, sums.confusion))  # one wait for all of them
        numbers = {name: value for part in found for name, value in part.by_name().items()}
        return Evaluation(numbers, sums.statistics, frame, bias, confusion)

    return evaluate
