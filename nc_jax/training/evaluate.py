"""Evaluation of a state on a data set: loss, accuracy and the metrics of neural collapse."""

from collections.abc import Callable, Iterable
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

    def no_sums(state: TrainState, features: Any) -> EvalSums:
        shapes = jax.eval_shape(output_of, state, features)
        statistics = ClassStatistics.init(shapes.logits.shape[-1], shapes.features.shape[-1])
        zero = jnp.zeros((), jnp.int32)
        return EvalSums(jnp.zeros(()), zero, zero, statistics)

    @jax.jit
    def collapse_of(state: TrainState, statistics: ClassStatistics, features: Any) -> dict:
        output = output_of(state, features)
        return collapse_metrics(statistics, output.frame, output.bias)

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
        agreement = Agreement(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        if isinstance(source, ResidentSet):
            return all_agreement_steps(((state, statistics), agreement), source.content, source.in_order)
        for batch in source():
            agreement = agreement.merge(one_agreement_step((state, statistics), batch))
        return agreement

    def evaluate(
        state: TrainState, source: Source, collapse: bool = False, centres: ClassStatistics | None = None
    ) -> Evaluation:
        sums, example = sums_of(state, source)
        metrics = {"loss": sums.loss / sums.count, "accuracy": sums.correct / sums.count}
        if collapse:
            metrics.update(collapse_of(state, sums.statistics, example))
            metrics["nc4"] = agreement_of(state, centres or sums.statistics, source).compute()
        metrics = jax.device_get(metrics)  # one wait for all of them
        return Evaluation({name: float(value) for name, value in metrics.items()}, sums.statistics)

    return evaluate
