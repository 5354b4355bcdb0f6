"""Minority collapse of free features: the measurements, the descent beside the theory, refusals."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import minority_collapse
from experiments.minority_collapse import ROWS, Config, counts_of, rare, thresholds_of
from nc_jax import heads
from nc_jax.study import cli
from nc_jax.study.imbalanced_features import ImbalancedDescent, ImbalanceOptions, _measured

SMALL = ImbalanceOptions(num_classes=4, dim=4, largest=20, steps=30, batch_size=16)


def config_of(*flags: str) -> Config:
    return cli.parse(minority_collapse.PRESETS["smoke"], list(flags))


@pytest.mark.slow
def test_large_and_small_classes_are_measured_as_in_numpy():
    rng = np.random.default_rng(0)
    counts = np.array([5, 4, 2, 1])
    labels = np.append(np.repeat(np.arange(4), counts), [-1, -1])
    features = rng.normal(size=(14, 4)) * (labels >= 0)[:, None]
    frame, bias = rng.normal(size=(4, 4)), rng.normal(size=4)
    params = {"kernel": jnp.asarray(frame, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    def classify(features):
        return heads.learned(4).apply(params, {}, features)[0]

    arrays = (jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.asarray(counts, jnp.float32))
    found = jax.jit(partial(_measured, SMALL, classify))(*arrays, jax.random.key(0))
    means = np.stack([features[k == labels].mean(axis=0) for k in range(4)], axis=1)
    centred = means - means.mean(axis=1, keepdims=True)
    logits = features @ frame + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    unit, unit_means = frame / np.linalg.norm(frame, axis=0), centred / np.linalg.norm(centred, axis=0)
    for name, (first, second) in {"majority": (0, 1), "minority": (2, 3)}.items():
        kept = [place for place, label in enumerate(labels) if label in (first, second)]
        margins = [logits[i, labels[i]] - np.delete(logits[i], labels[i]).max() for i in kept]
        expected = {
            "cosine": unit[:, first] @ unit[:, second],
            "mean cosine": unit_means[:, first] @ unit_means[:, second],
            "alignment": np.mean([unit[:, k] @ unit_means[:, k] for k in (first, second)]),
            "margin": min(margins),
            "loss": np.mean([losses[k == labels].mean() for k in (first, second)]),
        }
        for key, value in expected.items():
            np.testing.assert_allclose(found[f"{name} {key}"], value, atol=2e-5)
        assert 0 <= found[f"{name} accuracy"] <= 1
    lengths = np.linalg.norm(frame, axis=0)
    np.testing.assert_allclose(found["length"], lengths[2:].mean() / lengths[:2].mean(), rtol=1e-5)


@pytest.mark.slow
def test_a_fixed_frame_keeps_its_angles_and_serves_all_counts_with_one_program():
    row = ROWS["fixed"]
    descent = ImbalancedDescent(SMALL, partial(row.head, SMALL), decays=row.decays)
    for ratio in (1.0, 20.0):
        found = descent(counts_of(Config(descent=SMALL), "step", ratio), 2)
        np.testing.assert_allclose(found["minority cosine"], -1 / 3, atol=1e-5)
        np.testing.assert_allclose(found["length"], 1, atol=1e-5)
        assert min(found["minority margin"]) > 0
    assert found["minority loss"][0] != found["minority loss"][1]


@pytest.mark.slow
def test_learned_class_vectors_merge_where_the_theory_says_so():
    """Four classes; the threshold is sqrt(2) / 44 = 0.032."""
    row, found = ROWS["learned, decay"], {}
    for decay in (0.022, 0.036):
        options = {"weight_decay": 2 * decay, "feature_decay": decay / 2, "steps": 3000, "batch_size": 44}
        config = ImbalanceOptions(num_classes=4, dim=4, largest=20, **options)
        descent = ImbalancedDescent(config, partial(row.head, config), decays=row.decays)
        found[decay] = descent(np.array([20, 20, 2, 2]), 2)
        limits = thresholds_of(Config(descent=config), 10.0)
        assert limits["decay"] == pytest.approx(decay)
        assert limits["equal"] == pytest.approx(np.sqrt(2) / 44)
    assert max(found[0.022]["minority cosine"]) < 0.7
    assert min(found[0.036]["minority cosine"]) > 0.999
    assert min(found[0.036]["length"]) > 0.1


def test_weights_for_rare_classes_are_the_inverse_effective_numbers():
    counts = np.array([1, 10, 1000])
    effective = [sum(0.999**power for power in range(count)) for count in counts]
    found = np.asarray(rare(jnp.asarray(counts, float)))  # only the ratios of weights matter
    np.testing.assert_allclose(found / found[0], effective[0] / np.array(effective), rtol=1e-3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seeds", "0"], "at least one profile, ratio, head and seed are needed"),
        (["--heads", "mean"], "heads must be among 'learned, decay', 'learned'"),
        (["--heads", "fixed", "fixed"], "heads must differ"),
        (["--ratios", "10", "10"], "ratios must differ"),
        (["--ratios", "100"], "a ratio must lie in [1, largest], or the smallest class is empty; got 100"),
        (["--descent.dim", "2"], "a simplex ETF of 4 classes needs dim >= 3; got dim=2"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        minority_collapse.run(config_of(*flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_options_of_a_descent_are_checked():
    with pytest.raises(ValueError, match="num_classes must be at least 4, two of each kind; got 3"):
        ImbalanceOptions(num_classes=3)
    with pytest.raises(ValueError, match="noise must be positive; got 0"):
        ImbalanceOptions(noise=0.0)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        ImbalanceOptions(steps=0)
