"""Evaluation of a state on a data set: loss, accuracy and the metrics of neural collapse."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nc_jax.metrics import Agreement, ClassStatistics, collapse_metrics
from nc_jax.training.parallel import AXIS, Devices, data_parallel
from nc_jax.training.state import Model, TrainState, forward
from nc_jax.training.step import Batch, EvalSums, make_agreement_step, make_eval_step


class Evaluation(NamedTuple):
    """What evaluation found.

    Attributes:
        metrics: by name: "loss", "accuracy"; with collapse metrics also those of `nc_jax.metrics.collapse_metrics` and
            "nc4", the share of examples on which the classifier decides as the nearest class centre does.
        statistics: class statistics of the features.
    """

    metrics: dict[str, float]
    statistics: ClassStatistics


def make_evaluator(model: Model, *, devices: Devices = None) -> Callable[..., Evaluation]:
    """Compile the evaluation of a model.

    Args:
        model: as in `create_state`.
        devices: which; None takes all local ones.

    Returns:
        A function evaluate(state, batches, collapse=False), where `batches` is a function that starts an iteration over
        the data set; it is called once, and a second time for NC4.
    """
    eval_step = data_parallel(make_eval_step(model, axis_name=AXIS), devices=devices)
    agreement_step = data_parallel(make_agreement_step(model, axis_name=AXIS), devices=devices)

    @jax.jit
    def empty(state: TrainState, batch: Batch) -> EvalSums:
        output, _ = forward(model, state.params, state.variables, batch, train=False)
        zero = jnp.zeros((), jnp.int32)
        statistics = ClassStatistics.init(output.logits.shape[-1], output.features.shape[-1])
        return EvalSums(jnp.zeros(()), zero, zero, statistics)

    @jax.jit
    def collapse_of(state: TrainState, statistics: ClassStatistics, batch: Batch) -> dict:
        output, _ = forward(model, state.params, state.variables, batch, train=False)
        return collapse_metrics(statistics, output.frame, output.bias)

    def evaluate(state: TrainState, batches: Callable[[], Iterable[Batch]], collapse: bool = False) -> Evaluation:
        sums, example = None, None
        for batch in batches():
            if sums is None:
                example = {name: array[:1] for name, array in batch.items()}
                sums = empty(state, example)
            sums = eval_step((state, sums), batch)
        if sums is None:
            raise ValueError("evaluation needs at least one batch; got none")
        metrics = {"loss": sums.loss / sums.count, "accuracy": sums.correct / sums.count}
        if collapse:
            metrics.update(collapse_of(state, sums.statistics, example))
            agreement = Agreement(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
            for batch in batches():
                agreement = agreement.merge(agreement_step((state, sums.statistics), batch))
            metrics["nc4"] = agreement.compute()
        return Evaluation({name: float(value) for name, value in metrics.items()}, sums.statistics)

    return evaluate
