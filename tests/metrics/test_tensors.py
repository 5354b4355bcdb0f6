"""Tensors of other libraries at every public door of `nc_jax.metrics`: the same numbers as from NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import metrics
from nc_jax.checks import as_array

K, DIM, N = 3, 4, 12
RNG = np.random.default_rng(0)


def whole(*shape):
    """Small whole numbers as float32: exact in bfloat16, too."""
    return RNG.integers(-4, 5, shape).astype(np.float32)


LABELS = np.arange(N) % K
FEATURES, FRAME, BIAS, MEANS = whole(N, DIM) + 8 * np.eye(K, DIM)[LABELS], whole(DIM, K), whole(K), whole(DIM, K)
FEATURES, MEANS = FEATURES.astype(np.float32), MEANS + 6 * np.eye(DIM, K, dtype=np.float32)
LOGITS, SQUARE, PRESENT = whole(N, K), np.abs(whole(K, K)) / 4, np.array([True, True, False])
TREE = np.array([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
OWNED = np.array([[1, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 1]], np.float32)


def statistics(t, features=FEATURES):
    return metrics.ClassStatistics.from_batch(t(features), t(LABELS), K)


def scored(kind, t, *more):
    """Scores of a detector of outliers that was fitted to the features."""
    return kind.fit(statistics(t), *(t(array) for array in more)).score(t(FEATURES), t(LOGITS))


def by_depth(t):
    stats = {"last": statistics(t)}
    return metrics.collapse_by_depth(stats, metrics.nearest_centre_by_layer({"last": t(FEATURES)}, t(LABELS), stats))


# Every public function that takes arrays, called with t(array) for every array.
CASES = {
    "AncestorCounts": lambda t: metrics.AncestorCounts.from_batch(t(LABELS), t(LABELS[::-1].copy()), TREE),
    "CalibrationSums": lambda t: metrics.CalibrationSums.from_batch(t(LOGITS), t(LABELS)),
    "ClassStatistics": lambda t: statistics(t).update(t(FEATURES), t(LABELS)),
    "HierarchyStatistics": lambda t: metrics.HierarchyStatistics.from_batch(t(LOGITS), t(LABELS), t(TREE), (1, 2)),
    "MarginSums": lambda t: metrics.MarginSums.from_batch(t(BIAS), t(LABELS[:K])),
    "Measurement": lambda t: measured(t),
    "Nci": lambda t: scored(metrics.Nci, t, FRAME),
    "Neco": lambda t: scored(metrics.Neco, t),
    "RegressionStatistics": lambda t: metrics.RegressionStatistics.from_batch(t(FEATURES), t(LOGITS)),
    "Vim": lambda t: scored(metrics.Vim, t, FRAME, BIAS),
    "answers": lambda t: metrics.answers(t(LOGITS), t(LABELS), t(PRESENT)),
    "auroc": lambda t: metrics.auroc(t(LOGITS[:, 0]), t(LABELS % 2)),
    "average_accuracy": lambda t: metrics.average_accuracy(t(SQUARE)),
    "backward_transfer": lambda t: metrics.backward_transfer(t(SQUARE)),
    "balanced_accuracy": lambda t: metrics.balanced_accuracy(t(SQUARE[0])),
    "bias_collapse": lambda t: metrics.bias_collapse(t(FRAME), t(BIAS), t(MEANS[:, 0])),
    "class_angles": lambda t: metrics.class_angles(t(MEANS), t(FRAME), t(PRESENT)),
    "class_distance_normalized_variance": lambda t: metrics.class_distance_normalized_variance(statistics(t), 2),
    "client_drift": lambda t: metrics.client_drift({"w": t(SQUARE)}, {"w": t(BIAS)}, t(np.arange(K))),
    "client_summary": lambda t: metrics.client_summary(t(SQUARE[0]), t(np.arange(1, K + 1))),
    "collapse_by_depth": by_depth,
    "collapse_metrics": lambda t: metrics.collapse_metrics(statistics(t), t(FRAME.T.copy()), t(BIAS), rows=True),
    "cosine_margins": lambda t: metrics.cosine_margins(t(FEATURES), t(FRAME), t(LABELS)),
    "effective_depth": lambda t: metrics.effective_depth(t(SQUARE[0])),
    "effective_rank": lambda t: metrics.effective_rank(t(FRAME)),
    "energy_score": lambda t: metrics.energy_score(t(LOGITS)),
    "energy_gap": lambda t: metrics.energy_gap(t(FRAME), present=t(PRESENT), least=t(np.float32(0.25))),
    "equiangle": lambda t: metrics.equiangle(t(FRAME), t(PRESENT)),
    "equinorm": lambda t: metrics.equinorm(t(FRAME), t(PRESENT)),
    "error_exponent_ratio": lambda t: metrics.error_exponent_ratio(t(MEANS), t(MEANS), t(BIAS), t(PRESENT)),
    "error_exponents": lambda t: metrics.error_exponents(t(MEANS), t(MEANS), t(BIAS), t(PRESENT)),
    "etf_distance": lambda t: metrics.etf_distance(t(FRAME), t(PRESENT)),
    "expected_calibration_error": lambda t: metrics.expected_calibration_error(t(LOGITS), t(LABELS)),
    "false_positive_rate": lambda t: metrics.false_positive_rate(t(LOGITS[:, 0]), t(LABELS % 2)),
    "few_shot_errors": lambda t: metrics.few_shot_errors(t(FEATURES), t(LABELS), K, 1, key=jax.random.key(0), draws=2),
    "forgetting": lambda t: metrics.forgetting(t(SQUARE)),
    "forward_transfer": lambda t: metrics.forward_transfer(t(SQUARE), t(BIAS)),
    "generalized_collapse_metrics": lambda t: metrics.generalized_collapse_metrics(statistics(t), t(FRAME), t(BIAS)),
    "group_angles": lambda t: metrics.group_angles(t(FRAME), t(PRESENT)),
    "group_recall": lambda t: metrics.group_recall(t(SQUARE[0]), {"few": t(np.array([0, 2]))}),
    "kernel_moments": lambda t: metrics.kernel_moments(t(FRAME), present=t(PRESENT)),
    "logit_margins": lambda t: metrics.logit_margins(t(LOGITS), t(LABELS)),
    "max_logit": lambda t: metrics.max_logit(t(LOGITS)),
    "max_softmax": lambda t: metrics.max_softmax(t(LOGITS)),
    "maximal_angle": lambda t: metrics.maximal_angle(t(FRAME), t(PRESENT)),
    "mean_cosine": lambda t: metrics.mean_cosine(t(FRAME), t(np.array([0, 2]))),
    "nearest_centre_accuracy": lambda t: metrics.nearest_centre_accuracy(t(FEATURES), t(LABELS), t(MEANS), t(PRESENT)),
    "nearest_centre_agreement": lambda t: metrics.nearest_centre_agreement(
        t(FEATURES), t(FRAME), t(BIAS), t(MEANS), t(PRESENT), t(LABELS)
    ),
    "nearest_centre_by_layer": by_depth,
    "nearest_etf_distance": lambda t: metrics.nearest_etf_distance(t(FRAME), t(PRESENT)),
    "nearest_mean_scores": lambda t: metrics.nearest_mean_scores(t(FEATURES), t(MEANS), t(PRESENT)),
    "nuclear_rank": lambda t: metrics.nuclear_rank(t(FRAME)),
    "numerical_rank": lambda t: metrics.numerical_rank(t(FRAME)),
    "one_vs_rest_margin": lambda t: metrics.one_vs_rest_margin(t(FRAME), t(PRESENT)),
    "optimal_error_exponent": lambda t: metrics.optimal_error_exponent(t(MEANS), t(MEANS), t(BIAS), t(PRESENT)),
    "outlier_orthogonality": lambda t: metrics.outlier_orthogonality(statistics(t), t(MEANS[:, 0])),
    "principal_angles": lambda t: metrics.principal_angles(t(MEANS), t(FRAME)),
    "regression_collapse": lambda t: metrics.regression_collapse(
        metrics.RegressionStatistics.from_batch(t(FEATURES), t(LOGITS)), t(FRAME)
    ),
    "report": lambda t: numbers(metrics.report(t(FEATURES), t(LABELS), t(FRAME.T.copy()), t(BIAS), rows=True)),
    "self_duality": lambda t: metrics.self_duality(t(FRAME), statistics(t)),
    "shot_groups": lambda t: metrics.shot_groups(t(np.array([500, 50, 3]))),
    "similarity_errors": lambda t: metrics.similarity_errors(t(FRAME), t(SQUARE), t(PRESENT)),
    "stable_rank": lambda t: metrics.stable_rank(t(FRAME)),
    "support_occupancy": lambda t: metrics.support_occupancy(t(FEATURES), t(LABELS), t(OWNED)),
    "tag_sets": lambda t: metrics.tag_sets(t(np.eye(K, dtype=np.float32)[LABELS])),
    "thirds": lambda t: metrics.thirds(t(np.array([5, 9, 7]))),
    "uniform_duality": lambda t: metrics.uniform_duality(t(FRAME), statistics(t)),
    "uniformity_gap": lambda t: metrics.uniformity_gap(statistics(t, np.eye(N, DIM, dtype=np.float32) + OWNED[0, 1])),
    "variability_collapse_index": lambda t: metrics.variability_collapse_index(statistics(t)),
    "within_class_collapse": lambda t: metrics.within_class_collapse(statistics(t)),
    "zero_mean_collapse": lambda t: metrics.zero_mean_collapse(statistics(t), t(FRAME)),
}
# Names that take no arrays of data: results, sums that others fill, and functions of sizes.
NO_ARRAYS = {
    "Agreement", "Answers", "Centre", "ClassMoments", "ClassTable", "ClientDrift", "ClientSummary", "EnergyGap",
    "Entry", "FewShotErrors", "GroupAngles", "KernelMoments", "MarginSummary", "OneVsRestMargin", "Report",
    "TagWiseAverage", "UniformityGap", "ancestor_overlaps", "etf_distance_floor", "etf_error_exponent",
    "tag_wise_average", "usual_top",
}  # fmt: skip


def numbers(report):
    return {name: entry.value for name, entry in report.items()}


def measured(t):
    measurement = metrics.Measurement(K, DIM, t(FRAME), t(BIAS))
    for take in (measurement.first_pass, measurement.second_pass):
        take(t(FEATURES), t(LABELS))
    return numbers(measurement.report())


class Tensor:
    """A tensor as PyTorch's: NumPy cannot read it while it has a gradient, lies elsewhere, or holds bfloat16."""

    def __init__(self, array, steps=("detach", "cpu")):
        self._array, self._steps = array, steps

    def _after(self, step):
        return Tensor(self._array, tuple(other for other in self._steps if other != step))

    def detach(self):
        return self._after("detach")

    def cpu(self):
        return self._after("cpu")

    def __array__(self, dtype=None, copy=None):
        if self._steps or self._array.dtype == jnp.bfloat16:
            raise TypeError(f"needs {self._steps}")
        return np.asarray(self._array, dtype)

    def __dlpack__(self, **keywords):
        if self._steps:
            raise TypeError(f"needs {self._steps}")
        return jnp.asarray(self._array).__dlpack__(**keywords)

    def __dlpack_device__(self):
        return jnp.asarray(self._array).__dlpack_device__()


