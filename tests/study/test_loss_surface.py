"""The loss around a run: its middle is the run's loss, directions have the sizes of the weights; pictures of it all."""

import inspect
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import NUM_CLASSES, blobs

from nc_jax import losses
from nc_jax.models import MLP, Classifier, LearnedHead
from nc_jax.study import uniformity_plots
from nc_jax.study.loss_surface import loss_surface, random_direction
from nc_jax.training import LoopOptions, StepOptions, Trainer

RNG = np.random.default_rng(0)
TRAIN = blobs(600)


def balanced(output, batch, context):
    """A loss that asks for what a step knows: the class counts of the whole batch."""
    return losses.within_class(output.features, batch.labels, output.frame, context.class_counts(NUM_CLASSES))


@pytest.fixture(scope="module")
def run() -> Any:
    model = Classifier(MLP((16,), 3), LearnedHead(NUM_CLASSES))
    options = LoopOptions(epochs=1, batch_size=24, devices=1)
    trainer = Trainer(model, optax.sgd(0.1), options, step=StepOptions(loss=balanced))
    return trainer, trainer.init(TRAIN, seed=0)


@pytest.mark.slow
def test_the_middle_is_the_loss_of_the_run(run):
    trainer, state = run
    found = loss_surface(trainer, state, TRAIN, size=3, span=0.5)
    assert found["alpha"] == found["beta"] == [-0.5, 0, 0.5]
    values = np.array(found["values"])
    assert len(np.unique(values)) == 9
    chosen = TRAIN.take(np.linspace(0, 599, 512).astype(int))
    apply = jax.jit(trainer.model.apply)

    def expected(params):
        output = apply({"params": params}, jnp.asarray(chosen.inputs))
        return np.mean(losses.class_distances(output.features, chosen.labels, output.frame))

    np.testing.assert_allclose(values[1, 1], expected(state.params), rtol=1e-5)
    second = random_direction(state.params, jax.random.split(jax.random.key(0))[1])
    moved = jax.tree.map(lambda at, way: at + 0.5 * way, state.params, second)
    np.testing.assert_allclose(values[2, 1], expected(moved), rtol=1e-5)  # rows belong to the second direction


@pytest.mark.slow
def test_directions_have_the_norms_of_the_weights_of_each_output():
    params = {"dense": RNG.normal(size=(6, 3)), "conv": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=3)}
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
    found = random_direction(params, jax.random.key(1))
    for name in ("dense", "conv"):
        expected, norms = (
            np.linalg.norm(one[name].reshape(-1, one[name].shape[-1]), axis=0) for one in (params, found)
        )
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
        assert not np.allclose(found[name], params[name])
    np.testing.assert_array_equal(found["bias"], 0)


def points(dim, classes=4):
    frame = RNG.normal(size=(dim, classes))
    labels = np.arange(20) % classes
    return 5 * frame.T[labels], labels, frame


@pytest.mark.slow
def test_classes_have_one_colour_in_all_panels_and_a_name(tmp_path, drawn):
    panels = {name: points(2) for name in ("learned", "nearest")}
    uniformity_plots.feature_circle(tmp_path / "a.png", panels, "abcd")
    uniformity_plots.feature_sphere(tmp_path / "b.png", {name: points(3) for name in panels}, "abcd")
    for figure in drawn:
        assert [axis.get_title() for axis in figure.axes] == list(panels)
        rays = [[line.get_color() for line in axis.lines if line.get_label() in "abcd"] for axis in figure.axes]
        np.testing.assert_array_equal(*rays)
        assert len({tuple(colour) for colour in rays[0]}) == 4
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list("abcd")
    uniformity_plots.feature_circle(tmp_path / "c.png", {"many": points(2, classes=20)})
    assert not drawn[2].legends
    assert len(list(tmp_path.iterdir())) == 3


def test_a_scene_with_points_is_drawn_in_their_dimension(tmp_path, drawn):
    draw = inspect.unwrap(uniformity_plots.feature_picture)
    for dim in (2, 3):
        features, labels, frame = points(dim)
        one = {"features": features.tolist(), "labels": labels.tolist(), "frame": frame.tolist()}
        scene = SimpleNamespace(
            found=lambda name, one=one: {"learned": [{}, one]} if name == "points" else {},
            path=lambda name: tmp_path / f"{name}.png",
            data=SimpleNamespace(class_names=("a", "b", "c", "d")),
        )
        assert draw(scene) == tmp_path / "features.png"
    assert [figure.axes[0].name for figure in drawn] == ["rectilinear", "3d"]
    assert draw(SimpleNamespace(found=lambda name: {})) is None


def test_surfaces_share_their_levels(tmp_path, drawn):
    steps = np.linspace(-1, 1, 5)
    bowl = steps[:, None] ** 2 + steps[None] ** 2
    panels = {
        name: {"alpha": steps, "beta": steps, "values": values}
        for name, values in (("low", 0.1 + bowl), ("high", np.where(bowl > 1.5, np.nan, 1 + 9 * bowl)))
    }
    uniformity_plots.loss_surface(tmp_path / "a.png", panels)
    levels = [axis.collections[0].levels for axis in drawn[0].axes[:2]]
    np.testing.assert_allclose(levels[0], np.geomspace(0.1, 12.25, len(levels[0])))
    np.testing.assert_array_equal(*levels)
    panels["low"]["values"] = bowl - 1  # no logarithm
    uniformity_plots.loss_surface(tmp_path / "b.png", panels)
    assert drawn[1].axes[0].collections[0].levels[0] == -1
