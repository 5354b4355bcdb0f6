"""Data sets and networks by name, and the experiments that are made of them."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ablations, harness, imagenet_shaped, nearest_etf, setups
from nc_jax.training import AXIS, read_metrics


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def test_digits_come_flat_or_as_images(data_dir):
    flat, images = (setups.load("digits", data_dir, flat=flat) for flat in (True, False))
    assert (flat.train.features.shape, images.train.features.shape) == ((1437, 64), (1437, 8, 8, 1))
    np.testing.assert_allclose(flat.train.features.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(flat.test.features, images.test.features.reshape(360, 64))


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (96, 16), (224, 16)])
def test_the_vits_patches_tile_every_set_of_images(size, patch):
    assert setups.make_backbone("vit", size=size).patch == patch
    assert size % patch == 0


def test_glyphs_come_in_any_number_and_are_preprocessed_on_the_device():
    task = setups.load("glyphs/low-data", num_classes=4, per_class=3, augmentation="shift", seed=1)
    assert (task.train.features.shape, task.train.num_classes, task.size) == ((12, 28, 28, 1), 4, 28)
    image = jnp.asarray(task.train.features[0])
    assert task.step.augment(jax.random.key(0), image).shape == image.shape
    assert -1 < task.step.preprocess(image).min() < 0 < task.step.preprocess(image).max()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "digits", "augmentation": "shift"}, "digits have no augmentation"),
        ({"dataset": "digits", "augmentation": "crop"}, "augmentation must be one of none, shift, "),
        ({"dataset": "digits", "num_classes": 5}, "only the glyphs come with any number of classes"),
        ({"dataset": "cifar"}, "name must be one of"),
    ],
)
def test_sets_that_cannot_be_had_are_refused(data_dir, arguments, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        setups.load(data_dir=data_dir, **arguments)


@pytest.mark.parametrize("model", setups.MODELS)
def test_every_network_takes_small_images(model):
    # Alone, without the axis of the devices.
    backbone = setups.make_backbone(model, size=32, width_multiplier=1 / 4)
    backbone = backbone.clone(axis_name=None) if hasattr(backbone, "axis_name") else backbone
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)
    features, _ = jax.eval_shape(lambda images: backbone.init_with_output(jax.random.key(0), images), images)
    assert (features.ndim, features.shape[0]) == (2, 2)


def test_agd_gets_networks_of_matrices():
    backbone = setups.make_backbone("resnet18", size=16, width_multiplier=1 / 16, only_matrices=True)
    assert backbone.axis_name == AXIS
    variables = jax.eval_shape(
        lambda key: backbone.clone(axis_name=None).init(key, jnp.zeros((2, 16, 16, 1))), jax.random.key(0)
    )
    assert min(leaf.ndim for leaf in jax.tree.leaves(variables["params"])) == 4
    for model in ("mlp", "vit"):
        with pytest.raises(ValueError, match="biases, for which AGD has no rule"):
            setups.make_backbone(model, size=16, only_matrices=True)
    with pytest.raises(ValueError, match=r"^model must be one of mlp, resnet18, "):
        setups.make_backbone("resnet19", size=16)


def test_the_papers_recipe_runs(data_dir, tmp_path):
    """AGD on a residual network without biases and scales, from its orthogonal start, on a small set."""
    paper = nearest_etf.PRESETS["paper-cifar10-resnet18"]
    assert (paper.epochs, paper.batch_size, paper.optimizer, paper.radius) == (200, 256, "agd", 5.0)
    small = {"dataset": "digits", "augmentation": "none", "width_multiplier": 1 / 16, "heads": ("nearest",)}
    run = {"seeds": 1, "epochs": 1, "batch_size": 64, "devices": 1, "data_dir": data_dir, "workdir": tmp_path / "run"}
    nearest_etf.run(dataclasses.replace(paper, **small, **run))
    before, after = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert after["train/loss"] < before["train/loss"] - 0.3


def test_ablations_compare_variants_and_resume(data_dir, tmp_path, capsys):
    directory = tmp_path / "run"
    flags = ["--data-dir", data_dir, "--epochs", "1", "--tasks", "digits, MLP"]
    config = harness.parse(ablations.PRESETS["smoke"], [*flags, "--workdir", str(directory)])
    found = ablations.run(config)["tasks"]["digits, MLP"]
    early, late = "without, epochs 1 to 5", "without, epochs 6 to 20"
    assert found.keys() == {"with the gradient", "without", early, late}
    # In the one epoch there is, the phases are all or nothing.
    assert found[early]["train/loss"] == pytest.approx(found["without"]["train/loss"], rel=1e-5)
    assert found[late]["train/loss"] == pytest.approx(found["with the gradient"]["train/loss"], rel=1e-5)
    assert len(found["without"]["test/accuracy"]) == 2
    assert found["without"]["test/accuracy"] != found["with the gradient"]["train/loss"]
    assert (directory / "digits-MLP.png").stat().st_size > 0
    assert "final accuracy - with the gradient" in (directory / "summary.md").read_text()
    # Nothing is trained again.
    log = directory / "digits-MLP" / "without" / "metrics.jsonl"
    before = log.read_text()
    again = ablations.run(harness.parse(ablations.PRESETS["default"], ["--resume", str(directory)]))
    assert again["tasks"]["digits, MLP"] == found
    assert log.read_text() == before
    with pytest.raises(ValueError, match=r"tasks must be among 'digits, MLP', .* got 'letters'"):
        ablations.run(dataclasses.replace(config, tasks=("letters",)))


@pytest.mark.parametrize("question", ablations.QUESTIONS)
def test_every_question_names_variants_that_differ(question):
    tasks = ablations.QUESTIONS[question](ablations.Config(question=question))
    for variants in tasks.values():
        assert len(variants) > 1
        assert len(set(variants.values())) == len(variants)
        assert len({dataclasses.replace(v, heads=("nearest",)).seeds for v in variants.values()}) == 1


def test_a_step_of_imagenets_shape_reports_its_cost(tmp_path):
    summary = imagenet_shaped.run(
        harness.parse(
            imagenet_shaped.PRESETS["smoke"],
            ["--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data"), "--width-multiplier", "0.25"],
        )
    )
    assert summary["data"] == "noise"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["heads"] == summary["heads"]
    for head in summary["heads"].values():
        assert head["seconds"] > 0
        assert head["temporary_bytes"] > 0
        assert len(head["losses"]) == 3
    cut, whole = (summary["heads"][head]["losses"] for head in (imagenet_shaped.CUT, imagenet_shaped.NEAREST))
    assert cut[0] == pytest.approx(whole[0])  # the same forward pass
    assert cut[1] != whole[1]  # another gradient
