"""Evaluation of a state on a data set: loss, accuracy and the metrics of neural collapse."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nc_jax.metrics import Agreement, ClassStatistics, collapse_metrics
from nc_jax.models import HeadOutput
from nc_jax.training.parallel import AXIS, Devices, data_parallel
from nc_jax.training.resident import ResidentSet, scan_steps
from nc_jax.training.state import Model, TrainState, forward
from nc_jax.training.step import Batch, EvalSums, Preprocess, make_agreement_step, make_eval_step

Source = ResidentSet | Callable[[], Iterable[Batch]]


class Evaluation(NamedTuple):
    """What evaluation found.

    Attributes:
        metrics: by name: "loss", "accuracy"; with collapse metrics also those of `nc_jax.metrics.collapse_metrics` and
            "nc4", the share of examples on which the classifier decides as the nearest class centre of the training
            features does.
        statistics: class statistics of the features.
    """

    metrics: dict[str, float]
    statistics: ClassStatistics


def make_evaluator(
    model: Model, *, devices: Devices = None, preprocess: Preprocess | None = None
) -> Callable[..., Evaluation]:
    """Compile the evaluation of a model.

    Args:
        model: as in `create_state`.
        devices: which; None takes all local ones.
        preprocess: see `nc_jax.training.StepOptions`.

    Returns:
        A function evaluate(state, source, collapse=False, centres=None), where the source is a `ResidentSet`, or a
        function that starts an iteration over batches; it is called once, and a second time for NC4. Centres are the
        class statistics of the training features; None means that these are the training features.
    """
    eval_step = make_eval_step(model, axis_name=AXIS, preprocess=preprocess)
    agreement_step = make_agreement_step(model, axis_name=AXIS, preprocess=preprocess)
    one_eval_step = data_parallel(eval_step, devices=devices)
    one_agreement_step = data_parallel(agreement_step, devices=devices)
    all_eval_steps = scan_steps(lambda state, sums, batch: eval_step((state, sums), batch), devices=devices)
    all_agreement_steps = scan_steps(
        lambda constant, agreement, batch: agreement.merge(agreement_step(constant, batch)), devices=devices
    )

    def output_of(state: TrainState, features: Any) -> HeadOutput:
        features = jnp.asarray(features) if preprocess is None else preprocess(jnp.asarray(features))
        return forward(model, state.evaluated_params, state.variables, {"features": features}, train=False)[0]

    empty: dict[tuple[int, ...], EvalSums] = {}  # by shape of the features: making one takes a third of an evaluation

    def no_sums(state: TrainState, features: Any) -> EvalSums:
        if features.shape not in empty:
            empty[features.shape] = zero_sums(state, features)
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
        return metrics

    share_of = jax.jit(Agreement.compute)
    no_agreement = Agreement(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def sums_of(state: TrainState, source: Source) -> tuple[EvalSums, Any]:
        """Return the sums, and the features of an example."""
        if isinstance(source, ResidentSet):
            example = source.arrays.features[:1]
            return all_eval_steps((state, no_sums(state, example)), source.content, source.in_order), example
        sums, example = None, None
        for batch in source():
            if sums is None:
                example = batch["features"][:1]
                sums = no_sums(state, example)
            sums = one_eval_step((state, sums), batch)
        if sums is None:
            raise ValueError("evaluation needs at least one batch; got none")
        return sums, example

    def agreement_of(state: TrainState, statistics: ClassStatistics, source: Source) -> Agreement:
        if isinstance(source, ResidentSet):
            return all_agreement_steps(((state, statistics), no_agreement), source.content, source.in_order)
        agreement = no_agreement
        for batch in source():
            agreement = agreement.merge(one_agreement_step((state, statistics), batch))
        return agreement

    def evaluate(
        state: TrainState, source: Source, collapse: bool = False, centres: ClassStatistics | None = None
    ) -> Evaluation:
        sums, example = sums_of(state, source)
        metrics = metrics_of(state, sums, example, collapse)
        if collapse:
            metrics["nc4"] = share_of(agreement_of(state, centres or sums.statistics, source))
        metrics = jax.device_get(metrics)  # one wait for all of them
        return Evaluation({name: float(value) for name, value in metrics.items()}, sums.statistics)

    return evaluate
