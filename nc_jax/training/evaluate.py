"""Evaluation of a state on a data set: loss, accuracy and the metrics of neural collapse."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nc_jax.metrics import (
    ClassStatistics,
    collapse_metrics,
    effective_rank,
    nearest_etf_distance,
    numerical_rank,
    variability_collapse_index,
)
from nc_jax.models import HeadOutput
from nc_jax.training.parallel import AXIS, Devices, data_parallel, replicate
from nc_jax.training.resident import ResidentSet, resident_steps
from nc_jax.training.state import Model, TrainState, forward
from nc_jax.training.step import (
    Batch,
    CentredSums,
    EvalSums,
    Preprocess,
    centred_margins,
    make_centred_step,
    make_eval_step,
)

Source = ResidentSet | Callable[[], Iterable[Batch]]


class Evaluation(NamedTuple):
    """What evaluation found.

    Attributes:
        metrics: by name: "loss", "accuracy"; with collapse metrics also those of `nc_jax.metrics.collapse_metrics`;
            "nc4", the share of examples on which the classifier decides as the nearest class centre of the training
            features does (1 - nc4 is the mismatch); "cosine_margin", "cosine_margin_sd" and "cosine_margin_min" of
            centred features and class vectors; where d >= K - 1, "nearest_etf_means" and "nearest_etf_classifier", the
            distance of centred class means, and of the classifier, to the nearest simplex ETF; and with the slow ones
            "vci", the variability collapse index, and "rank_means" and "effective_rank_means", of the centred class
            means.
        statistics: class statistics of the features.
    """

    metrics: dict[str, float]
    statistics: ClassStatistics


def make_evaluator(
    model: Model, *, devices: Devices = None, preprocess: Preprocess | None = None, slow: bool = False
) -> Callable[..., Evaluation]:
    """Compile the evaluation of a model.

    Args:
        model: as in `create_state`.
        devices: which; None takes all local ones.
        preprocess: see `nc_jax.training.StepOptions`.
        slow: with the collapse metrics, those too that decompose d x d matrices.

    Returns:
        A function evaluate(state, source, collapse=False, centres=None), where the source is a `ResidentSet`, or a
        function that starts an iteration over batches; it is called once, with collapse metrics twice. Centres are the
        class statistics of the training features; None means that these are the training features.
    """
    eval_step = make_eval_step(model, axis_name=AXIS, preprocess=preprocess)
    centred_step = make_centred_step(model, axis_name=AXIS, preprocess=preprocess)
    one_eval_step = data_parallel(eval_step, devices=devices)
    one_centred_step = data_parallel(
        lambda carry, batch: carry[1].merge(centred_step(carry[0], batch)), devices=devices
    )
    all_eval_steps = resident_steps(lambda sums, state, batch: (eval_step((state, sums), batch), ()), devices=devices)
    all_centred_steps = resident_steps(
        lambda sums, constant, batch: (sums.merge(centred_step(constant, batch)), ()), devices=devices
    )

    output_of = _evaluated(model, preprocess)
    empty: dict[tuple[int, ...], EvalSums] = {}  # by shape of the features: making one takes a third of an evaluation

    def no_sums(state: TrainState, features: Any) -> EvalSums:
        if features.shape not in empty:
            empty[features.shape] = replicate(zero_sums(state, features), devices)
        return empty[features.shape]

    def zero_sums(state: TrainState, features: Any) -> EvalSums:
        shapes = jax.eval_shape(output_of, state, features)
        statistics = ClassStatistics.init(shapes.logits.shape[-1], shapes.features.shape[-1])
        zero = jnp.zeros((), jnp.int32)
        return EvalSums(jnp.zeros(()), zero, zero, statistics)

    @partial(jax.jit, static_argnames="collapse")
    def metrics_of(state: TrainState, sums: EvalSums, features: Any, collapse: bool) -> dict:
        metrics = {"loss": sums.loss / sums.count, "accuracy": sums.correct / sums.count}
        if collapse:
            output = output_of(state, features)
            metrics |= collapse_metrics(sums.statistics, output.frame, output.bias)
            means, present = sums.statistics.centred_means(), sums.statistics.present
            dim, num_classes = output.frame.shape
            if dim >= num_classes - 1:
                metrics["nearest_etf_means"] = nearest_etf_distance(means, present)
                metrics["nearest_etf_classifier"] = nearest_etf_distance(output.frame)
            if slow:
                metrics["vci"] = variability_collapse_index(sums.statistics)
                metrics["rank_means"] = numerical_rank(means)
                metrics["effective_rank_means"] = effective_rank(means)
        return metrics

    @jax.jit
    def centred_metrics_of(sums: CentredSums) -> dict:
        margins = sums.margins.compute()
        return {
            "nc4": sums.agreement.compute(),
            "cosine_margin": margins.mean,
            "cosine_margin_sd": margins.standard_deviation,
            "cosine_margin_min": margins.minimum,
        }

    no_centred_sums = replicate(CentredSums.init(), devices)

    def sums_of(state: TrainState, source: Source) -> tuple[EvalSums, Any]:
        """Return the sums, and the features of an example."""
        if isinstance(source, ResidentSet):
            example = source.arrays.features[:1]
            return all_eval_steps(no_sums(state, example), state, source.content, source.in_order), example
        sums, example = None, None
        for batch in source():
            if sums is None:
                example = batch["features"][:1]
                sums = no_sums(state, example)
            sums = one_eval_step((state, sums), batch)
        if sums is None:
            raise ValueError("evaluation needs at least one batch; got none")
        return sums, example

    def centred_sums_of(state: TrainState, statistics: ClassStatistics, source: Source) -> CentredSums:
        if isinstance(source, ResidentSet):
            return all_centred_steps(no_centred_sums, (state, statistics), source.content, source.in_order)
        sums = no_centred_sums
        for batch in source():
            sums = one_centred_step(((state, statistics), sums), batch)
        return sums

    def evaluate(
        state: TrainState, source: Source, collapse: bool = False, centres: ClassStatistics | None = None
    ) -> Evaluation:
        state, centres = replicate((state, centres), devices)  # they may come from anywhere
        sums, example = sums_of(state, source)
        metrics = metrics_of(state, sums, example, collapse)
        if collapse:
            metrics |= centred_metrics_of(centred_sums_of(state, centres or sums.statistics, source))
        metrics = jax.device_get(metrics)  # one wait for all of them
        return Evaluation({name: float(value) for name, value in metrics.items()}, sums.statistics)

    return evaluate


def make_outputs(
    model: Model, *, preprocess: Preprocess | None = None
) -> Callable[[TrainState, Iterable[Batch]], Iterator[tuple[HeadOutput, Array]]]:
    """Compile the model as evaluation applies it, on one device, for what is wanted of every single example.

    Args:
        model: as in `create_state`.
        preprocess: see `nc_jax.training.StepOptions`.

    Returns:
        A function (state, batches) -> iterator over the head's output and the labels of each batch, padding and all.
    """
    apply = jax.jit(_evaluated(model, preprocess))

    def outputs(state: TrainState, batches: Iterable[Batch]) -> Iterator[tuple[HeadOutput, Array]]:
        state = jax.tree.map(jnp.asarray, jax.device_get(state))  # from all devices to one
        for batch in batches:
            yield apply(state, jnp.asarray(batch["features"])), jnp.asarray(batch["labels"])

    return outputs


def example_margins(
    outputs: Iterable[tuple[HeadOutput, Array]], centres: ClassStatistics
) -> Float[np.ndarray, " examples"]:
    """Return the centred cosine margin of every example, padding left out.

    Args:
        outputs: of the examples, see `Trainer.outputs`.
        centres: class statistics of the training features.

    Returns:
        In [-2, 2], K / (K - 1) at collapse to a simplex; see `nc_jax.metrics.cosine_margins`.
    """
    centres = jax.tree.map(jnp.asarray, jax.device_get(centres))  # from all devices to one
    margins_of = jax.jit(centred_margins)
    found = [np.asarray(margins_of(output, centres, labels))[np.asarray(labels) >= 0] for output, labels in outputs]
    return np.concatenate(found)


def _evaluated(model: Model, preprocess: Preprocess | None) -> Callable[[TrainState, Any], HeadOutput]:
    """Return the model as evaluation applies it: (state, features as stored) -> the head's output."""

    def output_of(state: TrainState, features: Any) -> HeadOutput:
        features = jnp.asarray(features) if preprocess is None else preprocess(jnp.asarray(features))
        return forward(model, state.evaluated_params, state.variables, {"features": features}, train=False)[0]

    return output_of
