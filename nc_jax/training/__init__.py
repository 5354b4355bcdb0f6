"""Training: state, pure steps, data parallelism, evaluation, checkpoints, logs, and the loop that joins them."""

from nc_jax.extras import require_all

require_all("train", __name__)

from nc_jax.files import BusyError
from nc_jax.training.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from nc_jax.training.evaluate import (
    Evaluated,
    Evaluation,
    make_centred_step,
    make_eval_step,
    make_evaluator,
)
from nc_jax.training.extension import Client, Context, Extension
from nc_jax.training.extensions import (
    AlignmentPenalty,
    AlignmentProjection,
    AlignmentSlerp,
    BatchSoftmax,
    FeatureDecay,
    LocalLengths,
    LogitAdjustment,
    LogitMemory,
    Mixup,
    ModelContrast,
    TaskSoftmax,
)
from nc_jax.training.logging import MetricsLog, read_metrics
from nc_jax.training.loop import LoopOptions, Trained, Trainer
from nc_jax.training.optimizers import (
    OptimizerOptions,
    agd,
    agd_init,
    frozen,
    make_optimizer,
    make_schedule,
    scaled_rate,
)
from nc_jax.training.outputs import example_margins
from nc_jax.training.parallel import AXIS, UnequalDevicesError, check_equal_on_devices, data_parallel
from nc_jax.training.preemption import PreemptedError
from nc_jax.training.resident import ResidentSet
from nc_jax.training.running import NonFiniteError
from nc_jax.training.runs import LoadedRun, Predictions, load_run
from nc_jax.training.state import TrainState, create_state, forward
from nc_jax.training.step import Loss, PairLoss, StepOptions, cross_entropy, make_train_step
from nc_jax.training.summary import EpochTotals, StepMetrics

__all__ = [
    "AXIS",
    "AlignmentPenalty",
    "AlignmentProjection",
    "AlignmentSlerp",
    "BatchSoftmax",
    "BusyError",
    "CheckpointError",
    "Checkpoints",
    "Client",
    "Context",
    "EpochTotals",
    "Evaluated",
    "Evaluation",
    "Extension",
    "FeatureDecay",
    "LoadedRun",
    "LocalLengths",
    "LogitAdjustment",
    "LogitMemory",
    "LoopOptions",
    "Loss",
    "MetricsLog",
    "Mixup",
    "ModelContrast",
    "NonFiniteError",
    "OptimizerOptions",
    "PairLoss",
    "Predictions",
    "PreemptedError",
    "ResidentSet",
    "StepMetrics",
    "StepOptions",
    "TaskSoftmax",
    "TrainState",
    "Trained",
    "Trainer",
    "UnequalDevicesError",
    "agd",
    "agd_init",
    "check_equal_on_devices",
    "create_state",
    "cross_entropy",
    "data_parallel",
    "example_margins",
    "forward",
    "frozen",
    "load_run",
    "make_centred_step",
    "make_eval_step",
    "make_evaluator",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "read_checkpoint",
    "read_metrics",
    "scaled_rate",
]
