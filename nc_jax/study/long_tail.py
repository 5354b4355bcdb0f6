"""What experiments on long tails measure: accuracy of frequent and rare classes, and alignment of the classifier."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nc_jax.metrics import (
    balanced_accuracy,
    class_angles,
    error_exponent_ratio,
    expected_calibration_error,
    group_recall,
    mean_cosine,
    principal_angles,
    thirds,
)
from nc_jax.study.comparison import Found, Run
from nc_jax.study.data import Data
from nc_jax.study.outputs import Outputs
from nc_jax.study.settings import Comparison
from nc_jax.training import Evaluation, Trainer, TrainState
from nc_jax.training.running import Watch

GROUPS = ("many", "medium", "few")


def groups_of(data: Data) -> dict[str, np.ndarray]:
    """Return the classes with many, medium and few training examples, a third of the classes each.

    Raises:
        ValueError: if the labels of the training set are not known without reading it, or it has fewer than three
            classes.
    """
    return thirds(class_sizes(data))


def class_sizes(data: Data) -> np.ndarray:
    """Return the number of training examples of each class, shape (K,).

    Raises:
        ValueError: if the labels of the training set are not known without reading it.
    """
    sizes = data.class_sizes
    if sizes is None:
        raise ValueError(f"classes are grouped by their sizes in a set whose labels are known; got {data.train!r}")
    return sizes


@jax.jit
def _alignment(means: Any, frame: Any, bias: Any, present: Any, few: Any) -> dict[str, Any]:
    return {
        "angles": jnp.degrees(class_angles(means, frame, present)),
        "principal_angle": jnp.degrees(jnp.nanmax(principal_angles(means, frame, present))),
        "exponent_ratio": error_exponent_ratio(means, frame, bias, present),
        "few_cosine": mean_cosine(frame - jnp.mean(frame, axis=1, keepdims=True), few),
    }


def alignment(evaluation: Evaluation, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how well the classifier is aligned with the class means of the training features.

    Args:
        evaluation: an evaluation on the training set.
        groups: classes by the names of `GROUPS`.

    Returns:
        "angle", "angle/many" and so on: mean angle between class vectors and centred class means, in degrees;
        "principal_angle": the largest one between the spaces of both, in degrees; "exponent_ratio": the optimal error
        exponent over the best that such means can have; "few_cosine": mean cosine between the class vectors of rare
        classes, 1 where they have collapsed onto each other.
    """
    statistics = evaluation.statistics
    found = _alignment(
        statistics.means, evaluation.frame, evaluation.bias, statistics.present, jnp.asarray(groups["few"])
    )
    angles = np.asarray(found.pop("angles"))
    numbers = {name: float(value) for name, value in found.items()}
    numbers["angle"] = _mean(angles)
    return numbers | {f"angle/{name}": _mean(angles[members]) for name, members in groups.items()}


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def recalls(evaluation: Evaluation, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Return "balanced_accuracy", the mean over classes, and "many", "medium" and "few", those over their classes."""
    accuracy = evaluation.class_accuracy
    if accuracy is None:
        return {}
    return {"balanced_accuracy": balanced_accuracy(accuracy), **group_recall(accuracy, groups)}


def watching(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Return what measures accuracy by groups of classes, and alignment, at every evaluation."""
    del trainer, settings
    groups = groups_of(data)

    def watch(state: TrainState, train: Evaluation, test: Evaluation) -> dict[str, float]:
        del state
        return recalls(test, groups) | alignment(train, groups)

    return watch


def measure(run: Run) -> Found:
    """Return accuracies by groups of classes, calibration and alignment at the end, and what pictures need.

    Returns:
        The numbers of `recalls` and `alignment`; "balanced_error"; "calibration_error", the expected calibration error
        on the test set; "class_sizes" and "recall_by_size", training examples and test accuracy of each class, in the
        order of the labels of this run.
    """
    groups = groups_of(run.data)
    test = run.trained.test
    found: Found = recalls(test, groups) | alignment(run.trained.train, groups)
    found["balanced_error"] = 1 - found["balanced_accuracy"]
    outputs = Outputs.of(run.trainer, run.trained.state, run.data.test)
    found["calibration_error"] = float(expected_calibration_error(outputs.logits, outputs.labels))
    found["class_sizes"] = class_sizes(run.data).tolist()
    found["recall_by_size"] = np.asarray(test.class_accuracy).tolist()
    return found
