"""The hierarchy experiments: extra rows, chosen rates, trees of confusions, the paper's preset on folders of images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import encoded, smooth, written
from trees import write_wordnet

from experiments import haframe, haframe_questions, haframe_trees
from nc_jax.data import hierarchies
from nc_jax.hierarchy import read_parent_child, similarity
from nc_jax.methods import METHODS, Setting
from nc_jax.study import Comparison, check, cli, confusion_trees
from nc_jax.study.config import changed
from nc_jax.study.settings import expand
from nc_jax.study.trainers import data_of, make_trainer
from nc_jax.training import read_checkpoint


def config_of(*flags, preset="smoke") -> Comparison:
    return cli.parse(haframe.PRESETS[preset], list(flags))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.mark.slow
def test_severities_and_shares_of_a_run_fit_each_other_and_its_backbone_can_be_taken(tmp_path, data_dir):
    flags = ["--data.data-dir", data_dir, "--loop.devices", "1", "--loop.epochs", "1"]
    summary = haframe.run_comparison(config_of(*flags, "--workdir", str(tmp_path / "run")))
    methods = summary["cases"][""]
    assert list(methods) == ["cross-entropy", "cross-entropy + CRM", "HAFrame", "HAFrame + CRM"]
    for values in methods.values():
        assert len(values["top1"]) == 2
        # Average distance = share of mistakes x severity, over all 360 test images.
        expected = (1 - np.array(values["top1"])) * values["mistake_severity"]
        np.testing.assert_allclose(values["ahd@1"], expected, rtol=1e-5)
    assert "of the distance of random ones in the tree digits" in " ".join(summary["notes"][""])

    # Another run starts from the backbone of this run, on the command line.
    checkpoint = tmp_path / "run" / "checkpoints" / "ce-seed0"
    flags += ["--backbone.checkpoint", str(checkpoint), "--methods", "haframe", "--seeds", "1"]
    haframe.run_comparison(config_of(*flags, "--workdir", str(tmp_path / "taken")))
    haframe.run_comparison(cli.parse(haframe.PRESETS["default"], ["--resume", str(tmp_path / "taken")]))
    config = config_of(*flags)
    (group,) = expand(config)[""]
    trainer = make_trainer(group, data_of(config))
    loaded = read_checkpoint(checkpoint)["params"]["backbone"]["backbone"]["features"]["kernel"]
    kernel = trainer.init(data_of(config).train, seed=7).params["backbone"]["backbone"]["features"]["kernel"]
    np.testing.assert_array_equal(kernel, loaded)


@pytest.mark.slow
def test_the_papers_learning_rates_are_two(data_dir):
    still = {}
    for part in ("backbone", "all"):
        flags = ["--backbone.neck", "type2", "--backbone.rate-factor", "0.0", "--backbone.rate-part", part]
        config = config_of(*flags, "--data.data-dir", data_dir, "--methods", "ce")
        (group,) = expand(config)[""]
        trainer = make_trainer(group, data_of(config))
        params = trainer.init(data_of(config).train, seed=0).params
        updates, _ = trainer.optimizer.update(params, trainer.optimizer.init(params), params)
        moved = {
            name: any(jnp.any(leaf) for leaf in jax.tree.leaves(below)) for name, below in updates["backbone"].items()
        }
        still[part] = {name for name, moves in moved.items() if not moves}
        assert any(jnp.any(leaf) for leaf in jax.tree.leaves(updates["head"]))
    assert still == {"backbone": {"backbone", "necks_0"}, "all": {"backbone", "necks_0", "necks_1"}}


def test_the_control_deals_the_classes_by_the_seed():
    head = METHODS["shuffled"].head(Setting(num_classes=10, tree=hierarchies.load("digits")))
    one, other = (np.asarray(head.init(jax.random.key(seed), 16)[1]["frame"]) for seed in (0, 1))
    grams = one.T @ one, other.T @ other
    assert np.abs(grams[0] - grams[1]).max() > 0.1
    np.testing.assert_allclose(np.sort(grams[0].ravel()), np.sort(grams[1].ravel()), atol=1e-5)


@pytest.mark.slow
def test_a_tree_of_confusions_is_made_first_at_a_rate_chosen_within_the_run(tmp_path, data_dir):
    flags = ["--data.data-dir", data_dir, "--workdir", str(tmp_path / "run"), "--methods", "ce", "--seeds", "1"]
    flags += ["--rates", "0.01", "0.8", "--data.tree", "confusion", "--loop.epochs", "1", "--loop.devices", "1"]
    summary = haframe.run_comparison(config_of(*flags))
    assert summary["learning_rates"] == {"ce": 0.8}  # one epoch at 0.01 learns little
    assert "Chosen on held-out quarters of the training set: cross-entropy rate 0.8." in " ".join(summary["notes"][""])
    tree = read_parent_child(tmp_path / "run" / "tree.parent_child.txt")
    assert sorted(tree.classes) == [str(digit) for digit in range(10)]
    assert tree.height >= 2


@pytest.mark.slow
def test_a_tree_of_confusions_needs_no_test_set(tmp_path, data_dir):
    flags = ["--data.data-dir", data_dir, "--data.per-class", "20", "--loop.epochs", "1", "--loop.devices", "1"]
    config = changed(config_of(*flags, "--methods", "ce"), {"data.tree": "flat"})
    (group,) = expand(config)[""]
    tree = confusion_trees.confusion_tree(group, data_of(config)._replace(test=None))
    assert tree.classes == data_of(config).class_names


def test_the_alignment_tells_what_to_expect():
    assert "may help" in haframe.alignment_sentence("shape", [0.6, 0.7], [0.8, 0.9])
    assert "expect no gain" in haframe.alignment_sentence("script", [1.0], [0.9])
    # A network that has learnt nothing confuses all classes alike, whatever the tree is.
    assert "says nothing of the tree yet" in haframe.alignment_sentence("script", [1.0], [0.2])


@pytest.mark.slow
def test_trees_always_have_a_frame_for_a_decreasing_map(tmp_path):
    config = cli.parse(haframe_trees.PRESETS["smoke"], ["--workdir", str(tmp_path / "run")])
    summary = haframe_trees.run(config)
    assert summary["negative"] == 0
    for rule in ("depth", "height"):
        assert set(summary["failures"][rule].values()) == {0}


@pytest.mark.parametrize("question", haframe_questions.QUESTIONS)
def test_every_variant_of_a_question_is_another_one_that_can_be_made(question):
    groups = expand(haframe_questions.PRESETS[question])[""]
    settings = {(repr(group.settings), group.method) for group in groups}
    assert len(settings) == len(groups) > 3
    for group in groups:
        known = {"tree": hierarchies.load("digits"), "hierarchy": group.settings.hierarchy, "head": group.settings.head}
        METHODS[group.method].head(Setting(num_classes=10, **known)).init(jax.random.key(0), 12)


@pytest.mark.slow
def test_a_preset_of_the_paper_trains_on_a_folder_of_images_with_a_tree_of_its_own(tmp_path):
    families = {"airbus": ["a320", "a380"], "cessna": ["c172", "c208"]}
    names = [name for family in families.values() for name in family]
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(names):
            folder = tmp_path / "data" / "fgvc_aircraft" / split / name
            folder.mkdir(parents=True)
            for turn in range(count):
                (folder / f"{turn}.jpg").write_bytes(encoded(smooth(40, 50 + turn, turn=float(number)), "jpeg"))
    (tmp_path / "tree.json").write_text(json.dumps({"aircraft": families}))
    flags = ["--data.data-dir", str(tmp_path / "data"), "--data.tree", str(tmp_path / "tree.json")]
    flags += ["--methods", "haframe", "--seeds", "1", "--loop.epochs", "1", "--loop.evaluate-every", "1"]
    flags += ["--loop.batch-size", "8", "--loop.devices", "1", "--workdir", str(tmp_path / "run")]
    flags += ["--backbone.name", "resnet18", "--backbone.width-multiplier", "0.0625", "--data.image-size", "32"]
    summary = haframe.run_comparison(config_of(*flags, preset="paper-fgvc-aircraft"))
    assert np.isfinite(summary["cases"][""]["HAFrame"]["ahd@1"]).all()
    assert np.shape(summary["class_accuracy"][""]["HAFrame"]) == (1, 4)


@pytest.fixture
def imagenet(tmp_path) -> list[str]:
    """Flags for an ImageNet of six classes in TFDS's format, and a WordNet of their synsets."""
    synsets = write_wordnet(tmp_path / "wordnet")
    classes = sorted(synsets[name] for name in ("dog", "wolf", "cat", "crane.2", "crane", "Nile"))
    examples = [(encoded(smooth(40, 50, turn=float(label)), "jpeg"), label) for label in range(6)]
    image, label = tfds.features.Image(encoding_format="jpeg"), tfds.features.ClassLabel(names=classes)
    splits = {"train": examples * 3, "validation": examples}
    written(tmp_path / "data", "imagenet2012", "5.1.0", image, label, splits)
    return ["--data.data-dir", str(tmp_path / "data"), "--data.tree", f"wordnet:{tmp_path / 'wordnet'}"]


