"""What experiments on outliers measure: sets of images that belong to no class, and scores that find them."""

from nc_jax.extras import require
from nc_jax.study.outputs import Outputs

require("PIL", "data", __name__)

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, UInt8

from nc_jax.data import LabelledArrays, glyphs
from nc_jax.data.characters import SIZE
from nc_jax.data.digits import PIXEL_MAX
from nc_jax.metrics import (
    ClassStatistics,
    Nci,
    Neco,
    Vim,
    auroc,
    energy_score,
    false_positive_rate,
    max_logit,
    max_softmax,
    outlier_orthogonality,
)
from nc_jax.study.comparison import Found, Run
from nc_jax.study.data import Data

CHARACTERS = 40  # other characters: as many classes as the 1,600 images of a set of outliers take
TILES = 4  # on each axis: tiles of 7 x 7 pixels, in which strokes are left and characters are not
DIGIT = 20  # the longer side of the ink in MNIST
# Name of a score in a run's numbers: its title.
SCORES = {
    "softmax": "max softmax",
    "logit": "max logit",
    "energy": "energy",
    "vim": "ViM",
    "neco": "NECO",
    "neco_released": "NECO, released program",
    "nci_angle": "NCI, angle only",
    "nci": "NCI",
    "length": "length of the feature",
}


def check_images(data: Data) -> None:
    """Raise a ValueError unless a set has the images that the sets of outliers have, too."""
    shape = data.test.take(np.zeros(1, np.int64)).inputs.shape[1:]
    if shape != (SIZE, SIZE, 1):
        raise ValueError(f"outliers are images of shape {(SIZE, SIZE, 1)}; got {data.test!r} of shape {shape}")


def outliers_of(name: str, data: Data, name_of_data: str) -> LabelledArrays:
    """Return a set of outliers, images like those that the network was trained on.

    Args:
        name: one of `OUTLIERS`.
        data: the data set of the run.
        name_of_data: its name; glyphs are not outliers among glyphs.

    Raises:
        ValueError: if there is no such set.
    """
    if name not in OUTLIERS:
        raise ValueError(f"a set of outliers must be one of {', '.join(OUTLIERS)}; got {name!r}")
    images = OUTLIERS[name](data, data.num_classes if name_of_data.startswith("glyphs") else 0)
    return LabelledArrays(images[..., None], np.zeros(len(images), np.int32), data.num_classes)


def _characters(data: Data, known: int) -> UInt8[np.ndarray, "number height width"]:
    """Test images of the characters that come after those of the training set, in the glyphs' order."""
    del data
    images = glyphs.load("test", num_classes=known + CHARACTERS)
    return np.asarray(images.inputs)[np.asarray(images.labels) >= known, ..., 0]


def _digits(data: Data, known: int) -> UInt8[np.ndarray, "number height width"]:
    """All handwritten digits of scikit-learn, enlarged from 8 x 8 pixels to the 20 x 20 of MNIST's ink."""
    del data, known
    from sklearn.datasets import load_digits

    pixels = np.asarray(load_digits(return_X_y=True)[0]).reshape(-1, 8, 8)
    small = np.rint(pixels * 255 / PIXEL_MAX).astype(np.uint8)
    large = [
        np.asarray(PIL.Image.fromarray(image).resize((DIGIT, DIGIT), PIL.Image.Resampling.BILINEAR)) for image in small
    ]
    border = (SIZE - DIGIT) // 2
    return np.pad(np.stack(large), ((0, 0), (border, border), (border, border)))


def _scrambled(data: Data, known: int) -> UInt8[np.ndarray, "number height width"]:
    """The test images themselves, each with its tiles in another random order: strokes without characters."""
    del known
    images = np.asarray(data.test.take(np.arange(len(data.test))).inputs)[..., 0]
    side = SIZE // TILES
    tiles = images.reshape(-1, TILES, side, TILES, side).swapaxes(2, 3).reshape(len(images), TILES**2, side, side)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(TILES**2), (len(images), 1)), axis=1)
    mixed = np.take_along_axis(tiles, orders[:, :, None, None], axis=1)
    return mixed.reshape(-1, TILES, TILES, side, side).swapaxes(2, 3).reshape(-1, SIZE, SIZE)


