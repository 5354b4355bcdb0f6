"""Scores of outliers: golden NC5, scikit-learn and NumPy as oracles, collapse in closed form, offsets and scales."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from nc_jax import metrics
from nc_jax.metrics import ClassStatistics, Nci, Neco, Vim, energy_score, max_logit, max_softmax, outlier_orthogonality

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
RNG = np.random.default_rng(0)
N, M, DIM, K = 60, 15, 8, 3
LABELS = np.arange(N) % K
FRAME = RNG.normal(size=(DIM, K))
BIAS = RNG.normal(size=K)
FEATURES = (3 * RNG.normal(size=(K, DIM)))[LABELS] + RNG.normal(size=(N, DIM)) * np.linspace(0.2, 2, DIM) + 5
OUTLIERS = 2 * RNG.normal(size=(M, DIM))
LOGITS = FEATURES @ FRAME + BIAS
STRANGE = OUTLIERS @ FRAME + BIAS


@jax.jit
def statistics(features, labels=LABELS):
    return ClassStatistics.from_batch(features, labels, K)


orthogonality, plain_neco = (
    jax.jit(outlier_orthogonality),
    jax.jit(lambda stats, h: Neco.fit(stats, standardize=False).score(h)),
)
standard_neco = jax.jit(lambda stats, h: Neco.fit(stats).score(h))
nci = jax.jit(lambda stats, frame, h, z: Nci.fit(stats, frame).score(h, z))


@jax.jit
def scores(features, labels, frame, bias, logits, outliers, strange):
    """All fitted scores of the outliers."""
    stats = statistics(features, labels)
    vim = Vim.fit(stats, frame, bias, rank=5)
    half = len(features) // 2
    for part in (slice(None, half), slice(half, None)):
        vim = vim.update(features[part], logits[part], labels[part])
    return {
        "neco": Neco.fit(stats, rank=2).score(outliers),
        "neco, logits": Neco.fit(stats).score(outliers, strange),
        "neco, plain": Neco.fit(stats, rank=4, standardize=False).score(outliers),
        "nci": Nci.fit(stats, frame, alpha=0.1).score(outliers, strange),
        "vim": vim.score(outliers, strange),
        "orthogonality": outlier_orthogonality(stats, jnp.mean(outliers, axis=0)),
    }


def expected(features, outliers, frame=FRAME, bias=BIAS):
    logits, strange = features @ frame + bias, outliers @ frame + bias
    scaler = StandardScaler().fit(features)
    projected = PCA().fit(scaler.transform(features)).transform(scaler.transform(outliers))[:, :2]
    neco = np.linalg.norm(projected, axis=1) / np.linalg.norm(scaler.transform(outliers), axis=1)
    basis = PCA(4).fit(features).components_
    centred = outliers - features.mean(axis=0)
    chosen = frame.T[np.argmax(strange, axis=1)]
    nci = np.sum(centred * chosen, axis=1) / np.linalg.norm(centred, axis=1) + 0.1 * np.abs(outliers).sum(axis=1)
    origin = -np.linalg.pinv(frame.T) @ bias
    moments = (features - origin).T @ (features - origin)
    rest = np.linalg.eigh(moments)[1][:, : DIM - 5]
    alpha = logits.max(axis=1).mean() / np.linalg.norm((features - origin) @ rest, axis=1).mean()
    vim = scipy.special.logsumexp(strange, axis=1) - alpha * np.linalg.norm((outliers - origin) @ rest, axis=1)
    means = np.stack([features[k == LABELS].mean(axis=0) for k in range(K)])
    mean = outliers.mean(axis=0)
    cosines = means @ mean / np.linalg.norm(means, axis=1) / np.linalg.norm(mean)
    return {
        "neco": neco,
        "neco, logits": neco * strange.max(axis=1),
        "neco, plain": np.linalg.norm(outliers @ basis.T, axis=1) / np.linalg.norm(outliers, axis=1),
        "nci": nci,
        "vim": vim,
        "orthogonality": np.abs(cosines).mean(),
    }


def check(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], err_msg=name, **tolerance)


@pytest.mark.slow
def test_equals_numpy_and_scikit_learn(x64):
    found = scores(FEATURES, LABELS, FRAME, BIAS, LOGITS, OUTLIERS, STRANGE)
    check(found, expected(FEATURES, OUTLIERS), rtol=1e-9)


@pytest.mark.slow
def test_float32_keeps_its_digits_far_from_the_origin():
    """A thousand times the spread away, where squares about the origin lose six digits."""
    far = [np.float32(part + 1e3) for part in (FEATURES, OUTLIERS)]
    exact = [part.astype(np.float64) for part in far]
    logits, strange = (np.float32(part @ FRAME + BIAS) for part in exact)
    found = scores(far[0], LABELS, np.float32(FRAME), np.float32(BIAS), logits, far[1], strange)
    wanted = expected(*exact)
    # The differences to the mean have an error of 1e-4 here. ViM subtracts two terms of a thousand.
    for name, values in found.items():
        tolerance = 2e-3 * np.abs(wanted[name]).max() if name == "vim" else 0
        np.testing.assert_allclose(values, wanted[name], rtol=2e-4, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_scale_of_the_features_does_no_harm(scale):
    sized = [np.float32(scale * part) for part in (FEATURES, OUTLIERS)]
    found = scores(sized[0], LABELS, np.float32(FRAME / scale), np.float32(BIAS), LOGITS, sized[1], STRANGE)
    wanted = scores(FEATURES, LABELS, FRAME, BIAS, LOGITS, OUTLIERS, STRANGE)
    for name in ("neco", "neco, logits", "neco, plain", "vim", "orthogonality"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, err_msg=name)


@pytest.mark.slow
def test_padding_is_no_example():
    padded = [np.concatenate([part, np.full((3, part.shape[1]), np.nan)]) for part in (FEATURES, LOGITS)]
    labels = np.concatenate([LABELS, [-1, -1, -1]])
    found = scores(np.float32(padded[0]), labels, FRAME, BIAS, padded[1], OUTLIERS, STRANGE)
    check(found, expected(FEATURES, OUTLIERS), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN["feature_sets"])
def test_orthogonality_is_that_of_the_released_package(x64, name):
    data, golden = GOLDEN["feature_sets"][name], GOLDEN["rhubarbwu_metrics"][name]
    number = len(data["W"])
    measure = jax.jit(lambda x, y, vector: outlier_orthogonality(ClassStatistics.from_batch(x, y, number), vector))
    found = measure(np.array(data["X"]), np.array(data["y"]), np.array(golden["ood_vec"]))
    np.testing.assert_allclose(found, golden["nc5_ood_dev"], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_collapsed_features_and_orthogonal_outliers():
    simplex = np.eye(DIM)[:, :K] - np.eye(DIM)[:, :K].mean(axis=1, keepdims=True)  # in the first K directions
    features, orthogonal = 2 * simplex.T[LABELS], np.eye(DIM)[K:]
    stats = statistics(features)
    np.testing.assert_allclose(orthogonality(stats, orthogonal.mean(axis=0)), 0, atol=1e-7)
    both = np.concatenate([features, orthogonal])
    for neco in (plain_neco, standard_neco):  # features that do not vary have deviation 1
        np.testing.assert_allclose(neco(stats, both), np.arange(len(both)) < N, atol=1e-6)
    # In angle, every feature is on its class vector.
    np.testing.assert_allclose(nci(stats, simplex, features, features @ simplex), np.sqrt(1 - 1 / K), atol=1e-6)


@pytest.mark.slow
def test_scores_of_logits(x64):
    temperature = 2.5
    energy = temperature * scipy.special.logsumexp(LOGITS / temperature, axis=1)
    np.testing.assert_allclose(energy_score(LOGITS, temperature), energy, rtol=1e-12)
    np.testing.assert_allclose(max_logit(LOGITS), LOGITS.max(axis=1))
    np.testing.assert_allclose(
        max_softmax(LOGITS), np.log(scipy.special.softmax(LOGITS, axis=1).max(axis=1)), atol=1e-14
    )


@pytest.mark.slow
def test_sure_predictions_keep_an_order():
    """Probabilities of 1 - 1e-9 to 1 - 1e-30 are all 1 in float32."""
    gaps = np.linspace(20, 69, 50, dtype=np.float32)
    found = np.asarray(max_softmax(np.stack([gaps, 0 * gaps], axis=1)))
    np.testing.assert_allclose(found, -np.exp(-gaps.astype(np.float64)), rtol=1e-5)
    assert np.all(np.diff(found) > 0)
    assert float(max_softmax(jnp.zeros((1, 4)))[0]) == pytest.approx(np.log(0.25))


@pytest.mark.slow
def test_what_does_not_exist_is_nan():
    stats = statistics(FEATURES)
    assert np.isnan(plain_neco(stats, np.zeros((N + DIM - K, DIM)))).all()
    assert np.isnan(nci(stats, FRAME, np.tile(stats.global_mean, (N, 1)), LOGITS)).all()
    before = jax.jit(lambda stats: Vim.fit(stats, FRAME, BIAS).score(OUTLIERS, STRANGE))  # without the second pass
    assert np.isnan(before(stats)).all()
    assert np.isnan(orthogonality(stats, np.zeros(DIM)))
    assert np.isnan(orthogonality(statistics(FEATURES * (LABELS > 0)[:, None]), np.ones(DIM)))
    assert np.isnan(orthogonality(statistics(FEATURES, np.full(N, -1)), np.ones(DIM)))


STATS = statistics(FEATURES)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: outlier_orthogonality(STATS, np.ones(3)), r"outlier_mean must have shape \(8,\) like the class means"),
        (lambda: Neco.fit(STATS, rank=9), r"rank must lie in 1\.\.8; got 9"),
        (lambda: Vim.fit(STATS, FRAME, rank=8), r"rank must lie in 1\.\.7; got 8"),
        (
            lambda: Vim.fit(STATS, FRAME.T),
            r"frame must have shape \(8, 3\) like the class means; got \(3, 8\): transpose",
        ),
        (lambda: Vim.fit(STATS, FRAME, np.ones(4)), r"bias must have shape \(3,\), one entry per class; got \(4,\)"),
        (
            lambda: Nci.fit(STATS, FRAME).score(OUTLIERS, STRANGE[:2]),
            "logits must have one row for each of the 15",
        ),
        (
            lambda: Nci.fit(STATS, FRAME).score(OUTLIERS, STRANGE[:, :2]),
            "logits must have one column for each of the",
        ),
        (lambda: Neco.fit(STATS).score(OUTLIERS[:, :4]), r"features and the vectors of the score must have shapes"),
        (lambda: inspect.unwrap(energy_score)(STRANGE, 0.0), r"temperature must be positive; got 0\.0"),
        (
            lambda: Neco.fit(ClassStatistics.init(K, DIM, scatter=False)),
            "this needs class statistics with a scatter; got",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()


@pytest.mark.parametrize(("dim", "rank"), [(2048, 1000), (768, 512), (10, 5)])
def test_the_principal_space_of_vim_has_the_released_dimensions(dim, rank):
    vim = jax.eval_shape(lambda stats: Vim.fit(stats, jnp.ones((dim, 2))), ClassStatistics.init(2, dim))
    assert vim.basis.shape == (dim, dim - rank)
    assert metrics.Vim is Vim