@pytest.mark.slow
def test_the_preset_of_imagenet_has_a_frame_of_wordnet_and_a_plan(imagenet, capsys):
    preset = haframe.PRESETS["imagenet"]
    assert (preset.data.name, preset.data.tree, preset.data.tree_parents) == ("imagenet2012", "wordnet", None)
    config = config_of(*imagenet, "--methods", "haframe", preset="imagenet")
    check(config)
    data = data_of(config)
    assert data.tree is not None
    assert data.tree.classes == data.class_names
    frame = METHODS["haframe"].head(Setting(num_classes=6, tree=data.tree)).init(jax.random.key(0), 6)[1]["frame"]
    expected = similarity(data.tree.distances(), preset.hierarchy.gamma)
    np.testing.assert_allclose(frame.T @ frame, expected, rtol=0, atol=1e-6)
    cli.main(haframe.run_comparison, haframe.PRESETS, ["imagenet", *imagenet, "--dry-run"], plan=haframe.plan)
    assert capsys.readouterr().out.startswith("30 runs: ")


@pytest.mark.slow
def test_the_preset_of_imagenet_trains_and_draws_the_tree_in_words(imagenet, tmp_path, drawn):
    flags = [*imagenet, "--methods", "haframe", "--seeds", "1", "--loop.epochs", "1", "--loop.evaluate-every", "1"]
    flags += ["--loop.batch-size", "6", "--loop.devices", "1", "--workdir", str(tmp_path / "run")]
    flags += ["--backbone.name", "resnet18", "--backbone.width-multiplier", "0.0625", "--data.image-size", "32"]
    summary = haframe.run_comparison(config_of(*flags, preset="imagenet"))
    assert np.isfinite(summary["cases"][""]["HAFrame"]["ahd@1"]).all()
    written_names = {text.get_text() for figure in drawn for text in figure.axes[0].texts}
    assert {"dog", "wolf", "canine", "nile"} <= written_names
