"""Regression collapse: NumPy as oracle, the unconstrained optimum in closed form, batches, padding, no value."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.metrics import RegressionStatistics, regression_collapse

RNG = np.random.default_rng(0)
N, DIM, NUM = 60, 6, 3
TARGETS = RNG.normal(size=(N, NUM)) @ RNG.normal(size=(NUM, NUM)) + 2
WEIGHTS = RNG.normal(size=(DIM, NUM))
FEATURES = TARGETS @ WEIGHTS.T + 0.3 * RNG.normal(size=(N, DIM)) + 1


@partial(jax.jit, static_argnames="rows")
def measured(features, targets, weights, labels=None, rows=False):
    return regression_collapse(RegressionStatistics.from_batch(features, targets, labels), weights, rows=rows)


def expected(features, targets, weights):
    """The definitions, with the best gamma sought on a fine grid."""
    n = targets.shape[1]
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    principal = np.linalg.svd(features - features.mean(axis=0))[2][:n].T
    span = np.linalg.qr(weights)[0]
    nrc1, nrc2 = (np.mean(np.sum((units - units @ basis @ basis.T) ** 2, axis=1)) for basis in (principal, span))
    values, vectors = np.linalg.eigh(np.cov(targets.T, bias=True).reshape(n, n))
    root = vectors * np.sqrt(values) @ vectors.T
    gram = weights.T @ weights / np.linalg.norm(weights.T @ weights)
    shifts = np.linspace(0, np.sqrt(values[0]), 20_001)
    wanted = root[None] - shifts[:, None, None] * np.eye(n)
    wanted /= np.linalg.norm(wanted, axis=(1, 2), keepdims=True)
    distances = np.sum((gram - wanted) ** 2, axis=(1, 2))
    return {"nrc1": nrc1, "nrc2": nrc2, "nrc3": distances.min(), "gamma": shifts[distances.argmin()] ** 2}


def check(found, wanted, gamma=1e-3, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        # A minimum is flat: the grid and float32 find its place to fewer digits.
        np.testing.assert_allclose(
            value, wanted[name], err_msg=name, **({"rtol": gamma} if name == "gamma" else tolerance)
        )


@pytest.mark.parametrize(("shift", "share"), [(0.5, 0.5), (-2.0, 0.0), (1.5, 1.0)], ids=["inside", "none", "most"])
def test_equals_the_definitions(x64, shift, share):
    """The Gram matrix is nearly that of a shift, of which the interval of gamma allows a share."""
    values, vectors = np.linalg.eigh(np.cov(TARGETS.T, bias=True))
    wanted = np.maximum(np.sqrt(values) - shift * np.sqrt(values[0]), 0)
    weights = np.linalg.qr(WEIGHTS)[0] @ (np.sqrt(wanted)[:, None] * vectors.T) + 1e-4 * WEIGHTS
    found, exact = measured(FEATURES, TARGETS, weights), expected(FEATURES, TARGETS, weights)
    check(found, exact, gamma=2e-3, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found["gamma"], share**2 * values[0], rtol=0.02)
    check(found, measured(FEATURES, TARGETS, weights.T, rows=True), rtol=1e-9)


@pytest.mark.slow
def test_the_unconstrained_optimum_is_collapsed():
    """Features Sigma^(1/2) - s I of whitened targets, with weights that share their singular vectors."""
    centred = TARGETS - TARGETS.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
    s = 0.4 * np.sqrt(values[0])
    frame = np.linalg.qr(RNG.normal(size=(DIM, NUM)))[0]
    weights = frame @ (np.sqrt(np.sqrt(values) - s)[:, None] * vectors.T)
    features = centred @ vectors / np.sqrt(values) * np.sqrt(np.sqrt(values) - s) @ frame.T
    found = measured(np.float32(features), np.float32(TARGETS), np.float32(weights))
    np.testing.assert_allclose([found[name] for name in ("nrc1", "nrc2", "nrc3")], 0, atol=1e-6)
    np.testing.assert_allclose(found["gamma"], s**2, rtol=1e-3)


@pytest.mark.parametrize(("size", "offset"), [(1e-12, 0), (1e12, 0), (1, 300)])
def test_scales_and_offsets_do_no_harm_in_float32(size, offset):
    features, targets = (np.float32(size * part + offset) for part in (FEATURES, TARGETS))
    found = measured(features, targets, np.float32(WEIGHTS / size))
    wanted = expected(features.astype(float), targets.astype(float), WEIGHTS)
    # Behind the offset, the features have a direction in common, whose share NRC1 takes to 3e-6 of 1.
    check(found, wanted, gamma=1e-2, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_batches_devices_and_padding_merge():
    padded = [np.concatenate([part, np.full((4, part.shape[1]), np.nan)]) for part in (FEATURES, TARGETS)]
    labels = np.where(np.arange(N + 4) < N, 7, -1)
    whole = measured(np.float32(FEATURES), np.float32(TARGETS), WEIGHTS)

    @jax.jit
    def parts(features, targets, labels):
        updated = RegressionStatistics.init(DIM, NUM)
        merged = RegressionStatistics.init(DIM, NUM)
        for part in (slice(0, 17), slice(17, 64)):
            updated = updated.update(features[part], targets[part], labels[part])
            merged = merged.merge(RegressionStatistics.from_batch(features[part], targets[part], labels[part]))
        split = [array.reshape(4, 16, *array.shape[1:]) for array in (features, targets, labels)]
        one = lambda *batch: RegressionStatistics.from_batch(*batch).all_reduce("devices")  # noqa: E731
        reduced = jax.vmap(one, axis_name="devices", out_axes=None)(*split)
        return [regression_collapse(stats, WEIGHTS) for stats in (updated, merged, reduced)]

    for found in parts(*(jnp.float32(part) for part in padded), labels):
        check(found, whole, rtol=1e-4)  # of the principal directions


@pytest.mark.slow
def test_what_does_not_exist_is_nan():
    names = {"nrc1", "nrc2", "nrc3", "gamma"}
    cases = {
        "no example": (measured(FEATURES, TARGETS, WEIGHTS, np.full(N, -1)), names),
        "zero features": (measured(0 * FEATURES, TARGETS, WEIGHTS), {"nrc1", "nrc2"}),
        "zero weights": (measured(FEATURES, TARGETS, 0 * WEIGHTS), names - {"nrc1"}),
        "constant targets": (measured(FEATURES, 0 * TARGETS, WEIGHTS), {"nrc3", "gamma"}),
        "NaN": (
            measured(FEATURES * np.where(np.arange(N) == 3, np.nan, 1)[:, None], TARGETS, WEIGHTS),
            {"nrc1", "nrc2"},
        ),
    }
    for case, (found, unknown) in cases.items():
        assert {name for name, value in found.items() if np.isnan(value)} == unknown, case


@pytest.mark.slow
def test_as_many_targets_as_dimensions_and_one_target():
    square = measured(TARGETS, TARGETS, RNG.normal(size=(NUM, NUM)))
    np.testing.assert_allclose([square["nrc1"], square["nrc2"]], 0, atol=1e-6)
    assert float(measured(FEATURES, TARGETS[:, :1], WEIGHTS[:, :1])["nrc3"]) == 0


STATS = RegressionStatistics.init(DIM, NUM)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: regression_collapse(STATS, WEIGHTS.T),
            r"weights must have shape \(6, 3\), one column for each target; got",
        ),
        (lambda: regression_collapse(STATS, WEIGHTS, rows=True), r"weights must have shape \(3, 6\), one row for each"),
        (
            lambda: STATS.update(FEATURES, TARGETS[:, 0]),
            r"targets must have shape \(60, targets\), one row for each of t",
        ),
        (
            lambda: STATS.update(FEATURES, TARGETS[:5]),
            r"targets must have shape \(60, targets\), one row for each of the",
        ),
        (
            lambda: STATS.update(FEATURES[:, :2], TARGETS),
            r"features must have shape \(batch, 6\) like these statistics",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()
