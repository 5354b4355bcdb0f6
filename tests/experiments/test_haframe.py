"""The hierarchy experiment: what it writes, what it resumes, that every method trains, what it refuses."""

import json

import jax
import numpy as np
import pytest

from experiments import haframe, haframe_methods, harness
from nc_jax.data import hierarchies
from nc_jax.training import ResidentSet


def config_of(*flags, preset="smoke"):
    return harness.parse(haframe.PRESETS[preset], list(flags))


def test_a_run_writes_what_its_header_promises_and_resumes(tmp_path, monkeypatch, capsys):
    directory, data = tmp_path / "run", str(tmp_path / "tfds")
    flags = ["--workdir", str(directory), "--data-dir", data, "--devices", "1", "--seeds", "2", "--epochs", "1"]
    summary = haframe.run(config_of(*flags))
    for name in ("config.json", "results.jsonl", "summary.md", "summary.json"):
        assert (directory / name).stat().st_size > 0
    for name in ("dendrogram.png", "severity.png", "cosines.png"):
        assert (directory / "digits-digits" / name).stat().st_size > 0
    methods = summary["tasks"]["digits, digits"]["methods"]
    assert set(methods) == {"ce", "crm", "haframe", "haframe+crm"}
    for values in methods.values():
        assert len(values["top1"]) == 2
        # Average distance = share of mistakes x severity, over all 360 test images.
        expected = (1 - np.array(values["top1"])) * values["mistake_severity"]
        np.testing.assert_allclose(values["ahd@1"], expected, rtol=1e-5)
        np.testing.assert_allclose(
            np.array(values["histogram"]) * 360, np.rint(np.array(values["histogram"]) * 360), atol=1e-3
        )
    printed = capsys.readouterr().out
    assert "of the distance of random ones in the tree digits" in printed

    lines = (directory / "results.jsonl").read_text().splitlines()
    (directory / "results.jsonl").write_text("\n".join(lines[:3]) + "\n")
    trained = []
    train = haframe.train
    monkeypatch.setattr(haframe, "train", lambda *arguments: trained.append(arguments[-1]) or train(*arguments))
    again = haframe.run(config_of("--resume", str(directory)))
    assert trained == [1]  # the one run that had been lost, from its checkpoint
    assert again["tasks"] == json.loads(json.dumps(summary["tasks"]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    config = config_of("--data-dir", str(tmp_path_factory.mktemp("tfds")), "--epochs", "2", "--devices", "1")
    task = haframe.load(config, "digits")
    return config, task, hierarchies.load("digits", task.train.class_names)


@pytest.mark.parametrize("method", [name for name in haframe_methods.TITLES if "crm" not in name])
def test_every_method_takes_a_step(method, digits):
    config, task, tree = digits
    neck = "transformation" if method in ("ce", "haframe") else "none"
    trainer = haframe.make_trainer(config_of("--neck", neck, "--devices", "1"), method, task, tree)
    state = trainer.init(task.train, seed=0)
    source = ResidentSet(task.train, config.batch_size, devices=trainer.devices)
    before = jax.device_get(state.params)
    state = trainer.epoch((None, state), source.content, source.shuffled(0, 0, stratified=False)[:4])
    totals = jax.device_get(state.totals).summary()
    assert totals["finite"]
    moved = jax.tree.map(lambda old, new: np.abs(old - new).max() > 0, before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))


def test_the_alignment_tells_what_to_expect():
    assert "may help" in haframe.alignment_sentence("shape", [0.6, 0.7])
    assert "expect no gain" in haframe.alignment_sentence("script", [1.0])


def test_a_backbone_has_a_rate_of_its_own_and_may_come_from_a_checkpoint(tmp_path, digits):
    _, task, tree = digits
    flags = ["--devices", "1", "--epochs", "1", "--seeds", "1", "--methods", "ce", "--data-dir", str(tmp_path / "tfds")]
    haframe.run(config_of("--workdir", str(tmp_path / "run"), *flags))
    checkpoint = tmp_path / "run" / "digits-digits" / "checkpoints" / "ce-seed0"
    config = config_of(*flags, "--backbone-checkpoint", str(checkpoint), "--backbone-rate", "0.0", "--neck", "type1")
    trainer = haframe.make_trainer(config, "haframe", task, tree)
    state = trainer.init(task.train, seed=1)
    source = ResidentSet(task.train, 64, devices=trainer.devices)
    start = jax.device_get(state.params)
    state = trainer.epoch((None, state), source.content, source.shuffled(0, 0, stratified=False)[:2])
    end = jax.device_get(state.params)
    for old, new in zip(*(jax.tree.leaves(tree["backbone"]["backbone"]) for tree in (start, end)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (
        np.abs(start["backbone"]["necks_0"]["linear"]["kernel"] - end["backbone"]["necks_0"]["linear"]["kernel"]).max()
        > 0
    )
    other = haframe.make_trainer(config_of(*flags, "--neck", "type1"), "haframe", task, tree)
    drawn = other.init(task.train, seed=1).params["backbone"]["backbone"]["features"]["kernel"]
    assert np.abs(drawn - start["backbone"]["backbone"]["features"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--trees", "digits", "digits"], "every data set needs a tree"),
        (["--trees", "cifar100"], "'0' is no node"),
        (["--seeds", "0"], "a seed and a method are needed"),
        (["--dim", "8"], "dim >= 9; got dim=8"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(flags, sentence, tmp_path, capsys):
    directory = tmp_path / "run"
    arguments = ["smoke", "--data-dir", str(tmp_path / "tfds"), "--workdir", str(directory), *flags]
    with pytest.raises(SystemExit):
        harness.main(haframe.run, haframe.PRESETS, arguments)
    assert sentence in capsys.readouterr().err
    assert not directory.exists()


def test_intervals_and_paired_tests():
    mean, half = harness.t_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-6))  # t of 2 degrees of freedom, ddof = 1
    assert np.isnan(harness.t_interval([1.0])[1])
    tests = harness.paired_tests([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.0, 2.0])
    assert tests["difference"] == 1.125
    assert tests["wilcoxon"] == pytest.approx(2 * 0.5**4)
    assert np.isnan(harness.paired_tests([1.0], [1.0])["t"])
