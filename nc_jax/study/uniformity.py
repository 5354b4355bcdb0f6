"""What experiments on generalized neural collapse measure: energies of class means, and accuracy under attack."""

import functools
import math

import numpy as np

from nc_jax.data import LabelledArrays
from nc_jax.energies import riesz_energy
from nc_jax.frames import hyperspherical_template
from nc_jax.metrics import energy_gap, generalized_collapse_metrics
from nc_jax.study.comparison import Found, Run
from nc_jax.study.data import Data
from nc_jax.study.heat_maps import rounded
from nc_jax.study.loss_surface import loss_surface
from nc_jax.study.outputs import Outputs
from nc_jax.study.robustness import AttackOptions, robust_accuracy
from nc_jax.study.settings import Comparison
from nc_jax.training import Evaluation, Trainer, TrainState
from nc_jax.training.running import Watch

S = 2.0  # exponent of the energy that is reported, that of HUG between classes
# One radius, at which methods differ on digits, and the attack that no scale can mask; `experiments.robustness`
# compares attacks and radii.
ATTACK = AttackOptions(radii=(16.0,), steps=10, restarts=1)
DRAWN = 500  # examples in a picture of features
GRID = 21  # points along each direction in a picture of the loss


@functools.lru_cache(maxsize=16)
def least_known_energy(num_classes: int, dim: int) -> float:
    """Return the energy of the frame of least energy that is known, a mean over pairs; NaN for fewer than two."""
    if num_classes < 2:
        return math.nan
    return float(riesz_energy(hyperspherical_template(num_classes, min(dim, num_classes - 1), s=S), S))


def energy_gaps(evaluation: Evaluation) -> dict[str, float]:
    """Return "energy_gap" and "frame_gap": energies of centred class means and class vectors above the least one."""
    means, present = evaluation.statistics.centred_means(), evaluation.statistics.present
    dim, _ = means.shape
    least = least_known_energy(int(np.sum(np.asarray(present))), dim)
    return {
        "energy_gap": float(energy_gap(means, S, present=present, least=least).absolute),
        "frame_gap": float(
            energy_gap(evaluation.frame, S, least=least_known_energy(evaluation.frame.shape[1], dim)).absolute
        ),
    }


def watching(trainer: Trainer, data: Data, settings: Comparison) -> Watch:
    """Return what measures energies at every evaluation."""
    del trainer, data, settings

    def watch(state: TrainState, train: Evaluation, test: Evaluation) -> dict[str, float]:
        del state, test
        return energy_gaps(train)

    return watch


def measure(run: Run) -> Found:
    """Return energies and metrics of generalized collapse at the end, accuracy under attack, and what pictures need.

    Returns:
        The numbers of `energy_gaps` and `nc_jax.metrics.generalized_collapse_metrics`; "robust", the accuracy under
        the attack `ATTACK`, for inputs with a range. Of the last seed also "surface", losses around its end
        (`nc_jax.study.loss_surface`, for a set in memory), and in two and three dimensions "points", test features,
        their labels and the class vectors.
    """
    train = run.trained.train
    metrics = generalized_collapse_metrics(train.statistics, train.frame, train.bias)
    found: Found = energy_gaps(train) | {name: float(value) for name, value in metrics.items()}
    if run.data.bounds is not None:
        found["robust"] = robust_accuracy(run, ATTACK, ("margin",))[f"margin/{ATTACK.radii[0]:g}"]
    if run.seed < run.group.settings.seeds - 1:
        return found
    if isinstance(run.data.train, LabelledArrays):
        found["surface"] = loss_surface(run.trainer, run.trained.state, run.data.train, size=GRID)
    if train.frame.shape[0] in (2, 3):
        outputs = Outputs.of(run.trainer, run.trained.state, run.data.test)
        chosen = np.arange(min(DRAWN, len(outputs.labels)))
        found["points"] = {
            "features": rounded(outputs.features[chosen], 4),
            "labels": outputs.labels[chosen].tolist(),
            "frame": rounded(train.frame, 4),
        }
    return found