def torch_like(array):
    return Tensor(np.asarray(array))


def torch_like_bfloat16(array):
    return Tensor(np.asarray(array).astype(jnp.bfloat16) if np.asarray(array).dtype == np.float32 else array)


def from_torch(array):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def from_torch_bfloat16(array):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(array)
    return tensor.bfloat16().requires_grad_() if tensor.is_floating_point() else tensor


KINDS = (torch_like, torch_like_bfloat16, from_torch, from_torch_bfloat16)


def test_every_public_name_has_a_case():
    assert not set(metrics.__all__) - set(CASES) - NO_ARRAYS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) & set(metrics.__all__)))
def test_a_tensor_gives_the_numbers_of_an_array(name):
    expected = jax.tree.leaves(CASES[name](lambda array: array))
    for kind in KINDS[:2]:
        for found, wanted in zip(jax.tree.leaves(CASES[name](kind)), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted), err_msg=kind.__name__)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_tensors_of_pytorch_are_read(kind):
    for array in (
        FEATURES,
        LABELS,
        PRESENT,
        SQUARE[0].astype(np.float32),
        np.float32(0.25),
        np.zeros((0, 3), np.float32),
    ):
        found = as_array(kind(array), "array")
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found.astype(array.dtype), array)
    assert as_array(kind(FEATURES.T.copy()).T, "array").shape == FEATURES.shape  # not contiguous


def test_a_tensor_without_values_gets_a_sentence():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="features must be an array; got a Tensor that NumPy cannot read"):
        as_array(torch.zeros(2, device="meta"), "features")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[2:])
@pytest.mark.parametrize("name", sorted(set(CASES) & set(metrics.__all__)))
def test_tensors_of_pytorch_give_the_numbers_of_arrays(name, kind):
    expected = jax.tree.leaves(CASES[name](lambda array: array))
    for found, wanted in zip(jax.tree.leaves(CASES[name](kind)), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