OUTLIERS: Mapping[str, Callable[[Data, int], np.ndarray]] = {
    "characters": _characters,
    "digits": _digits,
    "scrambled": _scrambled,
}


def find_outliers(run: Run, names: Sequence[str], name_of_data: str) -> Found:
    """Score the test examples of a finished run and several sets of outliers, and say how well each score works.

    Everything is fitted on the training set. No score has a number that is chosen with outliers: NECO takes K - 1
    directions, ViM half of the dimensions (of fewer than 768), and the weight of the length in NCI is such that both of
    its terms are equal on average over the training set.

    Args:
        run: the finished run.
        names: sets of outliers, of `OUTLIERS`.
        name_of_data: name of the data set.

    Returns:
        For each set and score "auroc/set/score" and "fpr95/set/score", and for each set "nc5/set".

    Raises:
        ValueError: if the images have another size, or there is no such set.
    """
    check_images(run.data)
    gather = functools.partial(Outputs.of, run.trainer, run.trained.state)
    outliers = {name: gather(outliers_of(name, run.data, name_of_data)) for name in names}
    frame, bias = (np.asarray(part) for part in (run.trained.train.frame, run.trained.train.bias))
    return detection(gather(run.data.train), gather(run.data.test), outliers, frame, bias)


def detection(
    train: Outputs, test: Outputs, outliers: Mapping[str, Outputs], frame: np.ndarray, bias: np.ndarray
) -> Found:
    """Fit the scores on training examples, and say how well each tells test examples from outliers.

    Args:
        train: what the network gives for the training set.
        test: the same for the test set.
        outliers: the same for sets of outliers, by name.
        frame: class vectors as columns, shape (d, K).
        bias: shape (K,).
    """
    fitted = _fit(train, frame, bias)
    inside = _scores(fitted, test)
    found: Found = {}
    for name, examples in outliers.items():
        outside = _scores(fitted, examples)
        labels = np.repeat([1, 0], [len(test.labels), len(examples.labels)])
        for score in SCORES:
            values = np.concatenate([inside[score], outside[score]])
            found[f"auroc/{name}/{score}"] = float(_auroc(values, labels))
            found[f"fpr95/{name}/{score}"] = float(_fpr95(values, labels))
        found[f"nc5/{name}"] = float(_orthogonality(fitted.stats, examples.features.mean(axis=0)))
    return found


class _Fitted(NamedTuple):
    stats: ClassStatistics
    neco: Neco
    standardised: Neco
    nci_angle: Nci
    nci: Nci
    vim: Vim


_auroc, _fpr95, _orthogonality = map(jax.jit, (auroc, false_positive_rate, outlier_orthogonality))


@jax.jit
def _fit(train: Outputs, frame: Float[Array, "dim classes"], bias: Float[Array, " classes"]) -> _Fitted:
    stats = ClassStatistics.from_batch(train.features, train.labels, frame.shape[1])
    angle = Nci.fit(stats, frame)
    lengths = jnp.sum(jnp.abs(train.features), axis=1)
    alpha = jnp.mean(angle.score(train.features, train.logits)) / jnp.mean(lengths)
    return _Fitted(
        stats,
        Neco.fit(stats, standardize=False),
        Neco.fit(stats),
        angle,
        Nci.fit(stats, frame, alpha),
        Vim.fit(stats, frame, bias).update(train.features, train.logits),
    )


@jax.jit
def _scores(fitted: _Fitted, examples: Outputs) -> dict[str, Any]:
    features, logits = examples.features, examples.logits
    return {
        "softmax": max_softmax(logits),
        "logit": max_logit(logits),
        "energy": energy_score(logits),
        "vim": fitted.vim.score(features, logits),
        "neco": fitted.neco.score(features),
        "neco_released": fitted.standardised.score(features, logits),
        "nci_angle": fitted.nci_angle.score(features, logits),
        "nci": fitted.nci.score(features, logits),
        "length": jnp.asarray(examples.lengths),
    }
