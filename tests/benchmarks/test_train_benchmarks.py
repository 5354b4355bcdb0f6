"""The benchmarks of training run, refuse wrong answers, and mark extrapolated numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    collapse_metrics,
    federated,
    harness,
    many_classes,
    networks,
    orthogonal_logits,
    paired,
    replay,
    streamed_features,
    throughput,
    train_step,
    training_runs,
)
from nc_jax.streams import Replay

pytestmark = pytest.mark.benchmark

STEP, METRICS = train_step.PRESETS["smoke"], collapse_metrics.PRESETS["smoke"]


def test_train_step_reports_the_share_of_the_head(tmp_path):
    config = dataclasses.replace(STEP, results=tmp_path / "one", preset="smoke")
    document = train_step.run(config)
    assert json.loads(document["path"].read_text())["rows"] == document["rows"]
    assert document["path"].with_suffix(".png").stat().st_size > 0
    (row,) = document["rows"]
    assert (row["devices"], row["solver"], row["dim"], row["classes"]) == (1, "polar", 128, 10)
    assert row["share_lower"] <= row["share"] <= row["share_upper"] < 1
    assert row["share_rounds"] == paired.LEAST_ROUNDS
    assert 0 < row["solve_share"] == row["solve_seconds"] / row["nearest_seconds"]
    assert row["frame_error"] < 1e-5
    assert row["solve_status"] == 0
    # On several devices, the head is not timed separately, and there are no claims.
    missing = dict.fromkeys(["head_seconds", "head_share", "learned_head_seconds", "solve_seconds", "solve_share"])
    two = row | {"devices": 2, "virtual_devices": True} | missing
    document = train_step.report(dataclasses.replace(config, results=tmp_path / "two"), [row, two])
    assert document["table"]["rows"][1][3] == "2 virtual"
    assert [claim["obtained"] for claim in document["claims"]] == [
        100 * row[name] for name in ("share", "share_upper", "head_share")
    ]


def test_a_slow_step_is_also_measured_at_a_small_batch(tmp_path):
    (row,) = train_step.time_case(STEP, "mlp:10", "float32", 1)
    row |= {"small_batch": 4, "small_step_seconds": 1e-3} | paired.median(np.arange(9) / 1000).row("small_batch_share")
    document = train_step.report(dataclasses.replace(STEP, results=tmp_path), [row])
    assert document["table"]["rows"][0][9] == "0.4 % (0.1 to 0.7 %)"
    # A step of seconds has too much noise for a target, so the small batch has it.
    limited = [claim for claim in document["claims"] if claim["met"] is not None]
    assert [claim["obtained"] for claim in limited[:2]] == pytest.approx([0.4, 0.7])
    assert all("at batch 4" in claim["statement"] for claim in limited[:2])
    assert len(document["claims"]) == len(limited) + 2


def test_devices_must_agree():
    row = {"case": "mlp:10", "dtype": "float32", "devices": 1, "losses": {"learned": 1.0}}
    train_step.check_devices_agree([row, row | {"devices": 2, "losses": {"learned": 1.00001}}])
    with pytest.raises(harness.WrongAnswerError, match="loss of mlp:10, learned head, on 2 devices"):
        train_step.check_devices_agree([row, row | {"devices": 2, "losses": {"learned": 1.01}}])


def test_a_wrong_frame_is_not_timed():
    problem = networks.make_problem("mlp:10", 16, "float32")
    run = training_runs.Run(problem, networks.nearest_head(10, "polar"), 1)
    right = run.step

    def wrong(state, batch):
        state, metrics = right(state, batch)
        head = state.variables["nearest"]["head"]
        return state.replace(variables={"nearest": {"head": head | {"frame": 1.01 * head["frame"]}}}), metrics

    run.step = wrong
    with pytest.raises(harness.WrongAnswerError, match="the polar head's frame"):
        training_runs.check("polar", run)


@pytest.mark.parametrize(
    ("case", "shape", "stem", "final_dim"),
    [
        ("resnet18:10", (8, 32, 32, 3), "cifar", None),
        ("resnet18:513", (8, 32, 32, 3), "cifar", None),
        ("resnet18:514", (8, 32, 32, 3), "cifar", 1024),
        ("resnet18-imagenet:10", (8, 224, 224, 3), "imagenet", None),
        ("resnet50-imagenet:1000", (8, 224, 224, 3), "imagenet", None),
    ],
)
def test_resnets_have_room_for_their_simplex_and_see_every_class(case, shape, stem, final_dim):
    problem = networks.make_problem(case, 8, "bfloat16")
    backbone = problem.backbone()
    assert (backbone.stem, backbone.final_dim, backbone.dtype) == (stem, final_dim, jnp.bfloat16)
    assert {batch.inputs.shape for batch in problem.batches} == {shape}
    labels = np.concatenate([batch.labels for batch in problem.batches])
    assert set(labels) == set(range(problem.num_classes))


@pytest.mark.parametrize("case", ["mlp", "mlp:1", "resnet18:ten", "vgg:10"])
def test_unknown_cases_are_refused(case):
    with pytest.raises(ValueError, match=f"a case is one of mlp, resnet18, .*; got '{case}'"):
        train_step.run(dataclasses.replace(STEP, cases=(case,)))


def test_a_cpu_can_be_cut_into_devices():
    assert train_step.with_virtual_devices(3, jax.local_device_count) == 3


def test_collapse_metrics_reports_a_complete_pass(tmp_path):
    document = collapse_metrics.run(dataclasses.replace(METRICS, results=tmp_path, preset="smoke"))
    assert json.loads(document["path"].read_text())["rows"] == document["rows"]
    assert document["path"].with_suffix(".png").stat().st_size > 0
    row, light, *passes = document["rows"]
    assert (row["batch"], row["num_batches"], row["extrapolated"]) == (100, 20, False)
    assert row["accumulator_bytes"] == 4 * (7 + 24 + 24 * 7 + 1 + 24 * 24 + 7 + 1)
    assert row["accumulator_bytes"] - light["accumulator_bytes"] == 4 * 24 * 24
    assert [part["program"] for part in passes] == [collapse_metrics.FEATURES_ALONE, collapse_metrics.WITH_CLASSIFIER]
    for part in document["rows"]:
        assert part["products"] == part["seconds_per_batch"] / part["product_seconds"]
    limits = [claim["at_most"] for claim in document["claims"] if claim["unit"] == "x"]
    assert limits == [3, 3, 3, 3]
    assert max(row["errors"].values()) < 1e-5
    assert set(row["errors"]) == {"counts", "class_means", "scatter", "class_scatter", "nc1", "nc2_means", "nc3"}
    assert row["peak_bytes"] > 0


def test_an_extrapolated_pass_says_so():
    for row in collapse_metrics.time_batches(dataclasses.replace(METRICS, complete=False), 100):
        assert row["extrapolated"]
        assert row["total_seconds"] == 20 * row["seconds_per_batch"]


def test_padding_completes_the_last_batch():
    draw = streamed_features.make_batch(METRICS, 300)
    labels = np.asarray(draw(streamed_features.num_batches(METRICS, 300) - 1)[1])
    assert np.count_nonzero(labels >= 0) == 2000 - 6 * 300


def test_lost_examples_and_wrong_statistics_are_refused(monkeypatch):
    stats = collapse_metrics.some_statistics(METRICS)
    with pytest.raises(harness.WrongAnswerError, match="number of examples lost"):
        collapse_metrics.check_complete(METRICS, stats)
    with pytest.raises(harness.WrongAnswerError, match="variance within classes"):
        collapse_metrics.check_complete(
            dataclasses.replace(METRICS, num_examples=14), stats._replace(scaled_scatter=0 * stats.scaled_scatter)
        )
    right = streamed_features.update

    def wrong(stats, *batch):
        new = right(stats, *batch)
        return new._replace(scaled_scatter=1.01 * new.scaled_scatter)

    monkeypatch.setattr(streamed_features, "update", wrong)
    with pytest.raises(harness.WrongAnswerError, match="scatter of 300 examples"):
        streamed_features.check(METRICS)


def test_throughput_reports_images_per_second_and_the_share_outside(tmp_path):
    config = dataclasses.replace(throughput.PRESETS["smoke"], peers=(), results=tmp_path, preset="smoke")
    document = throughput.run(config)
    assert json.loads(document["path"].read_text())["rows"] == document["rows"]
    assert document["path"].with_suffix(".png").stat().st_size > 0
    ours, outside = document["rows"]
    assert ours["images_per_second"] == pytest.approx(config.batch_size / ours["seconds"])
    assert 0 < outside["digits_share_outside"] < 1


def test_pytorch_has_the_same_network():
    """The peer starts with the same loss as our network, and the benchmark detects a peer with another loss."""
    pytest.importorskip("torch")
    config = dataclasses.replace(throughput.PRESETS["smoke"], epochs=0)
    ours, eager = throughput.time_steps(config, "float32")
    assert eager["program"] == throughput.EAGER
    assert eager["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert eager["seconds"] > 0


def test_orthogonal_logits_are_right_before_they_are_fast(tmp_path, monkeypatch):
    config = dataclasses.replace(orthogonal_logits.PRESETS["smoke"], results=tmp_path, preset="smoke")
    document = orthogonal_logits.run(config)
    assert [row[:2] for row in document["table"]["rows"]] == [["(12, 5, 7)", part] for part in ("forward", "gradient")]
    assert document["path"].with_suffix(".png").stat().st_size > 0
    monkeypatch.setattr(orthogonal_logits, "sums", lambda features, frame: 2 * features @ frame)
    with pytest.raises(harness.WrongAnswerError, match="relative error of sums forward"):
        orthogonal_logits.run(config)


def test_replay_is_checked_before_it_is_timed(tmp_path, monkeypatch):
    config = dataclasses.replace(replay.PRESETS["smoke"], results=tmp_path, preset="smoke")
    document = replay.run(config)
    assert [row["method"] for row in document["rows"]] == ["er", "derpp"]
    assert all(row["ratio"] > 0 for row in document["rows"])
    assert document["path"].with_suffix(".png").stat().st_size > 0
    monkeypatch.setattr(Replay, "memory", lambda stream, seed, step: np.zeros(0, int))
    with pytest.raises(harness.WrongAnswerError, match="replayed examples must be in the memory"):
        replay.run(config)


def test_rounds_are_checked_before_they_are_timed(tmp_path, monkeypatch):
    smoke = federated.PRESETS["smoke"]
    monkeypatch.setattr(harness, "available", lambda *packages: False)
    document = federated.run(dataclasses.replace(smoke, results=tmp_path, preset="smoke"))
    (row,) = document["rows"]
    assert row["ratio"] == row["seconds"] / row["other_seconds"]
    assert [claim["at_most"] for claim in document["claims"]] == [federated.LIMIT]
    assert document["path"].with_suffix(".png").stat().st_size > 0
    monkeypatch.setattr(federated, "TOLERANCE", -1.0)
    with pytest.raises(harness.WrongAnswerError, match="the relative error of parameters of mlp 8-12, batch 5 must be"):
        federated.run(dataclasses.replace(smoke, results=tmp_path / "again", preset="smoke"))


def test_flowers_engine_trains_what_our_rounds_train():
    pytest.importorskip("ray")
    smoke = federated.PRESETS["smoke"]
    row = federated.compare(federated.make_case(smoke, *smoke.flower_cases[0]))
    assert row["ratio"] == row["other_seconds"] / row["seconds"]
    assert row["beside"] == "Flower's engine"


def test_steps_with_many_classes_are_checked_before_they_are_timed(tmp_path, monkeypatch):
    programs = ("nearest", "learned", "nearest-alone", "learned-lazy")
    config = dataclasses.replace(many_classes.PRESETS["smoke"], programs=programs, results=tmp_path, preset="smoke")
    document = many_classes.run(config)
    assert [row["program"] for row in document["rows"]] == list(programs)
    assert all(row["repeats"] == 1 and row["peak_bytes"] > 0 for row in document["rows"])
    assert len(document["claims"]) == 4
    with pytest.raises(ValueError, match="programs must be among nearest, learned, "):
        many_classes.run(dataclasses.replace(config, programs=("nobody",)))
    monkeypatch.setattr(many_classes, "TOLERANCE", 0.0)
    with pytest.raises(harness.WrongAnswerError, match="the relative error of the rotation, K = 40 must be"):
        many_classes.run(config)
