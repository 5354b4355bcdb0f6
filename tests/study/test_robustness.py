"""Accuracy under attack, against the closed form of a linear network behind its preprocessing."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from nc_jax.data import LabelledArrays
from nc_jax.data.augment import normalise, to_unit_range
from nc_jax.methods import ContinualOptions
from nc_jax.study import Comparison, Run
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import Data
from nc_jax.study.robustness import ATTACKS, AttackOptions, robust_accuracy
from nc_jax.study.settings import Group
from nc_jax.study.trainers import make_stream, make_trainer, of_run
from nc_jax.training import LoopOptions, Trained

K, SHAPE, COUNT = 3, (2, 2, 1), 60
OPTIONS = AttackOptions(radii=(4.0, 16.0, 40.0), examples=None, steps=6, restarts=4)
SETTINGS = Comparison(backbone=BackboneOptions(hidden=(), dim=3), loop=LoopOptions(epochs=1, batch_size=16, devices=1))
MEAN, SD = (0.4,), (0.2,)


@pytest.fixture(scope="module")
def linear_run() -> Run:
    """An untrained linear network, and images that are labelled by what it says about them, but for some."""
    images = np.random.default_rng(0).integers(256, size=(COUNT, *SHAPE)).astype(np.uint8)
    data = Data(
        *[LabelledArrays(images, np.arange(COUNT) % K, K)] * 2,
        augment=None,
        preprocess=lambda x: normalise(to_unit_range(x), MEAN, SD),
        size=2,
        bounds=(0.0, 1.0),
    )
    group = Group("", "", "linear", SETTINGS)
    trainer = make_trainer(group, data)
    state = trainer.init(data.train, 0)
    labels = logits_of(state, images / 255).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % K
    data = data._replace(test=LabelledArrays(images, labels, K))
    return Run(group, 0, "run", trainer, trained(state), data, [], make_stream(group, data))


def trained(state):
    return Trained(state, None, None)  # pyright: ignore[reportArgumentType]


def linear_map(state) -> tuple[np.ndarray, np.ndarray]:
    """Slopes, shape (pixels, K), and offsets of the logits as a function of pixels in [0, 1]."""
    features, head = (state.params[name] for name in ("backbone", "head"))
    first, second = (np.asarray(part, float) for part in (features["features"]["kernel"], head["kernel"]))
    bias = np.asarray(features["features"]["bias"], float) @ second + np.asarray(head["bias"], float)
    slopes = first @ second / SD[0]
    return slopes, bias - MEAN[0] * slopes.sum(axis=0)


def logits_of(state, pixels) -> np.ndarray:
    slopes, offsets = linear_map(state)
    return pixels.reshape(len(pixels), -1) @ slopes + offsets


def exact_accuracy(run: Run, radius: float) -> float:
    """Share of the test images whose every rival stays below at its own worst image."""
    slopes, offsets = linear_map(run.trained.state)
    pixels, labels = run.data.test.inputs.reshape(COUNT, -1) / 255, run.data.test.labels
    safe = np.ones(COUNT, bool)
    for rival in range(K):
        gap = slopes[:, [rival]].T - slopes[:, labels].T
        worst = np.clip(pixels + radius / 255 * np.sign(gap), 0, 1)
        safe &= (labels == rival) | (np.sum(worst * gap, axis=1) + offsets[rival] - offsets[labels] < 0)
    return safe.mean()


@pytest.mark.slow
def test_a_linear_network_keeps_the_accuracy_of_the_closed_form(linear_run):
    found = robust_accuracy(linear_run, OPTIONS)
    assert found["attacked"] == COUNT
    assert found["clean"] == pytest.approx(0.9)
    exact = [exact_accuracy(linear_run, radius) for radius in OPTIONS.radii]
    assert 0.9 > exact[0] > exact[1] > exact[2] > 0
    for name in ("margin", "worst"):
        np.testing.assert_allclose([found[f"{name}/{radius:g}"] for radius in OPTIONS.radii], exact)
    for radius in OPTIONS.radii:
        assert all(found[f"{name}/{radius:g}"] >= found[f"worst/{radius:g}"] for name in ATTACKS)
    assert found["fgsm/40"] < 0.9
    assert found["blind"] == 0
    logits = np.sort(logits_of(linear_run.trained.state, linear_run.data.test.inputs / 255))
    margins = np.where(np.arange(COUNT) % 10 == 0, np.nan, logits[:, -1] - logits[:, -2])
    assert 0 < found["logit_margin"] <= np.nanmax(margins)


@pytest.mark.slow
def test_longer_logits_blind_cross_entropy_alone(linear_run):
    """The network decides as before, so its accuracy under attack is the same; cross-entropy does not see it."""
    state = linear_run.trained.state
    head = jax.tree.map(lambda array: 1e6 * array, state.params["head"])
    backbone = jax.tree.map(np.asarray, state.params["backbone"])
    long = linear_run._replace(trained=trained(state.replace(params={"backbone": backbone, "head": head})))
    found, before = robust_accuracy(long, OPTIONS), robust_accuracy(linear_run, OPTIONS)
    assert found["blind"] >= 0.9
    for radius in OPTIONS.radii:
        assert found[f"fgsm/{radius:g}"] == found["clean"]
        assert found[f"margin/{radius:g}"] == before[f"margin/{radius:g}"]
    assert found["worst/40"] == before["worst/40"]


@pytest.mark.slow
def test_a_network_that_gives_nan_has_no_accuracy(linear_run):
    state = linear_run.trained.state
    broken = state.replace(params=jax.tree.map(lambda array: np.nan * array, state.params))
    found = robust_accuracy(linear_run._replace(trained=trained(broken)), OPTIONS)
    assert np.isnan([found[name] for name in ("fgsm/4", "pgd/4", "margin/4", "worst/4", "worst/40")]).all()


def test_a_part_of_the_test_set_is_spread_over_it(linear_run):
    few = robust_accuracy(linear_run, dataclasses.replace(OPTIONS, examples=12))
    assert few["attacked"] == 12
    # Every fifth example: every second one of these is mislabelled.
    assert few["clean"] == pytest.approx(0.5)


def test_tasks_that_change_the_inputs_have_no_range(linear_run):
    settings = dataclasses.replace(SETTINGS, continual=ContinualOptions(tasks=2, scenario="domain"))
    assert of_run(linear_run.data, settings, 0).bounds is None


def test_what_cannot_be_attacked_is_refused(linear_run):
    with pytest.raises(ValueError, match="an attack needs inputs with a known range, as images have one; got Labelled"):
        robust_accuracy(linear_run._replace(data=linear_run.data._replace(bounds=None)), OPTIONS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"radii": ()}, r"radii must be positive, finite and ascending, in 255ths; got \(\)"),
        ({"radii": (0.0, 2.0)}, "radii must be positive"),
        ({"radii": (4.0, 2.0)}, "radii must be positive"),
        ({"radii": (float("nan"),)}, "radii must be positive"),
        ({"radii": (float("inf"),)}, "radii must be positive"),
        ({"examples": 0}, "examples must be at least 1, or None; got 0"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"restarts": 0}, "restarts must be at least 1; got 0"),
    ],
)
def test_wrong_options_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        partial(AttackOptions, **changes)()
