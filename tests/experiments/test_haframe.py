"""The hierarchy experiments: what they write and resume, that every method has a gradient, what they refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prepared import encoded, smooth

from experiments import haframe, haframe_methods, haframe_questions, haframe_training, harness
from nc_jax.data import hierarchies, sources
from nc_jax.training import NonFiniteError

FLAGS = ["--devices", "1", "--seeds", "2", "--epochs", "1"]
TREE = hierarchies.load("digits")


def config_of(*flags, preset="smoke"):
    return harness.parse(haframe.PRESETS[preset], list(flags))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """The directory and the summary of a run."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    return directory, haframe.run(config_of("--workdir", str(directory), "--data-dir", data_dir, *FLAGS))


def test_a_run_writes_what_its_header_promises(finished):
    directory, summary = finished
    for name in ("config.json", "results.jsonl", "summary.md", "summary.json"):
        assert (directory / name).stat().st_size > 0
    for name in ("dendrogram.png", "severity.png", "cosines.png"):
        assert (directory / "digits-digits" / name).stat().st_size > 0
    assert "of the distance of random ones in the tree digits" in (directory / "summary.md").read_text()
    methods = summary["tasks"]["digits, digits"]["methods"]
    assert set(methods) == {"ce", "crm", "haframe", "haframe+crm"}
    for values in methods.values():
        assert len(values["top1"]) == 2
        # Average distance = share of mistakes x severity, over all 360 test images.
        expected = (1 - np.array(values["top1"])) * values["mistake_severity"]
        np.testing.assert_allclose(values["ahd@1"], expected, rtol=1e-5)
        images = 360 * np.array(values["histogram"])
        np.testing.assert_allclose(images, np.rint(images), atol=1e-3)


def test_a_lost_run_is_found_in_its_checkpoint(finished, monkeypatch):
    directory, summary = finished
    lines = (directory / "results.jsonl").read_text().splitlines()
    (directory / "results.jsonl").write_text("\n".join(lines[:3]) + "\n")
    trained, train = [], haframe.train
    monkeypatch.setattr(haframe, "train", lambda *arguments: trained.append(arguments[-1]) or train(*arguments))
    again = haframe.run(config_of("--resume", str(directory)))
    assert trained == [1]
    assert again["tasks"] == json.loads(json.dumps(summary["tasks"]))


def test_a_backbone_comes_from_a_checkpoint_and_may_stand_still(finished, data_dir):
    directory, _ = finished
    checkpoint = directory / "digits-digits" / "checkpoints" / "ce-seed0"
    flags = [*FLAGS, "--data-dir", data_dir, "--neck", "type1", "--backbone-rate", "0.0"]
    config = config_of(*flags, "--backbone-checkpoint", str(checkpoint))
    task = haframe_training.load(config, "digits")
    trainer, other = (
        haframe_training.make_trainer(config, "haframe", task, TREE) for config in (config, config_of(*flags))
    )
    params, drawn = (trainer.init(task.train, seed=1).params for trainer in (trainer, other))
    kernel = lambda tree: tree["backbone"]["backbone"]["features"]["kernel"]  # noqa: E731
    assert jnp.abs(kernel(params) - kernel(drawn)).max() > 0
    updates, _ = trainer.optimizer.update(params, trainer.optimizer.init(params), params)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates["backbone"]["backbone"]))
    assert jnp.abs(updates["backbone"]["necks_0"]["linear"]["kernel"]).max() > 0


@pytest.mark.parametrize("method", [name for name in haframe_methods.TITLES if "crm" not in name])
def test_every_method_has_a_gradient(method):
    options = haframe_methods.MethodOptions()
    head, loss = haframe_methods.make(method, options, TREE, epochs=2, epoch_steps=3)
    head = dataclasses.replace(head, axis_name=None) if method.startswith("nearest") else head
    features, labels = jax.random.normal(jax.random.key(0), (12, 16)), jnp.arange(12) % 10
    variables = head.init(jax.random.key(1), features)
    rest = {name: value for name, value in variables.items() if name != "params"}
    if loss is None:
        loss = lambda output, labels, step: -jax.nn.log_softmax(output.logits)[jnp.arange(12), labels]  # noqa: E731

    @jax.jit
    def gradients(features, params):
        def mean(features, params):
            output, _ = head.apply({"params": params, **rest}, features, labels, train=True, mutable=list(rest))
            return jnp.mean(loss(output, labels, jnp.zeros((), jnp.int32)))

        return jax.value_and_grad(mean, argnums=(0, 1))(features, params)

    value, (by_feature, by_param) = gradients(features, variables.get("params", {}))
    assert np.isfinite(value)
    fixed = {"barz-denzler", "etf", "haframe-ce", "shuffled", "haframe", "nearest"}  # class vectors
    assert bool(by_param) == (method not in fixed)
    for gradient in (by_feature, *jax.tree.leaves(by_param)):
        assert np.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0


