"""Evaluation against NumPy: what a second pass over the examples finds, on one device and eight, resident or not."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from toy_training import NUM_CLASSES, make_trainer

from nc_jax.data import Batch
from nc_jax.streams import eval_batches
from nc_jax.training import Evaluated, ResidentSet, example_margins, forward, make_evaluator

F32_SUMS = 1e-5  # sums over a hundred examples, in another order


@pytest.fixture(scope="module")
def state(one_device, train_set):
    state = one_device.init(train_set, seed=0)
    rng = np.random.default_rng(0)
    # Replace the initial frame, whose distance to the nearest simplex is zero. Centring must matter, too.
    frame = rng.normal(size=state.variables["nearest"]["head"]["frame"].shape)
    return state.replace(
        variables={
            "nearest": {"head": {**state.variables["nearest"]["head"], "frame": jnp.asarray(frame, jnp.float32)}}
        }
    )


def as_seen_by_the_classifier(model, state, arrays):
    batch = Batch.of(jnp.asarray(arrays.inputs), jnp.asarray(arrays.labels))
    output, *_ = forward(model, state.params, state.variables, batch, train=False)
    return np.asarray(output.features, float), np.asarray(output.frame, float), np.asarray(output.bias, float)


def expected_of(model, state, train_set, arrays):
    """The metrics of `arrays`, centred by the training features, class by class and example by example."""
    train_features, frame, bias = as_seen_by_the_classifier(model, state, train_set)
    centres = np.stack([train_features[train_set.labels == k].mean(axis=0) for k in range(NUM_CLASSES)])
    features, _, _ = as_seen_by_the_classifier(model, state, arrays)
    centred, classes = features - train_features.mean(axis=0), (frame - frame.mean(axis=1, keepdims=True)).T
    margins, agree, right = [], [], []
    for feature, raw, label in zip(centred, features, arrays.labels, strict=True):
        cosines = [feature @ vector / np.linalg.norm(feature) / np.linalg.norm(vector) for vector in classes]
        margins.append(cosines[label] - max(cosines[:label] + cosines[label + 1 :]))
        nearest = np.argmin(np.linalg.norm(centres - raw, axis=1))
        agree.append(np.argmax(raw @ frame + bias) == nearest)
        right.append(nearest == label)
    own_means = np.stack([features[arrays.labels == k].mean(axis=0) for k in range(NUM_CLASSES)], axis=1)
    own_means -= own_means.mean(axis=1, keepdims=True)
    return {
        "nc4": np.mean(agree),
        "nearest_centre_accuracy": np.mean(right),
        "cosine_margin": np.mean(margins),
        "cosine_margin_sd": np.std(margins),
        "cosine_margin_min": np.min(margins),
        "nearest_etf_means": distance_to_the_nearest_simplex(own_means),
        "nearest_etf_classifier": distance_to_the_nearest_simplex(frame),
        "rank_means": NUM_CLASSES - 1,
    }


def distance_to_the_nearest_simplex(vectors):
    template = np.eye(NUM_CLASSES) - 1 / NUM_CLASSES
    template /= np.linalg.norm(template)
    vectors = vectors / np.linalg.norm(vectors)
    return np.linalg.norm(vectors - oracles.polar_by_svd(vectors @ template.T) @ template)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_metrics_are_those_of_numpy(one_device, state, train_set, test_set, num_devices, resident):
    trainer = one_device if num_devices == 1 else make_trainer(8)
    model = trainer.model
    devices = jax.devices()[:num_devices]
    evaluate = make_evaluator(Evaluated(model), devices=devices, slow=True)

    def source(arrays):
        return ResidentSet(arrays, 24, devices=devices) if resident else lambda: eval_batches(arrays, 24)

    train = evaluate(state, source(train_set), collapse=True)
    test = evaluate(state, source(test_set), collapse=True, centres=train.statistics)
    for found, arrays in ((train, train_set), (test, test_set)):
        expected = expected_of(model, state, train_set, arrays)
        for name, value in expected.items():
            assert found.metrics[name] == pytest.approx(value, abs=F32_SUMS), name
        margins = example_margins(trainer.outputs(state, arrays), train.statistics)
        assert margins.shape == (len(arrays),)  # the last batch has padding
        assert np.mean(margins) == pytest.approx(expected["cosine_margin"], abs=F32_SUMS)
        assert np.min(margins) == pytest.approx(expected["cosine_margin_min"], abs=F32_SUMS)
        assert 0 <= found.metrics["vci"] <= 1
        assert 1 <= found.metrics["effective_rank_means"] <= NUM_CLASSES - 1 + F32_SUMS
    assert train.metrics["cosine_margin"] != test.metrics["cosine_margin"]


@pytest.mark.slow
def test_slow_metrics_are_left_out_unless_asked_for(one_device, state, test_set):
    metrics = one_device.evaluate(state, ResidentSet(test_set, 24, devices=one_device.devices), collapse=True).metrics
    assert "nearest_etf_means" in metrics
    assert not {"vci", "rank_means", "effective_rank_means"} & metrics.keys()
