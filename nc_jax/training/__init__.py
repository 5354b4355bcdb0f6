"""Training: state, pure steps, the one pmap, evaluation, checkpoints, logs, and the loop that joins them."""

from nc_jax.training.checkpoint import Checkpoints
from nc_jax.training.evaluate import Evaluation, make_evaluator
from nc_jax.training.logging import MetricsLog, read_metrics
from nc_jax.training.loop import LoopOptions, NonFiniteError, Trained, Trainer
from nc_jax.training.parallel import AXIS, data_parallel
from nc_jax.training.state import TrainState, create_state, forward
from nc_jax.training.step import StepMetrics, make_agreement_step, make_eval_step, make_train_step

__all__ = [
    "AXIS",
    "Checkpoints",
    "Evaluation",
    "LoopOptions",
    "MetricsLog",
    "NonFiniteError",
    "StepMetrics",
    "TrainState",
    "Trained",
    "Trainer",
    "create_state",
    "data_parallel",
    "forward",
    "make_agreement_step",
    "make_eval_step",
    "make_evaluator",
    "make_train_step",
    "read_metrics",
]