def test_the_control_deals_the_classes_by_the_seed():
    head, _ = haframe_methods.make("shuffled", haframe_methods.MethodOptions(), TREE, epochs=1, epoch_steps=1)
    grams = [head.init(jax.random.key(seed), jnp.zeros((1, 16)))["frame"]["frame"] for seed in (0, 1)]
    one, other = (np.asarray(frame.T @ frame) for frame in grams)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(np.sort(one.ravel()), np.sort(other.ravel()), atol=1e-5)


DISTANCES = {0.4: (0.3, 0.1), 1.6: (0.1, 0.2), 3.2: (0.0, None)}  # None: training diverges


@pytest.fixture
def judged(monkeypatch, data_dir, tmp_path):
    """`choose_rate` on digits, with training replaced by a table of what it reaches; and what was trained."""
    trained = []

    def train(config, trainer, method, task, tree, directory, log, seed):
        assert len(task.train) + len(task.test) == 1437  # of the training set alone
        trained.append((trainer, seed))
        distance = DISTANCES[trainer][seed]
        if distance is None:
            raise NonFiniteError("diverged")
        return {method: {"top1": 1 - distance, "ahd@1": distance, "hp@5": 1.0}}

    monkeypatch.setattr(haframe_training, "train", train)
    monkeypatch.setattr(haframe_training, "make_trainer", lambda config, *rest: config.learning_rate)
    config = config_of("--data-dir", data_dir)
    task = haframe_training.load(config, "digits")

    def choose(*rates):
        results = haframe_training.Results(tmp_path / "results.jsonl")
        return haframe_training.choose_rate(config, rates, "ce", task, TREE, tmp_path / "digits", results)

    return choose, trained


def test_a_method_has_the_rate_that_is_best_on_images_held_out(judged):
    choose, trained = judged
    assert choose(*DISTANCES) == 1.6  # 0.15 on average, against 0.2 and infinity
    assert trained == [(rate, split) for rate in DISTANCES for split in range(haframe_training.SPLITS)]
    assert choose(*DISTANCES) == 1.6  # looked up
    assert len(trained) == 6
    with pytest.raises(NonFiniteError, match=r"^training of ce must converge at one of the learning rates"):
        choose(3.2)


def test_rates_are_chosen_within_the_run(tmp_path, data_dir):
    flags = ["--data-dir", data_dir, "--workdir", str(tmp_path / "run"), "--methods", "ce", "--rates", "0.01", "0.8"]
    summary = haframe.run(config_of(*flags, *FLAGS, "--trees", "confusion"))
    assert summary["tasks"]["digits, confusion"]["learning_rates"] == {"ce": 0.8}  # one epoch at 0.01 learns little
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "chosen on held-out quarters of the training set: cross-entropy 0.8." in text


def test_the_alignment_tells_what_to_expect():
    assert "may help" in haframe.alignment_sentence("shape", [0.6, 0.7])
    assert "expect no gain" in haframe.alignment_sentence("script", [1.0])


def test_a_tree_of_confusions_is_made_without_the_test_set(data_dir):
    config = config_of(*FLAGS, "--data-dir", data_dir)
    task = haframe_training.load(config, "digits")
    tree = haframe_training.confusion_tree(config, task._replace(test=None))
    assert tree.classes == task.train.class_names
    assert tree.height >= 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--trees", "digits", "digits"], "every data set needs a tree"),
        (["--trees", "cifar100"], "'0' is no node"),
        (["--seeds", "0"], "a seed and a method are needed"),
        (["--dim", "8"], "dim >= 9; got dim=8"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(flags, sentence, tmp_path, data_dir, capsys):
    directory = tmp_path / "run"
    arguments = ["smoke", "--data-dir", data_dir, "--workdir", str(directory), *flags]
    with pytest.raises(SystemExit):
        harness.main(haframe.run, haframe.PRESETS, arguments)
    assert sentence in capsys.readouterr().err
    assert not directory.exists()


def test_trees_always_have_a_frame_for_a_decreasing_map(tmp_path):
    config = dataclasses.replace(haframe_questions.PRESETS["smoke"], workdir=tmp_path / "run")
    summary = haframe_questions.run(config)
    assert summary["negative"] == 0
    for rule in ("depth", "height"):
        assert set(summary["failures"][rule].values()) == {0}


QUESTIONS = ("grid", "maps", "epochs", "transformation")


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_variant_of_a_question_is_another_one_that_can_be_made(question):
    config = dataclasses.replace(haframe_questions.PRESETS["default"], question=question)
    found = haframe_questions.variants(config)
    settings = {repr(dataclasses.replace(variant, workdir=None)) for variant in found.values()}
    assert len(settings) == len(found) > 3
    for variant in found.values():
        haframe_methods.make("haframe", variant, TREE, epochs=1, epoch_steps=1)


def test_a_question_is_answered_and_resumes_at_its_variant(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(haframe_questions, "GAMMAS", (3.0,))
    monkeypatch.setattr(haframe_questions, "ALPHAS", (0.1, 0.9))
    digits = {"dataset": "digits", "tree": "digits", "data_dir": data_dir, "seeds": 1, "epochs": 1}
    options = haframe_questions.Config(question="grid", workdir=tmp_path / "run", **digits)
    found = haframe_questions.run(options)
    assert list(found) == ["gamma 3, alpha 0.1", "gamma 3, alpha 0.9"]
    assert (tmp_path / "run" / "grid.png").stat().st_size > 0
    assert "gamma 3, alpha 0.9, HAFrame" in (tmp_path / "run" / "summary.md").read_text()
    monkeypatch.setattr(haframe, "train", None)  # nothing is trained again
    again = haframe_questions.run(
        harness.parse(haframe_questions.PRESETS["default"], ["--resume", str(options.workdir)])
    )
    assert again == json.loads(json.dumps(found))


def test_a_preset_of_the_paper_trains_on_a_folder_of_images_with_a_tree_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "IMAGE_SIZE", 32)
    families = {"airbus": ["a320", "a380"], "cessna": ["c172", "c208"]}
    names = [name for family in families.values() for name in family]
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(names):
            folder = tmp_path / "data" / "fgvc_aircraft" / split / name
            folder.mkdir(parents=True)
            for turn in range(count):
                (folder / f"{turn}.jpg").write_bytes(encoded(smooth(40, 50 + turn, turn=float(number)), "jpeg"))
    (tmp_path / "tree.json").write_text(json.dumps({"aircraft": families}))
    flags = [
        "--data-dir",
        str(tmp_path / "data"),
        "--trees",
        str(tmp_path / "tree.json"),
        "--methods",
        "haframe",
        *FLAGS,
    ]
    small = ["--model", "resnet18", "--width-multiplier", "0.0625", "--batch-size", "8", "--seeds", "1"]
    config = config_of(*flags, *small, "--workdir", str(tmp_path / "run"), preset="paper-fgvc-aircraft")
    (part,) = haframe.run(config)["tasks"].values()
    assert (part["num_classes"], part["height"]) == (4, 2)
    assert np.isfinite(part["methods"]["haframe"]["ahd@1"]).all()


def test_the_papers_learning_rates_are_two(data_dir):
    flags = ["--neck", "type2", "--backbone-rate", "0.0", "--data-dir", data_dir]
    still = {}
    for slow in ("backbone", "all"):
        config = config_of(*flags, "--slow", slow)
        task = haframe_training.load(config, "digits")
        trainer = haframe_training.make_trainer(config, "ce", task, TREE)
        params = trainer.init(task.train, seed=0).params
        updates, _ = trainer.optimizer.update(params, trainer.optimizer.init(params), params)
        moved = {
            part: any(jnp.any(leaf) for leaf in jax.tree.leaves(below)) for part, below in updates["backbone"].items()
        }
        still[slow] = {part for part, moves in moved.items() if not moves}
        assert any(jnp.any(leaf) for leaf in jax.tree.leaves(updates["head"]))
    assert still == {"backbone": {"backbone", "necks_0"}, "all": {"backbone", "necks_0", "necks_1"}}
